"""LiveSession: one portrait that lives at 25 frames a second, speaking when it has speech, idle when it has none.

A session decides what its next pass should be (:meth:`LiveSession.wants`, :meth:`LiveSession.begin`); the engine runs
it, in a batch with others, and brings the frames (:meth:`LiveSession.commit`). They wait in a short queue until the
caller takes them one by one. Everything can be undone up to the last frame taken, because a state is a value: that is
how an interruption drops frames without a jump, and how speech cuts idle motion short.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from semo_sdk.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from semo_sdk.errors import SemoError, SessionClosedError
from semo_sdk.media.audio import check_rate, to_mono
from semo_sdk.pipeline.reference import Reference
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import Chunk
from semo_sdk.serving.inlet import Inlet
from semo_sdk.serving.outlet import Outlet
from semo_sdk.serving.speech import (
    Event,
    Frame,
    Interrupted,
    Kind,
    Observer,
    Pace,
    Piece,
    SpeechDone,
    StateChanged,
    Work,
)

__all__ = ["LiveSession"]

BURST_SECONDS = 1.0  # of passes that a session may ask for at once
PASS_COST = 0.6  # of the frames that it makes: a session may ask for 1 / 0.6 times the passes that 25 fps need


class LiveSession:
    """Speech in, frames and events out, for ever. Made by :meth:`semo_sdk.serving.engine.Engine.open`.

    >>> session.push(pcm, 24_000)      # as it arrives, at any speed
    >>> session.end()                  # of the utterance
    >>> item = session.take()          # ``fps`` times a second: a Frame or an Event, None if none is ready

    Everything may be called from any thread, and returns at once: nothing waits for a pass.

    Attributes:
        reference: of the portrait.
        hop: frames of motion and sound of one pass.
        kind: of its passes.
        fps: frames shown in a second, 25 or 12.5.
        opened: when, in seconds of the engine's clock.
        begins: where its first frame lies, in seconds of its own timeline: not 0 for one that goes on from a state.
        first_frame: seconds from the first sound of the last utterance to its first frame taken; None before.
    """

    def __init__(
        self,
        reference: Reference,
        state: StreamState,
        *,
        turn: threading.Condition,
        clock: Callable[[], float],
        pace: Pace,
        observer: Observer,
        left: Callable[[LiveSession], None],
        every: int = 1,
    ) -> None:
        self.reference = reference
        self.hop = state.hop
        self.kind = Kind(state.hop, every)
        self.fps = FPS / every
        self.opened, self.begins = clock(), state.time
        self.first_frame: float | None = None
        self._turn, self._clock, self._pace, self._observer, self._left = turn, clock, pace, observer, left
        self._state = state.drop()
        self._inlet = Inlet(pace.max_seconds)
        self._outlet = Outlet(every)
        self._events: deque[Event] = deque()
        self._work: Work | None = None  # the pass that is running
        self._epoch = 0  # counts interruptions: a pass that began in another epoch is thrown away
        self._budget = self.opened - BURST_SECONDS  # no pass begins before
        self._listening = False
        self._style: dict[str, Any] = {}  # fields of the state
        self._announced = ""
        self._last_taken: float | None = None
        self._heard = -1  # number of the last utterance whose first frame was taken
        self._closed = False
        self._error: SemoError | None = None
        self._wake: Callable[[], None] = lambda: None
        if len(state.pending):
            self._inlet.add(state.pending, self.opened)

    # What the caller does

    def push(self, pcm: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
        """More speech; the first after an end begins the next utterance.

        Args:
            pcm: (n,) or (n, channels) samples; float in [-1, 1] or integers of full scale.
            sample_rate: in Hz.

        Raises:
            AudioError: NaN, a wrong shape or an unusable rate; nothing was taken.
            CapacityError: too much speech waits already; nothing was taken.
            SessionClosedError: the session is closed.
        """
        samples, rate = to_mono(pcm), check_rate(sample_rate)
        with self._inlet.lock:
            with self._turn:
                self._check_open()
                self._inlet.check_room(len(samples) / rate)
            fresh = self._inlet.convert(samples, rate)
            with self._turn:
                self._inlet.add(fresh, self._clock())
                self._turn.notify_all()

    def end(self) -> None:
        """The utterance ends here; a :class:`SpeechDone` comes after its last frame. Nothing if none was begun.

        Raises:
            SessionClosedError: the session is closed.
        """
        with self._inlet.lock:
            tail = self._inlet.flush()
            with self._turn:
                self._check_open()
                ended = self._inlet.end(tail, self._clock())
                running = self._work is not None and self._work.utterance is ended  # then commit() sees that it ended
                if ended is not None and not running and not self._outlet.mark_end(ended):
                    self._events.append(SpeechDone(ended.number, self._position(), ended.seconds))
                self._turn.notify_all()
        self._wake()

    def interrupt(self) -> None:
        """Drops all speech and all frames that were not taken; the next frame follows the last one taken.

        Raises:
            SessionClosedError: the session is closed.
        """
        with self._inlet.lock:
            self._inlet.flush()
            with self._turn:
                self._check_open()
                running = [] if self._work is None or self._work.utterance is None else [self._work.utterance]
                dropped = self._outlet.utterances + running + self._inlet.drop()
                self._state = self._outlet.rewind(self._state, 0)
                self._epoch += 1
                if dropped:
                    first = min(dropped, key=lambda utterance: utterance.number)
                    self._events.append(Interrupted(first.number, self._state.time, first.seconds))
                self._turn.notify_all()
        self._wake()

    def listen(self, listening: bool) -> None:
        """Says that somebody speaks to the portrait: without speech of its own it is then listening, not idle."""
        with self._turn:
            self._listening = listening

    def adjust(
        self, *, expressiveness: float | None = None, head_motion: float | None = None, blink: float | None = None
    ) -> None:
        """Other settings from the next pass on; None leaves one as it is.

        Args:
            expressiveness: 0 to 10. head_motion: 0 to 2. blink: 0 to 1.
        """
        wanted = {"guidance": expressiveness, "head_motion": head_motion, "blink": blink}
        with self._turn:
            self._style |= {name: float(value) for name, value in wanted.items() if value is not None}

    def take(self) -> Frame | Event | None:
        """The next frame or event, None if none is ready.

        Call it ``fps`` times a second: the session keeps the caller's time.

        Raises:
            SessionClosedError: the session is closed.
            SemoError: it failed.
        """
        with self._turn:
            self._check_open()
            if self._events:
                return self._events.popleft()
            upcoming = self._outlet.next
            if upcoming is None:
                return None
            index, utterance = upcoming
            state = "speaking" if utterance else "listening" if self._listening else "idle"
            if state != self._announced:
                self._announced = state
                return StateChanged(state, index / FPS)
            now = self._clock()
            if utterance is not None and utterance.number > self._heard:
                self._heard = utterance.number
                self.first_frame = now - utterance.started
                self._observer.first_frame(self.first_frame)
            if self._last_taken is not None:
                self._observer.frame_gap(now - self._last_taken)
            self._last_taken = now
            frame, ended = self._outlet.pop()
            if ended is not None:
                self._events.append(ended)
            self._turn.notify_all()
            return frame

    @property
    def state(self) -> StreamState:
        """Everything up to the last frame made, and the speech that waits; frames in the queue lie before it.

        ``Engine.open(..., state=session.state)`` goes on with the frames that this session would have made.
        """
        with self._turn:
            return self._state.push(self._unspoken())

    def save(self) -> StreamState:
        """Everything up to the last frame *taken*, and all speech after it: for another session, here or elsewhere.

        It neither repeats nor leaves out a sample. Of several utterances that wait it makes one.

        Raises:
            SessionClosedError: the session is closed.
        """
        with self._inlet.lock:
            held = self._inlet.held()
            with self._turn:
                self._check_open()
                state, queued = self._outlet.taken(self._state)
                return state.push(np.concatenate([queued, self._unspoken(), held]))

    @property
    def waiting(self) -> float:
        """Seconds of speech for which no pass has begun."""
        with self._turn:
            return self._inlet.seconds

    @property
    def closed(self) -> bool:
        """Whether it was closed or failed."""
        return self._closed

    def on_output(self, wake: Callable[[], None]) -> None:
        """Sets what is called, from any thread, when :meth:`take` may have something new or will raise."""
        self._wake = wake

    def close(self) -> None:
        """Ends the session; calling it twice is fine."""
        self._end(None)

    # What the engine does, holding the turn

    def wants(self, now: float) -> float | None:
        """When the frames of a pass would be due, None if no pass is wanted now."""
        if self._closed or self._work is not None or self._budget > now:
            return None
        if self._inlet.ready(self.kind.hop * SAMPLES_PER_FRAME, now):
            wanted = len(self._outlet) - self._spare() <= self._pace.lead
        else:
            wanted = len(self._outlet) <= (self._pace.guard if self._inlet else self._pace.idle)
        return self.deadline(now) if wanted else None

    def deadline(self, now: float) -> float:
        """When the next frame that does not exist yet is due."""
        return (now if self._last_taken is None else self._last_taken) + (len(self._outlet) + 1) / self.fps

    def begin(self, now: float) -> Work:
        """The pass that is wanted."""
        hop, every = self.kind
        self._budget = max(self._budget, now - BURST_SECONDS) + PASS_COST * hop / FPS
        samples, spoken, utterance = hop * SAMPLES_PER_FRAME, 0, None
        pcm = np.zeros(samples, np.float32)
        if self._inlet.ready(samples, now):
            self._state = self._outlet.rewind(self._state, len(self._outlet) - self._spare())
            utterance, pcm = self._inlet.take(samples)
            spoken = len(pcm)
            pcm = np.pad(pcm, (0, -spoken % (every * SAMPLES_PER_FRAME)))  # whole frames
        begin = replace(self._state, pending=pcm, **self._style)
        self._work = Work(self.reference, begin, every, self._epoch, utterance, spoken)
        return self._work

    def commit(self, work: Work, chunk: Chunk, after: StreamState, now: float) -> None:
        """The frames of a pass."""
        self._work = None
        if self._closed or work.epoch != self._epoch:
            return
        if self._last_taken is not None and now > self.deadline(now):
            self._observer.late()
        self._state = after
        utterance = work.utterance
        ends = utterance is not None and utterance.ended and not utterance.samples
        self._outlet.add(Piece(chunk, work.state.drop(), utterance, work.samples, ends=ends))
        self._wake()

    def fail(self, error: SemoError) -> None:
        """The pass failed, and the session with it."""
        self._work = None
        self._end(error)

    # Inside

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise SessionClosedError("this session is closed; open another")

    def _end(self, error: SemoError | None) -> None:
        with self._turn:
            if self._closed:
                return
            self._closed, self._error = True, error
            self._inlet.drop()
            self._outlet = Outlet(self.kind.every)
            self._left(self)
            self._turn.notify_all()
        self._wake()

    def _unspoken(self) -> np.ndarray:
        """(n,) float32: the speech that no frame was made for, that of the running pass included."""
        work = self._work
        running = work is not None and work.epoch == self._epoch
        taken = work.state.pending[: work.samples] if work is not None and running else np.zeros(0, np.float32)
        return np.concatenate([taken, self._inlet.peek()])

    def _position(self) -> float:
        """Of the next frame to be taken, in seconds."""
        upcoming = self._outlet.next
        return self._state.time if upcoming is None else upcoming[0] / FPS

    def _spare(self) -> int:
        """Idle frames at the end of the queue that speech may replace: all but ``guard``."""
        return min(self._outlet.idle_tail(), max(len(self._outlet) - self._pace.guard, 0))
