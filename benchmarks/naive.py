"""The version that one writes first: torch in float32, every kernel launched from Python, one session, the reference
encoded again for each pass and attended to jointly (``cache_reference: false``, as in the paper).

It is what the speed of everything else is a multiple of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from semo_sdk.backends.base import Arrays, Engine, GraphSpec, graph_specs
from semo_sdk.backends.device import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semo_sdk.bundle import Bundle


class _Afresh:
    """The render graph with its reference encoded each time."""

    def __init__(self, render: Engine, reference: Engine, image: np.ndarray) -> None:
        self.spec: GraphSpec = render.spec
        self._render, self._reference, self._image = render, reference, image

    def __call__(self, feeds: Mapping[str, Tensor]) -> Arrays:
        self._reference({"image": self._image})
        outputs: Arrays = self._render(feeds)  # type: ignore[arg-type]
        return outputs

    def close(self) -> None:
        self._render.close()


def naive_passes(bundle: Bundle, seconds: float) -> dict[str, Any]:
    """:func:`semo_sdk.benchmarks.throughput.passes` of one session on the naive version.

    Raises:
        MissingDependencyError, BackendUnavailableError: torch is not installed.
        CheckpointError: the bundle's weights cannot be read.
    """
    from semo_sdk.backends.torch import TorchDevice, TorchEngine, has_cuda
    from semo_sdk.benchmarks.throughput import passes
    from semo_sdk.constants import IMAGE_SIZE
    from semo_sdk.models.checkpoint import load_checkpoint
    from semo_sdk.models.graphs import graph_modules
    from semo_sdk.models.semo import SemoModel
    from semo_sdk.pipeline.graphs import Graphs

    device = TorchDevice("cuda" if has_cuda() else "cpu")
    trained, _ = load_checkpoint(bundle.weights_path)
    decoder = bundle.config.decoder.model_copy(update={"cache_reference": False})
    config = bundle.config.model_copy(update={"decoder": decoder})
    model = SemoModel(config)
    model.load_state_dict(trained.state_dict())
    modules = graph_modules(model.to(device.name))
    engines: dict[str, Engine] = {
        name: TorchEngine(spec, modules[name], device=device, capture=False)
        for name, spec in graph_specs(config).items()
    }
    image = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    engines["render"] = _Afresh(engines["render"], engines["reference"], image)
    with_cuda = "CUDA" if device.is_gpu else "CPU"
    return {
        "what": f"torch fp32 eager on {with_cuda}, no reference cache",
        **passes(Graphs(engines, config), 1, seconds),
    }
