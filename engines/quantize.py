"""A float16 graph with its large linear layers in int8 or float8: explicit quantise and dequantise nodes for TensorRT.

Symmetric (zero point 0): weights by output channel, activations by tensor, from the largest number that calibration
met; percentiles and least squared error were tried and are worse here. Scales are float32, and so is the product of a
quantised layer before it becomes float16 again: with float16 scales TensorRT-RTX 1.7 puts out the sums of products
unscaled in float16, where they overflow, and then multiplies them by a subnormal number. Weights stay where they are:
TensorRT folds their quantisation when it builds. What is float32 in the graph stays so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.backends.base import Arrays
from semo_sdk.engines.plan import LARGEST
from semo_sdk.errors import EngineError

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
# A layer is worth it if a tensor core's tile is filled in each direction; sizes must be whole multiples of its step.
SMALLEST, MULTIPLE, FEWEST_ROWS = 64, 16, 16
SMALLEST_PEAK = 1e-6  # of activations or weights that are all zero


@dataclass(frozen=True)
class Linear:
    """One product of an activation and a weight of a float16 graph.

    Attributes:
        output: its output's name, which is its own in a graph.
        activation: name of the first input.
        weight: name of the initializer, stored as it is or transposed.
        transposed: whether a Transpose stands between the two.
    """

    output: str
    activation: str
    weight: str
    transposed: bool

    @property
    def channels(self) -> int:
        """Axis of the output channels in the stored weight."""
        return 0 if self.transposed else 1


@dataclass(frozen=True)
class Observed:
    """What a graph did on given inputs.

    Attributes:
        peaks: activation -> the largest absolute number.
        rows: activation -> rows that meet the weight in one launch.
        operations: output of a product -> floating-point operations of one launch.
    """

    peaks: Mapping[str, float]
    rows: Mapping[str, int]
    operations: Mapping[str, int]


def linear_layers(model: Any) -> tuple[Linear, ...]:
    """Layers of an ``onnx.ModelProto`` that can be quantised: a MatMul with a float16 weight of a size worth it."""
    from onnx import TensorProto

    weights = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16 and _fits(t.dims)}
    made = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type != "MatMul":
            continue
        before, weight = made.get(node.input[1]), node.input[1]
        if before is not None and before.op_type == "Transpose":
            weight = before.input[0]
        if weight in weights:
            found.append(Linear(node.output[0], node.input[0], weight, before is not None))
    return tuple(found)


def _fits(dims: Sequence[int]) -> bool:
    return len(dims) == 2 and all(d >= SMALLEST and d % MULTIPLE == 0 for d in dims)


def observe(model: Any, folder: Path, layers: Iterable[Linear], feeds: Sequence[Arrays]) -> Observed:
    """Runs a graph in ONNX Runtime and watches its activations.

    Args:
        model: an ``onnx.ModelProto``.
        folder: that its references to the weights are relative to.
        layers: whose activations to watch.
        feeds: inputs, at least one set.

    Raises:
        EngineError: ONNX Runtime cannot run it.
    """
    from onnx import TensorProto, helper

    watched = _copy(model)
    graph = watched.graph
    activations = list(dict.fromkeys(layer.activation for layer in layers))
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    wanted: list[str] = []

    def add(op: str, inputs: list[str], output: str, element: int | None = None, **attributes: Any) -> str:
        graph.node.append(helper.make_node(op, inputs, [output], **attributes))
        if element is not None:
            graph.output.append(helper.make_tensor_value_info(output, element, None))
            wanted.append(output)
        return output

    for name in activations:
        magnitude = add("Abs", [name], f"{name}/watched/abs")
        peak = add("ReduceMax", [magnitude], f"{name}/watched/peak", keepdims=0)
        add("Cast", [peak], f"{name}/watched", TensorProto.FLOAT, to=TensorProto.FLOAT)
    for tensor in dict.fromkeys(t for node in products for t in (*node.input[:2], node.output[0])):
        add("Shape", [tensor], f"{tensor}/watched/shape", TensorProto.INT64)
    session = open_session(watched, folder)
    peaks = dict.fromkeys(activations, 0.0)
    seen: dict[str, Any] = {}
    for one in feeds:
        seen = dict(zip(wanted, _run(session, wanted, one), strict=True))
        peaks = {name: max(peak, float(seen[f"{name}/watched"])) for name, peak in peaks.items()}
    shape = "/watched/shape"
    shapes = {name.removesuffix(shape): [int(d) for d in seen[name]] for name in wanted if name.endswith(shape)}
    rows = {name: math.prod(shapes[name][:-1]) for name in activations}
    operations = {node.output[0]: _operations(node, shapes) for node in products}
    return Observed(peaks, rows, operations)


def _operations(node: Any, shapes: Mapping[str, Sequence[int]]) -> int:
    first, second, made = (shapes[name] for name in (*node.input[:2], node.output[0]))
    if node.op_type in ("MatMul", "Gemm"):
        return 2 * math.prod(made) * first[-1]
    return 2 * math.prod(made if node.op_type == "Conv" else first) * math.prod(second[1:])


def quantize(model: Any, folder: Path, layers: Iterable[Linear], peaks: Mapping[str, float], precision: str) -> Any:
    """A copy of a graph with some of its linear layers quantised.

    Args:
        model: an ``onnx.ModelProto``.
        folder: that its references to the weights are relative to.
        layers: of :func:`linear_layers`.
        peaks: activation -> its largest absolute number.
        precision: "int8" or "fp8".

    Returns:
        The copy, at operator set 19 or newer.
    """
    from onnx import TensorProto, helper, numpy_helper

    element = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[precision]
    made = _copy(model)
    graph = made.graph
    for opset in made.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, 19)
    stored = {t.name: t for t in graph.initializer}
    chosen = {layer.output: layer for layer in layers}
    nodes: list[Any] = []
    ready: dict[str, str] = {}  # float16 tensor -> its quantised copy in float32

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def rounded(name: str, peak: np.ndarray, **attributes: int) -> str:
        if name not in ready:
            new = f"{name}/quantised"
            scale = np.maximum(peak, SMALLEST_PEAK).astype(np.float32) / np.float32(LARGEST[precision])
            graph.initializer.append(numpy_helper.from_array(np.asarray(scale), f"{new}/scale"))
            graph.initializer.append(helper.make_tensor(f"{new}/zero", element, scale.shape, [0] * scale.size))
            how = [f"{new}/scale", f"{new}/zero"]
            wide = add("Cast", [name], f"{new}/before", to=TensorProto.FLOAT)
            small = add("QuantizeLinear", [wide, *how], f"{new}/{precision}", **attributes)
            ready[name] = add("DequantizeLinear", [small, *how], f"{new}/after", **attributes)
        return ready[name]

    for node in graph.node:
        layer = chosen.get(node.output[0])
        if layer is None:
            nodes.append(node)
            continue
        values = np.abs(_values(stored[layer.weight], folder).astype(np.float32))
        weight = rounded(layer.weight, values.max(axis=1 - layer.channels), axis=layer.channels)
        if layer.transposed:
            weight = add("Transpose", [weight], f"{layer.output}/quantised/weight", perm=[1, 0])
        activation = rounded(layer.activation, np.asarray(peaks[layer.activation]))
        product = add("MatMul", [activation, weight], f"{layer.output}/quantised/product")
        add("Cast", [product], layer.output, to=TensorProto.FLOAT16)
    del graph.value_info[:]
    _replace_nodes(graph, nodes)
    return made


def open_session(model: Any, folder: Path) -> Any:
    """ONNX Runtime on the CPU for an ``onnx.ModelProto``, quantised nodes computed as they stand.

    Raises:
        EngineError: ONNX Runtime cannot load it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        raise EngineError(f"ONNX Runtime cannot load the quantised graph {model.graph.name!r}: {error}") from error


