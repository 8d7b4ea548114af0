"""asyncio whose time passes only while everybody sleeps: minutes take moments, and a busy machine changes nothing."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

TICK = 0.02  # seconds that pass at most before workers are asked again: as an engine's own thread does
LIMIT = 600.0  # seconds of virtual time that a test may take


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own, and no thread beside it.

    What is given to an executor runs at once, in place. While nobody else has anything to do, ``workers`` are asked for
    work; when none has any left, the clock goes on to where the next sleeper wakes.

    Args:
        workers: each does some work, and returns whether there was any.
    """

    def __init__(self, *workers: Callable[[], bool]) -> None:
        super().__init__(_Selector(self))
        self.workers = workers
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if any(worker() for worker in self._loop.workers):
            return super().select(0)
        assert timeout is not None, "everybody waits for ever"
        self._loop.now += min(timeout, TICK)
        return []


def now() -> float:
    """The time of the loop that runs, in seconds."""
    return asyncio.get_running_loop().time()


def run_virtually(work: Coroutine[Any, Any, T], *workers: Callable[[], bool]) -> T:
    """``asyncio.run`` in virtual time; a test never hangs."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(*workers)) as runner:
        return runner.run(asyncio.wait_for(work, LIMIT))


def virtual_clock(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """These modules' ``time`` is that of the loop that runs."""
    for module in modules:
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=now, perf_counter=now, time=now))
