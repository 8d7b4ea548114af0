"""Chooses a backend and opens a bundle's graphs with it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType

from semo_sdk.backends import fake, onnxruntime, openvino, tensorrt, torch
from semo_sdk.backends.base import Engine, GraphSpec, graph_specs
from semo_sdk.backends.info import BackendInfo, cuda_device_count
from semo_sdk.bundle import Bundle
from semo_sdk.config import SemoConfig
from semo_sdk.errors import BackendUnavailableError, ConfigError, EngineError

log = logging.getLogger(__name__)

BACKENDS: dict[str, ModuleType] = {m.NAME: m for m in (openvino, onnxruntime, torch, tensorrt)}
# Of those that need no engines built first, the order of preference.
PLAIN = (openvino.NAME, onnxruntime.NAME, torch.NAME)


class EngineSet(Mapping[str, Engine]):
    """The graphs of one model, by name; each is opened at first use.

    Attributes:
        specs: the contract of each graph.
        backend: "openvino", "onnxruntime", "torch", "tensorrt" or "fake".
        precision: arithmetic: "fp32", "bf16" or "fp16".
        reason: why this backend and precision were chosen.
    """

    def __init__(
        self,
        specs: Mapping[str, GraphSpec],
        open_graph: Callable[[GraphSpec], Engine],
        *,
        backend: str,
        precision: str,
        reason: str,
    ) -> None:
        self.specs = dict(specs)
        self.backend = backend
        self.precision = precision
        self.reason = reason
        self._open = open_graph
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()
        self._closed = False

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
        backend: "openvino", "onnxruntime", "torch", "tensorrt"; "fake" for tests; "auto" takes TensorRT where `semo
            build` made engines for this very machine and bundle, else ONNX Runtime where it has an NVIDIA GPU, else
            the first of openvino, onnxruntime, torch that works.
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
        backend, reason = _choose(bundle, precision, engines)
    elif backend in BACKENDS:
        reason = "asked for"
    else:
        raise ConfigError(f"no backend {backend!r}; choose auto, {', '.join(BACKENDS)} or fake")
    module = BACKENDS[backend]
    where = {"folder": engines} if backend == tensorrt.NAME else {}
    chosen: str = module.resolve_precision(precision, bundle, **where)
    reason += f"; {chosen} " + ("asked for" if precision == chosen else "is its best on this machine")
    open_graph: Callable[[GraphSpec], Engine] = module.opener(bundle, chosen, threads, **where)
    log.info("backend %s, precision %s (%s)", backend, chosen, reason)
    return EngineSet(specs, open_graph, backend=backend, precision=chosen, reason=reason)


def fake_engines(config: SemoConfig, *, seed: int = 0, graphs: Sequence[str] | None = None) -> EngineSet:
    """Fake engines for a model: right shapes, deterministic numbers, no weights."""
    return EngineSet(
        _wanted(graph_specs(config), graphs),
        lambda spec: fake.FakeEngine(spec, seed),
        backend="fake",
        precision="fp32",
        reason="asked for",
    )


def _choose(bundle: Bundle, precision: str, engines: str | Path | None) -> tuple[str, str]:
    misses: list[str] = []
    if cuda_device_count() and tensorrt.probe().available:
        try:
            folder, manifest = tensorrt.find_engines(bundle, precision, engines)
        except EngineError as error:
            misses.append(f"tensorrt: {error}")
        else:
            return tensorrt.NAME, f"auto: engines for {manifest.device} are in {folder}"
    if cuda_device_count() and onnxruntime.probe().devices[:1] == ("CUDA",):
        return onnxruntime.NAME, "; ".join(["auto: ONNX Runtime has an NVIDIA GPU", *misses])
    for name in PLAIN:
        info = BACKENDS[name].probe()
        if info.available:
            why = f"auto: first that works, {info.reason}"
            return name, "; ".join([why, *misses])
        misses.append(f"{name}: {info.reason}")
    raise BackendUnavailableError("no backend works here. " + "; ".join(misses))


def _wanted(specs: Mapping[str, GraphSpec], graphs: Sequence[str] | None) -> dict[str, GraphSpec]:
    for name in graphs or ():
        if name not in specs:
            raise ConfigError(f"no graph {name!r}; graphs: {', '.join(specs)}")
    return {name: specs[name] for name in (specs if graphs is None else graphs)}
