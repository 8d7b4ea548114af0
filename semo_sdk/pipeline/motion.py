"""features + context -> motion tokens (the paper's motion generator, section 3.2), and frames -> motion tokens."""

from __future__ import annotations

import numpy as np

from semo_sdk.backends.device import Tensor, to_host
from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES
from semo_sdk.errors import EngineError
from semo_sdk.pipeline.graphs import Graphs

__all__ = ["checked", "encode_motion", "generate_motion", "repeat_reference"]


def generate_motion(
    graphs: Graphs,
    *,
    noise: np.ndarray,
    context: np.ndarray,
    reference_motion: Tensor,
    features: Tensor,
    available: np.ndarray,
    guidance: np.ndarray,
) -> Tensor:
    """One pass of the motion generator: the next 16 tokens.

    Args:
        graphs: the model.
        noise: (B, 16, D) float32, N(0, 1).
        context: (B, 8, D) float32 tokens of the 8 frames before; before the first frame the reference's own token.
        reference_motion: (B, 1, D) float32.
        features: (B, 24, F) float32; the last one belongs to the last frame whose sound is there.
        available: (B,) int64: for how many of the 16 frames the sound is there; the rest is masked.
        guidance: (B,) float32 classifier-free guidance on the speech; 1 = off.

    Returns:
        (B, 16, D) float32, where the engine has them; :func:`checked` brings them to the host.

    Raises:
        EngineError: the engine failed.
    """
    return graphs.on_device(
        "motion",
        {
            "noise": noise,
            "context": context,
            "reference_motion": reference_motion,
            "features": features,
            "available": available,
            "guidance": guidance,
        },
    )["motion"]


def checked(graphs: Graphs, tokens: Tensor) -> np.ndarray:
    """Motion tokens on the host.

    Raises:
        EngineError: there is NaN or infinity among them.
    """
    host = to_host(tokens)
    if not np.isfinite(host).all():
        raise EngineError(
            f"the motion graph gave NaN or infinity on {graphs.backend} {graphs.precision}; try precision='fp32'"
        )
    return host


def encode_motion(graphs: Graphs, frames: np.ndarray) -> np.ndarray:
    """Motion tokens of real frames (the paper's motion encoder, section 3.1).

    Args:
        graphs: the model.
        frames: (B, n, 256, 256, 3) uint8 RGB face crops, any n >= 1.

    Returns:
        (B, n, D) float32.
    """
    count = frames.shape[1]
    # The encoder sees each frame alone: a last short launch is filled up, so that engines know one shape only.
    filled = _repeat_last(frames, -count % CHUNK_FRAMES)
    pieces = [
        graphs("motion_encoder", {"frames": np.ascontiguousarray(filled[:, start : start + CHUNK_FRAMES])})["motion"]
        for start in range(0, count, CHUNK_FRAMES)
    ]
    return np.concatenate(pieces, axis=1)[:, :count]


def repeat_reference(reference_motion: np.ndarray) -> np.ndarray:
    """(B, 1, D) reference token -> (B, 8, D) context before the first frame."""
    return np.repeat(reference_motion, CONTEXT_FRAMES, axis=1)


def _repeat_last(frames: np.ndarray, extra: int) -> np.ndarray:
    return np.concatenate([frames, np.repeat(frames[:, -1:], extra, axis=1)], axis=1) if extra else frames
