"""The live half of the client: a session on one web socket."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from semo_sdk.errors import CapacityError, InputError, SemoError
from semo_sdk.media.audio import to_mono
from semo_sdk.serving.protocol import unpack_frame

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

__all__ = ["ConnectionLostError", "Live", "LiveEvent", "LiveFrame", "ServerError", "raise_problem"]


class ServerError(SemoError):
    """The server refused a request, or a job failed.

    Attributes:
        code: the server's name for it, for example ``"no_face"``.
        status: HTTP status, 0 if there is none.
    """

    def __init__(self, message: str, code: str, status: int = 0) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class ConnectionLostError(ServerError):
    """The connection broke without a farewell: the network, or a server that died. Trying again makes sense; a session
    goes on from its last saved state (:meth:`semo_sdk.serving.client.Client.lasting` does both)."""

    def __init__(self) -> None:
        super().__init__("the connection to the server was lost; connect again", "connection_lost")


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """One frame of a live session.

    Attributes:
        index: its number; it is shown at index / 25 seconds.
        speaking: whether speech is in it.
        audio: (640,) int16 mono 16 kHz, exactly its sound; (1280,) at half the frame rate.
        jpeg: the picture, 256 x 256.
    """

    index: int
    speaking: bool
    audio: np.ndarray
    jpeg: bytes

    @property
    def image(self) -> np.ndarray:
        """(256, 256, 3) uint8 RGB."""
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(self.jpeg)).convert("RGB"))


@dataclass(frozen=True)
class LiveEvent:
    """Something that happened, see :mod:`semo_sdk.serving.protocol`."""

    type: str
    data: dict[str, Any]


class Live:
    """A live session: push speech, iterate over frames and events. One thread may push while another iterates."""

    def __init__(self, socket: ClientConnection, start: dict[str, Any], stack: ExitStack) -> None:
        self._socket, self._stack = socket, stack
        self._ended = False  # by us, or by the server with a farewell
        try:
            self._say(**start)
            first = self.receive()
        except BaseException:
            self.close()
            raise
        if not isinstance(first, LiveEvent) or first.type != "session.started":
            self.close()
            raise ServerError("the server did not start the session", "no_session")
        self.started = first.data

    def push(self, pcm: np.ndarray) -> None:
        """More speech, (n,) or (n, channels) samples at the session's rate, as for :meth:`semo_sdk.Session.push`."""
        samples = np.clip(np.rint(to_mono(pcm) * 32768), -32768, 32767).astype("<i2")
        for begin in range(0, len(samples), 8_192):
            self._send(samples[begin : begin + 8_192].tobytes())

    def end(self) -> None:
        """The utterance ends; ``speech.done`` comes with its last frame."""
        self._say("speech.end")

    def interrupt(self) -> None:
        """Drops what was not shown yet; ``speech.interrupted`` says how far it was."""
        self._say("interrupt")

    def listen(self, on: bool = True) -> None:
        """Somebody speaks to the portrait, or stopped."""
        self._say("listen", on=on)

    def save(self, *, replaces: str | None = None, tag: int | None = None) -> None:
        """Keeps the session as it is now: a ``session.saved`` event brings the ``state_id`` for another one.

        Args:
            replaces: a ``state_id`` that is forgotten then.
            tag: comes back in the event.
        """
        wish = {"replaces": replaces, "tag": tag}
        self._say("session.save", **{name: value for name, value in wish.items() if value is not None})

    def __iter__(self) -> Iterator[LiveFrame | LiveEvent]:
        """Frames and events as they come, 25 frames a second, until the session is closed.

        Raises:
            CapacityError, ServerError: the session failed.
            ConnectionLostError: the connection broke.
        """
        while (item := self.receive()) is not None:
            yield item

    def close(self) -> None:
        """Ends the session; calling it twice is fine."""
        self._ended = True
        self._stack.close()

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _say(self, type: str, **fields: Any) -> None:
        self._send(json.dumps({"type": type, **fields}))

    def _send(self, message: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            self._socket.send(message)
        except ConnectionClosed as error:
            raise ConnectionLostError from error

    def receive(self) -> LiveFrame | LiveEvent | None:
        """The next frame or event, None after the end; raises what iterating raises."""
        from websockets.exceptions import ConnectionClosed

        try:
            message = self._socket.recv()
        except ConnectionClosed as gone:
            if self._ended:
                return None
            raise ConnectionLostError from gone
        if isinstance(message, bytes):
            return LiveFrame(*unpack_frame(message))
        data = json.loads(message)
        self._ended |= data["type"] == "session.closed"
        if data["type"] == "session.closed" and "error" in data:
            error = data["error"]
            if "retry_after" in error:
                raise CapacityError(error["message"], float(error["retry_after"]))
            raise ServerError(error["message"], error["code"])
        return LiveEvent(data.pop("type"), data)


def raise_problem(status: int, body: bytes, retry_after: str | None) -> NoReturn:
    """Turns the server's answer to a refused request into this package's error."""
    try:
        error = json.loads(body)["error"]
        message, code = str(error["message"]), str(error["code"])
    except (ValueError, KeyError, TypeError):
        message, code = f"the server answered with status {status}", "unknown"
    if retry_after is not None and retry_after.isdigit():
        raise CapacityError(message, float(retry_after))
    if status in (400, 413, 415):
        raise InputError(f"{message} ({code})")
    raise ServerError(message, code, status)
