"""The TensorRT adapter keeps the contract of all engines, on a fake TensorRT; and how "auto" comes to choose it."""

from __future__ import annotations

import ctypes
import gc
import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from semo_sdk.backends import tensorrt
from semo_sdk.backends.base import Arrays, Axis, Engine, GraphSpec, TensorSpec
from semo_sdk.backends.cuda_memory import RING_SLOTS, CudaDevice, CudaPythonMemory
from semo_sdk.backends.device import DeviceArray, first, join
from semo_sdk.backends.tensorrt import MAX_PASSES, TensorRtEngine
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
    return TensorRtEngine(SPEC, b"plan", flavour=trt.flavour(), device=CudaDevice(memory), where="it")


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
    mine = engine(feeds(1, 4))
    kept = {name: array.copy() for name, array in mine.items()}
    engine(feeds(4, 16, gain=1.0))
    for name, array in kept.items():
        np.testing.assert_array_equal(mine[name], array)
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
    assert memory.buffers
    engine.close()
    engine.close()
    memory.synchronize()
    assert not memory.buffers
    with pytest.raises(EngineError, match="closed"):
        engine(feeds(1, 1))


def test_failures_of_tensorrt_are_told(trt: FakeTensorRt, engine: TensorRtEngine, memory: FakeMemory) -> None:
    trt.ok = False
    with pytest.raises(EngineError, match="TensorRT failed in graph 'double'"):
        engine(feeds(1, 1))
    with pytest.raises(EngineError, match=r"11\.4\.0 cannot load it: magic tag does not match"):
        TensorRtEngine(SPEC, b"broken", flavour=trt.flavour(), device=CudaDevice(memory), where="it")


def test_an_engine_of_another_contract_is_refused(trt: FakeTensorRt, memory: FakeMemory) -> None:
    trt.spec = replace(SPEC, outputs=(TensorSpec("bright", "float32", ("B", "N", 3)),))
    with pytest.raises(EngineMismatchError, match=r"output 'bright' is \('float32'.*output 'sum' is missing"):
        TensorRtEngine(SPEC, b"plan", flavour=trt.flavour(), device=CudaDevice(memory), where="it")


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


def test_each_combination_of_shapes_is_captured_once(engine: TensorRtEngine, memory: FakeMemory) -> None:
    for gain in (1.0, 2.0, 3.0):
        given = feeds(2, 4, gain)
        np.testing.assert_array_equal(engine(given)["bright"], compute(given)["bright"])
    assert (memory.captured, memory.replayed) == (1, 3)
    for frames in range(1, MAX_PASSES + 2):
        engine(feeds(1, frames))
    assert memory.captured == MAX_PASSES + 2 and len(engine._passes) == MAX_PASSES
    np.testing.assert_array_equal(engine(feeds(2, 4))["sum"], compute(feeds(2, 4))["sum"])


def test_what_cannot_be_captured_runs_all_the_same(
    engine: TensorRtEngine, memory: FakeMemory, caplog: pytest.LogCaptureFixture
) -> None:
    memory.can_capture = False
    np.testing.assert_array_equal(engine(feeds(2, 4))["sum"], compute(feeds(2, 4))["sum"])
    assert "without a CUDA graph" in caplog.text


def test_tensors_that_stay_on_the_device_are_not_uploaded_again(engine: TensorRtEngine, memory: FakeMemory) -> None:
    given = feeds(2, 4)
    stayed = engine.on_device(given)
    assert all(isinstance(array, DeviceArray) for array in stayed.values())
    expected = compute(given)
    gain = np.array([0.5, 1], np.float32)
    memory.uploaded = 0
    twice = engine.on_device({"frames": stayed["bright"], "gain": gain})
    assert memory.uploaded == 8, "the gain alone"
    for name, array in compute({"frames": expected["bright"], "gain": gain}).items():
        np.testing.assert_array_equal(np.asarray(twice[name]), array)
    np.testing.assert_array_equal(np.asarray(stayed["bright"]), expected["bright"])


def test_tensors_are_joined_and_cut_on_the_device(engine: TensorRtEngine, memory: FakeMemory) -> None:
    a, b = feeds(2, 4), feeds(1, 4)
    memory.uploaded = 0
    arrays = [engine.on_device(one)["bright"] for one in (a, b)]
    uploaded = memory.uploaded
    whole = first(join(arrays), 2)
    assert isinstance(whole, DeviceArray) and whole.shape == (3, 2, 3) and memory.uploaded == uploaded
    both = np.concatenate([compute(one)["bright"] for one in (a, b)])
    np.testing.assert_array_equal(np.asarray(whole), both[:, :2])
    mixed = join([arrays[0], compute(b)["bright"]])
    np.testing.assert_array_equal(mixed, both)


class FakeCudaRuntime:
    """Of the CUDA runtime what the memory uses: host memory stands for the device's, and copies happen at once."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.error = 0

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return self.error, 5

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return self.error, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> tuple[int]:
        del self.blocks[address]
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        ctypes.memmove(target, source, size)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (0,)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return (0,)


def test_memory_goes_around_and_is_freed() -> None:
    runtime = FakeCudaRuntime()
    memory = CudaPythonMemory(runtime)
    data = np.arange(12, dtype=np.float32)
    addresses = set()
    for _ in range(5):
        buffer = memory.allocate(48)
        addresses.add(buffer.address)
        memory.upload(buffer.address, data)
        views = memory.download(buffer.address, (3, 4), "float32")[1:]
        del buffer
        np.testing.assert_array_equal(views, data.reshape(3, 4)[1:])
        del views
    assert len(addresses) == 1 and len(runtime.blocks) == 2, "one on the device, one slot of the ring"
    held = memory.allocate(48)
    memory.upload(held.address, data)
    arrays = [memory.download(held.address, (12,), "float32") for _ in range(RING_SLOTS + 4)]
    assert len(runtime.blocks) == 1 + RING_SLOTS, "whoever hoards gets ordinary memory"
    assert all((array == data).all() for array in arrays)
    arrays[0][:] = 0
    assert all((array == data).all() for array in arrays[1:])
    last = arrays[1]
    del memory, held, arrays
    assert runtime.blocks, "an array in the ring still lives"
    np.testing.assert_array_equal(last, data)
    del last
    gc.collect()
    assert not runtime.blocks


def test_errors_of_cuda_are_told() -> None:
    runtime = FakeCudaRuntime()
    memory = CudaPythonMemory(runtime)
    runtime.error = 2
    with pytest.raises(EngineError, match="CUDA failed: 2"):
        memory.allocate(10)


def test_cuda_python_has_what_the_memory_asks_for() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    source = inspect.getsource(CudaPythonMemory)
    names = set(re.findall(r"(?:_cuda|runtime)\.(cuda\w+)", source))
    assert len(names) > 10 and all(hasattr(runtime, name) for name in names)


def test_rtx_kernels_are_kept_for_the_next_start(trt: FakeTensorRt, tmp_path: Path) -> None:
    kernels = tmp_path / "double.kernels"
    for expected in ([], [b"kernels"]):
        memory = trt.memory = FakeMemory()
        engine = TensorRtEngine(
            SPEC, b"plan", flavour=trt.flavour("tensorrt_rtx"), device=CudaDevice(memory), where="it", kernels=kernels
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
        TensorRtEngine(SPEC, b"plan", flavour=flavour, device=CudaDevice(memory), where="it", kernels=kernels).close()
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
