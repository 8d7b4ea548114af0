"""torch: the reference engine. It loads the bundle's weights into the models themselves; no ONNX is involved.

On a GPU the tensors stay there between graphs, everything runs on one stream, and each combination of shapes is
captured as a CUDA graph. ``"torch:compile"`` compiles the modules first (``torch.compile``: minutes at the first pass).
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec
from semo_sdk.backends.device import DeviceArray, Tensor, to_host
from semo_sdk.backends.info import FLOAT32_GRAPHS, BackendInfo, check_precision
from semo_sdk.bundle import Bundle
from semo_sdk.errors import BackendUnavailableError, EngineError

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

NAME = "torch"
PRECISIONS = ("fp32", "bf16", "fp16")
VARIANTS = ("compile",)
WARM_UPS = 3  # launches before a capture: libraries choose their kernels in them
MAX_CAPTURED = 8  # combinations of shapes that keep a CUDA graph; the least recently used goes first


class TorchDevice:
    """Tensors of torch on one device, all on one stream; the value of a :class:`DeviceArray` is the tensor."""

    def __init__(self, name: str = "cpu") -> None:
        self.torch = _torch()
        self.name = name
        self.lock = threading.RLock()
        self.stream: Any = self.torch.cuda.Stream() if self.is_gpu else None

    @property
    def is_gpu(self) -> bool:
        return self.name.startswith("cuda")

    def running(self) -> Any:
        """What is launched inside goes on the stream."""
        return self.torch.cuda.stream(self.stream) if self.is_gpu else nullcontext()

    def place(self, tensor: Tensor) -> Any:
        """The tensor on this device: itself, or a copy."""
        if isinstance(tensor, DeviceArray) and tensor.device is self:
            return tensor.value
        return self.torch.tensor(np.ascontiguousarray(to_host(tensor)), device=self.name)

    def wrap(self, value: Any, dtype: str) -> DeviceArray:
        return DeviceArray(self, value, value.shape, dtype)

    def fetch(self, values: Sequence[Any]) -> list[np.ndarray]:
        """New host arrays, in pinned memory (torch keeps and reuses it) where the device is a GPU."""
        with self.lock:
            if not self.is_gpu:
                return [np.array(value.numpy()) for value in values]
            with self.running():
                hosts = [self.torch.empty(v.shape, dtype=v.dtype, pin_memory=True) for v in values]
                for host, value in zip(hosts, values, strict=True):
                    host.copy_(value, non_blocking=True)
            self.stream.synchronize()
            return [host.numpy() for host in hosts]

    def download(self, array: DeviceArray) -> np.ndarray:
        return self.fetch([array.value])[0]

    def join(self, arrays: Sequence[DeviceArray]) -> DeviceArray:
        with self.lock, self.running():
            return self.wrap(self.torch.cat([array.value for array in arrays]), str(arrays[0].dtype))

    def first(self, array: DeviceArray, count: int) -> DeviceArray:
        with self.lock, self.running():
            return self.wrap(array.value[:, :count].contiguous(), str(array.dtype))

    def wait(self) -> None:
        with self.lock:
            if self.is_gpu:
                self.stream.synchronize()


class TorchEngine:
    """One graph module in torch.

    Args:
        spec: the graph's contract.
        module: takes tensors in the order of ``spec.inputs``, returns a tuple in the order of ``spec.outputs``.
        device: where it runs; engines that share it hand tensors to each other without a copy.
        capture: replay CUDA graphs; without it every kernel is launched one by one.
    """

    def __init__(
        self, spec: GraphSpec, module: nn.Module, *, device: TorchDevice | None = None, capture: bool = True
    ) -> None:
        self.spec = spec
        self._device = device or TorchDevice()
        self._module: Any = module.eval()
        self._capture = capture and self._device.is_gpu
        self._captured: OrderedDict[tuple[tuple[int, ...], ...], tuple[Any, list[Any], list[Any]]] = OrderedDict()

    def __call__(self, feeds: Mapping[str, Tensor]) -> Arrays:
        """Runs the graph once.

        Raises:
            EngineError: closed, inputs that do not fit the spec, or a failure inside torch.
        """
        with self._device.lock:
            hosts = self._device.fetch(self._launch(feeds))
        return {t.name: array for t, array in zip(self.spec.outputs, hosts, strict=True)}

    def on_device(self, feeds: Mapping[str, Tensor]) -> dict[str, DeviceArray]:
        """Runs the graph once and leaves the outputs on the device; errors as above."""
        with self._device.lock, self._device.running():
            values = self._launch(feeds)
            if self._capture:  # the next replay writes the same memory
                values = [value.clone() for value in values]
        return {t.name: self._device.wrap(value, t.dtype) for t, value in zip(self.spec.outputs, values, strict=True)}

    def close(self) -> None:
        """Frees the module."""
        with self._device.lock:
            self._device.wait()
            self._captured.clear()
            self._module = None

    def _launch(self, feeds: Mapping[str, Tensor]) -> list[Any]:
        self.spec.check(feeds)
        if self._module is None:
            raise EngineError(f"graph {self.spec.name!r}: the engine is closed")
        with self._device.torch.inference_mode(), self._device.running():
            try:
                inputs = [self._device.place(feeds[t.name]) for t in self.spec.inputs]
                return self._replay(inputs) if self._capture else list(self._module(*inputs))
            except RuntimeError as error:
                raise EngineError(f"torch failed in graph {self.spec.name!r}: {error}") from error

    def _replay(self, inputs: list[Any]) -> list[Any]:
        """The outputs of the CUDA graph of these shapes, in memory that its next replay writes again."""
        key = tuple(tuple(value.shape) for value in inputs)
        if key not in self._captured:
            kept = [value.clone() for value in inputs]
            for _ in range(WARM_UPS):
                eager = list(self._module(*kept))
            try:
                self._captured[key] = self._record(kept)
            except RuntimeError as error:  # something in the module depends on values: it cannot be replayed
                log.warning("graph %s runs without a CUDA graph: %s", self.spec.name, error)
                self._capture = False
                return eager
            if len(self._captured) > MAX_CAPTURED:
                self._device.wait()
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        graph, kept, outputs = self._captured[key]
        for target, value in zip(kept, inputs, strict=True):
            target.copy_(value, non_blocking=True)
        graph.replay()
        return outputs

    def _record(self, kept: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        cuda = self._device.torch.cuda
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, stream=self._device.stream, capture_error_mode="thread_local"):
            outputs = list(self._module(*kept))
        return graph, kept, outputs


def torch_dtype(precision: str) -> Any:
    """The torch dtype of "fp32", "bf16" or "fp16"."""
    torch = _torch()
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def has_cuda() -> bool:
    """Whether torch is installed and sees an NVIDIA GPU."""
    try:
        return bool(_torch().cuda.is_available())
    except BackendUnavailableError:
        return False


def probe() -> BackendInfo:
    """Whether torch works here."""
    try:
        torch = _torch()
    except BackendUnavailableError as error:
        return BackendInfo(NAME, False, str(error), ())
    gpus = tuple(f"CUDA: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))
    return BackendInfo(NAME, True, f"torch {torch.__version__}", (*gpus, "CPU"))


def resolve_precision(precision: str, bundle: Bundle, *, variant: str = "") -> str:
    """The precision that ``precision`` means here: for "auto" fp16 on a GPU, else fp32.

    Raises:
        ConfigError: no such precision.
        BackendUnavailableError: torch is not installed.
    """
    check_precision(precision, PRECISIONS, NAME)
    if precision != "auto":
        return precision
    return "fp16" if _device_name(_torch()) == "cuda" else "fp32"


def opener(
    bundle: Bundle, precision: str, threads: int | None, *, variant: str = ""
) -> Callable[[GraphSpec], TorchEngine]:
    """A function that opens one graph of ``bundle``; the graphs share one model and one stream.

    ``threads`` sets torch's thread count, which is one number for the whole process.
    """
    torch = _torch()
    from semo_sdk.models.checkpoint import load_checkpoint
    from semo_sdk.models.graphs import graph_modules

    if threads is not None:
        torch.set_num_threads(threads)
    device = TorchDevice(_device_name(torch))
    model, _ = load_checkpoint(bundle.weights_path)
    for name, part in model.named_children():
        exact = precision == "bf16" and PARTS.get(name) in FLOAT32_GRAPHS
        part.to(device.name, torch_dtype("fp32" if exact else precision))
    modules = graph_modules(model)

    def open_graph(spec: GraphSpec) -> TorchEngine:
        module: Any = modules[spec.name]
        return TorchEngine(
            spec, torch.compile(module, dynamic=False) if variant == "compile" else module, device=device
        )

    return open_graph


PARTS = {"whisper": "audio"}  # the part of the model that a graph has for itself


def _device_name(torch: Any) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend 'torch' needs torch ({error}): pip install 'semo-sdk[train]'"
        ) from error
    return torch
