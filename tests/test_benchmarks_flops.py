"""Operations counted in graphs: of known ones, of tiny models against torch, without onnx."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from semo_sdk.backends.base import Axis, GraphSpec, TensorSpec, graph_specs
from semo_sdk.benchmarks import flops
from semo_sdk.bundle import Bundle
from semo_sdk.config import SemoConfig
from semo_sdk.errors import MissingDependencyError

EXAMPLES = Path(__file__).parent.parent / "examples"
SPEC = GraphSpec("g", (TensorSpec("x", "float32", ("B", 6, 8, 8)),), (), {"B": Axis(1, 1, 8)})


def graph(nodes: list[Any], constants: dict[str, np.ndarray], path: Path) -> Path:
    """A graph from x (B, 6, 8, 8) to y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 6, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made: ModelProto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], initializers),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    save(made, path)
    return path


def test_operations_of_known_graphs(tmp_path: Path) -> None:
    def weights(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    node = helper.make_node
    cases: list[tuple[list[Any], dict[str, np.ndarray], dict[str, int]]] = [
        ([node("MatMul", ["x", "w"], ["y"])], {"w": weights(8, 5)}, {"MatMul": 2 * 3 * 6 * 8 * 8 * 5}),
        (
            [node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1, 1, 1])],
            {"w": weights(10, 3, 3, 3)},
            {"Conv": 2 * 3 * 10 * 64 * 3 * 9},
        ),
        (
            [node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])],
            {"w": weights(6, 4, 2, 2)},
            {"ConvTranspose": 2 * 3 * 6 * 64 * 4 * 4},
        ),
        (
            [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"], ["y"], transB=1)],
            {"w": weights(7, 384)},
            {"Gemm": 2 * 3 * 384 * 7},
        ),
        ([node("Relu", ["x"], ["y"])], {}, {}),
    ]
    for number, (nodes, constants, expected) in enumerate(cases):
        assert flops.count(graph(nodes, constants, tmp_path / f"{number}.onnx"), SPEC, {"B": 3}) == expected


def test_sizes_that_the_graph_computes_are_folded(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["b"]),
        node("Min", ["b", "two"], ["m"]),
        node("Div", ["b", "m"], ["d"]),
        node("Unsqueeze", ["d", "axis"], ["d1"]),
        node("Concat", ["d1", "rest"], ["shape"], axis=0),
        node("Reshape", ["x", "shape"], ["r"]),
        node("MatMul", ["r", "w"], ["y"]),
    ]
    constants = {
        "zero": np.array(0),
        "two": np.array(2),
        "axis": np.array([0]),
        "rest": np.array([-1, 8]),
        "w": np.zeros((8, 3), np.float32),
    }
    path = graph(nodes, constants, tmp_path / "g.onnx")
    for batch in (2, 4, 8):
        assert flops.count(path, SPEC, {"B": batch}) == {"MatMul": 2 * batch * 6 * 8 * 8 * 3}


def test_operations_are_those_that_torch_counts(tiny_bundle: Path, tiny_model: Any, tiny_config: SemoConfig) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from semo_sdk.models.graphs import graph_modules

    bundle, sizes = Bundle.open(tiny_bundle), {"B": 2, "N": 8}
    modules = graph_modules(tiny_model)
    for name, spec in graph_specs(tiny_config).items():
        inputs = [
            torch.ones([sizes[d] if isinstance(d, str) else d for d in t.shape], dtype=getattr(torch, t.dtype))
            for t in spec.inputs
        ]
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            modules[name](*inputs)
        for precision in ("fp32", "fp16"):
            found = sum(flops.count(bundle.graph_path(name, precision), spec, sizes).values())
            # Constants that the exporter folded are not computed, so a little less is right.
            assert 0.85 * counter.get_total_flops() < found <= counter.get_total_flops(), name


def test_counting_without_onnx_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"semo-sdk\[export\]"):
        flops.count(tmp_path / "g.onnx", SPEC, {"B": 1})
