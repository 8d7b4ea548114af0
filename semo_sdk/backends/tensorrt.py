"""TensorRT 10 and 11, and TensorRT-RTX: engines that ``semo build`` made for this very machine."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec, graph_specs
from semo_sdk.backends.cuda_memory import CudaMemory, find_memory
from semo_sdk.backends.engine_files import EngineFile, EngineManifest, engine_sets, read_manifest, verify
from semo_sdk.backends.info import BackendInfo, check_precision
from semo_sdk.backends.tensorrt_api import Flavour, check_io, engine_io, gpu, installed_flavours, logger
from semo_sdk.bundle import Bundle
from semo_sdk.errors import BackendUnavailableError, EngineError, EngineMismatchError
from semo_sdk.files import replacing

log = logging.getLogger(__name__)

NAME = "tensorrt"
PRECISIONS = ("fp16", "bf16", "fp32")


class TensorRtEngine:
    """One compiled graph on the GPU.

    Buffers are allocated once, at the largest sizes of the profile, and bound by name. One launch is: copy the inputs,
    run, copy the outputs into new arrays, all on one stream.

    Args:
        spec: the graph's contract.
        plan: the serialised engine; the caller has verified it.
        flavour: the TensorRT that built it.
        memory: stream and device memory; the engine closes it.
        where: what messages call the engine, for example its path.
        kernels: file that TensorRT-RTX keeps kernels in that it compiled on this GPU; it checks the file itself.

    Raises:
        EngineError: TensorRT refuses the plan.
        EngineMismatchError: the plan is not of this spec.
    """

    def __init__(
        self,
        spec: GraphSpec,
        plan: bytes,
        *,
        flavour: Flavour,
        memory: CudaMemory,
        where: str,
        kernels: Path | None = None,
    ) -> None:
        self.spec = spec
        self._lock = threading.Lock()
        self._memory = memory
        self._kernels = kernels
        self._log = logger(flavour)
        self._runtime: Any = flavour.module.Runtime(self._log)
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"{flavour.title} {flavour.version} cannot load {where}: {self._log.last}")
        check_io(spec, engine_io(flavour.module, self._engine), where)
        self._cache: Any = None
        self._context: Any = self._open_context(flavour)
        if self._context is None:
            raise EngineError(f"{flavour.title} cannot run {where}: {self._log.last}")
        ranges = {t.name: self._engine.get_tensor_profile_shape(t.name, 0) for t in spec.inputs}
        self._smallest = {name: tuple(shapes[0]) for name, shapes in ranges.items()}
        self._largest = {name: tuple(shapes[2]) for name, shapes in ranges.items()}
        for name, shape in self._largest.items():
            self._set_shape(name, shape)
        self._addresses: dict[str, int] = {}
        for t in (*spec.inputs, *spec.outputs):
            size = int(np.prod(self._context.get_tensor_shape(t.name))) * np.dtype(t.dtype).itemsize
            self._addresses[t.name] = memory.allocate(size)
            self._context.set_tensor_address(t.name, self._addresses[t.name])

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Runs the graph once.

        Raises:
            EngineError: closed, inputs that do not fit the spec or the engine's profile, or a failure inside TensorRT.
        """
        self.spec.check(feeds)
        with self._lock:
            if self._context is None:
                raise EngineError(f"graph {self.spec.name!r}: the engine is closed")
            sources = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
            for name, array in sources.items():
                self._check_range(name, array.shape)
                self._set_shape(name, array.shape)
                self._memory.upload(self._addresses[name], array)
            if not self._context.execute_async_v3(self._memory.stream):
                self._memory.synchronize()
                raise EngineError(f"TensorRT failed in graph {self.spec.name!r}: {self._log.last}")
            outputs = {}
            for t in self.spec.outputs:
                outputs[t.name] = np.empty(tuple(self._context.get_tensor_shape(t.name)), t.dtype)
                self._memory.download(outputs[t.name], self._addresses[t.name])
            self._memory.synchronize()
            return outputs

    def close(self) -> None:
        """Frees engine and memory; TensorRT-RTX's compiled kernels are kept for the next start."""
        with self._lock:
            if self._context is None:
                return
            self._keep_kernels()
            self._context = self._cache = self._engine = self._runtime = None
            self._memory.close()

    def _open_context(self, flavour: Flavour) -> Any:
        if not flavour.is_rtx:
            return self._engine.create_execution_context()
        settings = self._engine.create_runtime_config()
        self._cache = settings.create_runtime_cache()
        if self._kernels is not None and self._kernels.is_file():
            known = self._cache.deserialize(self._kernels.read_bytes())
            log.info("%s: %s", self._kernels, "kernels taken over" if known else "kernels of another GPU or version")
        settings.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(settings)

    def _keep_kernels(self) -> None:
        if self._cache is None or self._kernels is None:
            return
        try:
            with replacing(self._kernels) as temporary:
                temporary.write_bytes(bytes(self._cache.serialize()))
        except OSError as error:
            log.info("compiled kernels are not kept: %s", error)

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            raise EngineError(f"graph {self.spec.name!r}, input {name!r}: TensorRT refuses shape {shape}")

    def _check_range(self, name: str, shape: tuple[int, ...]) -> None:
        smallest, largest = self._smallest[name], self._largest[name]
        if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            raise EngineError(
                f"graph {self.spec.name!r}, input {name!r}: shape {shape} is outside of what the engine was built for, "
                f"{smallest} to {largest}; build for more sessions: semo build --max-sessions"
            )


