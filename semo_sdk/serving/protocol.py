"""What travels over ``WS /v1/live`` and the data channel of ``POST /v1/webrtc/offer``, shared by server and client.

The client sends one text message ``session.start``, then binary messages of PCM16 (little endian, mono, at the rate
that it named) and text messages. The server sends text events and binary frames. Over WebRTC the offer takes the place
of ``session.start``, and frames travel as tracks.

Client events: ``session.start``, ``speech.end``, ``interrupt``, ``listen``, ``settings``, ``session.save``,
``session.end``.

Server events: ``session.started``, ``state`` (speaking, listening, idle), ``speech.done`` and ``speech.interrupted``
(with the playback position), ``stats`` (once a second), ``session.saved`` (with the ``state_id`` for a later
``session.start``, the position of its next frame, which on a cluster may have come before the event, and the seconds
of speech that wait in it), ``error``, ``server.draining``, ``session.closed``.

A binary frame, little endian::

    version  uint8      1
    flags    uint8      bit 0: speech is in it
    samples  uint16     n = 640: 40 ms at 16 kHz; twice as many at half the frame rate
    index    uint32     number of the frame since the session began; shown at index / 25 seconds at any frame rate
    audio    n x int16  exactly the sound of this frame
    picture  the rest   JPEG, 256 x 256
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.serving.speech import Event, Frame, Interrupted, SpeechDone, StateChanged

__all__ = [
    "CLIENT_EVENTS",
    "SHUTTING_DOWN",
    "Adjust",
    "Interrupt",
    "Listen",
    "Manner",
    "Offer",
    "Options",
    "Save",
    "SessionEnd",
    "SpeechEnd",
    "Start",
    "Style",
    "event_message",
    "pack_frame",
    "unpack_frame",
]

SHUTTING_DOWN = "the server is shutting down"  # the reason in session.closed after which another server may go on
VERSION = 1
HEADER = struct.Struct("<BBHI")
SPEAKING = 1


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Style(Message):
    """How the portrait moves; may change while it lives."""

    expressiveness: float | None = Field(None, ge=0, le=10)
    head_motion: float | None = Field(None, ge=0, le=2, description="0 holds the head still, 1 is the model's own")
    blink: float | None = Field(None, ge=0, le=1, description="how far the eyes close in a blink")


class Manner(Style):
    """What :meth:`semo_sdk.serving.engine.Engine.open` takes."""

    latency: Literal["quality", "balanced", "low"] | None = None
    fps: float = Field(25, description="frames a second, 25 or 12.5; sound and motion are the same")
    seed: int = Field(0, ge=0, le=2**64 - 1)


class Options(Manner):
    """Of a live session."""

    portrait_id: str = Field("default", max_length=64)
    sample_rate: int = Field(SAMPLE_RATE, ge=8_000, le=48_000, description="of the PCM16 that follows, in Hz")
    state_id: str | None = Field(None, max_length=64, description="a saved session to go on from")

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.state_id is not None and self.model_fields_set & {"latency", "seed", *Style.model_fields}:
            raise ValueError("a saved session has its latency, seed and style")
        return self


class Start(Options):
    """The first message of a live session."""

    type: Literal["session.start"]
    jpeg_quality: int = Field(85, ge=30, le=95)


class Offer(Options):
    """What begins a live session over WebRTC."""

    sdp: str = Field(max_length=65_536, description="of a complete offer: one audio, one video, one data channel")


class SpeechEnd(Message):
    """The utterance ends here."""

    type: Literal["speech.end"]


class Interrupt(Message):
    """Forget all speech and all frames."""

    type: Literal["interrupt"]


class Listen(Message):
    """Somebody speaks to the portrait, or stopped."""

    type: Literal["listen"]
    on: bool = True


class Adjust(Style):
    """Other settings from the next pass on; those not named stay."""

    type: Literal["settings"]


class Save(Message):
    """Keep the session as it is for another one; it goes on."""

    type: Literal["session.save"]
    replaces: str | None = Field(None, max_length=64, description="a state_id that is forgotten for the new one")
    tag: int | None = Field(None, ge=0, le=2**53, description="comes back in session.saved")


class SessionEnd(Message):
    """Goodbye."""

    type: Literal["session.end"]


ClientEvent = Annotated[
    Start | SpeechEnd | Interrupt | Listen | Adjust | Save | SessionEnd, Field(discriminator="type")
]
CLIENT_EVENTS: TypeAdapter[ClientEvent] = TypeAdapter(ClientEvent)


def event_message(event: Event) -> dict[str, Any]:
    """A session's event as JSON."""
    match event:
        case StateChanged():
            return {"type": "state", "state": event.state, "position": event.position}
        case SpeechDone() | Interrupted():
            kind = "speech.done" if isinstance(event, SpeechDone) else "speech.interrupted"
            return {"type": kind, "utterance": event.utterance, "position": event.position, "played": event.played}


def pack_frame(frame: Frame, jpeg: bytes) -> bytes:
    """A frame as a binary message."""
    pcm = np.clip(np.rint(frame.audio * 32768), -32768, 32767).astype("<i2")
    return HEADER.pack(VERSION, SPEAKING if frame.speaking else 0, len(pcm), frame.index) + pcm.tobytes() + jpeg


def unpack_frame(message: bytes) -> tuple[int, bool, np.ndarray, bytes]:
    """Number of the frame, whether it speaks, its (n,) int16 sound at 16 kHz, and its JPEG.

    Raises:
        ValueError: not a frame of this version.
    """
    if len(message) < HEADER.size:
        raise ValueError("not a frame: too short")
    version, flags, samples, index = HEADER.unpack_from(message)
    end = HEADER.size + 2 * samples
    if version != VERSION or len(message) < end:
        raise ValueError(f"not a frame of version {VERSION}")
    pcm = np.frombuffer(message, "<i2", samples, HEADER.size).astype(np.int16)
    return index, bool(flags & SPEAKING), pcm, message[end:]
