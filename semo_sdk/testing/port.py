"""Port: one avatar under test, as the checks see it, whatever its framework: speech in, recorded outputs out."""

from __future__ import annotations

import asyncio
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Failure", "Output", "Port", "speech"]

PUSH_SECONDS = 0.02  # of speech in one frame


class Failure(Exception):
    """A rule was broken; says which and how."""


@dataclass(frozen=True, eq=False)
class Output:
    """Something that came out.

    Attributes:
        kind: ``"picture"``, ``"sound"`` or ``"end"`` (of a reply).
        at: when, in seconds of time.monotonic().
        size: (width, height) of a picture.
        digest: of a picture's bytes.
        pcm: (n,) int16 of a sound.
        rate: of it in Hz.
    """

    kind: str
    at: float
    size: tuple[int, int] = (0, 0)
    digest: int = 0
    pcm: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))
    rate: int = 1


class Port(ABC):
    """One avatar under test. Adapters implement the five verbs and call the three recorders.

    Args:
        fps: pictures a second that it promises.
        rate: of the speech that it gets, in Hz.
        size: (width, height) that it promises, None if it promises none.
        patience: seconds until something that does not come counts as missing.
    """

    ends_need_speech = True  # whether an end without speech must stay without an answer

    def __init__(self, *, fps: float, rate: int, size: tuple[int, int] | None, patience: float) -> None:
        self.fps, self.rate, self.size, self.patience = fps, rate, size, patience
        self.outputs: list[Output] = []
        self._tasks: list[asyncio.Task[Any]] = []

    @abstractmethod
    async def open(self) -> None:
        """Begins to read outputs."""

    @abstractmethod
    async def speak(self, pcm: np.ndarray) -> None:
        """Gives (n,) int16 of a reply, faster than real time, and does not wait for it to be taken."""

    @abstractmethod
    async def end(self) -> None:
        """The reply ends."""

    @abstractmethod
    async def interrupt(self) -> None:
        """Barge-in."""

    @abstractmethod
    async def close(self) -> None:
        """Ends it."""

    def picture(self, size: tuple[int, int], data: bytes) -> None:
        """A picture came out."""
        self.outputs.append(Output("picture", time.monotonic(), size=size, digest=zlib.crc32(data)))

    def sound(self, data: bytes, rate: int, channels: int) -> None:
        """Sound came out: int16."""
        pcm = np.frombuffer(data, np.int16)[::channels]
        self.outputs.append(Output("sound", time.monotonic(), pcm=pcm, rate=rate))

    def ended(self) -> None:
        """The end of a reply came out."""
        self.outputs.append(Output("end", time.monotonic()))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it beside the checks; if it fails, the check does."""
        self._tasks.append(asyncio.create_task(work))

    async def stop_tasks(self) -> None:
        """Ends them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_alive(self) -> None:
        """Looks after what was spawned.

        Raises:
            Failure: something that should run for ever has ended.
        """
        for task in self._tasks:
            if task.done() and not task.cancelled():
                error = task.exception()
                raise Failure(f"it broke: {type(error).__name__}: {error}" if error else "its output ended by itself")

    async def wait(self, condition: Callable[[], bool], what: str, seconds: float | None = None) -> None:
        """Waits for something.

        Raises:
            Failure: it did not come.
        """
        limit = self.patience if seconds is None else seconds
        stop = time.monotonic() + limit
        while not condition():
            self.check_alive()
            if time.monotonic() > stop:
                raise Failure(f"{what} did not come within {limit:g} s")
            await asyncio.sleep(0.005)

    async def idle(self, seconds: float) -> None:
        """Lets it run."""
        await asyncio.sleep(seconds)
        self.check_alive()

    def count(self, kind: str, since: int = 0) -> int:
        """Outputs of a kind from number ``since`` on."""
        return sum(output.kind == kind for output in self.outputs[since:])

    def seconds(self, since: int = 0) -> float:
        """Of sound that came from number ``since`` on."""
        return sum(len(output.pcm) / output.rate for output in self.outputs[since:])


def speech(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """(n,) int16: noise in syllables of random loudness, so that one moment is not like another."""
    generator = np.random.default_rng(seed)
    count = round(seconds * rate)
    loudness = np.repeat(generator.uniform(0.02, 0.8, int(seconds / 0.06) + 1), int(0.06 * rate))[:count]
    noise = generator.uniform(-1, 1, count)
    noise[: len(loudness)] *= loudness
    return (noise * 32767).astype(np.int16)
