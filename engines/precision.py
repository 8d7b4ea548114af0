"""A graph file in the precision to build: bfloat16 is made from the float16 file, the others are in the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semo_sdk.bundle import Bundle
from semo_sdk.engines.plan import STORED
from semo_sdk.errors import EngineError, MissingDependencyError


def graph_bytes(bundle: Bundle, graph: str, precision: str) -> tuple[bytes, Path]:
    """An ONNX graph in a precision, and the file that its references to the weights are relative to.

    Raises:
        BundleError: the bundle lacks the file that it is made from.
        MissingDependencyError: bfloat16 needs the package ``onnx``.
    """
    path = bundle.graph_path(graph, STORED[precision])
    if precision != "bf16":
        return path.read_bytes(), path
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(f"building in bf16 needs onnx ({error}): pip install 'semo-sdk[rtx]'") from error
    model = onnx.load(path, load_external_data=False)
    to_bfloat16(model)
    return model.SerializeToString(), path


def to_bfloat16(model: Any) -> int:
    """Turns every float16 computation of a graph into bfloat16, in place.

    The weights stay float16, as they are stored, with a cast behind each; what is float32 stays so.

    Args:
        model: an ``onnx.ModelProto`` whose inputs and outputs are not float16.

    Returns:
        Number of weights and constants that were cast.

    Raises:
        EngineError: an input or output is float16, or a node has a subgraph.
    """
    from onnx import AttributeProto, TensorProto, helper, numpy_helper

    half, brain = TensorProto.FLOAT16, TensorProto.BFLOAT16
    graph = model.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == half:
            raise EngineError(f"graph {graph.name!r}: {value.name!r} is float16; inputs and outputs must not be")
    del graph.value_info[:]
    casts, renamed = [], {}
    for initializer in graph.initializer:
        if initializer.data_type == half:
            renamed[initializer.name] = f"{initializer.name}/bfloat16"
            casts.append(helper.make_node("Cast", [initializer.name], [renamed[initializer.name]], to=brain))
    constants = 0
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        for attribute in node.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                raise EngineError(f"graph {graph.name!r}: {node.op_type} {node.name!r} has a subgraph")
            if attribute.name in ("to", "dtype") and attribute.type == AttributeProto.INT and attribute.i == half:
                attribute.i = brain
            elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == half:
                values = numpy_helper.to_array(attribute.t).astype("float32")
                numbers = [float(v) for v in values.reshape(-1)]
                attribute.t.CopyFrom(helper.make_tensor(attribute.t.name, brain, values.shape, numbers))
                constants += 1
    nodes = [*casts, *graph.node]
    copies = [type(node)() for node in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)
    return len(casts) + constants
