"""What goes into and comes out of a live session: utterances in; frames and events out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from semo_sdk.constants import FPS, SAMPLE_RATE
from semo_sdk.pipeline.reference import Reference
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import Chunk

__all__ = [
    "Event",
    "Frame",
    "Interrupted",
    "Kind",
    "Observer",
    "Pace",
    "Piece",
    "SpeechDone",
    "StateChanged",
    "Utterance",
    "Work",
]


MAX_GUARD = 12  # frames that a session keeps ready on a slow machine


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame and exactly its sound.

    Attributes:
        image: (256, 256, 3) uint8 RGB.
        audio: (640,) float32 mono 16 kHz in [-1, 1]; (1280,) at half the frame rate.
        index: number of the frame since the session began, at 25 a second: at half the frame rate it grows by 2.
        speaking: whether speech is in it.
        samples: of speech in it, at 16 kHz: fewer than ``audio`` has where the speech ends or stalls.
    """

    image: np.ndarray
    audio: np.ndarray
    index: int
    speaking: bool
    samples: int = 0

    @property
    def position(self) -> float:
        """When the frame is shown, in seconds since the session began."""
        return self.index / FPS


@dataclass(frozen=True)
class StateChanged:
    """From the next frame on the portrait is ``"speaking"``, ``"listening"`` or ``"idle"``; position in seconds."""

    state: str
    position: float


@dataclass(frozen=True)
class SpeechDone:
    """An utterance was handed out to its end.

    Attributes:
        utterance: its number in the session, from 0.
        position: its end, in seconds since the session began.
        played: seconds of its own sound.
    """

    utterance: int
    position: float
    played: float


@dataclass(frozen=True)
class Interrupted:
    """Speech was dropped; no :class:`SpeechDone` will come for it. Attributes as there."""

    utterance: int
    position: float
    played: float


Event = StateChanged | SpeechDone | Interrupted


@dataclass(eq=False)
class Utterance:
    """One piece of speech on its way in: sound for which no pass has begun, and what became of the rest."""

    number: int
    started: float  # when its first sound came, in the engine's clock
    arrived: float  # when its last sound came
    samples: int = 0  # waiting
    taken: int = 0  # given to passes
    played: int = 0  # handed out
    ended: bool = False
    _pieces: deque[np.ndarray] = field(default_factory=deque)

    def add(self, pcm: np.ndarray, now: float) -> None:
        """(n,) float32 at 16 kHz more."""
        self.arrived = now
        if len(pcm):
            self._pieces.append(pcm)
            self.samples += len(pcm)

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` samples, fewer if there are fewer."""
        pcm = self.peek()
        self._pieces.clear()
        if len(pcm) > count:
            self._pieces.append(pcm[count:])
        self.samples = max(len(pcm) - count, 0)
        self.taken += min(len(pcm), count)
        return pcm[:count]

    def peek(self) -> np.ndarray:
        """All samples that wait."""
        if len(self._pieces) == 1:
            return self._pieces[0]
        return np.concatenate([np.zeros(0, np.float32), *self._pieces])

    @property
    def seconds(self) -> float:
        """How much of its sound was handed out."""
        return self.played / SAMPLE_RATE


class Kind(NamedTuple):
    """What passes must share to run as one batch.

    Attributes:
        hop: frames of motion and sound that the pass makes.
        every: 1 draws all of its frames, 2 every second one.
    """

    hop: int
    every: int = 1


@dataclass(frozen=True, eq=False)
class Work:
    """One pass for one participant: what it starts from, and whose speech it speaks (None: silence)."""

    reference: Reference
    state: StreamState  # its pending sound is the pass's
    every: int = 1
    epoch: int = 0
    utterance: Utterance | None = None
    samples: int = 0  # of the utterance; zeros behind them fill up the last frame

    @property
    def kind(self) -> Kind:
        """Of the pass."""
        return Kind(self.state.hop, self.every)


@dataclass(eq=False)
class Piece:
    """A chunk that waits to be handed out, frame by frame."""

    chunk: Chunk
    before: StreamState  # where its pass started
    utterance: Utterance | None
    samples: int  # of speech in it
    sent: int = 0  # frames handed out
    ends: bool = False  # the utterance ends with it

    @property
    def left(self) -> int:
        """Frames not handed out yet."""
        return len(self.chunk) - self.sent


class Observer:
    """What is worth measuring; :class:`semo_sdk.serving.metrics.Metrics` counts it, this one does not care."""

    def first_frame(self, seconds: float) -> None:
        """From the first sound of an utterance to its first frame being handed out."""

    def frame_gap(self, seconds: float) -> None:
        """Between two frames being handed out."""

    def batch(self, items: int, seconds: float, video_seconds: float) -> None:
        """A pass for ``items`` participants that made that much video altogether."""

    def late(self) -> None:
        """A chunk came after its deadline."""

    def refused(self) -> None:
        """A session was refused for lack of capacity."""


@dataclass(frozen=True)
class Pace:
    """How many frames a session keeps ready, at 25 frames a second.

    Attributes:
        guard: frames that cover the time of a pass; with this few left and no whole hop of speech, idle frames fill in.
        idle: frames below which idle motion is made.
        lead: frames above which no more speech is turned into frames.
        max_seconds: of speech that may wait.
    """

    guard: int = 3
    idle: int = 5
    lead: int = 8
    max_seconds: float = 60.0

    def for_pass(self, seconds: float, every: int = 1) -> Pace:
        """The pace where a pass takes so long, in frames that are shown: ``guard`` of them last longer than it."""
        guard = min(max(self.guard, int(1.5 * seconds * FPS) + 1), MAX_GUARD)
        idle = max(self.idle, guard + 2)
        guard, idle, lead = (-(-frames // every) for frames in (guard, idle, max(self.lead, idle)))
        return replace(self, guard=guard, idle=idle, lead=lead)
