"""Device memory, pinned host memory and one stream, from the CUDA runtime through cuda-python.

Everything that is asked for happens in order on the one stream, so nothing between two graphs has to be waited for,
and a buffer that is given back may be handed out again at once: whatever uses it next comes later on the stream.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from semo_sdk.backends.device import DeviceArray
from semo_sdk.errors import BackendUnavailableError, EngineError

RING_SLOTS = 32  # pinned arrays of one size at once; further ones lie in ordinary memory


@dataclass(frozen=True, eq=False, weakref_slot=True, slots=True)
class Buffer:
    """Bytes on the device; handed out again when nobody holds it any more."""

    address: int
    size: int


class CudaMemory(Protocol):
    """One CUDA stream and the buffers that are used on it. The calls are ordered on the stream and do not wait for it.

    Attributes:
        stream: the stream's handle.
        lock: held by whoever uses the stream: waiting for it while another thread captures it would spoil the capture.
    """

    stream: int
    lock: threading.RLock

    def allocate(self, size: int) -> Buffer:
        """``size`` new bytes."""
        ...

    def upload(self, address: int, array: np.ndarray) -> None:
        """Host to device. The array is C-contiguous and stays as it is until ``synchronize`` returns."""
        ...

    def download(self, address: int, shape: Sequence[int], dtype: str | np.dtype) -> np.ndarray:
        """Device to a new array, whose numbers are there when ``synchronize`` returns.

        It lies in a ring of pinned memory whose slots are used again when nobody holds the array or a view of it.
        """
        ...

    def copy(self, target: int, source: int, size: int) -> None:
        """Device to device."""
        ...

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """What ``launch`` puts on the stream as a CUDA graph; calling the result launches it again.

        Raises:
            EngineError: it cannot be captured.
        """
        ...

    def synchronize(self) -> None:
        """Waits for everything on the stream."""
        ...


class CudaDevice:
    """Tensors in a :class:`CudaMemory`; the value of a :class:`DeviceArray` of it is its :class:`Buffer`."""

    def __init__(self, memory: CudaMemory) -> None:
        self.memory = memory

    def keep(self, address: int, shape: Sequence[int], dtype: str | np.dtype) -> DeviceArray:
        """A copy, on the device, of what is at ``address``: that buffer may then be written again."""
        array = self._new(shape, dtype)
        self.memory.copy(array.value.address, address, array.nbytes)
        return array

    def download(self, array: DeviceArray) -> np.ndarray:
        with self.memory.lock:
            host = self.memory.download(array.value.address, array.shape, array.dtype)
            self.memory.synchronize()
        return host

    def join(self, arrays: Sequence[DeviceArray]) -> DeviceArray:
        with self.memory.lock:
            joined = self._new((sum(a.shape[0] for a in arrays), *arrays[0].shape[1:]), arrays[0].dtype)
            offset = joined.value.address
            for array in arrays:
                self.memory.copy(offset, array.value.address, array.nbytes)
                offset += array.nbytes
        return joined

    def first(self, array: DeviceArray, count: int) -> DeviceArray:
        with self.memory.lock:
            part = self._new((array.shape[0], count, *array.shape[2:]), array.dtype)
            size, step = part.nbytes // part.shape[0], array.nbytes // array.shape[0]
            for i in range(array.shape[0]):
                self.memory.copy(part.value.address + i * size, array.value.address + i * step, size)
        return part

    def wait(self) -> None:
        with self.memory.lock:
            self.memory.synchronize()

    def _new(self, shape: Sequence[int], dtype: str | np.dtype) -> DeviceArray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return DeviceArray(self, self.memory.allocate(size), shape, dtype)


class CudaPythonMemory:
    """Memory from the CUDA runtime, kept for reuse by size."""

    def __init__(self, runtime: Any) -> None:
        self.lock = threading.RLock()
        self._cuda = runtime
        self._stream: Any = self._do(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self.stream = int(self._stream)
        self._free: dict[int, deque[int]] = defaultdict(deque)  # size -> device addresses
        self._pinned: dict[int, deque[int]] = defaultdict(deque)  # size -> host addresses
        self._slots: dict[int, int] = defaultdict(int)  # size -> pinned slots that exist
        self._all: list[tuple[Any, int]] = []
        weakref.finalize(self, _release, runtime, self._stream, self._all).atexit = False

    def allocate(self, size: int) -> Buffer:
        address = _take(self._free[size]) or self._new(self._cuda.cudaMalloc, self._cuda.cudaFree, size)
        buffer = Buffer(address, size)
        # deque.append is atomic, whichever thread drops the last reference
        weakref.finalize(buffer, self._free[size].append, address)
        return buffer

    def upload(self, address: int, array: np.ndarray) -> None:
        self._copy(address, array.ctypes.data, array.nbytes)

    def download(self, address: int, shape: Sequence[int], dtype: str | np.dtype) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        host = _take(self._pinned[size])
        if host is None:
            if self._slots[size] == RING_SLOTS:  # somebody keeps what they got
                array = np.empty(tuple(shape), dtype)
                self._copy(array.ctypes.data, address, size)
                return array
            self._slots[size] += 1
            host = self._new(self._cuda.cudaMallocHost, self._cuda.cudaFreeHost, size)
        self._copy(host, address, size)
        return np.asarray(_Pinned(host, tuple(shape), np.dtype(dtype), self._pinned[size], self))

    def copy(self, target: int, source: int, size: int) -> None:
        self._copy(target, source, size)

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do(self._cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            launch()
        finally:
            graph = self._do(self._cuda.cudaStreamEndCapture(self._stream))
        executable = self._do(self._cuda.cudaGraphInstantiate(graph, 0))
        self._do(self._cuda.cudaGraphDestroy(graph))

        def replay() -> None:
            self._do(self._cuda.cudaGraphLaunch(executable, self._stream))

        weakref.finalize(replay, self._cuda.cudaGraphExecDestroy, executable)
        return replay

    def synchronize(self) -> None:
        self._do(self._cuda.cudaStreamSynchronize(self._stream))

    def _new(self, allocate: Any, free: Any, size: int) -> int:
        address = int(self._do(allocate(max(size, 1))))
        self._all.append((free, address))
        return address

    def _copy(self, target: int, source: int, size: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDefault
        self._do(self._cuda.cudaMemcpyAsync(target, source, size, kind, self._stream))

    def _do(self, result: tuple[Any, ...]) -> Any:
        """The value of a call, whose first result is its error code."""
        error, *values = result
        if int(error) != 0:
            raise EngineError(f"CUDA failed: {error!r}")
        return values[0] if values else None


class _Pinned:
    """A slot of the ring of pinned host memory; numpy holds it for as long as the array or a view of it lives."""

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: np.dtype, ring: deque[int], memory: CudaPythonMemory
    ) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": dtype.str, "version": 3}
        self._memory = memory  # the ring must not be freed under a living array
        weakref.finalize(self, ring.append, address)


def _take(pool: deque[int]) -> int | None:
    try:
        return pool.popleft()
    except IndexError:
        return None


def _release(runtime: Any, stream: Any, buffers: list[tuple[Any, int]]) -> None:
    """Frees everything of a memory that nobody uses any more."""
    runtime.cudaStreamSynchronize(stream)
    for free, address in buffers:
        free(address)
    runtime.cudaStreamDestroy(stream)


def open_memory() -> CudaMemory:
    """A stream and memory on the first GPU.

    Raises:
        BackendUnavailableError: cuda-python is not installed.
        EngineError: CUDA does not start.
    """
    return CudaPythonMemory(_runtime())


def check_memory() -> None:
    """Whether :func:`open_memory` has what it needs.

    Raises:
        BackendUnavailableError: cuda-python is not installed.
    """
    _runtime()


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendUnavailableError(
            f"TensorRT needs device memory from cuda-python ({error}): pip install cuda-bindings"
        ) from error
    return runtime
