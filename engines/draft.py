"""Quantised graphs that may be built: calibrated, without the layers that hurt, and checked on ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semo_sdk.backends.base import Arrays, GraphSpec, graph_specs
from semo_sdk.backends.engine_files import Attempt
from semo_sdk.backends.onnxruntime import OnnxRuntimeEngine
from semo_sdk.bundle import Bundle
from semo_sdk.engines.calibrate import Calibration, Pair, Recording, record
from semo_sdk.engines.check import compare, mean_errors
from semo_sdk.engines.plan import SPARED
from semo_sdk.engines.quantize import FEWEST_ROWS, Linear, linear_layers, observe, open_session, quantize, run
from semo_sdk.errors import MissingDependencyError

log = logging.getLogger(__name__)

LEAST_SHARE = 0.25  # of a graph's operations: below it quantising is not worth an error
# Largest root mean square error, of floats and of frames (51 dB): what one layer spoils are outlines, which are few
# pixels and far off. Layers that together are off by more than a half of it are looked at one by one.
SQUARE_LIMITS = (2e-2, 0.7)
LAYER_SHARE = 0.5


@dataclass(frozen=True)
class Draft:
    """One graph, quantised or not.

    Attributes:
        model: the serialised ONNX graph; None if the graph stays as it is.
        attempt: what it came to.
    """

    model: bytes | None
    attempt: Attempt


def draft_graphs(
    bundle: Bundle, precision: str, calibration: Calibration, *, progress: bool = False
) -> dict[str, Draft]:
    """Quantises the graphs of a bundle.

    Args:
        bundle: where the graphs come from.
        precision: "int8" or "fp8".
        calibration: inputs that the model meets.
        progress: show on stderr which graph is tried, and how many runs that took.

    Raises:
        BundleError: the bundle lacks a float16 graph.
        MissingDependencyError: the package onnx or onnxruntime is missing.
        EngineError: ONNX Runtime cannot run a graph.
    """
    from tqdm import tqdm

    drafts = {}
    with tqdm(desc=f"{precision}: the model speaks", unit="run", leave=False, disable=not progress) as bar:
        recording = record_bundle(bundle, calibration)
        for name, spec in graph_specs(bundle.config).items():
            if name in SPARED:
                drafts[name] = Draft(None, Attempt(precision=precision, passed=False, detail=SPARED[name]))
            else:
                bar.set_description(f"{precision}: {name} is tried")
                model, folder = read_graph(bundle, name)
                pairs = recording.seen[name], recording.held_out[name]
                drafts[name] = draft(model, folder, spec, precision, *pairs, tick=bar.update)
    return drafts


def record_bundle(bundle: Bundle, calibration: Calibration) -> Recording:
    """What the graphs of a bundle are fed and give on ONNX Runtime, in float32 where the bundle has it.

    Raises:
        EngineError: ONNX Runtime cannot run a graph.
    """
    precision = "fp32" if "fp32" in bundle.precisions else "fp16"
    specs = graph_specs(bundle.config)
    engines = {name: OnnxRuntimeEngine(spec, bundle.graph_path(name, precision)) for name, spec in specs.items()}
    try:
        return record(bundle.config, engines, calibration)
    finally:
        for engine in engines.values():
            engine.close()


def read_graph(bundle: Bundle, name: str) -> tuple[Any, Path]:
    """The float16 graph as an ``onnx.ModelProto``, and the folder that its references to the weights are relative to.

    Raises:
        BundleError: the bundle lacks it.
        MissingDependencyError: the package onnx is missing.
    """
    path = bundle.graph_path(name, "fp16")
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(f"int8 and fp8 need onnx ({error}): pip install 'semo-sdk[rtx]'") from error
    return onnx.load(path, load_external_data=False), path.parent


def draft(
    model: Any,
    folder: Path,
    spec: GraphSpec,
    precision: str,
    seen: Sequence[Pair],
    held_out: Sequence[Pair],
    tick: Callable[[], object] = lambda: None,
) -> Draft:
    """Quantises one graph if that is worth it and its numbers are right.

    Args:
        model: the float16 ``onnx.ModelProto``.
        folder: that its references to the weights are relative to.
        spec: the graph.
        precision: "int8" or "fp8".
        seen: launches to calibrate with, in float32.
        held_out: launches to check with.
        tick: called after each run of a quantised graph.
    """

    def refused(detail: str) -> Draft:
        log.info("graph %s stays in fp16: %s", spec.name, detail)
        return Draft(None, Attempt(precision=precision, passed=False, detail=detail))

    candidates = linear_layers(model)
    if not candidates:
        return refused("no linear layer in float16 that is large enough")
    observed = observe(model, folder, candidates, [feeds for feeds, _ in seen])
    layers = [layer for layer in candidates if observed.rows[layer.activation] >= FEWEST_ROWS]
    share = sum(observed.operations[layer.output] for layer in layers) / sum(observed.operations.values())
    if share < LEAST_SHARE:
        return refused(f"its linear layers are {share:.0%} of its operations: not worth an error")
    outputs = [t.name for t in spec.outputs]
    # the smallest launch decides which layers hurt: that takes many runs
    feeds, expected = min(seen, key=lambda pair: sum(array.size for array in pair[1].values()))

    def off(found: Arrays, wanted: Arrays) -> float:
        errors = mean_errors(spec, wanted, found, power=2)
        return max(errors[t.name] / SQUARE_LIMITS[t.dtype == "uint8"] for t in spec.outputs)

    def excess(some: Sequence[Linear]) -> float:
        session = open_session(quantize(model, folder, some, observed.peaks, precision), folder)
        found = run(session, outputs, feeds)
        tick()
        return off(found, expected)

    spoilers = harmful(layers, excess)
    kept = [layer for layer in layers if layer not in spoilers]
    if not kept:
        return refused("every linear layer alone spoils the result")
    made = quantize(model, folder, kept, observed.peaks, precision)
    session = open_session(made, folder)
    checks = [(wanted, run(session, outputs, given)) for given, wanted in held_out]
    wanted, found = max(checks, key=lambda pair: off(pair[1], pair[0]))
    check = compare(spec, precision, wanted, found)
    if not check.passed or not off(found, wanted) <= 1:
        return refused(f"on ONNX Runtime: {check.detail}")
    share = sum(observed.operations[layer.output] for layer in kept) / sum(observed.operations.values())
    detail = f"{len(kept)} of {len(layers)} large linear layers, {share:.0%} of operations; on ONNX Runtime: "
    return Draft(made.SerializeToString(), Attempt(precision=precision, passed=True, detail=detail + check.detail))


def harmful(layers: Sequence[Linear], excess: Callable[[Sequence[Linear]], float]) -> list[Linear]:
    """Layers that are too far off by themselves: groups that are off are halved until single layers are left.

    Args:
        layers: all of them.
        excess: error of some layers quantised together, 1 = the graph's limit.
    """
    if excess(layers) <= LAYER_SHARE:
        return []
    if len(layers) == 1:
        return list(layers)
    half = len(layers) // 2
    return [*harmful(layers[:half], excess), *harmful(layers[half:], excess)]
