"""Every error that semo-sdk raises on purpose.

::

    SemoError
    ├── InputError                   what the caller gave cannot be used
    │   ├── ImageError               not an image, truncated, too small
    │   │   ├── NoFaceError
    │   │   ├── FaceTooSmallError
    │   │   └── AmbiguousFaceError   several faces: choose with face_index=
    │   ├── AudioError               not audio, empty, NaN, unusable rate
    │   ├── VideoError               not a video, no frames
    │   └── MotionError              motion tokens of another model, wrong shape, NaN
    ├── ConfigError                  an impossible or misspelt setting
    ├── BundleError                  missing, truncated, altered or foreign bundle
    ├── CheckpointError              missing, truncated or foreign checkpoint
    ├── ExportError                  a graph could not be exported
    │   └── ParityError              exported, but its numbers differ from torch
    ├── EngineError                  an inference engine failed
    │   ├── EngineMismatchError      built for another GPU, version or model
    │   └── BackendUnavailableError  the backend is not installed or cannot run here
    ├── MissingDependencyError       an optional package is not installed (also an ImportError)
    ├── EncodeError                  the video file could not be written
    ├── SessionClosedError           push or flush after close
    └── CapacityError                the server is full: try again after ``retry_after`` seconds

Each message says what was wrong and what to do about it.
"""

from __future__ import annotations

__all__ = [
    "AmbiguousFaceError",
    "AudioError",
    "BackendUnavailableError",
    "BundleError",
    "CapacityError",
    "CheckpointError",
    "ConfigError",
    "EncodeError",
    "EngineError",
    "EngineMismatchError",
    "ExportError",
    "FaceTooSmallError",
    "ImageError",
    "InputError",
    "MissingDependencyError",
    "MotionError",
    "NoFaceError",
    "ParityError",
    "SemoError",
    "SessionClosedError",
    "VideoError",
]


class SemoError(Exception):
    """Base of all errors of this package."""


class InputError(SemoError):
    """The caller's input cannot be used."""


class ImageError(InputError):
    """The portrait cannot be read or is unusable."""


class NoFaceError(ImageError):
    """No face was found in the portrait."""


class FaceTooSmallError(ImageError):
    """The face has too few pixels to animate."""


class AmbiguousFaceError(ImageError):
    """Several faces of similar size: the caller must choose with ``face_index``."""


class AudioError(InputError):
    """The speech cannot be read or is unusable."""


class VideoError(InputError):
    """The driving video cannot be read or is unusable."""


class MotionError(InputError):
    """Motion tokens that do not belong to this model or are damaged."""


class ConfigError(SemoError):
    """A setting is impossible or misspelt."""


class BundleError(SemoError):
    """The bundle is missing, truncated, altered or of a foreign format."""


class CheckpointError(SemoError):
    """The checkpoint is missing, truncated or of a foreign format."""


class ExportError(SemoError):
    """A graph could not be exported."""


class ParityError(ExportError):
    """An exported graph's numbers differ from torch by more than allowed."""


class EngineError(SemoError):
    """An inference engine failed."""


class EngineMismatchError(EngineError):
    """The engine was built for something else; the message names both values."""


class BackendUnavailableError(EngineError):
    """The backend is not installed or cannot run on this machine."""


class MissingDependencyError(SemoError, ImportError):
    """An optional package is missing; the message names the extra that brings it."""


class EncodeError(SemoError):
    """The video file could not be written."""


class SessionClosedError(SemoError):
    """The session was used after it was closed."""


class CapacityError(SemoError):
    """More is asked for than this machine, or this client's share of it, can do now.

    Attributes:
        retry_after: seconds after which it is worth trying again.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
