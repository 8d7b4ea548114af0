"""Errors as HTTP: OpenAI-style bodies ``{"error": {"message", "type", "param", "code"}}`` with the right status."""

from __future__ import annotations

import errno
import math
from typing import Any

from semo_sdk.errors import (
    AmbiguousFaceError,
    AudioError,
    CapacityError,
    ConfigError,
    EncodeError,
    EngineError,
    FaceTooSmallError,
    ImageError,
    InputError,
    NoFaceError,
    SemoError,
    SessionClosedError,
)

__all__ = ["ApiError", "QuotaError", "problem"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STORAGE_RETRY_SECONDS = 10
ENCODE_MESSAGE = "the video could not be encoded or stored; try again"  # the error itself names the server's folders
INVALID, SERVER = "invalid_request_error", "server_error"

# The first that fits: error, status, type, code, the parameter it is usually about
TABLE: tuple[tuple[type[SemoError], int, str, str, str | None], ...] = (
    (NoFaceError, 400, INVALID, "no_face", "image"),
    (FaceTooSmallError, 400, INVALID, "face_too_small", "image"),
    (AmbiguousFaceError, 400, INVALID, "ambiguous_face", "face_index"),
    (ImageError, 400, INVALID, "invalid_image", "image"),
    (AudioError, 400, INVALID, "invalid_audio", "audio"),
    (InputError, 400, INVALID, "invalid_input", None),
    (ConfigError, 400, INVALID, "invalid_setting", None),
    (EncodeError, 500, SERVER, "encode_failed", None),
    (SessionClosedError, 409, INVALID, "cancelled", None),
    (EngineError, 503, SERVER, "engine_failed", None),
)


class QuotaError(CapacityError):
    """This client asks for more than its share."""


class ApiError(SemoError):
    """A request that cannot be served.

    Attributes:
        status: HTTP status.
        code: for programs.
        param: what is wrong in the request, if one thing is.
        kind: class of the error.
    """

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None, kind: str = INVALID) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.kind = status, code, param, kind


def problem(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an error. What is not meant for clients is not told."""
    headers: dict[str, str] = {}
    if isinstance(error, CapacityError):
        quota = isinstance(error, QuotaError)
        status, kind, code, param = (
            (429, "rate_limit_error", "quota", None) if quota else (503, SERVER, "capacity", None)
        )
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    elif isinstance(error, ApiError):
        status, kind, code, param = error.status, error.kind, error.code, error.param
    else:
        found = next((row for row in TABLE if isinstance(error, row[0])), None)
        if found is None and isinstance(error, OSError) and error.errno in FULL:
            headers["Retry-After"] = str(STORAGE_RETRY_SECONDS)
            body = {"message": "the server's disk is full", "type": SERVER, "param": None, "code": "storage_full"}
            return 503, {"error": body}, headers
        if found is None:
            body = {"message": "internal error", "type": SERVER, "param": None, "code": "internal"}
            return 500, {"error": body}, headers
        _, status, kind, code, param = found
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    message = ENCODE_MESSAGE if isinstance(error, EncodeError) else str(error)
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}, headers
