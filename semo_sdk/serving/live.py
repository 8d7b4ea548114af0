"""``WS /v1/live``: one live session over one web socket. A slow, silent or vanished client ends only its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from semo_sdk.constants import FPS, IMAGE_SIZE, SAMPLE_RATE
from semo_sdk.errors import SemoError, SessionClosedError
from semo_sdk.serving.problems import ApiError, problem
from semo_sdk.serving.protocol import (
    CLIENT_EVENTS,
    Interrupt,
    Listen,
    SessionEnd,
    SpeechEnd,
    Start,
    event_message,
    pack_frame,
)
from semo_sdk.serving.session import LiveSession
from semo_sdk.serving.settings import Settings
from semo_sdk.serving.speech import Frame

__all__ = ["Connection", "encode_jpeg", "read_start"]

START_SECONDS = 10.0  # for the first message
CATCH_UP_SECONDS = 0.08  # frames that were delayed by less follow at once; after a longer delay time goes on from there
MAX_MISTAKES = 50  # messages with errors before the connection is closed
POLICY, TRY_LATER, GOING_AWAY, NORMAL = 1008, 1013, 1001, 1000  # close codes


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Sets an event from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(event.set)


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


async def read_start(socket: WebSocket, settings: Settings) -> Start:
    """The first message.

    Raises:
        ApiError: something else came, or nothing.
        WebSocketDisconnect: the client left.
    """
    try:
        message = await asyncio.wait_for(socket.receive(), START_SECONDS)
    except TimeoutError:
        raise ApiError(408, "no_start", f"no session.start within {START_SECONDS:g} s") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", NORMAL))
    event = parse_event(message.get("text") or "", settings.message_bytes)
    if not isinstance(event, Start):
        raise ApiError(400, "no_start", "the first message must be session.start", param="type")
    return event


class Connection:
    """Runs one session on one socket until either ends.

    Args:
        socket: accepted.
        session: closed at the end, whatever happens.
        start: what the client asked for.
        settings: limits.
        pool: for resampling and JPEG.
        draining: when the server will stop, in ``time.monotonic()`` seconds; None while it will not.
    """

    def __init__(
        self,
        socket: WebSocket,
        session: LiveSession,
        start: Start,
        settings: Settings,
        pool: Executor,
        draining: Callable[[], float | None],
    ) -> None:
        self._socket, self._session, self._start = socket, session, start
        self._settings, self._pool, self._draining = settings, pool, draining
        self._notices: deque[dict[str, Any]] = deque(maxlen=MAX_MISTAKES)
        self._heard_from = time.monotonic()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until the client leaves, asks to end, is gone, or the session fails."""
        loop = asyncio.get_running_loop()
        self._session.on_output(functools.partial(_tell, loop, self._changed))
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        code, reason, error = NORMAL, "ended", None
        try:
            done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            code, reason = next(iter(done)).result()
        except (WebSocketDisconnect, SessionClosedError):
            pass
        except TimeoutError:
            code, reason = POLICY, "the client does not read"
        except (SemoError, RuntimeError, OSError) as failure:
            code, reason, error = 1011, "failed", problem(failure)[1]["error"]
        finally:
            self._session.on_output(lambda: None)
            self._session.close()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        await close(self._socket, code, reason, error)

    async def _read(self) -> tuple[int, str]:
        rate = self._settings.messages_per_second
        allowance, since, mistakes = rate, time.monotonic(), 0
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", NORMAL))
            now = self._heard_from = time.monotonic()
            allowance, since = min(rate, allowance + (now - since) * rate) - 1, now
            if allowance < 0:  # the rest waits in the client's own buffers
                await asyncio.sleep(-allowance / rate)
            try:
                if await self._handle(message):
                    return NORMAL, "ended by the client"
            except SessionClosedError:
                raise
            except SemoError as error:
                mistakes += 1
                if mistakes > MAX_MISTAKES:
                    return POLICY, "too many errors"
                self._notices.append({"type": "error", **problem(error)[1]})
                self._changed.set()

    async def _handle(self, message: Any) -> bool:
        """Does what a message says; True if the session shall end."""
        pcm = message.get("bytes")
        if pcm is not None:
            if len(pcm) % 2 or len(pcm) > self._settings.message_bytes:
                raise ApiError(400, "invalid_audio", f"audio is PCM16, at most {self._settings.message_bytes} bytes")
            samples = np.frombuffer(pcm, "<i2").astype(np.int16)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._pool, self._session.push, samples, self._start.sample_rate)
            return False
        event = parse_event(message.get("text") or "", self._settings.message_bytes)
        match event:
            case SpeechEnd():
                self._session.end()
            case Interrupt():
                self._session.interrupt()
            case Listen():
                self._session.listen(event.on)
            case Start():
                raise ApiError(400, "already_started", "the session has started", param="type")
        return isinstance(event, SessionEnd)

    async def _write(self) -> tuple[int, str]:
        loop = asyncio.get_running_loop()
        begun, due, warned = time.monotonic(), 0.0, False
        await self._send_event(
            {
                "type": "session.started",
                "sample_rate": SAMPLE_RATE,
                "fps": FPS,
                "width": IMAGE_SIZE,
                "height": IMAGE_SIZE,
                "frames_per_pass": self._session.hop,
                "position": self._session.state.time,
            }
        )
        while True:
            now = time.monotonic()
            if now - begun > self._settings.session_seconds:
                return POLICY, "the longest time of a session is over"
            if now - self._heard_from > self._settings.quiet_seconds:
                return POLICY, "nothing was heard from the client"
            stop = self._draining()
            if stop is not None and not warned:
                warned = True
                await self._send_event({"type": "server.draining", "seconds": round(max(stop - now, 0), 1)})
            if stop is not None and now > stop:
                return GOING_AWAY, "the server is shutting down"
            while self._notices:
                await self._send_event(self._notices.popleft())
            self._changed.clear()
            item = self._session.take()
            if item is None:
                try:
                    await asyncio.wait_for(self._changed.wait(), 1.0)
                except TimeoutError:
                    continue
            elif isinstance(item, Frame):
                jpeg = await loop.run_in_executor(self._pool, encode_jpeg, item.image, self._start.jpeg_quality)
                await self._send(self._socket.send_bytes(pack_frame(item, jpeg)))
                due = max(due + 1 / FPS, time.monotonic() - CATCH_UP_SECONDS)
                await asyncio.sleep(max(due - time.monotonic(), 0))
            else:
                await self._send_event(event_message(item))

    async def _send_event(self, event: dict[str, Any]) -> None:
        await self._send(self._socket.send_text(json.dumps(event)))

    async def _send(self, sending: Any) -> None:
        await asyncio.wait_for(sending, self._settings.stall_seconds)


async def close(socket: WebSocket, code: int, reason: str, error: dict[str, Any] | None = None) -> None:
    """Says why, then closes; a client that is gone is no error, and one that does not read is not waited for."""

    async def say() -> None:
        event = {"type": "session.closed", "reason": reason, **({"error": error} if error else {})}
        await socket.send_text(json.dumps(event))
        await socket.close(code, reason)

    if socket.client_state is WebSocketState.CONNECTED and socket.application_state is WebSocketState.CONNECTED:
        try:
            await asyncio.wait_for(say(), 1.0)
        except (TimeoutError, RuntimeError, OSError, WebSocketDisconnect):
            return
