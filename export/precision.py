"""Strongly typed float16 graphs: what is delicate runs in float32 between explicit casts, the rest in float16.

TensorRT 11 takes precision from the graph alone, so it has to be right there. The models already compute norms and
softmax in float32; this pass guarantees it for every graph, also for autoencoders written by others.
"""

from __future__ import annotations

from typing import Any

from semo_sdk.errors import ExportError

# Operators that sum many terms, or whose result overflows or cancels in float16.
DELICATE = frozenset(
    {
        "Exp",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "Log",
        "LogSoftmax",
        "LpNormalization",
        "RMSNormalization",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Reciprocal",
        "Softmax",
        "Softplus",
    }
)


def protect_float32(model: Any) -> int:
    """Puts casts around each delicate operator that computes in float16, in place.

    Args:
        model: an ``onnx.ModelProto``.

    Returns:
        Number of operators that had to be wrapped.
    """
    from onnx import TensorProto, helper

    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    types = element_types(model)
    nodes, wrapped = [], 0
    for node in model.graph.node:
        delicate = node.op_type in DELICATE and any(types.get(name) == half for name in (*node.input, *node.output))
        if not delicate:
            nodes.append(node)
            continue
        wrapped += 1
        name = node.name or f"{node.op_type}_{wrapped}"
        after = []
        for i, value in enumerate(node.input):
            if types.get(value) == half:
                node.input[i] = f"{value}/{name}/float32"
                nodes.append(helper.make_node("Cast", [value], [node.input[i]], name=f"{name}/in{i}", to=single))
        for i, value in enumerate(node.output):
            if types.get(value) == half:
                node.output[i] = f"{value}/{name}/float32"
                after.append(helper.make_node("Cast", [node.output[i]], [value], name=f"{name}/out{i}", to=half))
        nodes += [node, *after]
    copies = [helper.make_node("Identity", ["x"], ["y"]) for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return wrapped


def check_types(model: Any, name: str) -> None:
    """Checks what TensorRT will ask of a graph.

    Raises:
        ExportError: a delicate operator computes in float16, a uint8 tensor meets anything but a cast, or a tensor has
            no known type.
    """
    from onnx import TensorProto

    types = element_types(model)
    for node in model.graph.node:
        touched = [*node.input, *node.output]
        for value in touched:
            if value and value not in types:
                raise ExportError(f"graph {name!r}: tensor {value!r} of {node.op_type} {node.name!r} has no known type")
        found = {types[value] for value in touched if value}
        if node.op_type in DELICATE and TensorProto.FLOAT16 in found:
            raise ExportError(f"graph {name!r}: {node.op_type} {node.name!r} computes in float16")
        if node.op_type not in ("Cast", "Shape") and TensorProto.UINT8 in found:
            raise ExportError(
                f"graph {name!r}: {node.op_type} {node.name!r} works on uint8; cast right at the input or output"
            )


def element_types(model: Any) -> dict[str, int]:
    """ONNX element type of every tensor of the graph, by name."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    types = {t.name: t.data_type for t in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types
