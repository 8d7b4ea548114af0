"""OpenVINO: the CPU engine.

Measured on a Zen 4 core with AVX512-BF16, rendering 16 frames of a model of semo-tiny's shape, in CPU milliseconds:
bf16 328, f32 570 (ONNX Runtime f32 757), bf16 with dynamic shapes 368. So every input shape gets its own compiled
model with static shapes. A compile costs 0.3 to 2.5 s of one core, once, and several may go on side by side. OpenVINO's
disk cache would halve that, for 170 MB of disk and 50 MB of memory: it is left off (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec
from semo_sdk.backends.info import EXACT_GRAPHS, BackendInfo, check_names, check_precision
from semo_sdk.bundle import Bundle
from semo_sdk.errors import BackendUnavailableError, EngineError
from semo_sdk.vino import load_openvino

log = logging.getLogger(__name__)

NAME = "openvino"
PRECISIONS = ("fp32", "bf16", "fp16")
VARIANTS: tuple[str, ...] = ()
WITHOUT_BF16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"})
MAX_COMPILED = 4  # shapes kept compiled for one graph; the least recently used goes first


class OpenVinoEngine:
    """One ONNX graph on the CPU.

    Args:
        spec: the graph's contract.
        path: its ONNX file.
        precision: arithmetic: "fp32", "bf16" or "fp16"; of graphs that hear or read landmarks always float32.
        threads: CPU threads; None = all cores that OpenVINO sees.

    Raises:
        EngineError: the file cannot be read.
        EngineMismatchError: the file is not a graph of this spec.
    """

    def __init__(self, spec: GraphSpec, path: Path, *, precision: str = "fp32", threads: int | None = None) -> None:
        self.spec = spec
        self.path = path
        exact = spec.name in EXACT_GRAPHS  # float32, whatever the precision: also on CPUs that compute in float16
        self._settings = cpu_settings("fp32" if exact else precision, threads)
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[tuple[int, ...], ...], Any] = OrderedDict()
        self._closed = False
        # Read here, so that a wrong file fails at once, and again for further shapes: a tenth of what compiling takes.
        self._model: Any = self._read()

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Runs the graph once; the first call with new shapes compiles.

        Raises:
            EngineError: closed, inputs that do not fit the spec, or a failure inside OpenVINO.
        """
        self.spec.check(feeds)
        with self._lock:
            if self._closed:
                raise EngineError(f"graph {self.spec.name!r}: the engine is closed")
            request = self._request(tuple(feeds[t.name].shape for t in self.spec.inputs))
            try:
                # Inputs are read in place; outputs are copied, so that no caller holds a live buffer.
                results = request.infer({name: np.ascontiguousarray(a) for name, a in feeds.items()}, share_inputs=True)
            except RuntimeError as error:
                raise EngineError(f"OpenVINO failed in graph {self.spec.name!r}: {_first_line(error)}") from error
            return {output.name: np.array(results[output.name]) for output in self.spec.outputs}

    def prepare(self, sizes: Mapping[str, int]) -> None:
        """Compiles for these sizes of the axes, unless that is done.

        Raises:
            EngineError: OpenVINO cannot compile the graph.
        """
        shapes = tuple(tuple(sizes[d] if isinstance(d, str) else d for d in t.shape) for t in self.spec.inputs)
        with self._lock:
            if not self._closed:
                self._request(shapes)

    def shrink(self) -> None:
        """Frees the compiled models; the next call compiles again."""
        with self._lock:
            self._compiled.clear()
            _return_memory()

    def close(self) -> None:
        """Frees everything."""
        with self._lock:
            self._compiled.clear()
            self._model = None
            self._closed = True

    def _read(self) -> Any:
        try:
            model = _core().read_model(str(self.path))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot read {self.path}: {_first_line(error)}") from error
        names = ([name for port in ports for name in port.names] for ports in (model.inputs, model.outputs))
        check_names(self.spec, self.path, *names)
        return model

    def _request(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """What runs inputs of these shapes, in the order of the spec."""
        request = self._compiled.get(shapes)
        if request is None:
            model, self._model = self._model or self._read(), None
            try:
                model.reshape({t.name: list(shape) for t, shape in zip(self.spec.inputs, shapes, strict=True)})
                request = _core().compile_model(model, "CPU", self._settings).create_infer_request()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO cannot compile graph {self.spec.name!r}: {_first_line(error)}") from error
            self._compiled[shapes] = request
            del model
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            _return_memory()
        self._compiled.move_to_end(shapes)
        return request


def cpu_settings(precision: str, threads: int | None = None) -> dict[str, Any]:
    """OpenVINO properties for one graph on the CPU."""
    hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16" if "FP16" in capabilities() else "f32"}[precision]
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": hint,
        # Pinned threads stall when anything else runs on their core.
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return settings


def capabilities() -> frozenset[str]:
    """What the CPU computes natively, in OpenVINO's words: "FP32", "BF16", "FP16", "INT8"..."""
    return frozenset(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def has_bf16() -> bool:
    """Whether bfloat16 is fast here.

    OpenVINO goes by the processor alone; under a limit of oneDNN's instruction sets (``ONEDNN_MAX_CPU_ISA``) it would
    emulate bfloat16 fifty times slower, or fail.
    """
    return "BF16" in capabilities() and isa_limit() not in WITHOUT_BF16


def isa_limit() -> str:
    """The limit that the environment sets to oneDNN's instruction sets, "" for none."""
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()


def probe() -> BackendInfo:
    """Whether OpenVINO works here."""
    try:
        name = str(_core().get_property("CPU", "FULL_DEVICE_NAME")).strip()
    except BackendUnavailableError as error:
        return BackendInfo(NAME, False, str(error), ())
    except RuntimeError as error:
        return BackendInfo(NAME, False, f"OpenVINO finds no CPU device: {_first_line(error)}", ())
    arithmetic = "bf16" if has_bf16() else "fp32"
    if isa_limit():
        arithmetic += f" (the environment limits instruction sets to {isa_limit()})"
    version = load_openvino().__version__.split("-")[0]
    return BackendInfo(NAME, True, f"OpenVINO {version}, {arithmetic}", (f"CPU: {name}",))


def resolve_precision(precision: str, bundle: Bundle, *, variant: str = "") -> str:
    """The precision that ``precision`` means here: for "auto" bf16 where the CPU has it, else fp32.

    Raises:
        ConfigError: no such precision.
        BackendUnavailableError: the CPU has no bf16, or OpenVINO is not installed.
    """
    check_precision(precision, PRECISIONS, NAME)
    if precision == "bf16" and not has_bf16():
        where = f"ONEDNN_MAX_CPU_ISA={isa_limit()} leaves" if "BF16" in capabilities() else "this CPU has"
        raise BackendUnavailableError(f"{where} no bf16 arithmetic; use precision='fp32' or 'auto'")
    if precision != "auto":
        return precision
    if "fp32" not in bundle.precisions:
        return "fp16"
    return "bf16" if has_bf16() else "fp32"


def opener(
    bundle: Bundle, precision: str, threads: int | None, *, variant: str = ""
) -> Callable[[GraphSpec], OpenVinoEngine]:
    """A function that opens one graph of ``bundle``."""
    stored = "fp16" if precision == "fp16" else "fp32"

    def open_graph(spec: GraphSpec) -> OpenVinoEngine:
        path = bundle.graph_path(spec.name, stored)
        return OpenVinoEngine(spec, path, precision=precision, threads=threads)

    return open_graph


@lru_cache(maxsize=1)
def _core() -> Any:
    try:
        return load_openvino().Core()
    except ImportError as error:
        raise BackendUnavailableError(f"backend 'openvino' needs openvino ({error}): pip install semo-sdk") from error


def _return_memory() -> None:
    """Gives back to the system what compiling has freed: glibc would keep it, for each thread that compiled."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
