"""The TensorRT adapter keeps the contract of all engines, on a fake TensorRT; and how "auto" comes to choose it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from semo_sdk.backends import tensorrt
from semo_sdk.backends.base import Arrays, Axis, Engine, GraphSpec, TensorSpec
from semo_sdk.backends.tensorrt import TensorRtEngine
from semo_sdk.backends.tensorrt_api import Gpu, check_io, gpu, load_flavour
from semo_sdk.engines.plan import profile
from semo_sdk.errors import BackendUnavailableError, EngineError, EngineMismatchError
from tests.fake_tensorrt import FakeMemory, FakeTensorRt

SPEC = GraphSpec(
    "double",
    (TensorSpec("frames", "uint8", ("B", "N", 3)), TensorSpec("gain", "float32", ("B",))),
    (TensorSpec("bright", "uint8", ("B", "N", 3)), TensorSpec("sum", "float32", ("B", 3))),
    {"B": Axis(1, 1, 8), "N": Axis(1, 4, 16)},
)


def compute(feeds: Mapping[str, np.ndarray]) -> Arrays:
    scaled = feeds["frames"].astype(np.float32) * feeds["gain"][:, None, None]
    return {"bright": scaled.astype(np.uint8), "sum": scaled.sum(1)}


def feeds(batch: int, frames: int, gain: float = 2.0) -> Arrays:
    generator = np.random.default_rng(batch * 100 + frames)
    return {
        "frames": generator.integers(0, 100, (batch, frames, 3), dtype=np.uint8),
        "gain": np.full(batch, gain, np.float32),
    }


@pytest.fixture
def memory() -> FakeMemory:
    return FakeMemory()


@pytest.fixture
def trt(memory: FakeMemory) -> FakeTensorRt:
    return FakeTensorRt(SPEC, profile(SPEC, 4), compute, memory)


@pytest.fixture
def engine(trt: FakeTensorRt, memory: FakeMemory) -> TensorRtEngine:
    return TensorRtEngine(SPEC, b"plan", flavour=trt.flavour(), memory=memory, where="it")


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 16), (3, 4), (4, 16)])
def test_any_size_of_the_profile_is_computed(engine: TensorRtEngine, batch: int, frames: int) -> None:
    assert isinstance(engine, Engine)
    given = feeds(batch, frames)
    found, expected = engine(given), compute(given)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_views_with_strides_are_fine(engine: TensorRtEngine) -> None:
    given = feeds(2, 8)
    turned = {**given, "frames": given["frames"][:, ::-1]}
    np.testing.assert_array_equal(engine(turned)["bright"], engine(given)["bright"][:, ::-1])


def test_outputs_belong_to_the_caller_and_buffers_are_made_once(engine: TensorRtEngine, memory: FakeMemory) -> None:
    buffers = dict(memory.buffers)
    first = engine(feeds(1, 4))
    kept = {name: array.copy() for name, array in first.items()}
    engine(feeds(4, 16, gain=1.0))
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)
    assert list(memory.buffers) == list(buffers) and len(buffers) == 4
    sizes = sorted(b.size for b in buffers.values())
    assert sizes == sorted([4 * 16 * 3, 4 * 4, 4 * 16 * 3, 4 * 3 * 4]), "largest sizes of the profile"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gain": None}, "takes"),
        ({"frames": np.zeros((1, 4, 3), np.float32)}, "expected uint8"),
        ({"frames": np.zeros((1, 4, 4), np.uint8)}, "expected shape"),
        ({"frames": np.zeros((1, 17, 3), np.uint8)}, r"\(1, 17, 3\) is outside.*\(1, 1, 3\) to \(4, 16, 3\)"),
        (feeds(5, 4), "max-sessions"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(engine: TensorRtEngine, wrong: dict, says: str) -> None:
    given = {k: v for k, v in {**feeds(1, 4), **wrong}.items() if v is not None}
    with pytest.raises(EngineError, match=says):
        engine(given)
    assert engine(feeds(1, 4)), "and the engine goes on"


def test_closed_engines_refuse_and_free(engine: TensorRtEngine, memory: FakeMemory) -> None:
    engine.close()
    engine.close()
    assert memory.closed
    with pytest.raises(EngineError, match="closed"):
        engine(feeds(1, 1))


def test_failures_of_tensorrt_are_told(trt: FakeTensorRt, engine: TensorRtEngine, memory: FakeMemory) -> None:
    trt.ok = False
    with pytest.raises(EngineError, match="TensorRT failed in graph 'double'"):
        engine(feeds(1, 1))
    with pytest.raises(EngineError, match=r"11\.4\.0 cannot load it: magic tag does not match"):
        TensorRtEngine(SPEC, b"broken", flavour=trt.flavour(), memory=memory, where="it")


def test_an_engine_of_another_contract_is_refused(trt: FakeTensorRt, memory: FakeMemory) -> None:
    trt.spec = replace(SPEC, outputs=(TensorSpec("bright", "float32", ("B", "N", 3)),))
    with pytest.raises(EngineMismatchError, match=r"output 'bright' is \('float32'.*output 'sum' is missing"):
        TensorRtEngine(SPEC, b"plan", flavour=trt.flavour(), memory=memory, where="it")


def test_a_fixed_size_where_a_dynamic_one_belongs_is_a_mismatch() -> None:
    from semo_sdk.backends.tensorrt_api import IoTensor

    right = [IoTensor("frames", "uint8", (-1, -1, 3), True), IoTensor("gain", "float32", (-1,), True)]
    right += [IoTensor("bright", "uint8", (-1, -1, 3), False), IoTensor("sum", "float32", (-1, 3), False)]
    check_io(SPEC, right, "it")
    for wrong in (replace(right[0], shape=(1, -1, 3)), replace(right[0], is_input=False), replace(right[0], name="x")):
        with pytest.raises(EngineMismatchError, match="frames"):
            check_io(SPEC, [wrong, *right[1:]], "it")
    four = replace(SPEC, axes={**SPEC.axes, "N": Axis(4, 4, 4)})
    fixed = [replace(t, shape=(-1, 4, 3)) if len(t.shape) == 3 else t for t in right]
    check_io(four, fixed, "it")
    check_io(four, right, "it")
    with pytest.raises(EngineMismatchError, match="frames"):
        check_io(four, [replace(right[0], shape=(-1, 5, 3)), *right[1:]], "it")


def test_rtx_kernels_are_kept_for_the_next_start(trt: FakeTensorRt, tmp_path: Path) -> None:
    kernels = tmp_path / "double.kernels"
    for expected in ([], [b"kernels"]):
        memory = trt.memory = FakeMemory()
        engine = TensorRtEngine(
            SPEC, b"plan", flavour=trt.flavour("tensorrt_rtx"), memory=memory, where="it", kernels=kernels
        )
        assert engine(feeds(1, 1)) and trt.caches == expected
        engine.close()
        assert [p.name for p in tmp_path.iterdir()] == ["double.kernels"]


def test_a_folder_that_cannot_be_written_costs_only_the_kernels(
    trt: FakeTensorRt, memory: FakeMemory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flavour = trt.flavour("tensorrt_rtx")
    kernels = tmp_path / "nowhere" / "double.kernels"
    with caplog.at_level(logging.INFO, "semo_sdk"):
        TensorRtEngine(SPEC, b"plan", flavour=flavour, memory=memory, where="it", kernels=kernels).close()
    assert "not kept" in caplog.text


def test_a_missing_tensorrt_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=r"semo-sdk\[tensorrt\]"):
        load_flavour("tensorrt")
    with pytest.raises(BackendUnavailableError, match=r"semo-sdk\[rtx\]"):
        load_flavour("tensorrt_rtx")
    info = tensorrt.probe()
    assert not info.available and "semo-sdk[rtx]" in info.reason


def test_the_gpu_is_asked_of_the_driver() -> None:
    found = gpu()
    assert found is None or (isinstance(found, Gpu) and "." in found.compute_capability and found.driver)
