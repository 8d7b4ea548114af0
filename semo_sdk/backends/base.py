"""The contract between graphs and whatever runs them.

A :class:`GraphSpec` says what goes into and comes out of one graph. It is written once, here, and read by export
(dynamic axes), the engine builder (profiles), the runtime (checks) and the tests. An :class:`Engine` runs one graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from semo_sdk.backends.device import Tensor
from semo_sdk.config import SemoConfig
from semo_sdk.constants import (
    CHUNK_FRAMES,
    CONTEXT_FRAMES,
    CONTROLS,
    FEATURE_FRAMES,
    FEATURES_PER_FRAME,
    IMAGE_SIZE,
    WINDOW_SAMPLES,
)
from semo_sdk.errors import EngineError

Arrays = dict[str, np.ndarray]
Dim = int | str  # a fixed size, or the name of a dynamic axis


@dataclass(frozen=True)
class Axis:
    """Range of a dynamic axis: smallest, most common and largest size (an optimisation profile)."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of one input or output."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One exportable graph: an arrow of the data-flow picture."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, Axis]

    def check(self, feeds: Mapping[str, Tensor]) -> None:
        """Checks names, dtypes and shapes of ``feeds`` before a launch.

        Raises:
            EngineError: the first thing that does not fit, with expected and given value.
        """
        expected = {t.name for t in self.inputs}
        if set(feeds) != expected:
            raise EngineError(f"graph {self.name!r} takes {sorted(expected)}, got {sorted(feeds)}")
        bound: dict[str, int] = {}
        for spec in self.inputs:
            array = feeds[spec.name]
            if str(array.dtype) != spec.dtype or array.ndim != len(spec.shape):
                raise EngineError(
                    f"graph {self.name!r}, input {spec.name!r}: expected {spec.dtype} {spec.shape}, "
                    f"got {array.dtype} {array.shape}"
                )
            for dim, size in zip(spec.shape, array.shape, strict=True):
                want = bound.setdefault(dim, size) if isinstance(dim, str) else dim
                if size != want:
                    raise EngineError(
                        f"graph {self.name!r}, input {spec.name!r}: expected shape {spec.shape}, got {array.shape}"
                    )


@runtime_checkable
class Engine(Protocol):
    """Runs one graph. Thread-safe for one caller at a time; outputs belong to the caller (never a live buffer)."""

    spec: GraphSpec

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Runs the graph once.

        Raises:
            EngineError: inputs that do not fit ``spec``, or a failure of the runtime beneath.
        """
        ...

    def close(self) -> None:
        """Frees the engine's memory; calling it twice is fine."""
        ...


@runtime_checkable
class Preparable(Protocol):
    """An engine that compiles its graph for each combination of sizes, on any thread."""

    def prepare(self, sizes: Mapping[str, int]) -> None:
        """Compiles for these sizes of the graph's axes, as the first call with them would.

        Raises:
            EngineError: a failure of the runtime beneath.
        """
        ...


@runtime_checkable
class Shrinkable(Protocol):
    """An engine that can do with less memory until it is called again."""

    def shrink(self) -> None:
        """Frees what the next call makes again."""
        ...


def graph_specs(config: SemoConfig) -> dict[str, GraphSpec]:
    """The five graphs of a model (DESIGN section 2), by name.

    ``reference`` once per portrait; ``audio``, ``motion``, ``render`` once per chunk; ``motion_encoder`` for driving
    videos. ``B`` is the batch of sessions; ``N`` frames in one launch.
    """
    f32, u8 = "float32", "uint8"
    batch = Axis(1, 1, 8)
    side, channels, size = IMAGE_SIZE, config.latent_channels, config.latent_size
    dim, tokens = config.motion_dim, config.grid**2
    latents = TensorSpec("latents", f32, ("B", channels, size, size))
    reference_motion = TensorSpec("reference_motion", f32, ("B", 1, dim))
    reference = [latents, reference_motion]
    if config.decoder.cache_reference:
        reference.append(TensorSpec("cache", f32, ("B", config.decoder.layers, 2, tokens, config.decoder.hidden)))
    if config.decoder.warp_layers:
        reference.append(TensorSpec("appearance", f32, ("B", tokens, config.encoder.hidden)))
        reference.append(TensorSpec("maps", f32, ("B", *config.map_shape)))
    outputs = list(reference)
    if config.has_controls:
        outputs.append(TensorSpec("controls", f32, ("B", CONTROLS, dim)))
    features = TensorSpec("features", f32, ("B", FEATURE_FRAMES, FEATURES_PER_FRAME * config.audio.width))
    frames = Axis(config.decoder.temporal_window, CHUNK_FRAMES, CHUNK_FRAMES)
    render_inputs = [*reference, TensorSpec("motion", f32, ("B", "N", dim))]
    if config.needs_noise:
        render_inputs.insert(0, TensorSpec("noise", f32, ("B", "N", channels, size, size)))
    specs = (
        GraphSpec(
            "reference",
            (TensorSpec("image", u8, ("B", side, side, 3)),),
            tuple(outputs),
            {"B": batch},
        ),
        GraphSpec(
            "motion_encoder",
            (TensorSpec("frames", u8, ("B", "N", side, side, 3)),),
            (TensorSpec("motion", f32, ("B", "N", dim)),),
            {"B": batch, "N": Axis(1, CHUNK_FRAMES, CHUNK_FRAMES)},
        ),
        GraphSpec(
            "audio",
            (TensorSpec("pcm", f32, ("B", WINDOW_SAMPLES)),),
            (features,),
            {"B": batch},
        ),
        GraphSpec(
            "motion",
            (
                TensorSpec("noise", f32, ("B", CHUNK_FRAMES, dim)),
                TensorSpec("context", f32, ("B", CONTEXT_FRAMES, dim)),
                reference_motion,
                features,
                TensorSpec("available", "int64", ("B",)),
                TensorSpec("guidance", f32, ("B",)),
            ),
            (TensorSpec("motion", f32, ("B", CHUNK_FRAMES, dim)),),
            {"B": batch},
        ),
        GraphSpec(
            "render",
            tuple(render_inputs),
            (TensorSpec("frames", u8, ("B", "N", side, side, 3)),),
            {"B": batch, "N": frames},
        ),
    )
    return {spec.name: spec for spec in specs}
