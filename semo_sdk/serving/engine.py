"""Engine: many live sessions and recordings on one copy of the weights, a batch at a time.

One thread runs passes. Before each it asks who wants one, takes the most urgent deadlines, and runs them as one batch
(the batch axis of the graphs), so a session joins or leaves between any two passes: continuous batching. Batches are
filled up to one of a few fixed sizes; for a fixed size a session's frames are the same alone and in a crowd.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from semo_sdk.constants import FPS, IMAGE_SIZE, SAMPLE_RATE, SAMPLES_PER_FRAME
from semo_sdk.errors import CapacityError, ConfigError, EngineError, InputError, SemoError
from semo_sdk.media.image import Portrait
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import Reference, encode_reference
from semo_sdk.pipeline.state import StreamState, hop_of
from semo_sdk.serving.capacity import Capacity
from semo_sdk.serving.launcher import Launcher
from semo_sdk.serving.recording import Recording
from semo_sdk.serving.session import LiveSession
from semo_sdk.serving.speech import Kind, Observer, Pace, Work

__all__ = ["Engine"]

log = logging.getLogger(__name__)

CLOSED = "the server is shutting down"
POLL_SECONDS = 0.02  # how often sessions are asked whether time alone made them want a pass
PATIENCE_SECONDS = 1.0  # a recording gets a pass after this long, however busy the live sessions are
FAILURES = 3  # passes in a row that failed for everybody: the engine is broken
REVIVE_SECONDS = 2.0  # between two tries of a broken engine
HANG_SECONDS = 30.0  # no pass takes so long: new work is refused until it ends
CLOSE_SECONDS = 10.0  # for the pass that is running; a thread that hangs in native code is left behind


class Engine:
    """Runs sessions.

    >>> engine = Engine(graphs)
    >>> engine.calibrate()
    >>> engine.start()
    >>> session = engine.open(engine.encode(portrait), latency="low")

    Everything may be called from any thread.

    Args:
        graphs: the model; the caller closes it.
        sizes: batch sizes, ascending; every batch is filled up to one of them. A single one gives every session the
            same frames, bit for bit, whoever else is there.
        latencies: those that may be asked for, the usual one first.
        capacity: admission; measured by :meth:`calibrate`.
        pace: how many frames sessions keep ready; ``guard`` and ``idle`` grow on a slow machine.
        observer: gets the measurements.
        clock: seconds.

    Raises:
        ConfigError: impossible sizes or latencies.
    """

    def __init__(
        self,
        graphs: Graphs,
        *,
        sizes: Sequence[int] = (1, 2, 4, 8),
        latencies: Sequence[str] = ("low", "quality"),
        capacity: Capacity | None = None,
        pace: Pace | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not sizes or list(sizes) != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= 8:
            raise ConfigError(f"batch sizes must ascend from 1 to 8, got {list(sizes)}")
        kinds = [Kind(hop_of(latency)) for latency in latencies]
        self.kind = kinds[0]  # of sessions that do not choose
        self.graphs = graphs
        self.latencies = tuple(latencies)
        self.capacity = capacity or Capacity()
        self._pace = pace or Pace()
        self._observer = observer or Observer()
        self._clock = clock
        self._launcher = Launcher(graphs, sizes, self.capacity, self._observer)
        self._turn = threading.Condition()  # guards everything below and every session
        self._live: list[LiveSession] = []
        self._recordings: list[Recording] = []
        self._recorded = 0.0  # when a recording last had a pass
        self._tried = 0.0  # when a broken engine was last tried
        self._begun: float | None = None  # when the pass that is running began
        self._closing = False
        self._thread: threading.Thread | None = None

    def calibrate(self, *, prune: bool = True) -> None:
        """Compiles and times all passes, and keeps the batch sizes that pay (``prune=False``: all of them).

        Raises:
            EngineError: the engine failed.
        """
        sizes = self.capacity.calibrate(self.graphs, self.latencies, self.sizes, prune=prune)
        self._launcher.sizes = tuple(sizes)

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._loop, name="semo-engine", daemon=True)
        self._thread.start()

    def check(self, latency: str) -> None:
        """Refuses a latency that is not served here: its passes were not measured.

        Raises:
            ConfigError: says which are.
        """
        if latency not in self.latencies:
            raise ConfigError(f"latency {latency!r} is not served here; choose one of {', '.join(self.latencies)}")

    def encode(self, portrait: Portrait) -> Reference:
        """What the model keeps of a portrait; between two passes of the others.

        Raises:
            EngineError: the engine failed.
        """
        return encode_reference(self.graphs, portrait.crop)

    def open(
        self,
        reference: Reference,
        *,
        latency: str | None = None,
        seed: int = 0,
        state: StreamState | None = None,
        fps: float = FPS,
        **style: float | None,
    ) -> LiveSession:
        """A live session.

        Args:
            reference: from :meth:`encode`.
            latency, seed: as for :meth:`semo_sdk.Animator.session`.
            style: expressiveness, head_motion and blink, as there; None is the model's own.
            state: goes on from it instead, see :meth:`LiveSession.save`.
            fps: 25, or 12.5: every second frame is drawn, which takes about half the machine's time.

        Raises:
            CapacityError: one more would make the others late; says when to try again.
            ConfigError: an impossible setting.
            InputError: a state of another model, or with more speech than may wait.
        """
        if fps not in (FPS, FPS / 2):
            raise ConfigError(f"{fps:g} frames a second are not served; choose {FPS} or {FPS / 2:g}")
        begin = state.check(self.graphs.config) if state else self._begin(reference, latency, seed, style)
        self.check(begin.latency)
        kind = Kind(begin.hop, round(FPS / fps))
        if len(begin.pending) > self._pace.max_seconds * SAMPLE_RATE:
            raise InputError(f"the state holds more than {self._pace.max_seconds:g} s of speech that waits")
        with self._turn:
            if self._closing:
                raise EngineError(CLOSED)
            if not self.capacity.fits((session.kind for session in self._live), kind):
                self._observer.refused()
                retry = self.capacity.retry_after(len(self._live))
                raise CapacityError(
                    f"{len(self._live)} live sessions are all that this machine can carry; try again in {retry:.0f} s",
                    retry,
                )
            session = LiveSession(
                reference,
                begin,
                turn=self._turn,
                clock=self._clock,
                pace=self._pace.for_pass(self.capacity.pass_seconds(kind), kind.every),
                observer=self._observer,
                left=self._left,
                every=kind.every,
            )
            self._live.append(session)
            self._turn.notify_all()
        return session

    def record(
        self,
        reference: Reference,
        pcm: np.ndarray,
        *,
        latency: str = "quality",
        seed: int = 0,
        **style: float | None,
    ) -> Recording:
        """A whole speech, in the time that live sessions leave.

        Args:
            reference: from :meth:`encode`.
            pcm: (n,) float32 mono 16 kHz in [-1, 1].
            latency, seed, style: as for :meth:`open`.

        Raises:
            ConfigError: an impossible setting.
        """
        begin = self._begin(reference, latency, seed, style).push(pcm)
        self.check(begin.latency)
        with self._turn:
            if self._closing:
                raise EngineError(CLOSED)
            recording = Recording(reference, begin, turn=self._turn, left=self._recordings.remove)
            self._recordings.append(recording)
            self._turn.notify_all()
        return recording

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes, ascending."""
        return self._launcher.sizes

    @property
    def sessions(self) -> int:
        """Live sessions now."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Sessions and recordings that want a pass now."""
        with self._turn:
            now = self._clock()
            return sum(p.wants(now) is not None for p in self._everybody())

    @property
    def healthy(self) -> bool:
        """Whether it runs, not every pass fails, and none hangs."""
        running = self._thread is not None and self._thread.is_alive()
        begun = self._begun
        if begun is not None and self._clock() - begun > HANG_SECONDS:
            return False
        return running and not self._closing and self._launcher.failures < FAILURES

    def close(self) -> None:
        """Ends every session and the thread; waits 10 s for the pass that is running. Calling it twice is fine."""
        with self._turn:
            self._closing = True
            for participant in self._everybody():
                participant.fail(EngineError(CLOSED))
            self._turn.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                log.error("a pass hangs; its thread was left behind")

    def step(self) -> bool:
        """One pass for those who are most urgent, in the calling thread; False if nobody wants one."""
        with self._turn:
            now = self._clock()
            chosen = self._choose(now)
            works = [(participant, participant.begin(now)) for participant in chosen]
        if not works:
            return False
        self._begun = now
        try:
            outcomes = self._launcher.run([work for _, work in works])
        finally:
            self._begun = None
        with self._turn:
            now = self._clock()
            for (participant, work), outcome in zip(works, outcomes, strict=True):
                if isinstance(outcome, SemoError):
                    participant.fail(outcome)
                else:
                    participant.commit(work, *outcome, now)
            self._turn.notify_all()
        return True

    # Inside

    def _loop(self) -> None:
        while not self._closing:
            try:
                if self.step():
                    continue
            except Exception as error:  # a defect; whoever waits must not wait for ever
                log.exception("the engine's thread failed")
                self._launcher.failures = FAILURES
                with self._turn:
                    for participant in self._everybody():
                        participant.fail(EngineError(f"internal error of the engine ({type(error).__name__})"))
            if self._launcher.failures >= FAILURES:
                self._revive()
            with self._turn:
                if not self._closing:
                    idle = None if self.healthy else REVIVE_SECONDS
                    self._turn.wait(POLL_SECONDS if self._everybody() else idle)

    def _revive(self) -> None:
        """A pass for nobody, now and then: a broken engine gets no work, so it must find out that it works again."""
        now = self._clock()
        if now - self._tried < REVIVE_SECONDS:
            return
        self._tried = now
        try:
            reference = encode_reference(self.graphs, np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))
            state = self._begin(reference, None, 0, {})
            self._launcher.run([Work(reference, state.push(np.zeros(state.hop * SAMPLES_PER_FRAME, np.float32)))])
        except Exception as error:
            log.warning("the engine is still broken: %s", error)
        if self.healthy:
            log.warning("the engine works again")

    def _everybody(self) -> list[LiveSession | Recording]:
        return [*self._live, *self._recordings]

    def _choose(self, now: float) -> Sequence[LiveSession | Recording]:
        """Who gets the next pass: one kind, most urgent first; recordings when the live sessions can spare the time."""
        due = [(deadline, n) for n, s in enumerate(self._live) if (deadline := s.wants(now)) is not None]
        ready = [recording for recording in self._recordings if recording.wants(now) is not None]
        impatient = bool(ready) and now - self._recorded > PATIENCE_SECONDS
        if due and not impatient:
            urgent = [self._live[n] for _, n in sorted(due)]
            return [s for s in urgent if s.kind == urgent[0].kind][: self.sizes[-1]]
        if not ready:
            return []
        first = ready[0]
        slack = min((s.deadline(now) - now for s in self._live), default=np.inf)
        if not impatient and slack < 1.2 * self.capacity.pass_seconds(first.kind, self.sizes[0]):
            return []
        count = self.sizes[0] if self._live else self.sizes[-1]
        chosen = [recording for recording in ready if recording.kind == first.kind][:count]
        for recording in chosen:  # to the end of the line
            self._recordings.remove(recording)
            self._recordings.append(recording)
        self._recorded = now
        return chosen

    def _begin(
        self, reference: Reference, latency: str | None, seed: int, style: Mapping[str, float | None]
    ) -> StreamState:
        name = latency or self.latencies[0]
        return StreamState.start(self.graphs.config, reference.motion[0], latency=name, seed=seed, **style)

    def _left(self, session: LiveSession) -> None:
        self._live.remove(session)
        self.capacity.left(self._clock() - session.opened)
