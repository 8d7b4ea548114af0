"""A TensorRT and a CUDA stream made of numpy: what the adapter says to them, in which order, with which addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec
from semo_sdk.backends.tensorrt_api import DTYPES, Flavour
from semo_sdk.engines.plan import Profile

Compute = Callable[[Mapping[str, np.ndarray]], Arrays]
NAMES = {ours: theirs for theirs, ours in DTYPES.items()}


class FakeMemory:
    """Device memory: byte arrays that are poisoned at first, copied at ``synchronize`` and not before."""

    stream = 77

    def __init__(self) -> None:
        self.buffers: dict[int, np.ndarray] = {}
        self.waiting: list[Callable[[], None]] = []
        self.closed = False

    def allocate(self, size: int) -> int:
        address = 4096 * (len(self.buffers) + 1)
        self.buffers[address] = np.full(size, 0xFF, np.uint8)
        return address

    def upload(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.waiting.append(lambda: self._copy(self.buffers[address], array))

    def download(self, array: np.ndarray, address: int) -> None:
        assert array.flags.c_contiguous
        self.waiting.append(lambda: self._copy(array, self.buffers[address]))

    def synchronize(self) -> None:
        for action in self.waiting:
            action()
        self.waiting.clear()

    def close(self) -> None:
        self.closed = True

    def _copy(self, target: np.ndarray, source: np.ndarray) -> None:
        a, b = target.reshape(-1).view(np.uint8), source.reshape(-1).view(np.uint8)
        size = min(a.size, b.size)
        a[:size] = b[:size]


class FakeTensorRt:
    """The part of the Python module that the adapter uses, for engines of one graph.

    Args:
        spec: the graph that engines have, whatever the plan says.
        profile: its ranges.
        compute: what it does.
        memory: where it finds its tensors.
    """

    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")

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
        memory = self.trt.memory
        assert stream == memory.stream
        memory.waiting.append(self._run)  # in stream order: after the uploads, before the downloads
        return self.trt.ok

    def _run(self) -> None:
        feeds = {}
        for t in self.trt.spec.inputs:
            shape = self.shapes[t.name]
            size = int(np.prod(shape)) * np.dtype(t.dtype).itemsize
            data = self.trt.memory.buffers[self.addresses[t.name]][:size]
            feeds[t.name] = data.view(t.dtype).reshape(shape).copy()
        for name, array in self.trt.compute(feeds).items():
            buffer = self.trt.memory.buffers[self.addresses[name]]
            buffer[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
