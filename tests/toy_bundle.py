"""A bundle whose graphs have the contract of a real model and do next to nothing: an engine of it builds in a second.

Each output is a constant picture times the mean of all inputs, through one matrix product in the graph's precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper, save

from semo_sdk.backends.base import GraphSpec, TensorSpec, graph_specs
from semo_sdk.bundle import Bundle
from semo_sdk.config import SemoConfig
from semo_sdk.export.writer import bundle_folder, write_manifest

TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
ARITHMETIC = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


def toy_bundle(folder: Path, config: SemoConfig, *, gain: float = 0.5) -> Bundle:
    """Writes the bundle and opens it; with a ``gain`` beyond 65,504 its float16 graphs overflow."""
    with bundle_folder(folder) as work:
        (work / "weights.safetensors").write_bytes(b"none")
        for name, spec in graph_specs(config).items():
            for precision in ARITHMETIC:
                save(toy_graph(spec, precision, gain), work / f"{name}.{precision}.onnx")
        write_manifest(work, config, precisions=list(ARITHMETIC), licence="", provenance={}, metrics={})
    return Bundle.open(folder)


def toy_graph(spec: GraphSpec, precision: str, gain: float) -> ModelProto:
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, values: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def mean(t: TensorSpec) -> str:
        """(B, N or 1, 1): over all axes but the dynamic ones."""
        x = add("Cast", [t.name], f"{t.name}/float", to=TensorProto.FLOAT)
        fixed = [i for i, d in enumerate(t.shape) if not isinstance(d, str)]
        if fixed:
            x = add("ReduceMean", [x, constant(f"{t.name}/axes", np.array(fixed))], f"{t.name}/mean", keepdims=0)
        new = [1] if "N" in t.shape else [1, 2]
        new = [2] if "N" in t.shape else new
        return add("Unsqueeze", [x, constant(f"{t.name}/new", np.array(new))], f"{t.name}/column")

    total = mean(spec.inputs[0])
    for t in spec.inputs[1:]:
        total = add("Add", [total, mean(t)], f"{t.name}/total")
    to = ARITHMETIC[precision]
    x = add("Cast", [total], "in", to=to)
    weight = np.full((1, 1), gain, np.float32 if precision == "fp32" else np.float16)
    x = add("MatMul", [x, constant("weight", weight)], "product")
    x = add("Cast", [x], "out", to=TensorProto.FLOAT)  # (B, N or 1, 1)
    for t in spec.outputs:
        fixed = [d for d in t.shape if not isinstance(d, str)]
        lead = len(t.shape) - len(fixed)
        shape = constant(f"{t.name}/fixed", np.array([1] * lead + fixed))
        picture = add(
            "Expand", [constant(f"{t.name}/one", np.ones([1] * len(t.shape), np.float32)), shape], t.name + "/p"
        )
        kept = [0, 0] if lead == 2 else [0]
        column = constant(f"{t.name}/column", np.array(kept + [1] * len(fixed)))
        y = add("Mul", [picture, add("Reshape", [x, column], f"{t.name}/factor")], f"{t.name}/result")
        add("Cast", [y], t.name, to=TYPES[t.dtype])
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, TYPES[t.dtype], t.shape) for t in tensors]
        for tensors in (spec.inputs, spec.outputs)
    )
    graph = helper.make_graph(nodes, spec.name, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(model, full_check=True)
    return model
