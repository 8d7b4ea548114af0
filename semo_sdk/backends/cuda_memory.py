"""Device memory and one stream, from torch or from cuda-python, whichever is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from semo_sdk.errors import BackendUnavailableError, EngineError


class CudaMemory(Protocol):
    """One CUDA stream and the buffers that are used on it. Addresses are device pointers.

    ``upload`` and ``download`` are ordered on the stream; arrays must be C-contiguous and must stay alive until
    ``synchronize`` returns.
    """

    stream: int

    def allocate(self, size: int) -> int:
        """Address of ``size`` new bytes."""
        ...

    def upload(self, address: int, array: np.ndarray) -> None:
        """Host to device."""
        ...

    def download(self, array: np.ndarray, address: int) -> None:
        """Device to host."""
        ...

    def synchronize(self) -> None:
        """Waits for everything on the stream."""
        ...

    def close(self) -> None:
        """Frees buffers and stream."""
        ...


class TorchMemory:
    """Memory from torch's allocator."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._stream: Any = torch.cuda.Stream()
        self._buffers: dict[int, Any] = {}
        self.stream = int(self._stream.cuda_stream)

    def allocate(self, size: int) -> int:
        buffer = self._torch.empty(max(size, 1), dtype=self._torch.uint8, device="cuda")
        self._torch.cuda.current_stream().synchronize()  # torch may still be using what it hands out
        self._buffers[buffer.data_ptr()] = buffer
        return int(buffer.data_ptr())

    def upload(self, address: int, array: np.ndarray) -> None:
        with self._torch.cuda.stream(self._stream):
            self._buffers[address][: array.nbytes].copy_(self._host(array), non_blocking=True)

    def download(self, array: np.ndarray, address: int) -> None:
        with self._torch.cuda.stream(self._stream):
            self._host(array).copy_(self._buffers[address][: array.nbytes], non_blocking=True)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def close(self) -> None:
        self._buffers.clear()

    def _host(self, array: np.ndarray) -> Any:
        return self._torch.from_numpy(array.reshape(-1).view(np.uint8))


class CudaPythonMemory:
    """Memory from the CUDA runtime, through cuda-python."""

    def __init__(self, runtime: Any) -> None:
        self._cuda = runtime
        self._buffers: list[int] = []
        self._stream: Any = self._do(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self.stream = int(self._stream)

    def allocate(self, size: int) -> int:
        address = int(self._do(self._cuda.cudaMalloc(max(size, 1))))
        self._buffers.append(address)
        return address

    def upload(self, address: int, array: np.ndarray) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do(self._cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream))

    def download(self, array: np.ndarray, address: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do(self._cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream))

    def synchronize(self) -> None:
        self._do(self._cuda.cudaStreamSynchronize(self._stream))

    def close(self) -> None:
        buffers, self._buffers = self._buffers, []
        for address in buffers:
            self._do(self._cuda.cudaFree(address))
        if self._stream is not None:
            self._do(self._cuda.cudaStreamDestroy(self._stream))
            self._stream = None

    def _do(self, result: tuple[Any, ...]) -> Any:
        """The value of a call, whose first result is its error code."""
        error, *values = result
        if int(error) != 0:
            raise EngineError(f"CUDA failed: {error!r}")
        return values[0] if values else None


def find_memory() -> Callable[[], CudaMemory]:
    """What opens a stream and memory on the first GPU: from torch when it has CUDA, else from cuda-python.

    Raises:
        BackendUnavailableError: neither is installed.
    """
    misses = []
    try:
        import torch

        if torch.cuda.is_available():
            return partial(TorchMemory, torch)
        misses.append("this torch has no CUDA")
    except ImportError:
        misses.append("torch is not installed")
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        misses.append(f"cuda-python is not installed ({error})")
        raise BackendUnavailableError(
            f"TensorRT needs device memory from torch or cuda-python: {', '.join(misses)}; pip install cuda-bindings"
        ) from error
    return partial(CudaPythonMemory, runtime)
