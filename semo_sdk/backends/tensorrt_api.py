"""What TensorRT (10, 11) and TensorRT-RTX have in common: their module, their messages, the GPU they run on.

The Python interfaces are the same, so everything above works with a :class:`Flavour` and never asks which one it is,
but where only one of them has a feature.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from semo_sdk.backends.base import GraphSpec
from semo_sdk.errors import BackendUnavailableError, EngineMismatchError

log = logging.getLogger(__name__)

# flavour -> title, modules that may hold it (the package itself, or its bindings alone), extra
FLAVOURS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "tensorrt": ("TensorRT", ("tensorrt", "tensorrt_bindings"), "tensorrt"),
    "tensorrt_rtx": ("TensorRT-RTX", ("tensorrt_rtx", "tensorrt_rtx_bindings"), "rtx"),
}
# TensorRT's names of element types -> numpy's
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "FP8": "float8_e4m3fn",
    "UINT8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Flavour:
    """One installed TensorRT.

    Attributes:
        name: "tensorrt" or "tensorrt_rtx".
        title: its name for people.
        module: the Python module.
        version: exactly as the library reports it.
    """

    name: str
    title: str
    module: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt_rtx"


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU: name, compute capability ("9.0") and driver version ("580.65.06")."""

    name: str
    compute_capability: str
    driver: str


@dataclass(frozen=True)
class IoTensor:
    """One input or output of a network or an engine; -1 is a dynamic size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool


def load_flavour(name: str) -> Flavour:
    """Imports a TensorRT.

    Raises:
        BackendUnavailableError: not installed; the message names the extra.
    """
    title, modules, extra = FLAVOURS[name]
    failure: ImportError | None = None
    for module_name in modules:
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            failure = failure or error
            continue
        if hasattr(module, "Builder"):
            return Flavour(name, title, module, str(module.__version__))
    raise BackendUnavailableError(f"{title} is not installed ({failure}): pip install 'semo-sdk[{extra}]'") from failure


def installed_flavours() -> dict[str, Flavour]:
    """Every TensorRT that can be imported, by name."""
    found = {}
    for name in FLAVOURS:
        try:
            found[name] = load_flavour(name)
        except BackendUnavailableError:
            continue
    return found


def logger(flavour: Flavour) -> Any:
    """TensorRT's messages go to Python's logging; errors are remembered for the exception (``logger(...).last``)."""
    return _logger_class(flavour.module)()


@lru_cache(maxsize=8)
def _logger_class(module: Any) -> Any:
    levels = {
        "INTERNAL_ERROR": logging.WARNING,
        "ERROR": logging.WARNING,
        "WARNING": logging.INFO,
        "INFO": logging.DEBUG,
    }

    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                self.last = message.strip()
            level = levels.get(severity.name)
            if level is not None:
                log.log(level, "%s", message.strip())

    return Logger


def io_of(found: Iterable[tuple[str, Any, Iterable[int], bool]]) -> list[IoTensor]:
    """Name, TensorRT dtype, shape and direction of tensors in our own words."""
    return [
        IoTensor(name, DTYPES.get(dtype.name, dtype.name), tuple(int(d) for d in shape), is_input)
        for name, dtype, shape, is_input in found
    ]


def engine_io(module: Any, engine: Any) -> list[IoTensor]:
    """Inputs and outputs of a deserialised engine."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return io_of(
        (
            name,
            engine.get_tensor_dtype(name),
            engine.get_tensor_shape(name),
            engine.get_tensor_mode(name) == module.TensorIOMode.INPUT,
        )
        for name in names
    )


def network_io(network: Any) -> list[IoTensor]:
    """Inputs and outputs of a parsed network."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return io_of((t.name, t.dtype, t.shape, True) for t in inputs) + io_of(
        (t.name, t.dtype, t.shape, False) for t in outputs
    )


def check_io(spec: GraphSpec, found: Iterable[IoTensor], where: str) -> None:
    """Compares names, dtypes and shapes with the graph's contract: nothing more, nothing less.

    A dynamic axis that has only one size may be fixed to it.

    Raises:
        EngineMismatchError: names every tensor that differs.
    """
    expected = {
        (t.name, is_input): (t.dtype, tuple(-1 if isinstance(d, str) else d for d in t.shape))
        for tensors, is_input in ((spec.inputs, True), (spec.outputs, False))
        for t in tensors
    }
    only = {
        (t.name, i): spec.axes[d].min
        for t in (*spec.inputs, *spec.outputs)
        for i, d in enumerate(t.shape)
        if isinstance(d, str) and spec.axes[d].min == spec.axes[d].max
    }
    given = {
        (t.name, t.is_input): (t.dtype, tuple(-1 if only.get((t.name, i)) == d else d for i, d in enumerate(t.shape)))
        for t in found
    }
    problems = []
    for key in sorted(expected.keys() | given.keys()):
        if expected.get(key) != given.get(key):
            kind = "input" if key[1] else "output"
            problems.append(f"{kind} {key[0]!r} is {given.get(key, 'missing')}, expected {expected.get(key, 'none')}")
    if problems:
        raise EngineMismatchError(f"{where}: {'; '.join(problems)}; export the bundle again with this semo-sdk")


@lru_cache(maxsize=1)
def gpu() -> Gpu | None:
    """The first NVIDIA GPU, asked of the driver itself; None without one. Needs no CUDA library."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        device, name = ctypes.c_int(0), ctypes.create_string_buffer(128)
        major, minor = ctypes.c_int(0), ctypes.c_int(0)
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
            return None
        if cuda.cuDeviceGetName(name, len(name), device):
            return None
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        for attribute, value in ((75, major), (76, minor)):
            if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
                return None
    except (OSError, AttributeError):
        return None
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", _driver_version(cuda))


def _driver_version(cuda: Any) -> str:
    """The driver's own version from NVML, else the CUDA version that it supports."""
    try:
        nvml, text = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.create_string_buffer(80)
        if not nvml.nvmlInit_v2() and not nvml.nvmlSystemGetDriverVersion(text, len(text)):
            return text.value.decode(errors="replace")
    except (OSError, AttributeError):
        pass
    number = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
