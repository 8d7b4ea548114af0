"""``WS /v1/live``: a live session over a web socket."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import numpy as np
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from semo_sdk.errors import SemoError
from semo_sdk.serving.auth import SUBPROTOCOL, socket_key
from semo_sdk.serving.live import Connection, Ending, Gone, opened, parse_event
from semo_sdk.serving.problems import ApiError, problem
from semo_sdk.serving.protocol import Start, pack_frame
from semo_sdk.serving.service import Service
from semo_sdk.serving.speech import Frame

__all__ = ["serve_socket"]

START_SECONDS = 10.0  # for the first message


async def serve_socket(service: Service, socket: WebSocket) -> None:
    """One session, from the request to the farewell."""
    try:
        owner = service.owner(socket_key(socket))
        service.check_ready()
    except SemoError as error:
        status, body, headers = problem(error)
        await socket.send_denial_response(JSONResponse(body, status, headers))
        return
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", []) else None)
    wire = SocketWire(socket, service)
    try:
        start = await wire.start()
        async with opened(service, owner, start) as session:
            wire.quality = start.jpeg_quality
            await wire.close(await Connection(wire, session, start, service, owner).run())
    except SemoError as error:
        await wire.close(Ending.of(error, reason="refused"))
    except Gone:
        return


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class SocketWire:
    """A web socket as a :class:`~semo_sdk.serving.live.Wire`.

    Attributes:
        quality: of the JPEG pictures.
    """

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._settings, self._pool = socket, service.settings, service.encoders
        self.quality = 85

    async def start(self) -> Start:
        """The first message.

        Raises:
            ApiError: something else came, or nothing.
            Gone: the client left.
        """
        try:
            message = await asyncio.wait_for(self.receive(), START_SECONDS)
        except TimeoutError:
            raise ApiError(408, "no_start", f"no session.start within {START_SECONDS:g} s") from None
        event = parse_event(message if isinstance(message, str) else "", self._settings.message_bytes)
        if not isinstance(event, Start):
            raise ApiError(400, "no_start", "the first message must be session.start", param="type")
        return event

    async def receive(self) -> str | bytes:
        """See :class:`~semo_sdk.serving.live.Wire`."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise Gone
        pcm: bytes | None = message.get("bytes")
        return (message.get("text") or "") if pcm is None else pcm

    async def send_event(self, event: dict[str, Any]) -> None:
        """See :class:`~semo_sdk.serving.live.Wire`."""
        await self._send(self._socket.send_text(json.dumps(event)))

    async def send_frame(self, frame: Frame) -> None:
        """See :class:`~semo_sdk.serving.live.Wire`."""
        loop = asyncio.get_running_loop()
        jpeg = await loop.run_in_executor(self._pool, encode_jpeg, frame.image, self.quality)
        await self._send(self._socket.send_bytes(pack_frame(frame, jpeg)))

    async def close(self, ending: Ending) -> None:
        """Says why, then closes; a client that is gone is no error, and one that does not read is not waited for."""

        async def say() -> None:
            await self._socket.send_text(json.dumps(ending.event))
            await self._socket.close(ending.code, ending.reason)

        socket = self._socket
        if socket.client_state is WebSocketState.CONNECTED and socket.application_state is WebSocketState.CONNECTED:
            try:
                await asyncio.wait_for(say(), 1.0)
            except (TimeoutError, RuntimeError, OSError, WebSocketDisconnect):
                return

    async def _send(self, sending: Any) -> None:
        try:
            await asyncio.wait_for(sending, self._settings.stall_seconds)
        except WebSocketDisconnect:
            raise Gone from None
