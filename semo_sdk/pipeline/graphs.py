"""The graphs of one model behind one lock: what every arrow of the pipeline launches."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from semo_sdk.backends.base import Arrays, Engine, Shrinkable
from semo_sdk.backends.device import DeviceEngine, Tensor, to_host
from semo_sdk.config import SemoConfig
from semo_sdk.errors import EngineError
from semo_sdk.provenance.policy import Provenance

__all__ = ["GraphStats", "Graphs"]


@dataclass(frozen=True)
class GraphStats:
    """How often a graph ran and how long that took altogether, in seconds (compilation included)."""

    launches: int = 0
    seconds: float = 0.0


class Graphs:
    """The engines of one model, called by graph name.

    Thread-safe: an engine runs one caller at a time, so one lock guards the whole set and any number of sessions may
    share it. The lock is held for one launch only, so sessions take turns.

    Attributes:
        wait: whether :meth:`on_device` returns only when the graph is done, so that :attr:`stats` tell its whole time.
        provenance: what frames and files made with these graphs carry; None if nothing.

    Args:
        engines: graph name -> engine, for example what :func:`semo_sdk.backends.load_engines` returns, or a dict of
            :class:`semo_sdk.backends.fake.FakeEngine` in tests.
        config: the model that the engines belong to.
        provenance: True marks everything with the config's name; False marks nothing.
    """

    def __init__(
        self, engines: Mapping[str, Engine], config: SemoConfig, *, provenance: Provenance | bool = True
    ) -> None:
        self.engines = engines
        self.config = config
        if isinstance(provenance, bool):
            self.provenance = Provenance(config.name) if provenance else None
        else:
            self.provenance = provenance
        self.wait = False
        self._lock = threading.Lock()
        self._stats: dict[str, GraphStats] = {}
        self._closed = False

    def __call__(self, name: str, feeds: Mapping[str, Tensor]) -> Arrays:
        """Runs one graph once.

        Args:
            name: a graph of :func:`semo_sdk.backends.base.graph_specs`.
            feeds: its inputs by name.

        Returns:
            Its outputs by name; they belong to the caller.

        Raises:
            EngineError: inputs that do not fit, a failure of the engine, or the engines are closed.
        """
        return {key: to_host(tensor) for key, tensor in self._run(name, feeds, stay=False).items()}

    def on_device(self, name: str, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs one graph once, like a call, but the outputs stay where the engine has them.

        On a GPU that returns as soon as the graph is launched. Its seconds in :attr:`stats` are then those of the
        launch, unless :attr:`wait` is set.
        """
        return self._run(name, feeds, stay=True)

    def _run(self, name: str, feeds: Mapping[str, Tensor], *, stay: bool) -> dict[str, Tensor]:
        with self._lock:
            if self._closed:
                raise EngineError(f"the engines of {self.config.name!r} are closed; make a new Animator")
            start = time.perf_counter()
            engine = self.engines[name]
            outputs: dict[str, Tensor] = {}
            if stay and isinstance(engine, DeviceEngine):
                arrays = engine.on_device(feeds)
                if self.wait:
                    next(iter(arrays.values())).device.wait()
                outputs.update(arrays)
            else:
                outputs.update(engine({key: to_host(tensor) for key, tensor in feeds.items()}))
            seconds = time.perf_counter() - start
            before = self._stats.get(name, GraphStats())
            self._stats[name] = GraphStats(before.launches + 1, before.seconds + seconds)
        return outputs

    def prepare(self, *names: str, **sizes: int) -> None:
        """Begins to compile graphs for one session in the background, where the engines do that; returns at once.

        Args:
            names: graphs; their first launches wait for them.
            sizes: of their other axes, for example ``N=16``.
        """
        ahead = getattr(self.engines, "compile_ahead", None)
        if ahead is not None:
            ahead(names, {"B": 1, **sizes})

    def shrink(self, name: str) -> None:
        """Frees what a graph that is not needed for now holds in memory, where its engine can."""
        with self._lock:
            engine = self.engines[name]
            if isinstance(engine, Shrinkable) and not self._closed:
                engine.shrink()

    @property
    def stats(self) -> dict[str, GraphStats]:
        """Launches and seconds of each graph that has run, by name (a copy)."""
        with self._lock:
            return dict(self._stats)

    def reset_stats(self) -> None:
        """Forgets the timings so far, for example after a warm-up."""
        with self._lock:
            self._stats.clear()

    @property
    def backend(self) -> str:
        """Name of the backend that runs the graphs, ``"custom"`` for engines that do not say."""
        return str(getattr(self.engines, "backend", "custom"))

    @property
    def precision(self) -> str:
        """Precision of the engines, ``"custom"`` for engines that do not say."""
        return str(getattr(self.engines, "precision", "custom"))

    def close(self) -> None:
        """Frees the engines; calling it twice is fine. Sessions that still use them get an EngineError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            close = getattr(self.engines, "close", None)
            if close is not None:
                close()
                return
            for engine in self.engines.values():
                engine.close()

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"Graphs({self.config.name!r}, backend={self.backend!r}, precision={self.precision!r}{state})"
