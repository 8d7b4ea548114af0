"""One ONNX graph to one serialised engine, in any TensorRT."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from semo_sdk.backends.tensorrt_api import DTYPES, Flavour, check_io, logger, network_io
from semo_sdk.engines.plan import GraphPlan
from semo_sdk.engines.progress import monitor
from semo_sdk.errors import EngineError, EngineMismatchError
from semo_sdk.files import replacing

log = logging.getLogger(__name__)

# numpy names of element types -> our names of precisions
PRECISION_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "fp8"}


@dataclass(frozen=True)
class Compiled:
    """A serialised engine.

    Attributes:
        data: the engine.
        arithmetic: how many matrix products and convolutions compute in each element type ("float16": 40). The network
            is strongly typed, so this is what the engine does, not what it was allowed to do. A product is one of int8
            or float8 if both of its inputs were: whether the GPU has a kernel for it is seen on the GPU alone.
        seconds: of parsing and building.
    """

    data: bytes
    arithmetic: dict[str, int]
    seconds: float

    @property
    def precision(self) -> str:
        """The precision of most matrix products; "fp32" for a graph without any."""
        return precision_name(max(self.arithmetic, key=lambda k: self.arithmetic[k], default="float32"))


def precision_name(element: str) -> str:
    """Our name of a numpy element type: "fp16" for "float16"."""
    return PRECISION_NAMES.get(element, element)


def compile_graph(
    flavour: Flavour, plan: GraphPlan, onnx: bytes, path: Path, *, bar: Any = None, timing_cache: Path | None = None
) -> Compiled:
    """Parses, checks and builds.

    Args:
        flavour: the TensorRT to build with.
        plan: profile and settings.
        onnx: the graph.
        path: file that its references to the weights are relative to.
        bar: a tqdm bar to move.
        timing_cache: file with kernel timings of earlier builds, read and written by classic TensorRT (TensorRT-RTX
            needs none: it finishes kernels on the user's GPU).

    Raises:
        EngineError: TensorRT cannot read the graph or build it; the message is TensorRT's.
        EngineMismatchError: the parsed network's inputs or outputs are not the spec's.
        KeyboardInterrupt: interrupted while building.
    """
    started = perf_counter()
    trt, messages, name = flavour.module, logger(flavour), plan.spec.name
    builder = trt.Builder(messages)
    # In TensorRT 11 and TensorRT-RTX networks are always strongly typed; 10 has to be asked.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse(onnx, str(path)):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(f"{flavour.title} cannot read graph {name!r} ({path.name}): {problems}")
    check_io(plan.spec, network_io(network), f"graph {name!r} as {flavour.title} reads it")
    config = _config(flavour, builder, plan)
    timings = None if flavour.is_rtx else timing_cache
    if timings is not None:
        _read_timings(config, timings)
    watcher = None
    if bar is not None:
        watcher = config.progress_monitor = monitor(trt, bar)
    data = builder.build_serialized_network(network, config)
    if watcher is not None and watcher.stopped_by is not None:
        raise watcher.stopped_by
    if data is None:
        raise EngineError(f"{flavour.title} {flavour.version} cannot build graph {name!r}: {messages.last}")
    if timings is not None:
        with replacing(timings) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return Compiled(bytes(data), arithmetic(trt, network), perf_counter() - started)


def arithmetic(trt: Any, network: Any) -> dict[str, int]:
    """How many matrix products, convolutions and attentions of a network compute in each element type."""
    names = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "ATTENTION_OUTPUT")
    heavy = {getattr(trt.LayerType, name) for name in names if hasattr(trt.LayerType, name)}
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    found = Counter(_element(trt, layer, makers) for layer in layers if layer.type in heavy)
    return {DTYPES.get(dtype, dtype): count for dtype, count in found.most_common()}


def _element(trt: Any, layer: Any, makers: Mapping[str, Any]) -> str:
    """TensorRT's name of the type that a product computes in: that of its inputs before they were dequantised."""
    types = set()
    for i in range(min(2, layer.num_inputs)):
        maker = makers.get(layer.get_input(i).name)
        while maker is not None and maker.type == trt.LayerType.SHUFFLE:  # a transposed weight
            maker = makers.get(maker.get_input(0).name)
        if maker is None or maker.type != trt.LayerType.DEQUANTIZE:
            return str(layer.get_output(0).dtype.name)
        types.add(maker.get_input(0).dtype.name)
    return str(types.pop() if len(types) == 1 else layer.get_output(0).dtype.name)


def _config(flavour: Flavour, builder: Any, plan: GraphPlan) -> Any:
    trt, config = flavour.module, builder.create_builder_config()
    # float32 means float32: TensorFloat-32 has 10 bits, and the logarithm of the speech spectrum needs more
    config.clear_flag(trt.BuilderFlag.TF32)
    if plan.optimization_level is not None:
        config.builder_optimization_level = plan.optimization_level
    shapes = builder.create_optimization_profile()
    for name, (smallest, common, largest) in plan.profile.items():
        shapes.set_shape(name, smallest, common, largest)
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"{flavour.title} refuses the profile of graph {plan.spec.name!r}: {dict(plan.profile)}")
    if plan.compute_capabilities:
        config.num_compute_capabilities = len(plan.compute_capabilities)
        for i, capability in enumerate(plan.compute_capabilities):
            known = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
            if known is None or not config.set_compute_capability(known, i):
                raise EngineMismatchError(
                    f"{flavour.title} {flavour.version} does not build for compute capability {capability}"
                )
    return config


def _read_timings(config: Any, path: Path) -> None:
    """Attaches timings of earlier builds; those of another GPU or version are dropped."""
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        log.info("%s is of another GPU or TensorRT: timing anew", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)
