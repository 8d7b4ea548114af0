"""What the API answers, for OpenAPI."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from semo_sdk.constants import FPS
from semo_sdk.serving.portraits import StoredPortrait
from semo_sdk.serving.settings import IceServer
from semo_sdk.serving.videos import Video

__all__ = [
    "Control",
    "Deleted",
    "ErrorBody",
    "Health",
    "PortraitList",
    "PortraitObject",
    "VideoList",
    "VideoObject",
    "WebRTCAnswer",
    "WebRTCConfig",
]


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(BaseModel):
    """Body of every error."""

    error: ErrorObject


class Health(BaseModel):
    """State of the server."""

    status: str


class PortraitObject(BaseModel):
    """An uploaded portrait; ``advice`` says what a better one would have, see ``Portrait.advice``."""

    id: str
    object: Literal["portrait"] = "portrait"
    created_at: int
    width: int
    height: int
    advice: dict[str, str]

    @classmethod
    def of(cls, stored: StoredPortrait) -> PortraitObject:
        """How the API shows a portrait."""
        portrait = stored.portrait
        height, width = portrait.photo.shape[:2]
        return cls(id=stored.id, created_at=stored.created_at, width=width, height=height, advice=portrait.advice)


class PortraitList(BaseModel):
    """Portraits that the key can use."""

    object: Literal["list"] = "list"
    data: list[PortraitObject]


class VideoObject(BaseModel):
    """A video job."""

    id: str
    object: Literal["video"] = "video"
    created_at: int
    completed_at: int | None
    expires_at: int | None
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    progress: int
    frames: int
    seconds: float
    error: ErrorObject | None

    @classmethod
    def of(cls, video: Video, hours: float) -> VideoObject:
        """How the API shows a job whose result is kept for so long."""
        done = video.completed_at
        return cls(
            id=video.id,
            created_at=video.created_at,
            completed_at=done,
            expires_at=None if done is None else done + round(3600 * hours),
            status=video.status,
            progress=100 * video.frames_done // max(video.frames, 1),
            frames=video.frames,
            seconds=video.frames / FPS,
            error=None if video.error is None else ErrorObject(**video.error),
        )


class VideoList(BaseModel):
    """The key's video jobs."""

    object: Literal["list"] = "list"
    data: list[VideoObject]


class Deleted(BaseModel):
    """Something is gone."""

    id: str
    object: str
    deleted: bool = True


class Control(BaseModel):
    """A setting that may change while a session lives."""

    name: str
    minimum: float
    maximum: float
    value: float


class WebRTCConfig(BaseModel):
    """What a client needs to know before its offer."""

    object: Literal["webrtc.config"] = "webrtc.config"
    ice_servers: list[IceServer]
    latencies: list[str]
    controls: list[Control]
    default_portrait: bool


class WebRTCAnswer(BaseModel):
    """The server's half of a connection."""

    id: str
    object: Literal["webrtc.session"] = "webrtc.session"
    type: Literal["answer"] = "answer"
    sdp: str
