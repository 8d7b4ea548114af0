"""semo-sdk: one portrait and speech to a talking-head video, live.

>>> from semo_sdk import Animator
>>> Animator("portrait.jpg").from_audio("speech.wav").save("talking.mp4")

Importing the package loads nothing heavy: names are fetched from their modules when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semo_sdk.animator import Animator
    from semo_sdk.bundle import Bundle
    from semo_sdk.clip import Clip
    from semo_sdk.config import SemoConfig
    from semo_sdk.errors import (
        AmbiguousFaceError,
        AudioError,
        BackendUnavailableError,
        BundleError,
        CapacityError,
        CheckpointError,
        ConfigError,
        EncodeError,
        EngineError,
        EngineMismatchError,
        ExportError,
        FaceTooSmallError,
        ImageError,
        InputError,
        MissingDependencyError,
        MotionError,
        NoFaceError,
        ParityError,
        SemoError,
        SessionClosedError,
        VideoError,
    )
    from semo_sdk.media.image import Portrait
    from semo_sdk.motion import Motion
    from semo_sdk.pipeline.state import StreamState
    from semo_sdk.pipeline.stream import Chunk
    from semo_sdk.provenance.signing import Signer
    from semo_sdk.provenance.verify import Verification, verify
    from semo_sdk.session import Session

__version__ = "0.1.0"

__all__ = [
    "AmbiguousFaceError",
    "Animator",
    "AudioError",
    "BackendUnavailableError",
    "Bundle",
    "BundleError",
    "CapacityError",
    "CheckpointError",
    "Chunk",
    "Clip",
    "ConfigError",
    "EncodeError",
    "EngineError",
    "EngineMismatchError",
    "ExportError",
    "FaceTooSmallError",
    "ImageError",
    "InputError",
    "MissingDependencyError",
    "Motion",
    "MotionError",
    "NoFaceError",
    "ParityError",
    "Portrait",
    "SemoConfig",
    "SemoError",
    "Session",
    "SessionClosedError",
    "Signer",
    "StreamState",
    "Verification",
    "VideoError",
    "__version__",
    "verify",
]

_MODULES = {
    "Animator": "semo_sdk.animator",
    "Bundle": "semo_sdk.bundle",
    "Chunk": "semo_sdk.pipeline.stream",
    "Clip": "semo_sdk.clip",
    "Motion": "semo_sdk.motion",
    "Portrait": "semo_sdk.media.image",
    "SemoConfig": "semo_sdk.config",
    "Session": "semo_sdk.session",
    "Signer": "semo_sdk.provenance.signing",
    "StreamState": "semo_sdk.pipeline.state",
    "Verification": "semo_sdk.provenance.verify",
    "verify": "semo_sdk.provenance.verify",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_MODULES.get(name, "semo_sdk.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
