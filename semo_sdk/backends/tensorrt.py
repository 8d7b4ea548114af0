"""TensorRT 10 and 11, and TensorRT-RTX: engines that ``semo build`` made for this very machine."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec, graph_specs
from semo_sdk.backends.cuda_memory import Buffer, CudaDevice, check_memory, open_memory
from semo_sdk.backends.device import DeviceArray, Tensor, to_host
from semo_sdk.backends.engine_files import EngineFile, EngineManifest, engine_sets, read_manifest, verify
from semo_sdk.backends.info import BackendInfo, check_precision
from semo_sdk.backends.tensorrt_api import Flavour, check_io, engine_io, gpu, installed_flavours, logger
from semo_sdk.bundle import Bundle
from semo_sdk.errors import BackendUnavailableError, EngineError, EngineMismatchError
from semo_sdk.files import replacing

log = logging.getLogger(__name__)

NAME = "tensorrt"
PRECISIONS = ("fp16", "bf16", "fp32", "int8", "fp8")
VARIANTS: tuple[str, ...] = ()
MAX_PASSES = 8  # combinations of shapes that keep a context; the least recently used goes first


@dataclass
class _Pass:
    """One combination of shapes: its context, shapes of the outputs, and what launches it."""

    context: Any
    shapes: dict[str, tuple[int, ...]]
    run: Callable[[], None]


class TensorRtEngine:
    """One compiled graph on the GPU.

    Inputs and outputs have buffers that are allocated once, at the largest sizes of the profile, and bound by name.
    Each combination of shapes has an execution context of its own and, with classic TensorRT, a CUDA graph
    (TensorRT-RTX captures its graphs itself). A launch copies the inputs into the buffers, from the host or from
    wherever on the device another engine left them, runs, and copies the outputs out: all in order on the one stream
    of ``device``, which engines share that hand tensors to each other.

    Args:
        spec: the graph's contract.
        plan: the serialised engine; the caller has verified it.
        flavour: the TensorRT that built it.
        device: stream and memory.
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
        device: CudaDevice,
        where: str,
        kernels: Path | None = None,
    ) -> None:
        self.spec = spec
        self._device, self._memory = device, device.memory
        self._kernels = kernels
        self._flavour = flavour
        self._log = logger(flavour)
        self._runtime: Any = flavour.module.Runtime(self._log)
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"{flavour.title} {flavour.version} cannot load {where}: {self._log.last}")
        check_io(spec, engine_io(flavour.module, self._engine), where)
        self._cache: Any = None
        self._settings: Any = self._make_settings()
        ranges = {t.name: self._engine.get_tensor_profile_shape(t.name, 0) for t in spec.inputs}
        self._smallest = {name: tuple(shapes[0]) for name, shapes in ranges.items()}
        self._largest = {name: tuple(shapes[2]) for name, shapes in ranges.items()}
        self._passes: OrderedDict[tuple[tuple[int, ...], ...], _Pass] = OrderedDict()
        self._buffers: dict[str, Buffer] = {}
        self._uploads: Mapping[str, Tensor] = {}
        context = self._open_context(self._largest)
        for t in (*spec.inputs, *spec.outputs):
            size = int(np.prod(context.get_tensor_shape(t.name))) * np.dtype(t.dtype).itemsize
            self._buffers[t.name] = self._memory.allocate(size)

    def __call__(self, feeds: Mapping[str, Tensor]) -> Arrays:
        """Runs the graph once.

        Raises:
            EngineError: closed, inputs that do not fit the spec or the engine's profile, or a failure inside TensorRT.
        """
        with self._memory.lock:
            shapes, sources = self._launch(feeds)
            outputs = {
                t.name: self._memory.download(self._buffers[t.name].address, shapes[t.name], t.dtype)
                for t in self.spec.outputs
            }
            # under the lock, as everything here: no other thread may wait for a stream that is being captured
            self._memory.synchronize()
        del sources  # not before: the stream read them
        return outputs

    def on_device(self, feeds: Mapping[str, Tensor]) -> dict[str, DeviceArray]:
        """Runs the graph once and leaves the outputs on the GPU; errors as above."""
        with self._memory.lock:
            shapes, sources = self._launch(feeds)
            outputs = {
                t.name: self._device.keep(self._buffers[t.name].address, shapes[t.name], t.dtype)
                for t in self.spec.outputs
            }
        if any(isinstance(source, np.ndarray) for source in sources.values()):
            self._uploads = sources  # pinned ones are read later; the next launch comes after them
        return outputs

    def close(self) -> None:
        """Frees engine and buffers; TensorRT-RTX's compiled kernels are kept for the next start."""
        with self._memory.lock:
            if self._engine is None:
                return
            self._memory.synchronize()
            self._keep_kernels()
            self._passes.clear()
            self._buffers.clear()
            self._uploads = {}
            self._settings = self._cache = self._engine = self._runtime = None

    def _launch(self, feeds: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, ...]], Mapping[str, Tensor]]:
        """Puts copies in and the graph on the stream; shapes of the outputs, and what must stay alive meanwhile."""
        self.spec.check(feeds)
        if self._engine is None:
            raise EngineError(f"graph {self.spec.name!r}: the engine is closed")
        for name, array in feeds.items():
            self._check_range(name, array.shape)
        sources: dict[str, Tensor] = {}
        for name, given in feeds.items():
            address = self._buffers[name].address
            if isinstance(given, DeviceArray) and given.device is self._device:
                sources[name] = given
                self._memory.copy(address, given.value.address, given.nbytes)
            else:
                sources[name] = array = np.ascontiguousarray(to_host(given))
                self._memory.upload(address, array)
        prepared = self._pass(feeds)
        prepared.run()
        return prepared.shapes, sources

    def _pass(self, feeds: Mapping[str, Tensor]) -> _Pass:
        """Context and CUDA graph of these shapes; made at their first use."""
        key = tuple(feeds[t.name].shape for t in self.spec.inputs)
        found = self._passes.get(key)
        if found is None:
            context = self._open_context({t.name: feeds[t.name].shape for t in self.spec.inputs})
            for t in (*self.spec.inputs, *self.spec.outputs):
                context.set_tensor_address(t.name, self._buffers[t.name].address)
            shapes = {t.name: tuple(context.get_tensor_shape(t.name)) for t in self.spec.outputs}
            found = self._passes[key] = _Pass(context, shapes, partial(self._execute, context))
            if len(self._passes) > MAX_PASSES:
                self._memory.synchronize()
                self._passes.popitem(last=False)
            if not self._flavour.is_rtx:
                self._execute(context)  # what TensorRT puts off until the first launch must not be captured
                try:
                    found.run = self._memory.capture(found.run)
                except EngineError as error:
                    log.warning("graph %s runs without a CUDA graph: %s", self.spec.name, error)
        self._passes.move_to_end(key)
        return found

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._memory.stream):
            self._memory.synchronize()
            raise EngineError(f"TensorRT failed in graph {self.spec.name!r}: {self._log.last}")

    def _make_settings(self) -> Any:
        """TensorRT-RTX: kernels of earlier starts, and CUDA graphs of its own."""
        if not self._flavour.is_rtx:
            return None
        settings = self._engine.create_runtime_config()
        self._cache = settings.create_runtime_cache()
        if self._kernels is not None and self._kernels.is_file():
            known = self._cache.deserialize(self._kernels.read_bytes())
            log.info("%s: %s", self._kernels, "kernels taken over" if known else "kernels of another GPU or version")
        settings.set_runtime_cache(self._cache)
        settings.cuda_graph_strategy = self._flavour.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return settings

    def _open_context(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        settings = () if self._settings is None else (self._settings,)
        context = self._engine.create_execution_context(*settings)
        if context is None:
            raise EngineError(f"{self._flavour.title} cannot run graph {self.spec.name!r}: {self._log.last}")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"graph {self.spec.name!r}, input {name!r}: TensorRT refuses shape {shape}")
        return context

    def _keep_kernels(self) -> None:
        if self._cache is None or self._kernels is None:
            return
        try:
            with replacing(self._kernels) as temporary:
                temporary.write_bytes(bytes(self._cache.serialize()))
        except OSError as error:
            log.info("compiled kernels are not kept: %s", error)

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
        check_memory()
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


def resolve_precision(precision: str, bundle: Bundle, *, variant: str = "", folder: str | Path | None = None) -> str:
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
    bundle: Bundle, precision: str, threads: int | None, *, variant: str = "", folder: str | Path | None = None
) -> Callable[[GraphSpec], TensorRtEngine]:
    """A function that opens one engine of ``bundle``; all share one stream. ``threads`` means nothing on a GPU."""
    path, manifest = find_engines(bundle, precision, folder)
    flavour = installed_flavours()[manifest.flavour]
    device = CudaDevice(open_memory())

    def open_graph(spec: GraphSpec) -> TensorRtEngine:
        plan = read_plan(path, manifest.engines[spec.name])
        file = path / manifest.engines[spec.name].file
        kernels = file.with_suffix(".kernels") if flavour.is_rtx else None
        return TensorRtEngine(spec, plan, flavour=flavour, device=device, where=str(file), kernels=kernels)

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
