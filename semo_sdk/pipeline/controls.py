"""What an app may turn while a head speaks: how much it moves and how far it blinks. A pure function of tokens.

The generator never sees what this changes: its context holds the motion as it made it, or a strong head would move
more and more.
"""

from __future__ import annotations

import numpy as np

from semo_sdk.constants import CHUNK_FRAMES, POSE_SIZE
from semo_sdk.errors import ConfigError
from semo_sdk.pipeline.noise import generator
from semo_sdk.pipeline.reference import Reference

__all__ = ["HEAD_MOTION_MAX", "adjust", "changes", "check_controls", "eye_closure"]

HEAD_MOTION_MAX = 2.0
BLINK_SHAPE = np.array([0.4, 0.9, 1.0, 1.0, 0.75, 0.4, 0.12])  # closure of the eyes, frame by frame
CLOSED = 1.1  # closure in a full blink: the landmarks of lids lie a little inside the eye
BLINK_EVERY = 92  # frames: one blink at a random moment of each such stretch, 16 a minute


def check_controls(head_motion: float, blink: float, *, available: bool) -> None:
    """Refuses impossible strengths.

    Args:
        head_motion: 0 to 2. blink: 0 to 1. available: whether the model can be controlled at all.

    Raises:
        ConfigError: out of range, or other than 1 for a model without controls.
    """
    if not 0.0 <= head_motion <= HEAD_MOTION_MAX:
        raise ConfigError(f"head_motion must be from 0 to {HEAD_MOTION_MAX:g}, got {head_motion!r}")
    if not 0.0 <= blink <= 1.0:
        raise ConfigError(f"blink must be from 0 to 1, got {blink!r}")
    if not available and head_motion != 1.0:
        raise ConfigError("this model's motion tokens are its own: head_motion cannot be changed, leave it at 1")


def changes(head_motion: float, blink: float, index: int, seed: int) -> bool:
    """Whether :func:`adjust` has anything to do in the pass that begins with frame ``index``."""
    return head_motion != 1.0 or bool(blink and eye_closure(seed, index, CHUNK_FRAMES).any())


def adjust(
    tokens: np.ndarray, reference: Reference, row: int, *, head_motion: float, blink: float, index: int, seed: int
) -> np.ndarray:
    """Tokens as they are shown.

    Args:
        tokens: (n, D) float32 as the generator made them.
        reference: of B portraits. row: which of them.
        head_motion: what the head's turn, nod, tilt, size and place, counted from the portrait's, are multiplied by.
        blink: how far the eyes close in a blink; 1 = wholly.
        index: number of the first frame. seed: of the session; it says when the eyes close.

    Returns:
        (n, D) float32; the same tokens where the model has no controls.
    """
    controls = reference.controls
    if controls is None:
        return tokens
    pose, eyes = controls[row, :POSE_SIZE], controls[row, POSE_SIZE]
    if head_motion != 1.0:
        moved = (tokens - reference.motion[row]) @ (pose / np.square(pose).sum(1, keepdims=True)).T
        tokens = tokens + (head_motion - 1.0) * (moved @ pose)
    if blink:
        own = (tokens - reference.motion[row]) @ eyes / np.square(eyes).sum()
        tokens = tokens + (blink * eye_closure(seed, index, len(tokens)) * (CLOSED - own))[:, None] * eyes
    return tokens.astype(np.float32)


def eye_closure(seed: int, first: int, count: int) -> np.ndarray:
    """(count,) closure of the eyes, 0 to 1, in frames ``first`` and on: a blink every 3.7 seconds on average."""
    index = np.arange(first, first + count)
    closure = np.zeros(count)
    for stretch in range(first // BLINK_EVERY, (first + count - 1) // BLINK_EVERY + 1):
        offset = int(generator(seed=seed, pass_index=stretch, stream="blink").integers(BLINK_EVERY - len(BLINK_SHAPE)))
        place = index - stretch * BLINK_EVERY - offset
        shown = (place >= 0) & (place < len(BLINK_SHAPE))
        closure[shown] = BLINK_SHAPE[place[shown]]
    return closure
