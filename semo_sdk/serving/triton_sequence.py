"""What a sequence of requests to Triton says: its settings, and one portrait with all that it has heard."""

from __future__ import annotations

import json
import time

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.errors import AudioError, ConfigError, InputError
from semo_sdk.media.audio import Resampler, to_mono
from semo_sdk.pipeline.reference import Reference
from semo_sdk.pipeline.state import StreamState

__all__ = ["REQUEST_SECONDS", "Speaker", "Start", "UnknownSequenceError"]

REQUEST_SECONDS = 60  # of speech in one request: its frames are 300 MB
COMMANDS = {"flush", "interrupt"}  # parameters that any request of a sequence may have


class UnknownSequenceError(InputError):
    """A request of a sequence that does not run here."""


class Start(BaseModel):
    """Parameters of a request. All but ``flush`` and ``interrupt`` belong to the first one of a sequence.

    Attributes:
        latency, seed, expressiveness, head_motion, blink: as :meth:`semo_sdk.Animator.session` takes them.
        face_index: which face, when the photo has several: 0 is the largest.
        sample_rate: of the speech in Hz.
        flush: an utterance ends with this request, the sequence goes on.
        interrupt: speech that has no frames yet is dropped before this request's is heard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency: str = "balanced"
    seed: int = 0
    expressiveness: float | None = None
    head_motion: float | None = None
    blink: float | None = None
    face_index: int | None = Field(None, ge=0)
    sample_rate: int = SAMPLE_RATE
    flush: bool = False
    interrupt: bool = False

    @classmethod
    def parse(cls, parameters: str, *, first: bool) -> Start:
        """What ``request.parameters()`` gives.

        Raises:
            ConfigError: unknown or impossible parameters, or settings after the start; the message names them.
        """
        given = {k: v for k, v in json.loads(parameters or "{}").items() if not k.startswith("triton_")}
        try:
            found = cls.model_validate(given)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ConfigError(f"parameters: {problems} (there are {', '.join(cls.model_fields)})") from error
        late = found.model_fields_set - COMMANDS
        if late and not first:
            raise ConfigError(f"{', '.join(sorted(late))}: only a sequence's first request may set that")
        return found


class Speaker:
    """One sequence: a portrait, how far it has spoken, and the converter of its speech to 16 kHz."""

    def __init__(self, reference: Reference, state: StreamState, sample_rate: int) -> None:
        self.reference = reference
        self.state = state
        self.resampler = Resampler(sample_rate)
        self.used = time.monotonic()

    def hear(self, pcm: np.ndarray) -> None:
        """(n,) more speech.

        Raises:
            AudioError: NaN, or too much for one request.
        """
        if len(pcm) > REQUEST_SECONDS * self.resampler.from_rate:
            raise AudioError(f"{len(pcm)} samples in one request are more than {REQUEST_SECONDS} s: send shorter ones")
        self.state = self.state.push(self.resampler.push(to_mono(pcm)))

    def end_utterance(self) -> None:
        """No more speech for now."""
        self.state = self.state.push(self.resampler.flush())

    def interrupt(self) -> None:
        """Forgets the speech that has no frames yet."""
        self.resampler.reset()
        self.state = self.state.drop()

    def due(self, final: bool) -> bool:
        """Whether there is enough speech for a pass; at the end of an utterance any is enough."""
        return self.state.ready or (final and len(self.state.pending) > 0)