def _run(session: Any, outputs: Sequence[str], feeds: Arrays) -> list[np.ndarray]:
    try:
        found: list[np.ndarray] = session.run(list(outputs), dict(feeds))
    except Exception as error:  # as above
        raise EngineError(f"ONNX Runtime cannot run the graph: {error}") from error
    return found


def run(session: Any, outputs: Sequence[str], feeds: Arrays) -> Arrays:
    """Outputs of a session by name.

    Raises:
        EngineError: a failure of ONNX Runtime.
    """
    return dict(zip(outputs, _run(session, outputs, feeds), strict=True))


def _values(tensor: Any, folder: Path) -> np.ndarray:
    """Numbers of an initializer, read from the weights file if they are there."""
    from onnx import external_data_helper, numpy_helper

    copy = type(tensor)()
    copy.CopyFrom(tensor)
    if external_data_helper.uses_external_data(copy):
        external_data_helper.load_external_data_for_tensor(copy, str(folder))
    return np.asarray(numpy_helper.to_array(copy))


def _copy(model: Any) -> Any:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _replace_nodes(graph: Any, nodes: Sequence[Any]) -> None:
    """Makes ``nodes`` those of the graph, less Transposes that nothing reads any more."""
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in nodes if node.op_type != "Transpose" or node.output[0] in read]
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
