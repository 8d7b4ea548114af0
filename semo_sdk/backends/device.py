"""Tensors that stay on the device that made them, so that graph hands to graph without a copy through the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


class Device(Protocol):
    """Where an engine's tensors live. All of it may be called from any thread."""

    def download(self, array: DeviceArray) -> np.ndarray:
        """A new array on the host with its numbers; waits for whatever makes them."""
        ...

    def join(self, arrays: Sequence[DeviceArray]) -> DeviceArray:
        """Several of them, all of this device, as one along the first axis."""
        ...

    def first(self, array: DeviceArray, count: int) -> DeviceArray:
        """``array[:, :count]``."""
        ...

    def wait(self) -> None:
        """Returns when everything that was launched is done."""
        ...


class DeviceArray:
    """One tensor on a device. It never changes; ``numpy.asarray`` copies it to the host.

    Attributes:
        device: whose it is; engines of the same device take it as an input as it is.
        value: the device's own handle of it.
        shape: its sizes.
        dtype: its numpy dtype.
    """

    __slots__ = ("device", "dtype", "shape", "value")

    def __init__(self, device: Device, value: Any, shape: Sequence[int], dtype: str | np.dtype) -> None:
        self.device = device
        self.value = value
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.device.download(self).astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype} {self.shape} on {type(self.device).__name__})"


Tensor = np.ndarray | DeviceArray


@runtime_checkable
class DeviceEngine(Protocol):
    """An engine that can leave its outputs where they are."""

    def on_device(self, feeds: Mapping[str, Tensor]) -> dict[str, DeviceArray]:
        """Runs the graph once; returns as soon as it is launched. Errors as for calling the engine."""
        ...


def to_host(tensor: Tensor) -> np.ndarray:
    """The tensor as a numpy array: itself, or a copy from the device."""
    return tensor if isinstance(tensor, np.ndarray) else np.asarray(tensor)


def join(tensors: Sequence[Tensor]) -> Tensor:
    """Several tensors as one along the first axis, on the device where all of them are on the same one."""
    if len(tensors) == 1:
        return tensors[0]
    arrays = [tensor for tensor in tensors if isinstance(tensor, DeviceArray)]
    if len(arrays) == len(tensors) and all(array.device is arrays[0].device for array in arrays):
        return arrays[0].device.join(arrays)
    return np.concatenate([to_host(tensor) for tensor in tensors])


def first(tensor: Tensor, count: int) -> Tensor:
    """``tensor[:, :count]``, where the tensor is."""
    if tensor.shape[1] == count:
        return tensor
    return tensor[:, :count] if isinstance(tensor, np.ndarray) else tensor.device.first(tensor, count)
