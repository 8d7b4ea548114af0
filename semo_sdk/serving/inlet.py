"""Inlet: the speech of one live session on its way to the engine, utterance by utterance."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.errors import CapacityError
from semo_sdk.media.audio import Resampler
from semo_sdk.serving.speech import Utterance

__all__ = ["Inlet"]

STALL_SECONDS = 0.5  # speech that stops arriving without an end: what there is of it is spoken after this long
MAX_UTTERANCES = 64  # waiting


class Inlet:
    """Takes sound of any rate, gives hops at 16 kHz. Bounded.

    Attributes:
        lock: orders the callers of :meth:`convert`, :meth:`flush` and :meth:`held`; whoever holds it may then take the
            session's turn, never the other way round. All other methods need the turn.

    Args:
        max_seconds: of speech that may wait.
    """

    def __init__(self, max_seconds: float) -> None:
        self.lock = threading.Lock()
        self._max_seconds = max_seconds
        self._resampler: Resampler | None = None
        self._waiting: deque[Utterance] = deque()
        self._count = 0

    def __bool__(self) -> bool:
        """Whether an utterance is not finished."""
        return bool(self._waiting)

    def convert(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """(n,) float32 mono at ``rate`` as what is ready of it at 16 kHz."""
        tail = np.zeros(0, np.float32)
        if self._resampler is None or self._resampler.from_rate != rate:
            tail = self.flush()
            self._resampler = Resampler(rate)
        return np.concatenate([tail, self._resampler.push(samples)])

    def flush(self) -> np.ndarray:
        """What the resampler held back; the next sound begins anew."""
        tail = np.zeros(0, np.float32) if self._resampler is None else self._resampler.flush()
        self._resampler = None
        return tail

    def held(self) -> np.ndarray:
        """What :meth:`flush` would give; nothing changes."""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        return Resampler.restore(self._resampler.save()).flush()

    @property
    def seconds(self) -> float:
        """Of speech that waits."""
        return sum(utterance.samples for utterance in self._waiting) / SAMPLE_RATE

    def check_room(self, seconds: float) -> None:
        """Refuses what is too much.

        Raises:
            CapacityError: says what to do.
        """
        waiting = self.seconds
        if waiting + seconds > self._max_seconds:
            raise CapacityError(
                f"{waiting:.0f} s of speech wait already, at most {self._max_seconds:g} s may: send it more slowly"
            )
        if len(self._waiting) >= MAX_UTTERANCES and self._waiting[-1].ended:
            raise CapacityError(f"{MAX_UTTERANCES} utterances wait already: send fewer, longer ones")

    def add(self, pcm: np.ndarray, now: float) -> None:
        """(n,) float32 at 16 kHz more; after an end it begins the next utterance."""
        if not self._waiting or self._waiting[-1].ended:
            self._waiting.append(Utterance(self._count, started=now, arrived=now))
            self._count += 1
        self._waiting[-1].add(pcm, now)

    def end(self, tail: np.ndarray, now: float) -> Utterance | None:
        """Ends the utterance that is open.

        Returns:
            It, if all of its sound has been taken already.
        """
        if not self._waiting or self._waiting[-1].ended:
            return None
        last = self._waiting[-1]
        last.add(tail, now)
        last.ended = True
        return None if last.samples else self._waiting.pop()

    def ready(self, samples: int, now: float) -> bool:
        """Whether the next pass of ``samples`` can speak."""
        if not self._waiting or not self._waiting[0].samples:
            return False
        first = self._waiting[0]
        return first.samples >= samples or first.ended or now - first.arrived > STALL_SECONDS

    def take(self, samples: int) -> tuple[Utterance, np.ndarray]:
        """The next ``samples`` of the first utterance, fewer at its end."""
        first = self._waiting[0]
        pcm = first.take(samples)
        if first.ended and not first.samples:
            self._waiting.popleft()
        return first, pcm

    def drop(self) -> list[Utterance]:
        """Forgets everything that waits; gives it back."""
        dropped = list(self._waiting)
        self._waiting.clear()
        return dropped

    def peek(self) -> np.ndarray:
        """(n,) float32: all sound that waits."""
        return np.concatenate([np.zeros(0, np.float32), *(utterance.peek() for utterance in self._waiting)])
