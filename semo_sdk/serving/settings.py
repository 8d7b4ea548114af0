"""Settings of the server: strict, frozen, each with a unit and a bound."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from semo_sdk.errors import ConfigError

__all__ = ["IceServer", "Settings", "read_ice_servers"]

MEGABYTE = 1_000_000


class IceServer(BaseModel):
    """A STUN or TURN server, as browsers name it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    urls: str = Field(pattern=r"^(stun|turn|turns):[^\s@]+$", max_length=256)
    username: str | None = Field(None, max_length=256)
    credential: str | None = Field(None, max_length=256)


def read_ice_servers(path: Path) -> tuple[IceServer, ...]:
    """STUN and TURN servers from a JSON file: a list of objects as browsers take them.

    Raises:
        ConfigError: not such a file.
    """
    try:
        return TypeAdapter(tuple[IceServer, ...]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f'{path} is no list of STUN and TURN servers like [{{"urls": "stun:host:3478"}}]') from error


class Settings(BaseModel):
    """What the operator decides. Every limit holds before anything is decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(description="folder of the finished videos")
    keys: Path | None = Field(
        None, description="file of API keys; None: nobody needs one, and only this machine may ask"
    )
    origins: tuple[str, ...] = Field((), description="web origins that may call the API from a browser (CORS)")

    ice_servers: tuple[IceServer, ...] = Field((), description="STUN and TURN servers, for this server and its clients")

    sessions_per_key: int = Field(4, ge=1, description="live sessions at once")
    session_seconds: float = Field(3600, gt=0, description="longest live session")
    quiet_seconds: float = Field(300, gt=0, description="a live session without a message for so long is closed")
    stall_seconds: float = Field(10, gt=0, description="a client that does not read for so long is gone")
    message_bytes: int = Field(65_536, ge=1024, description="of one message to a live session")
    messages_per_second: float = Field(200, gt=0, description="to a live session; more are read later")

    image_bytes: int = Field(10 * MEGABYTE, ge=1024)
    image_pixels: int = Field(24_000_000, ge=1024)
    portraits: int = Field(64, ge=1, description="kept in memory altogether")
    portraits_per_key: int = Field(16, ge=1, description="the one used least recently makes room")

    states: int = Field(64, ge=1, description="saved live sessions kept in memory altogether")
    states_per_key: int = Field(8, ge=1, description="the oldest makes room")
    state_bytes: int = Field(5 * MEGABYTE, ge=1024, description="of one that is uploaded: 60 s of speech are 3.9 MB")

    audio_bytes: int = Field(32 * MEGABYTE, ge=1024)
    audio_seconds: float = Field(180, gt=0, description="of one video")
    videos_waiting: int = Field(16, ge=1, description="jobs that are not finished, altogether")
    videos_per_key: int = Field(4, ge=1, description="jobs that are not finished")
    videos_kept: int = Field(1000, ge=1, description="finished videos; the oldest goes first")
    video_hours: float = Field(24, gt=0, description="a finished video is kept for so long")
    free_bytes: int = Field(200 * MEGABYTE, ge=0, description="disk space below which no job is taken")

    requests_per_minute: float = Field(600, gt=0, description="of one key")
    upload_seconds: float = Field(30, gt=0, description="between two parts of a request's body")
    drain_seconds: float = Field(30, ge=0, description="how long sessions and jobs may go on after the signal to stop")
