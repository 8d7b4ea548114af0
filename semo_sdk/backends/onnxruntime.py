"""ONNX Runtime: the portable engine; on NVIDIA GPUs through its CUDA or its TensorRT provider.

Tensors are bound, not passed: outputs stay on the device until somebody asks for them, and go into the next graph from
there. ``"onnxruntime:tensorrt"`` compiles the graphs with TensorRT at their first use, ``"onnxruntime:cpu"`` leaves the
GPU alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec
from semo_sdk.backends.device import DeviceArray, Tensor, to_host
from semo_sdk.backends.info import EXACT_GRAPHS, BackendInfo, check_names, check_precision, cuda_device_count
from semo_sdk.bundle import Bundle
from semo_sdk.errors import BackendUnavailableError, EngineError

NAME = "onnxruntime"
PRECISIONS = ("fp32", "fp16")
VARIANTS = ("cuda", "tensorrt", "cpu")
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider", "cpu": "CPUExecutionProvider"}


class OrtDevice:
    """Tensors of ONNX Runtime ("cpu" or "cuda"); the value of a :class:`DeviceArray` is an ``OrtValue``.

    It has no arithmetic of its own, so joining and cutting goes through the host.
    """

    def __init__(self, name: str = "cpu") -> None:
        self.ort = _ort()
        self.name = name

    def place(self, tensor: Tensor) -> Any:
        """The tensor as an OrtValue on this device: its own, or a copy."""
        if isinstance(tensor, DeviceArray) and tensor.device is self:
            return tensor.value
        return self.ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(to_host(tensor)), self.name, 0)

    def download(self, array: DeviceArray) -> np.ndarray:
        return np.array(array.value.numpy())

    def join(self, arrays: Sequence[DeviceArray]) -> DeviceArray:
        return self._wrap(np.concatenate([self.download(array) for array in arrays]))

    def first(self, array: DeviceArray, count: int) -> DeviceArray:
        return self._wrap(self.download(array)[:, :count])

    def wait(self) -> None:
        """Nothing: a run returns when it is done."""

    def _wrap(self, array: np.ndarray) -> DeviceArray:
        return DeviceArray(self, self.place(array), array.shape, array.dtype)


class OnnxRuntimeEngine:
    """One ONNX graph in ONNX Runtime, any shape that fits the spec.

    Args:
        spec: the graph's contract.
        path: its ONNX file.
        threads: CPU threads; None = all cores.
        provider: "cpu", "cuda" or "tensorrt".
        fp16: lets the TensorRT provider compute in float16 whatever the graph says.
        device: where tensors live; engines that share it hand them to each other without a copy.

    Raises:
        EngineError: the file cannot be loaded, or the GPU was asked for and cannot be used.
        EngineMismatchError: the file is not a graph of this spec.
    """

    def __init__(
        self,
        spec: GraphSpec,
        path: Path,
        *,
        threads: int | None = None,
        provider: str = "cpu",
        fp16: bool = False,
        device: OrtDevice | None = None,
    ) -> None:
        ort = _ort()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads sleep: between two chunks the cores belong to the caller.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.spec = spec
        self.path = path
        self._device = device or OrtDevice("cpu" if provider == "cpu" else "cuda")
        self._lock = threading.Lock()
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=_providers(spec, provider, fp16))
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise EngineError(f"ONNX Runtime cannot load {path}: {error}") from error
        names = ([t.name for t in tensors] for tensors in (self._session.get_inputs(), self._session.get_outputs()))
        check_names(spec, path, *names)
        if self._session.get_providers()[0] != PROVIDERS[provider]:
            raise EngineError(
                f"ONNX Runtime could not start {PROVIDERS[provider]}; install its CUDA libraries or use another backend"
            )

    def __call__(self, feeds: Mapping[str, Tensor]) -> Arrays:
        """Runs the graph once.

        Raises:
            EngineError: closed, inputs that do not fit the spec, or a failure inside ONNX Runtime.
        """
        return {name: self._device.download(array) for name, array in self.on_device(feeds).items()}

    def on_device(self, feeds: Mapping[str, Tensor]) -> dict[str, DeviceArray]:
        """Runs the graph once and leaves the outputs on the device; errors as above."""
        self.spec.check(feeds)
        with self._lock:
            if self._session is None:
                raise EngineError(f"graph {self.spec.name!r}: the engine is closed")
            try:
                binding = self._session.io_binding()
                for name, tensor in feeds.items():
                    binding.bind_ortvalue_input(name, self._device.place(tensor))
                for t in self.spec.outputs:  # a new one each time: it belongs to the caller
                    binding.bind_output(t.name, self._device.name)
                self._session.run_with_iobinding(binding)
                values = binding.get_outputs()
            except Exception as error:
                raise EngineError(f"ONNX Runtime failed in graph {self.spec.name!r}: {error}") from error
        return {
            t.name: DeviceArray(self._device, value, value.shape(), t.dtype)
            for t, value in zip(self.spec.outputs, values, strict=True)
        }

    def close(self) -> None:
        """Frees the session."""
        with self._lock:
            self._session = None


def has_cuda() -> bool:
    """Whether ONNX Runtime has its CUDA provider and the machine an NVIDIA GPU."""
    return PROVIDERS["cuda"] in _ort().get_available_providers() and cuda_device_count() > 0


def probe() -> BackendInfo:
    """Whether ONNX Runtime works here."""
    try:
        ort = _ort()
    except BackendUnavailableError as error:
        return BackendInfo(NAME, False, str(error), ())
    devices = ("CUDA", "CPU") if has_cuda() else ("CPU",)
    arithmetic = "fp16 on CUDA" if has_cuda() else "fp32"
    return BackendInfo(NAME, True, f"ONNX Runtime {ort.__version__}, {arithmetic}", devices)


def resolve_precision(precision: str, bundle: Bundle, *, variant: str = "") -> str:
    """The precision that ``precision`` means here: for "auto" fp16 on a GPU, else fp32.

    Raises:
        ConfigError: no such precision.
        BackendUnavailableError: ONNX Runtime is not installed, or the GPU was asked for and is not there.
    """
    check_precision(precision, PRECISIONS, NAME)
    preferred = ("fp32", "fp16") if _provider(variant) == "cpu" else ("fp16", "fp32")
    if precision != "auto":
        return precision
    return next((p for p in preferred if p in bundle.precisions), preferred[0])


def opener(
    bundle: Bundle, precision: str, threads: int | None, *, variant: str = ""
) -> Callable[[GraphSpec], OnnxRuntimeEngine]:
    """A function that opens one graph of ``bundle``; the graphs share one device."""
    provider = _provider(variant)
    device = OrtDevice("cpu" if provider == "cpu" else "cuda")

    def open_graph(spec: GraphSpec) -> OnnxRuntimeEngine:
        exact = provider == "tensorrt" and spec.name in EXACT_GRAPHS and "fp32" in bundle.precisions
        stored = "fp32" if exact else precision
        path, half = bundle.graph_path(spec.name, stored), stored == "fp16"
        return OnnxRuntimeEngine(spec, path, threads=threads, provider=provider, fp16=half, device=device)

    return open_graph


def _provider(variant: str) -> str:
    """ "cpu", "cuda" or "tensorrt": what a variant means on this machine.

    Raises:
        BackendUnavailableError: it needs a provider or a GPU that is not here.
    """
    if not variant:
        return "cuda" if has_cuda() else "cpu"
    if variant != "cpu" and not (has_cuda() and PROVIDERS[variant] in _ort().get_available_providers()):
        raise BackendUnavailableError(
            f"backend 'onnxruntime:{variant}' needs an NVIDIA GPU and {PROVIDERS[variant]}: "
            "pip install 'semo-sdk[ort-gpu]'"
        )
    return variant


def _providers(spec: GraphSpec, provider: str, fp16: bool) -> list[Any]:
    """What ONNX Runtime is given, the best first; what a provider cannot run goes to the next."""
    if provider == "cpu":
        return [PROVIDERS["cpu"]]
    rest = [PROVIDERS["cuda"], PROVIDERS["cpu"]]
    if provider == "cuda":
        return rest

    def shapes(which: str) -> str:
        sizes = {name: getattr(axis, which) for name, axis in spec.axes.items()}
        named = [(t.name, [sizes[d] if isinstance(d, str) else d for d in t.shape]) for t in spec.inputs]
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in named)

    settings = {
        "trt_fp16_enable": fp16,
        "trt_cuda_graph_enable": False,  # needs inputs and outputs at fixed addresses; ours belong to the caller
        "trt_profile_min_shapes": shapes("min"),
        "trt_profile_opt_shapes": shapes("opt"),
        "trt_profile_max_shapes": shapes("max"),
    }
    return [(PROVIDERS["tensorrt"], settings), *rest]


def _ort() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend 'onnxruntime' needs onnxruntime ({error}): pip install 'semo-sdk[ort]', "
            "or 'semo-sdk[ort-gpu]' for NVIDIA GPUs"
        ) from error
    return onnxruntime
