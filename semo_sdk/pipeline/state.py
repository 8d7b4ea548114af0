"""StreamState: everything that a speaking session remembers, as one value."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from semo_sdk.config import SemoConfig
from semo_sdk.constants import (
    CHUNK_FRAMES,
    CONTEXT_FRAMES,
    FPS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    WINDOW_SAMPLES,
)
from semo_sdk.errors import ConfigError, InputError
from semo_sdk.pipeline.controls import HEAD_MOTION_MAX, check_controls
from semo_sdk.pipeline.features import silent_window
from semo_sdk.pipeline.motion import repeat_reference
from semo_sdk.pipeline.noise import check_seed

__all__ = ["LATENCIES", "StreamState", "hop_of"]

LATENCIES: dict[str, int] = {"quality": 16, "balanced": 8, "low": 4}  # frames made by one pass
FORMAT = 2  # of to_bytes()
MAX_INDEX = 2**31  # of a frame or a pass: years of speech


def hop_of(latency: str) -> int:
    """Frames that one pass emits.

    Raises:
        ConfigError: not one of ``LATENCIES``.
    """
    try:
        return LATENCIES[latency]
    except KeyError:
        raise ConfigError(f"no latency {latency!r}; choose one of {', '.join(map(repr, LATENCIES))}") from None


@dataclass(frozen=True, eq=False)
class StreamState:
    """What one pass hands to the next. Never changed in place: every method returns a new state.

    Attributes:
        context: (8, D) float32 motion tokens of the last 8 frames.
        heard: (WINDOW_SAMPLES,) float32 sound of the frames made so far (the trailing window), mono 16 kHz in [-1, 1].
        pending: (n,) float32 sound that no frame was made for yet.
        inlet: (k,) float64 what a session's resampler holds of sound of another rate; empty if nothing.
        frame_index: number of the next frame.
        pass_index: number of the next pass; with ``seed`` it determines the noise.
        seed: 0 to 2**64 - 1.
        hop: frames emitted by one pass, a value of ``LATENCIES``.
        guidance: classifier-free guidance on the speech; 1 = off.
        head_motion, blink: see :mod:`semo_sdk.pipeline.controls`.
    """

    context: np.ndarray
    heard: np.ndarray
    pending: np.ndarray
    inlet: np.ndarray
    frame_index: int
    pass_index: int
    seed: int
    hop: int
    guidance: float
    head_motion: float
    blink: float

    @classmethod
    def start(
        cls,
        config: SemoConfig,
        reference_motion: np.ndarray,
        *,
        latency: str,
        seed: int,
        expressiveness: float | None = None,
        head_motion: float | None = None,
        blink: float | None = None,
    ) -> StreamState:
        """State before the first frame.

        Args:
            config: the model.
            reference_motion: (1, D) float32 token of the portrait, which stands for the frames before the first.
            latency: a key of ``LATENCIES``.
            seed: 0 to 2**64 - 1.
            expressiveness: guidance on the speech, 0 to 10; None takes the model's own.
            head_motion: 0 to 2. blink: 0 to 1. None is 1.

        Raises:
            ConfigError: an impossible setting.
        """
        head, eyes = (1.0 if strength is None else strength for strength in (head_motion, blink))
        check_controls(head, eyes, available=config.has_controls)
        guidance = config.generator.guidance if expressiveness is None else expressiveness
        if not 0.0 <= guidance <= 10.0:
            raise ConfigError(f"expressiveness must be from 0 to 10, got {expressiveness!r}")
        return cls(
            context=repeat_reference(reference_motion[None])[0],
            heard=silent_window(),
            pending=np.zeros(0, np.float32),
            inlet=np.zeros(0),
            frame_index=0,
            pass_index=0,
            seed=check_seed(seed),
            hop=hop_of(latency),
            guidance=float(guidance),
            head_motion=float(head),
            blink=float(eyes),
        )

    @property
    def latency(self) -> str:
        """Name of the hop: a key of ``LATENCIES``."""
        return next(name for name, hop in LATENCIES.items() if hop == self.hop)

    @property
    def time(self) -> float:
        """Start of the next frame in seconds."""
        return self.frame_index / FPS

    @property
    def ready(self) -> bool:
        """Whether enough sound is pending for a whole pass."""
        return len(self.pending) >= self.hop * SAMPLES_PER_FRAME

    def push(self, pcm: np.ndarray) -> StreamState:
        """The state with (n,) float32 mono 16 kHz samples more to speak."""
        return replace(self, pending=np.concatenate([self.pending, pcm])) if len(pcm) else self

    def drop(self) -> StreamState:
        """The state without pending sound: the listener interrupted. Pose and voice so far are kept."""
        return replace(self, pending=np.zeros(0, np.float32), inlet=np.zeros(0))

    def to_bytes(self) -> bytes:
        """The whole state as an ``.npz`` file in memory (no pickle); about 180 kB."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        arrays["seed"] = np.asarray(self.seed, np.uint64)
        np.savez(buffer, format=np.asarray(FORMAT), **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> StreamState:
        """The state that :meth:`to_bytes` wrote. Nobody has to be trusted: what is too large is never unpacked.

        Raises:
            InputError: truncated, altered or foreign data.
        """
        try:
            found = _unpack(data)
        except Exception as error:  # zipfile and numpy raise all kinds of errors on damaged files
            raise InputError(f"not a saved stream state, or a damaged one: {error}") from error
        scalars = {"frame_index": "iu", "pass_index": "iu", "seed": "u", "hop": "iu", "format": "iu"}
        scalars |= {"guidance": "f", "head_motion": "f", "blink": "f"}
        names = {field.name for field in fields(cls)}
        if set(found) != names | {"format"} or any(
            found[name].shape or found[name].dtype.kind not in kinds for name, kinds in scalars.items()
        ):
            raise InputError("not a stream state of this version of semo-sdk; start a new session")
        numbers = {name: found[name].item() for name in scalars}
        if numbers.pop("format") != FORMAT:
            raise InputError("not a stream state of this version of semo-sdk; start a new session")
        arrays: dict[str, Any] = {name: found[name] for name in ("context", "heard", "pending", "inlet")}
        problem = _problem(arrays, **numbers)
        if problem:
            raise InputError(f"the saved stream state is damaged: {problem}")
        return cls(**arrays, **numbers)

    def check(self, config: SemoConfig) -> StreamState:
        """Itself, if it belongs to a model of this size.

        Raises:
            InputError: the motion tokens have another width.
        """
        if self.context.shape[1] != config.motion_dim:
            raise InputError(
                f"this stream state has motion tokens of width {self.context.shape[1]}, "
                f"model {config.name!r} has {config.motion_dim}: it belongs to another model"
            )
        return self

    def __repr__(self) -> str:
        return (
            f"StreamState(time={self.time:.2f} s, pending={len(self.pending) / SAMPLE_RATE:.3f} s, "
            f"latency={self.latency!r}, seed={self.seed})"
        )


def _unpack(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file that was written without compression."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if len(entries) > 32 or sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("it is compressed, or holds more than it should")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _problem(
    arrays: dict[str, np.ndarray],
    *,
    hop: int,
    frame_index: int,
    pass_index: int,
    seed: int,
    guidance: float,
    head_motion: float,
    blink: float,
) -> str:
    """What is wrong with a state, "" if nothing."""
    kinds = (("context", 2, CONTEXT_FRAMES), ("heard", 1, WINDOW_SAMPLES), ("pending", 1, None), ("inlet", 1, None))
    for name, ndim, first in kinds:
        array = arrays[name]
        dtype = np.float64 if name == "inlet" else np.float32
        if array.dtype != dtype or array.ndim != ndim or first not in (None, array.shape[0]):
            return f"{name} is {array.dtype} {array.shape}"
        if not np.isfinite(array).all():
            return f"{name} holds NaN or infinity"
    for name, number in (("frame_index", frame_index), ("pass_index", pass_index)):
        if not 0 <= number < MAX_INDEX:
            return f"{name} is {number}"
    for name, strength, most in (
        ("guidance", guidance, 10.0),
        ("head_motion", head_motion, HEAD_MOTION_MAX),
        ("blink", blink, 1.0),
    ):
        if not 0.0 <= strength <= most:
            return f"{name} is {strength}"
    return "" if hop in LATENCIES.values() and hop <= CHUNK_FRAMES else f"hop is {hop}"
