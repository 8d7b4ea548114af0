"""Service: everything behind the routes, with a start, a drain and an end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from semo_sdk.errors import CapacityError, SemoError
from semo_sdk.media.image import Portrait
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.keys import ANYBODY, Keys
from semo_sdk.serving.metrics import Metrics
from semo_sdk.serving.portraits import DEFAULT, Portraits
from semo_sdk.serving.problems import ApiError, QuotaError
from semo_sdk.serving.settings import Settings
from semo_sdk.serving.states import States
from semo_sdk.serving.uploads import Rates
from semo_sdk.serving.videos import Videos

__all__ = ["Service"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 2  # that decode uploads, and as many that encode frames
MAX_DECODING = 16  # uploads that are decoded or wait for it
FAREWELL_SECONDS = 3.0  # connections notice the end within a second and say goodbye
RETRY_SECONDS = 5.0


class Service:
    """What the server is made of.

    Args:
        engine: not started; :meth:`start` measures and starts it, :meth:`close` ends it.
        settings: the operator's.
        metrics: the engine's observer.
        portrait: one that everybody may use, as ``default``.
        prune: leave out batch sizes that do not pay, see :meth:`Engine.calibrate`.

    Raises:
        ConfigError: a file of keys that is none.
        OSError: the folder cannot be used.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        metrics: Metrics,
        *,
        portrait: Portrait | None = None,
        prune: bool = True,
    ) -> None:
        self.engine, self.settings, self.metrics = engine, settings, metrics
        self.keys = Keys(settings.keys)
        self.rates = Rates(settings.requests_per_minute)
        self.portraits = Portraits(settings.portraits, settings.portraits_per_key)
        self.states = States(settings.states, settings.states_per_key)
        self.videos = Videos(engine, settings, metrics.video)
        self.encoders = ThreadPoolExecutor(THREADS, thread_name_prefix="semo-encode")
        self.stop_at: float | None = None  # time.monotonic(); set while the server drains
        self._decoders = ThreadPoolExecutor(THREADS, thread_name_prefix="semo-decode")
        self._decoding = 0
        self._sessions: Counter[str] = Counter()
        self._prune = prune
        if portrait is not None:
            self.portraits.add(portrait, ANYBODY, DEFAULT)
        metrics.gauge("semo_live_sessions", "Live sessions", lambda: engine.sessions)
        metrics.gauge("semo_live_capacity", "Live sessions that fit", lambda: engine.capacity.sessions(engine.kind))
        metrics.gauge("semo_queue_depth", "Sessions and jobs that want a pass now", lambda: engine.waiting)
        metrics.gauge("semo_videos_waiting", "Video jobs that have not ended", lambda: self.videos.waiting)
        metrics.gauge("semo_slowdown", "Passes now / when they were measured", lambda: engine.capacity.slowdown)

    def start(self) -> None:
        """Measures the engine in the background, then lets it run; until then :meth:`check_ready` refuses."""
        threading.Thread(target=self._prepare, name="semo-start", daemon=True).start()

    def _prepare(self) -> None:
        try:
            self.engine.calibrate(prune=self._prune)
            self.engine.start()
        except SemoError:
            log.exception("the engine cannot start")

    def owner(self, key: str | None) -> str:
        """Who asks; counts the request.

        Raises:
            ApiError: not a key of ours (401).
            QuotaError: too many requests.
        """
        owner = self.keys.owner(key)
        if owner is None:
            raise ApiError(
                401, "invalid_api_key", "send a valid API key: Authorization: Bearer KEY", kind="authentication_error"
            )
        self.rates.check(owner)
        return owner

    def check_ready(self) -> None:
        """Refuses new work while the server starts, drains or is broken.

        Raises:
            CapacityError: says when to try again.
        """
        if self.stop_at is not None:
            raise CapacityError("the server is shutting down", RETRY_SECONDS)
        if not self.engine.healthy:
            raise CapacityError("the engine is not ready", RETRY_SECONDS)

    @contextlib.contextmanager
    def seat(self, owner: str) -> Iterator[None]:
        """One of an owner's live sessions. Only for the event loop's thread.

        Raises:
            QuotaError: they have as many as they may.
        """
        if self._sessions[owner] >= self.settings.sessions_per_key:
            raise QuotaError(f"you have {self.settings.sessions_per_key} live sessions already", RETRY_SECONDS)
        self._sessions[owner] += 1
        try:
            yield
        finally:
            self._sessions[owner] -= 1
            if not self._sessions[owner]:
                del self._sessions[owner]

    async def decode(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs what is heavy in one of a few threads.

        Raises:
            CapacityError: too many wait.
        """
        if self._decoding >= MAX_DECODING:
            raise CapacityError("too many uploads at once", RETRY_SECONDS)
        self._decoding += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._decoders, lambda: work(*args, **kwargs))
        finally:
            self._decoding -= 1

    async def drain(self) -> None:
        """Takes no new work; returns when all has ended, or ``drain_seconds`` and a moment for farewells later."""
        self.stop_at = time.monotonic() + self.settings.drain_seconds
        log.warning("draining: %d live sessions, %d videos", self.engine.sessions, self.videos.waiting)
        while time.monotonic() < self.stop_at and (self._sessions or self.videos.waiting):
            await asyncio.sleep(0.1)
        while time.monotonic() < self.stop_at + FAREWELL_SECONDS and self._sessions:
            await asyncio.sleep(0.1)

    def close(self) -> None:
        """Ends everything; finished videos stay."""
        self.stop_at = self.stop_at or time.monotonic()
        self.videos.close()
        self.engine.close()
        for pool in (self.encoders, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)
