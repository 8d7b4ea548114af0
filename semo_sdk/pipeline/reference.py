"""portrait -> Reference: run once per portrait, used by every pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from semo_sdk.backends.device import Tensor, join, to_host
from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.errors import ImageError
from semo_sdk.pipeline.graphs import Graphs

__all__ = ["Reference", "encode_reference", "stack_references"]


@dataclass(frozen=True, eq=False)
class Reference:
    """What the model keeps of one portrait.

    Attributes:
        arrays: outputs of the ``reference`` graph by name: ``latents`` (B, c, s, s) float32, ``reference_motion``
            (B, 1, D) float32 and, as the model has them, ``cache``, ``appearance``, ``maps`` and ``controls``.
            On a GPU they stay there.
    """

    arrays: Mapping[str, Tensor]

    @cached_property
    def motion(self) -> np.ndarray:
        """(B, 1, D) float32 motion token of the portrait itself."""
        return to_host(self.arrays["reference_motion"])

    @cached_property
    def controls(self) -> np.ndarray | None:
        """(B, 7, D) float32 directions of token space, see :mod:`semo_sdk.pipeline.controls`, if the model has them."""
        return to_host(self.arrays["controls"]) if "controls" in self.arrays else None

    @property
    def drawn(self) -> dict[str, Tensor]:
        """What the ``render`` graph takes of it."""
        return {name: array for name, array in self.arrays.items() if name != "controls"}

    def __repr__(self) -> str:
        return f"Reference({', '.join(f'{name}={value.shape}' for name, value in self.arrays.items())})"


def encode_reference(graphs: Graphs, image: np.ndarray) -> Reference:
    """Runs the ``reference`` graph.

    Args:
        graphs: the model.
        image: (256, 256, 3) uint8 RGB crop of the portrait, or a batch (B, 256, 256, 3) of them.

    Raises:
        ImageError: another shape or dtype.
        EngineError: the engine failed.
    """
    batch = image[None] if image.ndim == 3 else image
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ImageError(
            f"the portrait's crop must be ({IMAGE_SIZE}, {IMAGE_SIZE}, 3) uint8 RGB, got {image.shape} {image.dtype}"
        )
    return Reference(graphs.on_device("reference", {"image": np.ascontiguousarray(batch)}))


def stack_references(references: Sequence[Reference]) -> Reference:
    """References of single portraits as one batch, in this order."""
    if len(references) == 1:
        return references[0]
    names = references[0].arrays
    return Reference({name: join([reference.arrays[name] for reference in references]) for name in names})
