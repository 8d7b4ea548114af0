"""Session: one portrait speaking live, for an unknown length of time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import replace
from types import TracebackType

import numpy as np

from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.errors import SessionClosedError
from semo_sdk.media.audio import Resampler, to_mono
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import Reference
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import Chunk, step

__all__ = ["Chunk", "Session", "StreamState"]


class Session:
    """Speech in, frames out. Made by :meth:`semo_sdk.Animator.session`.

    >>> with animator.session(latency="low") as session:
    ...     for pcm in microphone:
    ...         for chunk in session.push(pcm, sample_rate=48_000):
    ...             show(chunk.frames, chunk.audio)
    ...     for chunk in session.flush():
    ...         show(chunk.frames, chunk.audio)

    However the sound is cut into pushes, the frames are the same, bit for bit, and the same as offline. Each chunk
    holds exactly its own sound, so picture and sound cannot drift apart.

    Threads: everything may be called from any thread. ``interrupt``, ``close`` and ``state`` do not wait for a running
    pass. If several threads (or tasks) push at once, each frame is handed out once, to one of them. Many sessions may
    run at once on one :class:`~semo_sdk.Animator`: they take turns on the engines and do not influence each other.
    """

    def __init__(self, graphs: Graphs, reference: Reference, state: StreamState) -> None:
        self._graphs = graphs
        self._reference = reference
        self._lock = threading.Lock()  # guards the four below; never held while a graph runs
        self._state = state
        self._resampler = Resampler.restore(state.inlet) if len(state.inlet) else None
        self._epoch = 0  # counts interruptions: a pass that began in another epoch is thrown away
        self._closed = False

    def push(self, pcm: np.ndarray, sample_rate: int = SAMPLE_RATE) -> list[Chunk]:
        """More speech.

        Args:
            pcm: (n,) or (n, channels) samples; float in [-1, 1] or integers of full scale. Any n, 0 included.
            sample_rate: of ``pcm`` in Hz. It may change from push to push.

        Returns:
            The chunks that are complete now, often none: a chunk needs 640, 320 or 160 ms of speech
            (``latency="quality"``, ``"balanced"``, ``"low"``).

        Raises:
            AudioError: NaN, a wrong shape or an unusable rate; the session is as it was before.
            SessionClosedError: the session is closed.
            EngineError: the engine failed.
        """
        self._receive(pcm, sample_rate)
        return list(self._passes(final=False))

    def flush(self) -> list[Chunk]:
        """The end of an utterance: frames for all speech that is still pending.

        Silence is assumed after it. The last frame's sound is filled up with zeros, so that altogether there are
        ``ceil(samples / 640)`` frames. The session goes on: later speech continues from the same pose.

        Raises:
            SessionClosedError: the session is closed.
            EngineError: the engine failed.
        """
        self._end_input()
        return list(self._passes(final=True))

    def interrupt(self) -> int:
        """The listener interrupted: forgets all speech that has no frames yet.

        A pass that is running in another thread is thrown away too, and its frames never happened. The pose is kept:
        the next frame follows the last one that was handed out, so nothing jumps.

        Returns:
            How many samples (at 16 kHz) were dropped.

        Raises:
            SessionClosedError: the session is closed.
        """
        with self._lock:
            self._check_open()
            dropped = len(self._state.pending)
            if self._resampler is not None:
                dropped += len(self._resampler.flush())
                self._resampler = None
            self._state = self._state.drop()
            self._epoch += 1
        return dropped

    async def stream(self, audio: AsyncIterable[np.ndarray], sample_rate: int = SAMPLE_RATE) -> AsyncIterator[Chunk]:
        """Chunks as they get ready, for asyncio; flushes when ``audio`` ends.

        Passes run in a worker thread, so the event loop stays free. :meth:`interrupt` may be called while this
        runs: a chunk that was in the making is dropped, and the stream goes on with the next speech.

        Args:
            audio: pieces as for :meth:`push`.
            sample_rate: of the pieces in Hz.

        Raises:
            AudioError, SessionClosedError, EngineError: as :meth:`push`.
        """
        async for pcm in audio:
            self._receive(pcm, sample_rate)
            async for chunk in self._passes_async(final=False):
                yield chunk
        self._end_input()
        async for chunk in self._passes_async(final=True):
            yield chunk

    @property
    def state(self) -> StreamState:
        """Everything the session remembers, as a value; :meth:`semo_sdk.Animator.resume` goes on from it."""
        with self._lock:
            inlet = np.zeros(0) if self._resampler is None else self._resampler.save()
            return replace(self._state, inlet=inlet)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Ends the session and forgets pending speech; calling it twice is fine. The animator stays usable."""
        with self._lock:
            self._closed = True
            self._state = self._state.drop()
            self._resampler = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self.state
        return (
            f"Session(latency={state.latency!r}, seed={state.seed}, time={state.time:.2f} s, "
            f"pending={len(state.pending) / SAMPLE_RATE:.3f} s{', closed' if self._closed else ''})"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError("this session is closed; open another with animator.session()")

    def _receive(self, pcm: np.ndarray, sample_rate: int) -> None:
        samples = to_mono(pcm)
        with self._lock:
            self._check_open()
            if self._resampler is None or self._resampler.from_rate != sample_rate:
                fresh = Resampler(sample_rate)
                self._drain_resampler()
                self._resampler = fresh
            self._state = self._state.push(self._resampler.push(samples))

    def _end_input(self) -> None:
        with self._lock:
            self._check_open()
            self._drain_resampler()

    def _drain_resampler(self) -> None:
        if self._resampler is not None:
            self._state = self._state.push(self._resampler.flush())
            self._resampler = None

    def _begin(self, final: bool) -> tuple[StreamState, int] | None:
        """What the next pass starts from, None if there is nothing to do."""
        with self._lock:
            self._check_open()
            due = self._state.ready or (final and len(self._state.pending) > 0)
            return (self._state, self._epoch) if due else None

    def _commit(self, before: StreamState, epoch: int, after: StreamState) -> bool:
        """Makes ``after`` the state, unless the pass was interrupted, or made by another thread too."""
        with self._lock:
            self._check_open()
            if epoch != self._epoch or before.pass_index != self._state.pass_index:
                return False
            arrived = self._state.pending[len(before.pending) :]
            self._state = after.push(arrived)
            return True

    def _passes(self, final: bool) -> Iterator[Chunk]:
        while (begun := self._begin(final)) is not None:
            before, epoch = begun
            chunk, after = step(self._graphs, self._reference, before)
            if self._commit(before, epoch, after):
                yield chunk

    async def _passes_async(self, final: bool) -> AsyncIterator[Chunk]:
        # The commit is here and not in the thread: a cancelled task has not handed out its chunk.
        while (begun := self._begin(final)) is not None:
            before, epoch = begun
            chunk, after = await asyncio.to_thread(step, self._graphs, self._reference, before)
            if self._commit(before, epoch, after):
                yield chunk
