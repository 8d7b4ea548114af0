"""What will be built, before anything is: profiles, precisions and keys, all derived from the bundle's GraphSpecs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semo_sdk.backends.base import Axis, GraphSpec
from semo_sdk.backends.engine_files import Device, sdk_version
from semo_sdk.backends.info import FLOAT32_GRAPHS
from semo_sdk.backends.tensorrt_api import Flavour
from semo_sdk.bundle import Bundle
from semo_sdk.engines.key import key_parts
from semo_sdk.engines.recipes import Recipe

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # input -> smallest, most common and largest shape

# What a graph is built in when its numbers are off: more range first (bf16), then more of everything.
SAFER = {"int8": "fp16", "fp8": "fp16", "fp16": "bf16", "bf16": "fp32"}
# The bundle's graph that a precision is made from. bfloat16 comes from float16: what is delicate is float32 there.
STORED = {"fp32": "fp32", "fp16": "fp16", "bf16": "fp16", "int8": "fp16", "fp8": "fp16"}
# Precisions that a bundle's graphs are quantised to, and the largest number that each has.
LARGEST = {"int8": 127.0, "fp8": 448.0}
QUANTISED = frozenset(LARGEST)
# Graphs that are never quantised, and why: measured with semo-tiny, docs/engines.md has the numbers.
SPARED = {
    "reference": "stays in fp16: it runs once per portrait",
    "audio": "stays in fp16: speech features do not survive eight bits",
    "motion": "stays in fp16: its errors add up from pass to pass",
}
BATCH_AXIS = "B"


@dataclass(frozen=True)
class GraphPlan:
    """How one graph will be built.

    Attributes:
        spec: its contract.
        precision: to try first.
        profile: shapes of the inputs.
        parts: what its key is made of.
        optimization_level: TensorRT's; None = its default.
        compute_capabilities: to build for; empty = the GPU of this machine.
    """

    spec: GraphSpec
    precision: str
    profile: Profile
    parts: Mapping[str, Any]
    optimization_level: int | None
    compute_capabilities: tuple[str, ...]


def profile(spec: GraphSpec, max_sessions: int) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Shapes of the inputs of a graph: the ranges of its axes, with batches of 1 to ``max_sessions``.

    TensorRT tunes for the middle one. A full batch is where time is short, so that is what it gets.
    """
    axes = {**spec.axes, BATCH_AXIS: Axis(1, max_sessions, max_sessions)}

    def shape(dims: tuple[int | str, ...], which: str) -> Shape:
        return tuple(getattr(axes[d], which) if isinstance(d, str) else d for d in dims)

    return {t.name: (shape(t.shape, "min"), shape(t.shape, "opt"), shape(t.shape, "max")) for t in spec.inputs}


def first_precision(graph: str, precision: str) -> str:
    """What a graph is built in first: speech features do not survive bfloat16 (see the OpenVINO engine)."""
    return "fp32" if precision == "bf16" and graph in FLOAT32_GRAPHS else precision


def plan_graph(
    bundle: Bundle,
    spec: GraphSpec,
    *,
    recipe: Recipe,
    flavour: Flavour,
    device: Device,
    precision: str,
    sessions: int,
    calibration: str | None = None,
) -> GraphPlan:
    """How to build one graph of a bundle; ``calibration`` is the digest of what a quantised one is calibrated with.

    Raises:
        BundleError: the bundle lacks the graph in that precision.
    """
    first = first_precision(spec.name, precision)
    bundle.graph_path(spec.name, STORED[first])
    shapes = profile(spec, sessions)
    parts = key_parts(
        bundle,
        spec.name,
        stored_precision=STORED[first],
        backend=flavour.name,
        backend_version=flavour.version,
        device=str(device),
        precision=precision,
        shapes={
            f"{name}.{which}": shape
            for name, three in shapes.items()
            for which, shape in zip(("min", "opt", "max"), three, strict=True)
        },
        sdk_version=sdk_version(),
        settings={"optimization_level": recipe.optimization_level}
        | ({"calibration": calibration} if calibration is not None else {}),
    )
    capabilities = device.compute_capabilities if recipe.is_portable else ()
    return GraphPlan(spec, first, shapes, parts, recipe.optimization_level, capabilities)
