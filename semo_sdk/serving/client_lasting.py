"""A live session that outlasts its server: saved once a second, told again what was lost, and resumed elsewhere."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np

from semo_sdk.constants import FPS
from semo_sdk.errors import CapacityError
from semo_sdk.media.audio import to_mono
from semo_sdk.serving.client_journal import Journal
from semo_sdk.serving.client_live import ConnectionLostError, Live, LiveEvent, LiveFrame, ServerError
from semo_sdk.serving.protocol import SHUTTING_DOWN

__all__ = ["LastingLive"]

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.1, 2.0
PASSING = ("engine_failed", "internal", "connection_lost")  # errors that another server may not have


class LastingLive:
    """A live session as :class:`~semo_sdk.serving.client_live.Live`, which survives the death of its server.

    Once a second the session is saved on the server; what is pushed is kept here until a save has it. When the
    connection breaks, the iteration connects again, goes on from the last save, and pushes the rest again. Frames that
    come a second time, with the same sound, are dropped, and a ``session.resumed`` event says where it goes on. Where
    they differ (a pause was shorter the second time) that event's ``position`` lies before the last frame: a recorder
    that cuts there has every sample once, a viewer sees up to a second again (``repeated`` seconds).

    Utterances are numbered through; of several that waited when the session was saved the server makes one, and
    ``speech.done`` comes for each at its end. ``played`` of an interrupted one counts from the resumption.

    Iterate all the time: that is what notices a broken connection. One thread may push meanwhile. Made by
    :meth:`semo_sdk.serving.client.Client.lasting`.

    Args:
        connect: opens a connection, at a ``state_id`` or (None) at the beginning.
        forget: deletes a saved state.
        rate: of the sound, in Hz.
        save_seconds: between two saves.
        give_up_seconds: how long a broken connection is tried again.
    """

    def __init__(
        self,
        connect: Callable[[str | None], Live],
        forget: Callable[[str], Any],
        *,
        rate: int,
        save_seconds: float,
        give_up_seconds: float,
    ) -> None:
        self._connect, self._forget = connect, forget
        self._save_seconds, self._give_up_seconds = save_seconds, give_up_seconds
        self._lock = threading.Lock()  # guards the journal and what is told, in the same order
        self._journal = Journal(rate)
        self._states: list[str] = []  # the last confirmed save, and the one before: a save may be lost on its way
        self._position = 0.0  # of the last confirmed save
        self._tag, self._asked = 0, time.monotonic()
        self._given: deque[tuple[int, bytes]] = deque()  # frames since then
        self._again: deque[tuple[int, bytes]] = deque()  # of these, what a new connection brings once more
        self._closed = False
        self._live = connect(None)
        self.started = self._live.started

    def push(self, pcm: np.ndarray) -> None:
        """More speech, see :meth:`Live.push`."""
        samples = np.clip(np.rint(to_mono(pcm) * 32768), -32768, 32767).astype(np.int16)
        with self._telling():
            self._journal.push(samples)
            self._live.push(samples)

    def end(self) -> None:
        """The utterance ends; ``speech.done`` comes with its last frame."""
        with self._telling():
            self._journal.end()
            self._live.end()

    def interrupt(self) -> None:
        """Drops what was not shown yet; ``speech.interrupted`` says how far it was."""
        with self._telling():
            self._journal.interrupt()
            self._live.interrupt()

    def listen(self, on: bool = True) -> None:
        """Somebody speaks to the portrait, or stopped."""
        with self._telling():
            self._journal.listening = on
            self._live.listen(on)

    def __iter__(self) -> Iterator[LiveFrame | LiveEvent]:
        """Frames and events as they come, until the session is closed.

        Raises:
            CapacityError: no server took the session in ``give_up_seconds``; ``retry_after`` says when to try again.
            ConnectionLostError: none could be reached in that time.
            ServerError: the session cannot go on, for example because its saved state is gone.
        """
        while not self._closed:
            try:
                item = self._live.receive()
                if isinstance(item, LiveEvent) and item.type == "session.closed":
                    if item.data.get("reason") == SHUTTING_DOWN:
                        raise ConnectionLostError
                    yield item
                    return
            except (CapacityError, ServerError) as error:
                if self._closed:
                    return
                if isinstance(error, ServerError) and error.code not in PASSING:
                    raise
                yield from self._resume(error)
                continue
            if item is None:
                return
            yield from self._frame(item) if isinstance(item, LiveFrame) else self._event(item)
            self._save_now_and_then()

    def close(self) -> None:
        """Ends the session and deletes its saved states; calling it twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._live.close()
        for state in self._states:
            with contextlib.suppress(Exception):  # the server forgets old ones by itself
                self._forget(state)

    def __enter__(self) -> LastingLive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """What cannot be told now is told again by the iteration, when it has another connection."""
        with self._lock, contextlib.suppress(ConnectionLostError):
            yield

    def _frame(self, frame: LiveFrame) -> Iterator[LiveFrame | LiveEvent]:
        sound = frame.audio.tobytes()
        if self._again:
            if self._again[0] == (frame.index, sound):
                self._again.popleft()
                if not self._again:
                    step = len(frame.audio) * FPS // self.started["sample_rate"]
                    yield self._resumed(frame.index + step, 0)
                return
            last = self._again[-1][0]
            self._again.clear()
            self._given = deque(item for item in self._given if item[0] < frame.index)
            yield self._resumed(frame.index, max(last + 1 - frame.index, 0))
        self._given.append((frame.index, sound))
        yield frame

    def _event(self, event: LiveEvent) -> Iterator[LiveEvent]:
        if event.type != "session.saved":
            with self._lock:
                told = list(self._journal.translate(event))
            yield from told
            return
        with self._lock:
            self._journal.saved(event.data["tag"], event.data["waiting"])
            self._states = [*self._states[-1:], event.data["state_id"]]
            self._position = event.data["position"]
        first = round(self._position * FPS)
        while self._given and self._given[0][0] < first:
            self._given.popleft()

    def _save_now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._asked < self._save_seconds or self._again:
            return
        with self._telling():
            self._asked = now
            self._tag += 1
            self._journal.mark(self._tag)
            self._live.save(replaces=self._states[0] if len(self._states) == 2 else None, tag=self._tag)

    def _resume(self, error: Exception) -> Iterator[LiveEvent]:
        """Connects again, at the last save, and tells again what it does not have."""
        begun, wait = time.monotonic(), FIRST_RETRY_SECONDS
        log.warning("a live session broke (%s); it is resumed at %.2f s", error, self._position)
        self._live.close()
        while True:
            try:
                live = self._connect(self._states[-1] if self._states else None)
                break
            except CapacityError as refused:
                error, pause = refused, refused.retry_after
            except ServerError as refused:
                if refused.status < 500 and refused.code not in PASSING:
                    raise
                error, pause = refused, wait
            except OSError as unreachable:
                error, pause = ConnectionLostError(), wait
                error.__cause__ = unreachable
            pause, wait = min(pause, LAST_RETRY_SECONDS), min(2 * wait, LAST_RETRY_SECONDS)
            if time.monotonic() + pause - begun > self._give_up_seconds:
                raise error
            time.sleep(pause)
            if self._closed:
                return
        missed: list[LiveEvent] = []
        with self._telling():
            self._live = live
            self._again = deque(self._given)
            missed = self._journal.retell(live, self._position)
            self._asked = time.monotonic()
        log.warning("the live session goes on, %.2f s later", time.monotonic() - begun)
        if not self._again:
            yield self._resumed(round(self._position * FPS), 0)
        yield from missed

    @staticmethod
    def _resumed(index: int, repeated: int) -> LiveEvent:
        return LiveEvent("session.resumed", {"position": index / FPS, "repeated": repeated / FPS})