def probe() -> BackendInfo:
    """Whether a TensorRT and a GPU are here; whether engines are built is a matter of the bundle."""
    flavours, device = installed_flavours(), gpu()
    if not flavours:
        reason = "TensorRT is not installed: pip install 'semo-sdk[tensorrt]' or 'semo-sdk[rtx]'"
        return BackendInfo(NAME, False, reason, ())
    versions = ", ".join(f"{f.title} {f.version}" for f in flavours.values())
    if device is None:
        return BackendInfo(NAME, False, f"{versions}, but no NVIDIA GPU (semo build can still build for one)", ())
    try:
        find_memory()
    except BackendUnavailableError as error:
        return BackendInfo(NAME, False, str(error), ())
    return BackendInfo(NAME, True, f"{versions}; needs engines of semo build", (f"CUDA: {device.name}",))


def find_engines(
    bundle: Bundle, precision: str = "auto", folder: str | Path | None = None
) -> tuple[Path, EngineManifest]:
    """Engines of ``bundle`` that may be used here: those for this GPU before portable ones, then more sessions first.

    Args:
        bundle: the bundle to run.
        precision: that the engines were built with, or "auto" for any.
        folder: where ``semo build`` wrote them; by default the bundle's folder and the user's cache.

    Raises:
        BackendUnavailableError: no engines at all.
        EngineMismatchError: engines were built, but none for this machine and bundle; the message says what differs.
    """
    candidates = sorted(engine_sets(bundle, folder), key=lambda path: path.stat().st_mtime, reverse=True)
    flavours, device = installed_flavours(), gpu()
    found: list[tuple[Path, EngineManifest]] = []
    misses = []
    for path in candidates:
        try:
            if folder is None and read_manifest(path).bundle != bundle.name:
                continue  # the user's cache holds engines of any bundle
            manifest = verify(path, bundle, flavours=flavours, gpu=device, graphs=graph_specs(bundle.config))
        except EngineMismatchError as error:
            misses.append(str(error))
            continue
        if precision in ("auto", manifest.precision):
            found.append((path, manifest))
        else:
            misses.append(f"engines in {path} have precision {manifest.precision}, not {precision}")
    if found:
        return max(found, key=lambda item: (bool(item[1].device.gpu), item[1].max_sessions))
    if misses:
        more = f" ({len(misses) - 1} older sets do not fit either)" if len(misses) > 1 else ""
        raise EngineMismatchError(misses[0] + more)
    raise BackendUnavailableError(
        f"no engines were built for bundle {bundle.name!r}: semo build {bundle.path} (looked in "
        f"{folder if folder is not None else 'the bundle and the user cache'})"
    )


def resolve_precision(precision: str, bundle: Bundle, folder: str | Path | None = None) -> str:
    """The precision that built engines have; "auto" takes any.

    Raises:
        ConfigError: no such precision.
        BackendUnavailableError: TensorRT, a GPU or engines are missing.
        EngineMismatchError: engines were built, but not for this machine and bundle.
    """
    check_precision(precision, PRECISIONS, NAME)
    info = probe()
    if not info.available:
        raise BackendUnavailableError(f"backend 'tensorrt' cannot run here: {info.reason}")
    return find_engines(bundle, precision, folder)[1].precision


def opener(
    bundle: Bundle, precision: str, threads: int | None, folder: str | Path | None = None
) -> Callable[[GraphSpec], TensorRtEngine]:
    """A function that opens one engine of ``bundle``; ``threads`` means nothing on a GPU."""
    path, manifest = find_engines(bundle, precision, folder)
    flavour = installed_flavours()[manifest.flavour]

    def open_graph(spec: GraphSpec) -> TensorRtEngine:
        plan = read_plan(path, manifest.engines[spec.name])
        file = path / manifest.engines[spec.name].file
        kernels = file.with_suffix(".kernels") if flavour.is_rtx else None
        memory = find_memory()()
        try:
            return TensorRtEngine(spec, plan, flavour=flavour, memory=memory, where=str(file), kernels=kernels)
        except EngineError:
            memory.close()
            raise

    return open_graph


def read_plan(folder: Path, engine: EngineFile) -> bytes:
    """Bytes of an engine, hashed after they were read: what is loaded is what the manifest lists.

    Raises:
        EngineMismatchError: they are not the manifest's.
    """
    plan = (folder / engine.file).read_bytes()
    if hashlib.sha256(plan).hexdigest() != engine.sha256:
        raise EngineMismatchError(f"{folder / engine.file} was altered; build again: semo build BUNDLE")
    return plan
