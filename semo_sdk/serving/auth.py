"""Who asks: the API key of a request or a web socket."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, WebSocket
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from semo_sdk.serving.service import Service

__all__ = ["SUBPROTOCOL", "Owner", "socket_key"]

SUBPROTOCOL, KEY_SUBPROTOCOL = "semo", "semo.key."  # browsers cannot set a header on a web socket

bearer = HTTPBearer(auto_error=False, description="an API key of `semo keys add`")


def current_owner(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> str:
    """Identifier of the key's owner.

    Raises:
        ApiError: not a key of ours.
        QuotaError: too many requests.
    """
    service: Service = request.app.state.service
    return service.owner(credentials.credentials if credentials else None)


Owner = Annotated[str, Depends(current_owner)]


def socket_key(socket: WebSocket) -> str | None:
    """The key of a web socket: its Authorization header, or a subprotocol ``semo.key.KEY`` beside ``semo``."""
    scheme, _, key = socket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key
    offered: list[str] = socket.scope.get("subprotocols", [])
    return next((name.removeprefix(KEY_SUBPROTOCOL) for name in offered if name.startswith(KEY_SUBPROTOCOL)), None)
