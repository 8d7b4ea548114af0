"""Guard: what every request passes before anything looks at it: origin, host, size, time; and its one line of log."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semo_sdk.serving.metrics import Metrics
from semo_sdk.serving.problems import ApiError, problem
from semo_sdk.serving.settings import Settings

__all__ = ["Guard"]

log = logging.getLogger(__name__)

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}
OVERHEAD_BYTES = 65_536  # of a form around its files
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """ASGI middleware.

    Args:
        app: what it guards.
        settings: limits and allowed origins.
        metrics: counts requests.
        local: nobody needs a key, so only this machine may ask, under its own name (a page elsewhere could otherwise
            reach the server through a visitor's browser).
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, local: bool) -> None:
        self._app, self._settings, self._metrics, self._local = app, settings, metrics, local
        self._body_bytes = settings.image_bytes + settings.audio_bytes + OVERHEAD_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request or socket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
        except ApiError as error:
            await _refuse(scope, send, error)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        start, request_id, status = time.perf_counter(), secrets.token_hex(8), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-Id"] = request_id
                for name, value in HEADERS.items():
                    out.setdefault(name, value)
                out.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, self._bounded(receive), answer)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "unmatched")  # the pattern: a path may hold anything
            self._metrics.request(scope["method"], route, status, seconds)
            log.info("%s %s %d %.0f ms %s", scope["method"], route, status, 1000 * seconds, request_id)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._local and urlsplit(f"//{host}").hostname not in LOCAL_HOSTS:
            raise ApiError(403, "forbidden_host", "this server has no API keys, so it answers only to its own machine")
        origin = headers.get("origin")
        foreign = origin is not None and origin not in self._settings.origins and urlsplit(origin).netloc != host
        if foreign and (scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")):
            raise ApiError(403, "forbidden_origin", "this web origin may not use the server; see `semo serve --origin`")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._body_bytes:
            raise ApiError(413, "request_too_large", f"a request may have {self._body_bytes} bytes")

    def _bounded(self, receive: Receive) -> Receive:
        """The body, as long as it comes and is not too long, whatever its header said."""
        size, more = 0, True

        async def bounded() -> Message:
            nonlocal size, more
            if not more:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._settings.upload_seconds)
            except TimeoutError:
                raise HTTPException(408, "the request's body stopped coming") from None
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > self._body_bytes:
                raise HTTPException(413, f"a request may have {self._body_bytes} bytes")
            return message

        return bounded


async def _refuse(scope: Scope, send: Send, error: ApiError) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    status, body, _ = problem(error)
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
