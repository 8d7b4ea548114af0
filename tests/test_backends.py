"""Engines on a graph of three operators, the fake engine, and how a backend is chosen."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, save

from semo_sdk.backends import onnxruntime, openvino
from semo_sdk.backends.base import Axis, Engine, GraphSpec, Preparable, TensorSpec
from semo_sdk.backends.device import DeviceArray, DeviceEngine, first, join
from semo_sdk.backends.fake import FakeEngine
from semo_sdk.backends.info import cuda_device_count
from semo_sdk.backends.onnxruntime import OnnxRuntimeEngine
from semo_sdk.backends.openvino import MAX_COMPILED, OpenVinoEngine
from semo_sdk.backends.torch import TorchDevice, TorchEngine
from semo_sdk.errors import EngineError, EngineMismatchError

SPEC = GraphSpec(
    "double",
    (TensorSpec("frames", "uint8", ("B", "N", 3)), TensorSpec("gain", "float32", ("B",))),
    (TensorSpec("bright", "uint8", ("B", "N", 3)), TensorSpec("sum", "float32", ("B", 3))),
    {"B": Axis(1, 1, 8), "N": Axis(1, 4, 16)},
)
TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
KINDS: dict[str, Callable[[Path], Engine]] = {
    "openvino": lambda path: OpenVinoEngine(SPEC, path),
    "onnxruntime": lambda path: OnnxRuntimeEngine(SPEC, path, threads=1),
    "onnxruntime:cuda": lambda path: OnnxRuntimeEngine(SPEC, path, provider="cuda"),
    "onnxruntime:tensorrt": lambda path: OnnxRuntimeEngine(SPEC, path, provider="tensorrt"),
    "torch": lambda path: TorchEngine(SPEC, double()),
    "torch:cuda": lambda path: TorchEngine(SPEC, double().to("cuda"), device=TorchDevice("cuda")),
}
HERE = [
    pytest.param(kind, marks=pytest.mark.skipif(not works, reason=f"no NVIDIA GPU for {kind}"))
    for kind, works in ((kind, ":" not in kind or cuda_device_count() > 0) for kind in KINDS)
]


def double() -> Any:
    """The graph of :func:`model_path` as a torch module."""
    pytest.importorskip("torch")
    import torch

    class Double(torch.nn.Module):
        def forward(self, frames: Any, gain: Any) -> Any:
            bright = frames.float() * gain[:, None, None]
            return bright.to(torch.uint8), bright.sum(1)

    return Double()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bright = frames * gain as uint8, sum = the same summed over frames."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["gain", "axes"], ["g"]),
        helper.make_node("Mul", ["x", "g"], ["y"]),
        helper.make_node("Cast", ["y"], ["bright"], to=TensorProto.UINT8),
        helper.make_node("ReduceSum", ["y", "one"], ["sum"], keepdims=0),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, TYPES[t.dtype], t.shape) for t in tensors]
        for tensors in (SPEC.inputs, SPEC.outputs)
    )
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
    ]
    graph = helper.make_graph(nodes, "double", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(model, full_check=True)
    path = tmp_path_factory.mktemp("graph") / "double.onnx"
    save(model, path)
    return path


def feeds(batch: int, frames: int, gain: float = 2.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(batch * 100 + frames)
    return {
        "frames": generator.integers(0, 100, (batch, frames, 3), dtype=np.uint8),
        "gain": np.full(batch, gain, np.float32),
    }


@pytest.fixture(params=HERE)
def engine(request: pytest.FixtureRequest, model_path: Path) -> Engine:
    provider = onnxruntime.PROVIDERS.get(request.param.partition(":")[2])
    if request.param.startswith("onnxruntime:") and provider not in onnxruntime._ort().get_available_providers():
        pytest.skip(f"ONNX Runtime without {provider}")
    return KINDS[request.param](model_path)


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 16), (3, 4)])
def test_engines_compute_any_size(engine: Engine, batch: int, frames: int) -> None:
    given = feeds(batch, frames)
    outputs = engine(given)
    np.testing.assert_array_equal(outputs["bright"], given["frames"] * 2)
    np.testing.assert_array_equal(outputs["sum"], given["frames"].astype(np.float32).sum(1) * 2)


def test_views_with_strides_are_fine(engine: Engine) -> None:
    given = feeds(2, 8)
    reversed_frames = {**given, "frames": given["frames"][:, ::-1]}
    np.testing.assert_array_equal(engine(reversed_frames)["bright"], engine(given)["bright"][:, ::-1])


def test_tensors_may_stay_on_the_device(model_path: Path) -> None:
    engine = OnnxRuntimeEngine(SPEC, model_path, threads=1)
    assert isinstance(engine, DeviceEngine)
    a, b = feeds(2, 4, gain=1.5), feeds(1, 4)
    arrays = [engine.on_device(given)["bright"] for given in (a, b)]
    whole = first(join(arrays), 2)
    assert isinstance(whole, DeviceArray) and whole.shape == (3, 2, 3) and whole.device is arrays[0].device
    expected = np.concatenate([engine(a)["bright"], engine(b)["bright"]])[:, :2]
    np.testing.assert_array_equal(np.asarray(whole), expected)
    again = engine({"frames": whole, "gain": np.ones(3, np.float32)})
    np.testing.assert_array_equal(again["bright"], expected)
    np.testing.assert_array_equal(np.asarray(arrays[0]), engine(a)["bright"])


def test_outputs_belong_to_the_caller(engine: Engine) -> None:
    first = engine(feeds(1, 4))
    kept = {name: array.copy() for name, array in first.items()}
    first["sum"][:] += 0  # writable
    engine(feeds(1, 4, gain=1.0))
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gain": None}, "takes"),
        ({"frames": np.zeros((1, 4, 3), np.float32)}, "expected uint8"),
        ({"frames": np.zeros((4, 3), np.uint8)}, "expected uint8"),
        ({"frames": np.zeros((1, 4, 4), np.uint8)}, "expected shape"),
        ({"gain": np.zeros(2, np.float32)}, "expected shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(engine: Engine, wrong: dict[str, np.ndarray | None], says: str) -> None:
    given = {k: v for k, v in {**feeds(1, 4), **wrong}.items() if v is not None}
    with pytest.raises(EngineError, match=says):
        engine(given)


def test_closed_engines_refuse(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine(feeds(1, 1))


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_unreadable_graphs_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(EngineError, match="broken"):
        KINDS[kind](path)


@pytest.mark.parametrize("kind", [OpenVinoEngine, OnnxRuntimeEngine])
def test_graphs_of_another_contract_are_refused(kind: Callable[..., Engine], model_path: Path) -> None:
    other = replace(SPEC, outputs=(*SPEC.outputs, TensorSpec("depth", "float32", ("B",))))
    with pytest.raises(EngineMismatchError, match=r"outputs \['bright', 'sum'\].*expects \['bright', 'depth', 'sum'\]"):
        kind(other, model_path)


def test_openvino_keeps_few_shapes_compiled(model_path: Path) -> None:
    engine = OpenVinoEngine(SPEC, model_path)
    for frames in range(1, MAX_COMPILED + 3):
        engine(feeds(1, frames))
    assert len(engine._compiled) == MAX_COMPILED
    engine(feeds(1, 1))  # was dropped, compiles again


def test_openvino_compiles_ahead_of_the_first_call_and_once(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    core = openvino._core()

    class Core:
        read_model = staticmethod(core.read_model)

        @staticmethod
        def compile_model(model: Any, *settings: Any) -> Any:
            compiled.append([list(port.shape) for port in model.inputs])
            return core.compile_model(model, *settings)

    engine = OpenVinoEngine(SPEC, model_path)
    monkeypatch.setattr(openvino, "_core", Core)
    assert isinstance(engine, Preparable) and not compiled
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(engine.prepare, {"B": 2, "N": 3}) for _ in range(4)]:
            done.result()
    assert compiled == [[[2, 3, 3], [2]]]
    given = feeds(2, 3)
    np.testing.assert_array_equal(engine(given)["bright"], given["frames"] * 2)
    assert len(compiled) == 1
    np.testing.assert_array_equal(engine(feeds(1, 4))["bright"], feeds(1, 4)["frames"] * 2)
    assert len(compiled) == 2
    engine.close()
    engine.prepare({"B": 1, "N": 1})  # a background thread may come late
    assert len(compiled) == 2


def test_a_graph_whose_file_is_gone_runs_what_it_compiled(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "double.onnx"
    path.write_bytes(model_path.read_bytes())
    engine, given = OpenVinoEngine(SPEC, path), feeds(1, 2)
    expected = engine(given)["sum"]
    path.unlink()
    np.testing.assert_array_equal(engine(given)["sum"], expected)
    with pytest.raises(EngineError, match=r"OpenVINO cannot read .*double\.onnx"):
        engine(feeds(1, 3))


def test_fake_engine_follows_inputs_and_nothing_else() -> None:
    engine, given = FakeEngine(SPEC, seed=3), feeds(3, 4)
    outputs = engine(given)
    assert {name: (a.shape, str(a.dtype)) for name, a in outputs.items()} == {
        "bright": ((3, 4, 3), "uint8"),
        "sum": ((3, 3), "float32"),
    }
    again = FakeEngine(SPEC, seed=3)(given)
    alone = FakeEngine(SPEC, seed=3)({name: array[1:2] for name, array in given.items()})
    for name in outputs:
        np.testing.assert_array_equal(outputs[name], again[name])
        np.testing.assert_array_equal(outputs[name][1:2], alone[name])
    assert not np.array_equal(FakeEngine(SPEC, seed=4)(given)["bright"], outputs["bright"])
    changed = {**given, "frames": given["frames"].copy()}
    changed["frames"][0, 2] += 1
    differs = (FakeEngine(SPEC, seed=3)(changed)["bright"] != outputs["bright"]).any(axis=2)
    np.testing.assert_array_equal(np.argwhere(differs), [[0, 2]])
    assert engine.calls == 1


def test_fake_engine_refuses_what_was_never_written() -> None:
    given = {**feeds(1, 1), "gain": np.array([np.nan], np.float32)}
    with pytest.raises(EngineError, match="'gain': NaN"):
        FakeEngine(SPEC)(given)


def test_a_graph_that_is_not_needed_gives_its_memory_back_and_runs_again(model_path: Path) -> None:
    with_memory = OpenVinoEngine(SPEC, model_path)
    first = with_memory(feeds(2, 3))
    with_memory.shrink()
    assert not with_memory._compiled
    for name, array in with_memory(feeds(2, 3)).items():
        np.testing.assert_array_equal(array, first[name])
    with_memory.close()
    with_memory.shrink()
