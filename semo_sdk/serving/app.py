"""The FastAPI application: health, portraits, videos, live sessions and a page. Made by :func:`create_app`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

import semo_sdk
from semo_sdk.errors import SemoError
from semo_sdk.serving import protocol
from semo_sdk.serving.guard import Guard
from semo_sdk.serving.live_socket import serve_socket
from semo_sdk.serving.metrics import CONTENT_TYPE_LATEST
from semo_sdk.serving.problems import ApiError, problem
from semo_sdk.serving.routes import portraits_router, videos_router, webrtc_router
from semo_sdk.serving.routes_states import states_router
from semo_sdk.serving.schemas import ErrorBody, Health
from semo_sdk.serving.service import Service
from semo_sdk.serving.site import page_router
from semo_sdk.serving.webrtc import Peers

__all__ = ["create_app"]

log = logging.getLogger(__name__)

DESCRIPTION = "One portrait and speech to a talking-head video: as a file, or live.\n\n## WS /v1/live\n\n"


def create_app(service: Service) -> FastAPI:
    """The application around a service, which it starts and closes.

    Args:
        service: not started.
    """

    peers = Peers(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await peers.close()
            service.close()

    app = FastAPI(
        title="semo-sdk",
        version=semo_sdk.__version__,
        description=DESCRIPTION + (protocol.__doc__ or ""),
        lifespan=lifespan,
        responses={status: {"model": ErrorBody} for status in (400, 401, 404, 413, 415, 429, 503)},
    )
    app.state.service = service
    settings = service.settings
    app.add_middleware(Guard, settings=settings, metrics=service.metrics, local=not service.keys.needed)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Range"],
            expose_headers=["Location", "Retry-After", "Content-Range", "X-Request-Id"],
        )
    _add_errors(app)

    app.include_router(portraits_router(service))
    app.include_router(videos_router(service))
    app.include_router(states_router(service))
    app.include_router(webrtc_router(service, peers))
    app.include_router(page_router())

    @app.get("/health", tags=["server"])
    def health() -> Health:
        """The process lives."""
        return Health(status="ok")

    @app.get("/ready", tags=["server"])
    def ready() -> Health:
        """New work is taken; 503 while the server starts, drains, or its engine is broken."""
        service.check_ready()
        return Health(status="ready")

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        await serve_socket(service, socket)

    return app


def _add_errors(app: FastAPI) -> None:
    """Every error has the same body, and says nothing about what was sent."""

    def known(request: Request, error: Exception) -> JSONResponse:
        status, body, headers = problem(error)
        return JSONResponse(body, status, headers)

    def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, OSError):  # an upload could not be stored
            return known(request, error.__cause__)
        codes = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "request_too_large"}
        named = ApiError(error.status_code, codes.get(error.status_code, "bad_request"), str(error.detail))
        return known(request, named)

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        return known(request, ApiError(400, "invalid_parameter", str(first["msg"]), param=param))

    def unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("a request failed: %s", type(error).__name__, exc_info=error)
        return known(request, error)

    app.add_exception_handler(SemoError, known)
    app.add_exception_handler(OSError, unknown)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unknown)
