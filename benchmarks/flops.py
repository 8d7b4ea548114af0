"""Floating-point operations of a graph, counted in its ONNX file.

Matrix products and convolutions only (``MatMul``, ``Gemm``, ``Conv``, ``ConvTranspose``; attention is two ``MatMul``
there): they are nearly all of the arithmetic, and what a machine's matrix-product peak is a bound for. A multiplication
and an addition are two operations. What the graph does besides (norms, softmax, warps, copies) counts as none, so a
share of peak can never be flattered by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semo_sdk.backends.base import GraphSpec
from semo_sdk.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    import numpy as np

COUNTED = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
# Operators that sizes are computed with; they are folded, so that every shape becomes a number.
ARITHMETIC = frozenset(
    {"Add", "Cast", "Concat", "Div", "Gather", "Identity", "Max", "Min", "Mul", "Reshape", "Shape", "Slice", "Squeeze"}
) | {"Sub", "Unsqueeze"}
LARGEST_SIZE_TENSOR = 64
ROUNDS = 8


def count(path: Path, spec: GraphSpec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Operations of one launch.

    Args:
        path: an ONNX file; its weights are not read.
        spec: the graph's contract.
        sizes: size of each dynamic axis, for example ``{"B": 1, "N": 16}``.

    Returns:
        Operator -> floating-point operations; the sum is the graph's.

    Raises:
        MissingDependencyError: the package onnx is not installed.
        EngineError: a shape depends on values.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            f"counting operations needs onnx ({error}): pip install 'semo-sdk[export]'"
        ) from None
    model = onnx.load(path, load_external_data=False)
    _fix(model.graph.input, spec, sizes)
    shapes = _shapes(model)
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in COUNTED:
            found[node.op_type] = found.get(node.op_type, 0) + _operations(node, shapes, path)
    return found


def _fix(values: Any, spec: GraphSpec, sizes: Mapping[str, int]) -> None:
    """Writes the sizes into the graph's inputs."""
    for value in values:
        tensor = next(t for t in spec.inputs if t.name == value.name)
        for dim, want in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True):
            dim.dim_value = sizes[want] if isinstance(want, str) else want


def _operations(node: Any, shapes: Mapping[str, list[int]], path: Path) -> int:
    try:
        given, made = shapes[node.input[0]], shapes[node.output[0]]
        if node.op_type == "MatMul":
            return 2 * math.prod(made) * given[-1]
        weight = shapes[node.input[1]]
        if node.op_type == "Gemm":
            turned = any(a.name == "transA" and a.i for a in node.attribute)
            return 2 * math.prod(made) * given[0 if turned else 1]
        # Conv: each output meets weight[1:] (inputs of its group, kernel); transposed: each input does.
        return 2 * math.prod(made if node.op_type == "Conv" else given) * math.prod(weight[1:])
    except KeyError as error:
        raise EngineError(f"{path}: the shape of {error} at {node.op_type} {node.name!r} is not known") from None


def _shapes(model: Any) -> dict[str, list[int]]:
    """Every tensor whose shape is a row of numbers. Sizes that are computed in the graph are folded until all are."""
    import onnx

    constants = _constants(model)
    shapes: dict[str, list[int]] = {}
    for _ in range(ROUNDS):
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = {t.name: list(t.dims) for t in inferred.initializer}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                shapes[value.name] = [d.dim_value for d in dims]
        missing = {n for node in model.graph.node if node.op_type in COUNTED for n in (*node.input, *node.output) if n}
        if missing <= shapes.keys() or not _fold(model, shapes, constants):
            break
    return shapes


def _constants(model: Any) -> dict[str, np.ndarray]:
    """Small whole-number tensors that stand in the file."""
    import onnx

    tensors = [(t.name, t) for t in model.graph.initializer]
    tensors += [
        (n.output[0], a.t)
        for n in model.graph.node
        if n.op_type == "Constant"
        for a in n.attribute
        if a.name == "value"
    ]
    return {
        name: onnx.numpy_helper.to_array(t)
        for name, t in tensors
        if t.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        and math.prod(t.dims) <= LARGEST_SIZE_TENSOR
        and t.data_location != onnx.TensorProto.EXTERNAL
    }


def _fold(model: Any, shapes: Mapping[str, list[int]], constants: dict[str, np.ndarray]) -> bool:
    """Replaces size arithmetic by its result, in place; False if there was nothing to replace."""
    import numpy as np
    import onnx
    from onnx.reference import ReferenceEvaluator

    folded = []
    for node in model.graph.node:
        if node.op_type not in ARITHMETIC or len(node.output) != 1:
            continue
        inputs = [name for name in node.input if name]
        if node.op_type == "Shape" and inputs[0] in shapes:
            start = next((a.i for a in node.attribute if a.name == "start"), 0)
            end = next((a.i for a in node.attribute if a.name == "end"), None)
            constants[node.output[0]] = np.array(shapes[inputs[0]][start:end], np.int64)
        elif inputs and all(name in constants for name in inputs):
            results: Any = ReferenceEvaluator(node).run(None, {name: constants[name] for name in inputs})
            constants[node.output[0]] = np.asarray(results[0])
        else:
            continue
        folded.append(node)
    for node in folded:
        model.graph.initializer.append(onnx.numpy_helper.from_array(constants[node.output[0]], node.output[0]))
        model.graph.node.remove(node)
    return bool(folded)
