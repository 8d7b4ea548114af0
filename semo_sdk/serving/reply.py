"""Replies: what an agent says, in its own samples, from when they come until they are handed out with their frames."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from semo_sdk.constants import FPS, SAMPLE_RATE, exact_div
from semo_sdk.errors import AudioError

__all__ = ["AvatarFrame", "Item", "Mark", "Replies", "Reply", "ReplyDone"]


@dataclass(frozen=True, eq=False)
class AvatarFrame:
    """40 ms: a picture, and while the avatar speaks the samples that go with it.

    Attributes:
        image: (256, 256, 3) uint8 RGB.
        audio: (n,) int16 mono, n = sample_rate / 25, fewer where a reply ends or stalls; None while nothing is said.
        sample_rate: of ``audio`` in Hz: that of the reply.
        label: of the reply, see :meth:`semo_sdk.serving.avatar.Avatar.push`; None while nothing is said.
    """

    image: np.ndarray
    audio: np.ndarray | None = None
    sample_rate: int = SAMPLE_RATE
    label: object = None


@dataclass(frozen=True)
class Mark:
    """All speech before it was handed out, see :meth:`semo_sdk.serving.avatar.Avatar.mark`."""

    value: object


@dataclass(frozen=True)
class ReplyDone:
    """A reply was handed out to its end."""


Item = AvatarFrame | Mark | ReplyDone


@dataclass(eq=False)
class Reply:
    """One reply.

    Attributes:
        number: of the reply, from 0: that of the session's utterance.
        rate: of its samples in Hz.
        label: its owner's.
        ended: whether all of it is here.
    """

    number: int
    rate: int
    label: object
    ended: bool = False
    _arrived: int = 0  # samples
    _heard: int = 0  # samples at 16 kHz whose frames were handed out
    _given: int = 0  # samples handed out
    _waiting: bytearray = field(default_factory=bytearray)
    _marks: deque[tuple[int, object]] = field(default_factory=deque)  # with the samples before them

    @property
    def seconds(self) -> float:
        """Of its sound that was not handed out."""
        return (self._arrived - self._given) / self.rate

    @property
    def marks(self) -> list[object]:
        """Those that were not handed out."""
        return [value for _, value in self._marks]

    def add(self, pcm: np.ndarray) -> None:
        """(n,) int16 more."""
        self._waiting += pcm.tobytes()
        self._arrived += len(pcm)

    def mark(self, value: object) -> None:
        """Puts it behind what is here."""
        self._marks.append((self._arrived, value))

    def reached(self) -> Mark | None:
        """The next mark, if all before it was handed out."""
        if not self._marks or self._marks[0][0] > self._given:
            return None
        return Mark(self._marks.popleft()[1])

    def take(self, heard: int) -> np.ndarray:
        """The samples that go with ``heard`` more at 16 kHz."""
        self._heard += heard
        return self._pop(self._heard * self.rate // SAMPLE_RATE - self._given)

    def take_frame(self) -> np.ndarray:
        """The samples of one frame, fewer if there are fewer."""
        return self._pop(exact_div(self.rate, FPS))

    def _pop(self, count: int) -> np.ndarray:
        pcm = np.frombuffer(bytes(self._waiting[: 2 * count]), np.int16)
        del self._waiting[: 2 * count]
        self._given += len(pcm)
        return pcm


class Replies:
    """Those that are not done, in order.

    Attributes:
        quiet: set while there are none.
    """

    def __init__(self) -> None:
        self.quiet = asyncio.Event()
        self.quiet.set()
        self._queue: deque[Reply] = deque()
        self._count = 0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._queue)

    @property
    def current(self) -> Reply | None:
        """The one that is being handed out."""
        return self._queue[0] if self._queue else None

    @property
    def open(self) -> Reply | None:
        """The one that still takes speech."""
        return self._queue[-1] if self._queue and not self._queue[-1].ended else None

    @property
    def labels(self) -> list[object]:
        """Of all of them, the current one first."""
        return [reply.label for reply in self._queue]

    @property
    def seconds(self) -> float:
        """Of sound that was not handed out."""
        return sum(reply.seconds for reply in self._queue)

    def check(self, rate: int) -> None:
        """Refuses a change of the rate inside a reply.

        Raises:
            AudioError: says both.
        """
        if self.open is not None and self.open.rate != rate:
            raise AudioError(f"a reply that began at {self.open.rate} Hz goes on at {rate} Hz: end it first")

    def add(self, pcm: np.ndarray, rate: int, label: object) -> None:
        """(n,) int16 more; begins a reply if none is open."""
        reply = self.open
        if reply is None:
            reply = Reply(self._count, rate, label)
            self._count += 1
            self._queue.append(reply)
            self.quiet.clear()
        reply.add(pcm)

    def mark(self, value: object) -> bool:
        """Puts it behind everything; False if there is nothing."""
        if self._queue:
            self._queue[-1].mark(value)
        return bool(self._queue)

    def done(self) -> ReplyDone:
        """The current one was handed out to its end."""
        self._queue.popleft()
        if not self._queue:
            self.quiet.set()
        return ReplyDone()

    def drop(self) -> list[object]:
        """Forgets all of them; gives their marks back."""
        marks = [value for reply in self._queue for value in reply.marks]
        self._queue.clear()
        self.quiet.set()
        return marks
