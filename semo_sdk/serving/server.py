"""Server: uvicorn that drains before it stops."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from semo_sdk.serving.service import Service

__all__ = ["Server"]

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512
PING_SECONDS = 20.0  # a client that does not answer a ping for so long is gone
SHUTDOWN_SECONDS = 5  # for answers that are being sent, after the drain


class Server(uvicorn.Server):
    """The first SIGTERM or SIGINT takes no new work and lets live sessions and jobs end; the second does not wait."""

    service: Service
    announce: Callable[[str], object]
    _loop: asyncio.AbstractEventLoop | None = None
    _drain: asyncio.Task[None] | None = None

    @classmethod
    def of(
        cls,
        app: FastAPI,
        service: Service,
        *,
        host: str,
        port: int,
        announce: Callable[[str], object] = log.info,
        **settings: Any,
    ) -> Server:
        """A server for an application.

        Args:
            app: of :func:`semo_sdk.serving.app.create_app`.
            service: that it was made of.
            host, port: where to listen.
            announce: called with the address when it listens.
            settings: more for ``uvicorn.Config``, for example ``ssl_certfile``.
        """
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            ws="websockets-sansio",
            ws_max_size=service.settings.message_bytes,
            ws_max_queue=8,
            ws_per_message_deflate=False,  # JPEG does not get smaller, and bombs do
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            access_log=False,  # paths and addresses; semo_sdk.serving.guard logs routes
            server_header=False,
            proxy_headers=False,
            log_level="warning",
            **settings,
        )
        server = cls(config)
        server.service, server.announce = service, announce
        return server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self._loop is None or self._drain is not None:
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_and_stop())

    async def _drain_and_stop(self) -> None:
        await self.service.drain()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and says where."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        scheme = "https" if self.config.is_ssl else "http"
        for listener in self.servers:
            for bound in listener.sockets:
                host, port = bound.getsockname()[:2]
                self.announce(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
