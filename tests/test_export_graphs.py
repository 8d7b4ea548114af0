"""Single graphs: weights shared by value, names and axes by contract, float16 that is safe."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor, nn

from semo_sdk.backends.base import Axis, GraphSpec, TensorSpec
from semo_sdk.backends.onnxruntime import OnnxRuntimeEngine
from semo_sdk.backends.openvino import OpenVinoEngine
from semo_sdk.errors import ExportError
from semo_sdk.export.graph import export_graph
from semo_sdk.export.precision import check_types, element_types, protect_float32
from semo_sdk.export.weights import WeightIndex, share_weights, stored_tensors

SPEC = GraphSpec(
    "toy",
    (TensorSpec("x", "float32", ("B", "N", 32)),),
    (TensorSpec("y", "float32", ("B", "N", 64)),),
    {"B": Axis(1, 1, 8), "N": Axis(1, 4, 16)},
)


class Toy(nn.Module):
    """A linear layer that the exporter transposes, a convolution that it does not, a softmax in the module's dtype."""

    constant: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(32, 64), nn.Conv1d(64, 64, 3, padding=1)
        self.register_buffer("constant", torch.linspace(0, 1, 512).reshape(8, 64), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.linear(x.to(self.linear.weight.dtype)).softmax(-1)
        y = self.conv(y.transpose(1, 2)).transpose(1, 2)
        return (y.float() + self.constant.float().sum(0),)


@pytest.fixture(scope="module")
def toy() -> Toy:
    torch.manual_seed(0)
    module = Toy().eval().requires_grad_(False)
    for tensor in module.state_dict().values():
        tensor.copy_(tensor.half().float())
    return module


@pytest.fixture(scope="module")
def toy_graph(toy: Toy) -> Callable[[], Any]:
    exported = export_graph(toy, SPEC, {"who": "me"}).SerializeToString()
    return lambda: onnx.load_from_string(exported)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_shared_weights_compute_the_same(toy: Toy, toy_graph: Callable[[], Any], tmp_path: Path, dtype: Any) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({k: v.to(dtype).contiguous() for k, v in toy.state_dict().items()}, weights)
    graph = toy_graph()
    shared = share_weights(graph, WeightIndex(weights))
    assert shared.shared == 2 and shared.shared_bytes == 4 * (32 * 64 + 64 * 64 * 3)
    path = tmp_path / "toy.onnx"
    onnx.save(graph, path)
    onnx.checker.check_model(path, full_check=True)
    assert path.stat().st_size < shared.shared_bytes / 4
    x = torch.randn(3, 5, 32)
    expected = toy(x)[0].numpy()
    for engine in (OnnxRuntimeEngine(SPEC, path, threads=1), OpenVinoEngine(SPEC, path)):
        np.testing.assert_allclose(engine({"x": x.numpy()})["y"], expected, rtol=1e-4, atol=1e-5)


def test_references_hold_exactly_the_stored_bytes(toy: Toy, toy_graph: Callable[[], Any], tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({k: v.half().contiguous() for k, v in toy.state_dict().items()}, weights)
    graph = toy_graph()
    share_weights(graph, WeightIndex(weights))
    stored = {(t.offset, t.size) for t in stored_tensors(weights)}
    for tensor in graph.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entry = {e.key: e.value for e in tensor.external_data}
            assert entry["location"] == "weights.safetensors"
            assert (int(entry["offset"]), int(entry["length"])) in stored


def test_values_that_are_no_weight_stay_inside(toy_graph: Callable[[], Any], tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"other": torch.zeros(100, 100)}, weights)
    graph = toy_graph()
    assert share_weights(graph, WeightIndex(weights)).shared == 0
    assert graph == toy_graph()


def test_foreign_weight_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for data in (b"", b"\x05\0\0\0\0\0\0\0{{{{{", b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(ExportError, match="not a safetensors file"):
            stored_tensors(path)


def test_graphs_carry_the_contract_and_nothing_of_this_machine(toy_graph: Callable[[], Any]) -> None:
    graph = toy_graph()
    assert {e.key: e.value for e in graph.metadata_props} == {"who": "me"}
    assert [d.dim_param or d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim] == ["B", "N", 32]
    assert [d.dim_param or d.dim_value for d in graph.graph.output[0].type.tensor_type.shape.dim] == ["B", "N", 64]
    data = graph.SerializeToString()
    for part in (Path(__file__).parent.parent, Path.home(), Path(torch.__file__).parent):
        assert str(part).encode() not in data


def test_delicate_operators_of_half_graphs_run_in_float32(toy: Toy, tmp_path: Path) -> None:
    graph = export_graph(deepcopy(toy).half(), SPEC)
    with pytest.raises(ExportError, match="Softmax .* computes in float16"):
        check_types(graph, "toy")
    assert protect_float32(graph) == 1
    check_types(graph, "toy")
    assert protect_float32(graph) == 0
    types = element_types(graph)
    multiplied = [n for n in graph.graph.node if n.op_type in ("MatMul", "Gemm", "Conv")]
    assert multiplied and all(types[n.input[1]] == TensorProto.FLOAT16 for n in multiplied)
    onnx.save(graph, tmp_path / "toy.onnx")
    x = torch.randn(2, 3, 32)
    found = OnnxRuntimeEngine(SPEC, tmp_path / "toy.onnx", threads=1)({"x": x.numpy()})["y"]
    np.testing.assert_allclose(found, toy(x)[0].numpy(), rtol=1e-2, atol=1e-2)


def test_uint8_meets_casts_only() -> None:
    frames = [helper.make_tensor_value_info(n, TensorProto.UINT8, [4, 3]) for n in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0])], "g", frames[:1], [])
    graph.output.append(helper.make_tensor_value_info("b", TensorProto.UINT8, [3, 4]))
    with pytest.raises(ExportError, match="Transpose .* works on uint8"):
        check_types(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), "g")


class Wrong(nn.Module):
    def __init__(self, forward: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.run = forward

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.run(x)


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda x: (x.repeat(1, 1, 2).half(),), "'y': FLOAT16 instead of float32"),
        (lambda x: (x,), "size 32 instead of 64"),
        (lambda x: (x.repeat(1, 1, 2).sum(0),), "2 axes instead of 3"),
        (lambda x: (x.repeat(1, 1, 2).sum(1, keepdim=True).expand(-1, 2, -1),), "axis N was exported with the fixed"),
        (lambda x: (torch.linalg.eig(x[:, :, None])[0],), "could not be exported"),
    ],
)
def test_graphs_that_break_the_contract_are_refused(forward: Callable[[Tensor], tuple[Tensor, ...]], says: str) -> None:
    with pytest.raises(ExportError, match=says):
        export_graph(Wrong(forward), SPEC)
