"""One live session over one connection, whatever carries it: a web socket or WebRTC. The wire is a :class:`Wire`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from pydantic import ValidationError

from semo_sdk.constants import IMAGE_SIZE, SAMPLE_RATE
from semo_sdk.errors import SemoError, SessionClosedError
from semo_sdk.serving.problems import ApiError, problem
from semo_sdk.serving.protocol import (
    CLIENT_EVENTS,
    SHUTTING_DOWN,
    Adjust,
    Interrupt,
    Listen,
    Manner,
    Options,
    Save,
    SessionEnd,
    SpeechEnd,
    Start,
    event_message,
)
from semo_sdk.serving.service import Service
from semo_sdk.serving.session import LiveSession
from semo_sdk.serving.speech import Frame

__all__ = ["Connection", "Ending", "Gone", "Heard", "Wire", "opened", "parse_event"]

CATCH_UP_SECONDS = 0.08  # frames that were delayed by less follow at once; after a longer delay time goes on from there
STATS_SECONDS = 1.0
MAX_MISTAKES = 50  # messages with errors before the connection is closed
POLICY, TRY_LATER, GOING_AWAY, NORMAL, FAILED = 1008, 1013, 1001, 1000, 1011  # close codes of web sockets


class Gone(Exception):
    """The client left."""


@dataclass(frozen=True, eq=False)
class Heard:
    """What a microphone brought.

    Attributes:
        pcm: (n,) float32 in [-1, 1] of somebody speaking; may be empty.
        rate: in Hz.
        ends: they stopped.
    """

    pcm: np.ndarray
    rate: int
    ends: bool


@dataclass(frozen=True)
class Ending:
    """Why a connection ended: close code of a web socket, reason in words, and the body of an error."""

    code: int
    reason: str
    error: dict[str, Any] | None = None

    @property
    def event(self) -> dict[str, Any]:
        """As the last event."""
        return {"type": "session.closed", "reason": self.reason, **({"error": self.error} if self.error else {})}

    @classmethod
    def of(cls, error: BaseException, *, reason: str = "failed") -> Ending:
        """The ending that an error means."""
        _, body, headers = problem(error)
        retry = {"retry_after": int(headers["Retry-After"])} if "Retry-After" in headers else {}
        code = FAILED if reason == "failed" else TRY_LATER if retry else POLICY
        return cls(code, reason, {**body["error"], **retry})


class Wire(Protocol):
    """What a connection runs on. All methods raise :class:`Gone` when the client has left."""

    async def receive(self) -> str | bytes | Heard:
        """The next message: an event, PCM16, or what a microphone brought."""

    async def send_event(self, event: dict[str, Any]) -> None:
        """Sends an event; TimeoutError if the client does not read."""

    async def send_frame(self, frame: Frame) -> None:
        """Sends a frame with its sound, to be shown now."""


def parse_event(text: str, limit: int) -> Any:
    """A client's text message.

    Raises:
        ApiError: too long, not JSON, or not an event; says what, and repeats nothing of it.
    """
    if len(text) > limit:
        raise ApiError(413, "message_too_large", f"a message may have {limit} bytes")
    try:
        return CLIENT_EVENTS.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or "type"
        raise ApiError(400, "invalid_event", f"not an event of this API ({first['type']})", param=param) from error


@contextlib.asynccontextmanager
async def opened(service: Service, owner: str, options: Options) -> AsyncIterator[LiveSession]:
    """A live session for its owner: admitted, counted, and closed at the end.

    Raises:
        SemoError: no such portrait, an impossible setting, or no room.
    """
    with service.seat(owner):
        stored = await service.decode(service.portraits.get, options.portrait_id, owner)
        reference = await service.decode(stored.reference, service.engine)
        manner = {name: getattr(options, name) for name in Manner.model_fields}
        state = None
        if options.state_id is not None:
            state = (await service.decode(service.states.get, options.state_id, owner)).state
        session = service.engine.open(reference, state=state, **manner)
        try:
            yield session
        finally:
            session.close()


class Connection:
    """Runs one session on one wire until either ends. A slow, silent or vanished client ends only its own.

    Args:
        wire: connected.
        session: closed at the end, whatever happens.
        options: what the client asked for.
        service: its settings, threads, and whether it drains.
        owner: whose saved states these are.
    """

    def __init__(self, wire: Wire, session: LiveSession, options: Options, service: Service, owner: str) -> None:
        self._wire, self._session, self._options, self._service = wire, session, options, service
        self._owner = owner
        self._settings = service.settings
        self._notices: deque[dict[str, Any]] = deque(maxlen=MAX_MISTAKES)
        self._heard_from = time.monotonic()
        self._changed = asyncio.Event()

    async def run(self) -> Ending:
        """Until the client leaves, asks to end, is gone, or the session fails."""
        loop = asyncio.get_running_loop()
        self._session.on_output(functools.partial(_tell, loop, self._changed))
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        ending = Ending(NORMAL, "ended")
        try:
            done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            ending = next(iter(done)).result()
        except (Gone, SessionClosedError):
            pass
        except TimeoutError:
            ending = Ending(POLICY, "the client does not read")
        except (SemoError, RuntimeError, OSError) as failure:
            ending = Ending.of(failure)
        finally:
            self._session.on_output(lambda: None)
            self._session.close()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        return ending

    async def _read(self) -> Ending:
        rate = self._settings.messages_per_second
        allowance, since, mistakes = rate, time.monotonic(), 0
        while True:
            message = await self._wire.receive()
            now = self._heard_from = time.monotonic()
            allowance, since = min(rate, allowance + (now - since) * rate) - 1, now
            if allowance < 0:  # the rest waits in the client's own buffers
                await asyncio.sleep(-allowance / rate)
            try:
                if await self._handle(message):
                    return Ending(NORMAL, "ended by the client")
            except SessionClosedError:
                raise
            except SemoError as error:
                mistakes += 1
                if mistakes > MAX_MISTAKES:
                    return Ending(POLICY, "too many errors")
                self._notices.append({"type": "error", **problem(error)[1]})
                self._changed.set()

    async def _handle(self, message: str | bytes | Heard) -> bool:
        """Does what a message says; True if the session shall end."""
        if isinstance(message, Heard):
            await self._push(message.pcm, message.rate)
            if message.ends:
                self._session.end()
            return False
        if isinstance(message, bytes):
            if len(message) % 2 or len(message) > self._settings.message_bytes:
                raise ApiError(400, "invalid_audio", f"audio is PCM16, at most {self._settings.message_bytes} bytes")
            await self._push(np.frombuffer(message, "<i2").astype(np.int16), self._options.sample_rate)
            return False
        event = parse_event(message, self._settings.message_bytes)
        match event:
            case SpeechEnd():
                self._session.end()
            case Interrupt():
                self._session.interrupt()
            case Listen():
                self._session.listen(event.on)
            case Adjust():
                self._session.adjust(**event.model_dump(exclude={"type"}, exclude_none=True))
            case Save():
                await self._save(event)
            case Start():
                raise ApiError(400, "already_started", "the session has started", param="type")
        return isinstance(event, SessionEnd)

    async def _save(self, wish: Save) -> None:
        self._service.rates.check(self._owner)
        state, states = self._session.save(), self._service.states
        keep = functools.partial(states.add, state, self._owner, wish.replaces)
        # here at once, so that the event comes between the two frames that the state lies between
        saved = await asyncio.get_running_loop().run_in_executor(None, keep) if states.remote else keep()
        notice = {"type": "session.saved", "state_id": saved.id, "position": state.time}
        notice |= {"waiting": len(state.pending) / SAMPLE_RATE} | ({} if wish.tag is None else {"tag": wish.tag})
        self._notices.append(notice)
        self._changed.set()

    async def _push(self, pcm: np.ndarray, rate: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._service.encoders, self._session.push, pcm, rate)

    async def _write(self) -> Ending:
        begun = due = time.monotonic()
        warned = False
        told, shown = begun, 0
        await self._wire.send_event(
            {
                "type": "session.started",
                "sample_rate": SAMPLE_RATE,
                "fps": self._session.fps,
                "width": IMAGE_SIZE,
                "height": IMAGE_SIZE,
                "frames_per_pass": self._session.hop,
                "position": self._session.begins,
            }
        )
        while True:
            now = time.monotonic()
            if now - begun > self._settings.session_seconds:
                return Ending(POLICY, "the longest time of a session is over")
            if now - self._heard_from > self._settings.quiet_seconds:
                return Ending(POLICY, "nothing was heard from the client")
            stop = self._service.stop_at
            if stop is not None and not warned:
                warned = True
                await self._wire.send_event({"type": "server.draining", "seconds": round(max(stop - now, 0), 1)})
            if stop is not None and now > stop:
                return Ending(GOING_AWAY, SHUTTING_DOWN)
            while self._notices:
                await self._wire.send_event(self._notices.popleft())
            if now - told >= STATS_SECONDS:
                await self._wire.send_event(self._stats(shown / (now - told)))
                told, shown = now, 0
            self._changed.clear()
            item = self._session.take()
            if item is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 1.0)
            elif isinstance(item, Frame):
                await self._wire.send_frame(item)
                shown += 1
                due = max(due + len(item.audio) / SAMPLE_RATE, time.monotonic() - CATCH_UP_SECONDS)
                await asyncio.sleep(max(due - time.monotonic(), 0))
            else:
                await self._wire.send_event(event_message(item))

    def _stats(self, fps: float) -> dict[str, Any]:
        """What a page may want to show: frames a second, speech that waits, and the delay of the last utterance."""
        first = self._session.first_frame
        return {
            "type": "stats",
            "fps": round(fps, 1),
            "waiting": round(self._session.waiting, 2),
            "first_frame": None if first is None else round(first, 3),
        }


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Sets an event from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(event.set)
