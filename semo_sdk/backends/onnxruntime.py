"""ONNX Runtime: the portable engine; on NVIDIA GPUs through its CUDA provider."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec
from semo_sdk.backends.info import BackendInfo, check_names, check_precision, cuda_device_count
from semo_sdk.bundle import Bundle
from semo_sdk.errors import BackendUnavailableError, EngineError

NAME = "onnxruntime"
PRECISIONS = ("fp32", "fp16")
_CUDA = "CUDAExecutionProvider"


class OnnxRuntimeEngine:
    """One ONNX graph in ONNX Runtime, any shape that fits the spec.

    Args:
        spec: the graph's contract.
        path: its ONNX file.
        threads: CPU threads; None = all cores.
        cuda: run on the GPU.

    Raises:
        EngineError: the file cannot be loaded, or the GPU was asked for and cannot be used.
        EngineMismatchError: the file is not a graph of this spec.
    """

    def __init__(self, spec: GraphSpec, path: Path, *, threads: int | None = None, cuda: bool = False) -> None:
        ort = _ort()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads sleep: between two chunks the cores belong to the caller.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [_CUDA, "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
        self.spec = spec
        self.path = path
        self._lock = threading.Lock()
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise EngineError(f"ONNX Runtime cannot load {path}: {error}") from error
        names = ([t.name for t in tensors] for tensors in (self._session.get_inputs(), self._session.get_outputs()))
        check_names(spec, path, *names)
        if cuda and self._session.get_providers()[0] != _CUDA:
            raise EngineError("ONNX Runtime could not start CUDA; install its CUDA libraries or use another backend")

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Runs the graph once.

        Raises:
            EngineError: closed, inputs that do not fit the spec, or a failure inside ONNX Runtime.
        """
        self.spec.check(feeds)
        names = [t.name for t in self.spec.outputs]
        with self._lock:
            if self._session is None:
                raise EngineError(f"graph {self.spec.name!r}: the engine is closed")
            try:
                outputs = self._session.run(names, {k: np.ascontiguousarray(a) for k, a in feeds.items()})
            except Exception as error:
                raise EngineError(f"ONNX Runtime failed in graph {self.spec.name!r}: {error}") from error
        return dict(zip(names, outputs, strict=True))

    def close(self) -> None:
        """Frees the session."""
        with self._lock:
            self._session = None


def has_cuda() -> bool:
    """Whether ONNX Runtime has its CUDA provider and the machine an NVIDIA GPU."""
    return _CUDA in _ort().get_available_providers() and cuda_device_count() > 0


def probe() -> BackendInfo:
    """Whether ONNX Runtime works here."""
    try:
        ort = _ort()
    except BackendUnavailableError as error:
        return BackendInfo(NAME, False, str(error), ())
    devices = ("CUDA", "CPU") if has_cuda() else ("CPU",)
    arithmetic = "fp16 on CUDA" if has_cuda() else "fp32"
    return BackendInfo(NAME, True, f"ONNX Runtime {ort.__version__}, {arithmetic}", devices)


def resolve_precision(precision: str, bundle: Bundle) -> str:
    """The precision that ``precision`` means here: for "auto" fp16 on a GPU, else fp32.

    Raises:
        ConfigError: no such precision.
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    check_precision(precision, PRECISIONS, NAME)
    preferred = ("fp16", "fp32") if has_cuda() else ("fp32", "fp16")
    if precision != "auto":
        return precision
    return next((p for p in preferred if p in bundle.precisions), preferred[0])


def opener(bundle: Bundle, precision: str, threads: int | None) -> Callable[[GraphSpec], OnnxRuntimeEngine]:
    """A function that opens one graph of ``bundle``."""
    cuda = has_cuda()

    def open_graph(spec: GraphSpec) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(spec, bundle.graph_path(spec.name, precision), threads=threads, cuda=cuda)

    return open_graph


def _ort() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend 'onnxruntime' needs onnxruntime ({error}): pip install 'semo-sdk[ort]', "
            "or 'semo-sdk[ort-gpu]' for NVIDIA GPUs"
        ) from error
    return onnxruntime
