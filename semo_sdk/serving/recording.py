"""Recording: a whole speech as fast as the engine has room, behind the live sessions."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from semo_sdk.errors import SemoError, SessionClosedError
from semo_sdk.pipeline.reference import Reference
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import Chunk
from semo_sdk.serving.speech import Kind, Work

__all__ = ["Recording"]

AHEAD = 2  # chunks that wait for a reader


class Recording:
    """The frames of a speech that is all there. Made by :meth:`semo_sdk.serving.engine.Engine.record`.

    >>> for chunk in recording.chunks():
    ...     writer.write(chunk.frames, chunk.audio)
    """

    def __init__(
        self,
        reference: Reference,
        state: StreamState,
        *,
        turn: threading.Condition,
        left: Callable[[Recording], None],
    ) -> None:
        self.reference = reference
        self.kind = Kind(state.hop)
        self._turn, self._left = turn, left
        self._state = state
        self._queue: deque[Chunk] = deque()
        self._running = False
        self._closed = False
        self._error: SemoError | None = None

    def chunks(self) -> Iterator[Chunk]:
        """The chunks, waiting for each; closes at the end.

        Raises:
            SessionClosedError: it was closed from outside.
            EngineError: the engine failed.
        """
        try:
            while (chunk := self._next()) is not None:
                yield chunk
        finally:
            self.close()

    def _next(self) -> Chunk | None:
        with self._turn:
            self._turn.wait_for(lambda: self._queue or self._closed or self._finished)
            if self._error is not None:
                raise self._error
            if self._closed:
                raise SessionClosedError("the recording was cancelled")
            self._turn.notify_all()
            return self._queue.popleft() if self._queue else None

    @property
    def _finished(self) -> bool:
        return not self._running and not len(self._state.pending)

    def close(self) -> None:
        """Gives it up; :meth:`chunks` raises if it runs. Calling it twice is fine."""
        self._end(None)

    # What the engine does, holding the turn

    def wants(self, now: float) -> float | None:
        """Not None if a pass is wanted; there is no deadline."""
        busy = self._closed or self._running or len(self._queue) >= AHEAD
        return None if busy or not len(self._state.pending) else now

    def begin(self, now: float) -> Work:
        """The next pass."""
        self._running = True
        return Work(self.reference, self._state)

    def commit(self, work: Work, chunk: Chunk, after: StreamState, now: float) -> None:
        """The frames of a pass."""
        self._running = False
        if self._closed:
            return
        self._state = after
        self._queue.append(chunk)
        self._turn.notify_all()

    def fail(self, error: SemoError) -> None:
        """The pass failed, and the recording with it."""
        self._running = False
        self._end(error)

    def _end(self, error: SemoError | None) -> None:
        with self._turn:
            if self._closed:
                return
            self._closed, self._error = True, error
            self._queue.clear()
            self._left(self)
            self._turn.notify_all()
