"""A TensorRT and a CUDA stream made of numpy: what the adapter says to them, in which order, with which addresses."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec
from semo_sdk.backends.cuda_memory import Buffer
from semo_sdk.backends.tensorrt_api import DTYPES, Flavour
from semo_sdk.engines.plan import Profile
from semo_sdk.errors import EngineError

Compute = Callable[[Mapping[str, np.ndarray]], Arrays]
NAMES = {ours: theirs for theirs, ours in DTYPES.items()}


class FakeMemory:
    """Device memory: byte arrays that are poisoned at first; everything happens at ``synchronize`` and not before."""

    stream = 77

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.buffers: dict[int, np.ndarray] = {}  # those that somebody holds
        self.waiting: list[Callable[[], None]] = []
        self.allocated = self.uploaded = self.captured = self.replayed = 0
        self.can_capture = True

    def allocate(self, size: int) -> Buffer:
        self.allocated += 1
        address = 1 << 32 | self.allocated << 24
        self.buffers[address] = np.full(size, 0xFF, np.uint8)
        buffer = Buffer(address, size)
        # what is on the stream may still use it
        weakref.finalize(buffer, self.waiting.append, lambda: self.buffers.__delitem__(address))
        return buffer

    def upload(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.uploaded += array.nbytes
        self.waiting.append(lambda: self._write(address, array.reshape(-1).view(np.uint8)))

    def download(self, address: int, shape: Sequence[int], dtype: str | np.dtype) -> np.ndarray:
        array = np.full(tuple(shape), 0xEE, np.uint8).astype(dtype)
        flat = array.reshape(-1).view(np.uint8)
        self.waiting.append(lambda: flat.__setitem__(slice(None), self._read(address, flat.size)))
        return array

    def copy(self, target: int, source: int, size: int) -> None:
        self.waiting.append(lambda: self._write(target, self._read(source, size).copy()))

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        if not self.can_capture:
            raise EngineError("no CUDA graph: not today")
        outside, self.waiting[:] = list(self.waiting), []
        launch()
        recorded, self.waiting[:] = list(self.waiting), outside
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            self.waiting.extend(recorded)

        return replay

    def synchronize(self) -> None:
        todo, self.waiting[:] = list(self.waiting), []
        for action in todo:
            action()

    def _find(self, address: int) -> tuple[np.ndarray, int]:
        base = max(start for start in self.buffers if start <= address)
        return self.buffers[base], address - base

    def _read(self, address: int, size: int) -> np.ndarray:
        buffer, offset = self._find(address)
        assert offset + size <= buffer.size, "beyond the buffer"
        return buffer[offset : offset + size]

    def _write(self, address: int, data: np.ndarray) -> None:
        self._read(address, data.size)[:] = data


class FakeTensorRt:
    """The part of the Python module that the adapter uses, for engines of one graph.

    Args:
        spec: the graph that engines have, whatever the plan says.
        profile: its ranges.
        compute: what it does.
        memory: where it finds its tensors.
    """

    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")

    class ILogger:
        pass

    def __init__(self, spec: GraphSpec, profile: Profile, compute: Compute, memory: FakeMemory) -> None:
        self.spec, self.profile, self.compute, self.memory = spec, profile, compute, memory
        self.ok = True
        self.caches: list[bytes] = []
        self.__version__ = "11.4.0"

    def flavour(self, name: str = "tensorrt") -> Flavour:
        return Flavour(name, "TensorRT", self, self.__version__)

    def Runtime(self, log: Any) -> Any:
        def deserialize_cuda_engine(plan: bytes) -> Any:
            if plan == b"broken":
                log.log(SimpleNamespace(name="ERROR"), "magic tag does not match")
                return None
            return _Engine(self)

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)


class _Engine:
    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt = trt
        self.tensors = [*trt.spec.inputs, *trt.spec.outputs][::-1]  # an order that nobody should rely on
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, i: int) -> str:
        return self.tensors[i].name

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=NAMES[self._tensor(name).dtype])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(d, str) else d for d in self._tensor(name).shape)

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in {t.name for t in self.trt.spec.inputs} else "out"

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        assert index == 0
        return self.trt.profile[name]

    def create_runtime_config(self) -> Any:
        def deserialize(data: bytes) -> bool:
            self.trt.caches.append(bytes(data))
            return True

        cache = SimpleNamespace(deserialize=deserialize, serialize=lambda: b"kernels")
        return SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda c: None)

    def create_execution_context(self, settings: Any = None) -> Any:
        return _Context(self)

    def _tensor(self, name: str) -> Any:
        return next(t for t in self.tensors if t.name == name)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.trt = engine, engine.trt
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.trt.profile[name]
        self.shapes[name] = tuple(shape)
        return all(a <= s <= b for a, s, b in zip(smallest, shape, largest, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        sizes = {
            d: size
            for t in self.trt.spec.inputs
            for d, size in zip(t.shape, self.shapes[t.name], strict=True)
            if isinstance(d, str)
        }
        shape = next(t.shape for t in self.trt.spec.outputs if t.name == name)
        return tuple(sizes[d] if isinstance(d, str) else d for d in shape)

    def execute_async_v3(self, stream: int) -> bool:
        memory, shapes = self.trt.memory, dict(self.shapes)
        assert stream == memory.stream
        memory.waiting.append(lambda: self._run(shapes))  # in stream order
        return self.trt.ok

    def _run(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        feeds = {}
        for t in self.trt.spec.inputs:
            size = int(np.prod(shapes[t.name])) * np.dtype(t.dtype).itemsize
            data = self.trt.memory._read(self.addresses[t.name], size)
            feeds[t.name] = data.view(t.dtype).reshape(shapes[t.name]).copy()
        for name, array in self.trt.compute(feeds).items():
            self.trt.memory._write(self.addresses[name], np.ascontiguousarray(array).reshape(-1).view(np.uint8))
