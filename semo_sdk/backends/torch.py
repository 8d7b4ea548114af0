"""torch: the reference engine. It loads the bundle's weights into the models themselves; no ONNX is involved."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec
from semo_sdk.backends.info import BackendInfo, check_precision
from semo_sdk.bundle import Bundle
from semo_sdk.errors import BackendUnavailableError, EngineError

if TYPE_CHECKING:
    from torch import nn

NAME = "torch"
PRECISIONS = ("fp32", "fp16")


class TorchEngine:
    """One graph module in torch.

    Args:
        spec: the graph's contract.
        module: takes tensors in the order of ``spec.inputs``, returns a tuple in the order of ``spec.outputs``.
        device: torch device name.
    """

    def __init__(self, spec: GraphSpec, module: nn.Module, *, device: str = "cpu") -> None:
        self.spec = spec
        self._module: nn.Module | None = module.eval()
        self._device = device
        self._lock = threading.Lock()

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Runs the graph once.

        Raises:
            EngineError: closed, inputs that do not fit the spec, or a failure inside torch.
        """
        torch = _torch()
        self.spec.check(feeds)
        with self._lock, torch.inference_mode():
            if self._module is None:
                raise EngineError(f"graph {self.spec.name!r}: the engine is closed")
            try:
                inputs = [torch.tensor(feeds[t.name], device=self._device) for t in self.spec.inputs]
                outputs = self._module(*inputs)
            except RuntimeError as error:
                raise EngineError(f"torch failed in graph {self.spec.name!r}: {error}") from error
            return {
                t.name: np.array(o.cpu().numpy(), dtype=t.dtype)
                for t, o in zip(self.spec.outputs, outputs, strict=True)
            }

    def close(self) -> None:
        """Frees the module."""
        with self._lock:
            self._module = None


def torch_dtype(precision: str) -> Any:
    """The torch dtype of "fp32" or "fp16"."""
    torch = _torch()
    return {"fp32": torch.float32, "fp16": torch.float16}[precision]


def probe() -> BackendInfo:
    """Whether torch works here."""
    try:
        torch = _torch()
    except BackendUnavailableError as error:
        return BackendInfo(NAME, False, str(error), ())
    gpus = tuple(f"CUDA: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))
    return BackendInfo(NAME, True, f"torch {torch.__version__}", (*gpus, "CPU"))


def resolve_precision(precision: str, bundle: Bundle) -> str:
    """The precision that ``precision`` means here: for "auto" fp16 on a GPU, else fp32.

    Raises:
        ConfigError: no such precision.
        BackendUnavailableError: torch is not installed.
    """
    check_precision(precision, PRECISIONS, NAME)
    if precision != "auto":
        return precision
    return "fp16" if _device(_torch()) == "cuda" else "fp32"


def opener(bundle: Bundle, precision: str, threads: int | None) -> Callable[[GraphSpec], TorchEngine]:
    """A function that opens one graph of ``bundle``; the graphs share one model.

    ``threads`` sets torch's thread count, which is one number for the whole process.
    """
    from semo_sdk.models.checkpoint import load_checkpoint
    from semo_sdk.models.graphs import graph_modules

    torch = _torch()
    if threads is not None:
        torch.set_num_threads(threads)
    device = _device(torch)
    model, _ = load_checkpoint(bundle.weights_path)
    modules = graph_modules(model.to(device, torch_dtype(precision)))

    def open_graph(spec: GraphSpec) -> TorchEngine:
        return TorchEngine(spec, modules[spec.name], device=device)

    return open_graph


def _device(torch: Any) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend 'torch' needs torch ({error}): pip install 'semo-sdk[train]'"
        ) from error
    return torch
