"""Chooses a backend and opens a bundle's graphs with it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from semo_sdk.backends import fake, onnxruntime, openvino, tensorrt, torch
from semo_sdk.backends.base import Engine, GraphSpec, Preparable, graph_specs
from semo_sdk.backends.info import BackendInfo, cuda_device_count
from semo_sdk.bundle import Bundle
from semo_sdk.config import SemoConfig
from semo_sdk.errors import BackendUnavailableError, BundleError, ConfigError, EngineError, SemoError

log = logging.getLogger(__name__)

BACKENDS: dict[str, ModuleType] = {m.NAME: m for m in (openvino, onnxruntime, torch, tensorrt)}
# Order of preference. TensorRT needs engines that `semo build` made for this very machine.
ON_GPU = (tensorrt.NAME, onnxruntime.NAME, torch.NAME)
ON_CPU = (openvino.NAME, onnxruntime.NAME, torch.NAME)
COMPILERS = 2  # graphs that compile side by side; four were no faster on two cores, and need 35 MiB more
_said: set[str] = set()  # what was passed over, once for each process


class EngineSet(Mapping[str, Engine]):
    """The graphs of one model, by name; each is opened at first use.

    Attributes:
        specs: the contract of each graph.
        backend: "openvino", "onnxruntime", "torch", "tensorrt" or "fake".
        precision: arithmetic: "fp32", "bf16" or "fp16".
        reason: why this backend and precision were chosen.

    Args:
        ahead: whether the engines may be opened and compiled on other threads than those that call them.
    """

    def __init__(
        self,
        specs: Mapping[str, GraphSpec],
        open_graph: Callable[[GraphSpec], Engine],
        *,
        backend: str,
        precision: str,
        reason: str,
        ahead: bool = False,
    ) -> None:
        self.specs = dict(specs)
        self.backend = backend
        self.precision = precision
        self.reason = reason
        self._open = open_graph
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._ahead = ahead
        self._begun: set[tuple[str, tuple[tuple[str, int], ...]]] = set()
        self._compilers = threading.Semaphore(COMPILERS)

    def __getitem__(self, name: str) -> Engine:
        spec = self.specs[name]
        with self._lock:
            if self._closed:
                raise EngineError("the engines are closed")
            if name not in self._engines:
                self._engines[name] = self._open(spec)
            return self._engines[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __repr__(self) -> str:
        return f"EngineSet({', '.join(self.specs)}; backend={self.backend!r}, precision={self.precision!r})"

    def prepare(self, names: Iterable[str] | None = None) -> None:
        """Opens graphs ahead of their first use; all of them without ``names``."""
        for name in self.specs if names is None else names:
            self[name]

    def compile_ahead(self, names: Iterable[str], sizes: Mapping[str, int]) -> None:
        """Begins to compile graphs for these sizes of their axes, in the background and once; returns at once.

        Whoever calls such a graph waits for it; what fails here fails there again, and is told there. Backends that
        compile nothing, or nothing on other threads (CUDA), do it at the call as ever.
        """
        for name in names if self._ahead else ():
            job = (name, tuple((axis, sizes[axis]) for axis in sorted(self.specs[name].axes)))
            if job not in self._begun:
                self._begun.add(job)
                # no daemon: a process that ends inside a compiler crashes
                threading.Thread(target=self._compile, args=(name, sizes), name=f"semo-compile-{name}").start()

    def _compile(self, name: str, sizes: Mapping[str, int]) -> None:
        with self._compilers:
            try:
                engine = self[name]
                if isinstance(engine, Preparable):
                    engine.prepare(sizes)
            except SemoError as error:
                log.debug("graph %s does not compile ahead of its use: %s", name, error)

    def close(self) -> None:
        """Closes every engine; calling it twice is fine."""
        with self._lock:
            self._closed = True
            engines, self._engines = list(self._engines.values()), {}
        for engine in engines:
            engine.close()

    def __enter__(self) -> EngineSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def available_backends() -> list[BackendInfo]:
    """Every backend, in order of preference on a CPU: whether it works here and why not. Imports each of them."""
    return [module.probe() for module in BACKENDS.values()]


def load_engines(
    bundle: Bundle | str | Path,
    backend: str = "auto",
    precision: str = "auto",
    graphs: Sequence[str] | None = None,
    threads: int | None = None,
    engines: str | Path | None = None,
) -> EngineSet:
    """Opens a bundle for inference.

    Args:
        bundle: an open bundle, its folder, or the name of an embedded one.
        backend: "openvino", "onnxruntime", "torch", "tensorrt"; "fake" for tests. "auto" takes the first that works on
            an NVIDIA GPU of TensorRT (with engines that `semo build` made for this very machine and bundle), ONNX
            Runtime and torch, else the first of openvino, onnxruntime and torch on the CPU; why something was passed
            over on a GPU is said once. Variants: "onnxruntime:tensorrt", "onnxruntime:cpu", "torch:compile".
        precision: "fp32", "bf16", "fp16", or "auto" for the backend's best on this machine.
        graphs: names of the graphs wanted; all five by default. Graphs are opened at first use either way.
        threads: CPU threads for one launch; None = all cores.
        engines: where `semo build` wrote TensorRT engines; by default the bundle's folder and the user's cache.

    Raises:
        BackendUnavailableError: the backend is not installed or cannot run here; the message names the extra.
        EngineMismatchError: "tensorrt" was asked for and its engines were built for something else.
        ConfigError: unknown backend, precision or graph, or impossible ``threads``.
        BundleError: the bundle is damaged or lacks the graphs.
    """
    bundle = Bundle.open(bundle)
    specs = _wanted(graph_specs(bundle.config), graphs)
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; give 1 or more, or None for all cores")
    if backend == "fake":
        return fake_engines(bundle.config, graphs=graphs)
    if backend == "auto":
        return _choose(bundle, specs, precision, threads, engines)
    return _open(bundle, specs, backend, precision, threads, engines, "asked for")


def _open(
    bundle: Bundle,
    specs: Mapping[str, GraphSpec],
    backend: str,
    precision: str,
    threads: int | None,
    engines: str | Path | None,
    reason: str,
) -> EngineSet:
    name, _, variant = backend.partition(":")
    if name not in BACKENDS:
        raise ConfigError(f"no backend {backend!r}; choose auto, {', '.join(BACKENDS)} or fake")
    module = BACKENDS[name]
    if variant and variant not in module.VARIANTS:
        others = ", ".join(f"{name}:{v}" for v in module.VARIANTS) or f"it has none, use {name!r}"
        raise ConfigError(f"backend {name!r} has no variant {variant!r}; choose {others}")
    where: dict[str, Any] = {"variant": variant}
    if name == tensorrt.NAME:
        where["folder"] = engines
    chosen: str = module.resolve_precision(precision, bundle, **where)
    reason += f"; {chosen} " + ("asked for" if precision == chosen else "is its best on this machine")
    open_graph: Callable[[GraphSpec], Engine] = module.opener(bundle, chosen, threads, **where)
    log.info("backend %s, precision %s (%s)", backend, chosen, reason)
    ahead = name == openvino.NAME
    return EngineSet(specs, open_graph, backend=backend, precision=chosen, reason=reason, ahead=ahead)


def fake_engines(config: SemoConfig, *, seed: int = 0, graphs: Sequence[str] | None = None) -> EngineSet:
    """Fake engines for a model: right shapes, deterministic numbers, no weights."""
    return EngineSet(
        _wanted(graph_specs(config), graphs),
        lambda spec: fake.FakeEngine(spec, seed),
        backend="fake",
        precision="fp32",
        reason="asked for",
    )


def _choose(
    bundle: Bundle, specs: Mapping[str, GraphSpec], precision: str, threads: int | None, engines: str | Path | None
) -> EngineSet:
    misses: list[str] = []
    for name in ON_GPU if cuda_device_count() else ():
        if name == tensorrt.NAME and not (info := tensorrt.probe()).available:
            misses.append(f"tensorrt: {info.reason}")
            continue
        if name == onnxruntime.NAME and onnxruntime.probe().devices[:1] != ("CUDA",):
            misses.append("onnxruntime: no CUDA provider (pip install 'semo-sdk[ort-gpu]')")
            continue
        if name == torch.NAME and not torch.has_cuda():
            misses.append("torch: not installed, or without CUDA")
            continue
        try:
            reason = "auto: first that works on the GPU"
            if name == tensorrt.NAME:
                folder, manifest = tensorrt.find_engines(bundle, precision, engines)
                reason = f"auto: engines for {manifest.device} are in {folder}"
            found = _open(bundle, specs, name, precision, threads, engines, "; ".join([reason, *misses]))
            found.prepare(list(specs)[:1])  # that it is installed does not say that it starts
        except (EngineError, BundleError) as error:
            misses.append(f"{name}: {error}")
            continue
        _say_once(name, misses)
        return found
    for name in ON_CPU:
        info = BACKENDS[name].probe()
        if info.available:
            _say_once(f"{name} on the CPU", misses)
            reason = "; ".join([f"auto: first that works, {info.reason}", *misses])
            return _open(bundle, specs, _on_cpu(name), precision, threads, engines, reason)
        misses.append(f"{name}: {info.reason}")
    raise BackendUnavailableError("no backend works here. " + "; ".join(misses))


def _on_cpu(name: str) -> str:
    """The backend, kept off a GPU on which it did not start."""
    return f"{name}:cpu" if name == onnxruntime.NAME and cuda_device_count() else name


def _say_once(chosen: str, misses: Sequence[str]) -> None:
    """Where there is a GPU, people want to know why the best does not run on it."""
    story = "; ".join(misses)
    if cuda_device_count() and story and story not in _said:
        _said.add(story)
        log.warning("running on %s, because: %s", chosen, story)


def _wanted(specs: Mapping[str, GraphSpec], graphs: Sequence[str] | None) -> dict[str, GraphSpec]:
    for name in graphs or ():
        if name not in specs:
            raise ConfigError(f"no graph {name!r}; graphs: {', '.join(specs)}")
    return {name: specs[name] for name in (specs if graphs is None else graphs)}
