"""Which videos are fit for training: one steady face that a fixed crop can hold, and speech that can be heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semo_sdk.media.image import face_square

TRACK_FPS = 5  # frames a second that are looked at
MAX_LOST = 0.05  # share of them that may have no face
MAX_JUMP = 0.6  # face heights between two of them: more is a cut, or another person
MAX_OUTSIDE = 0.02  # share of them whose face may reach out of the crop
MAX_GROWTH = 1.4  # how much larger than asked a crop may become to hold a moving face
MIN_ROOM = 1.3  # least side of a crop in face heights
SILENT, NO_PAUSES = -45.0, 12.0  # dB below full scale of the loud parts; dB between loud and quiet parts
LEVEL_SAMPLES = 320  # 20 ms
CLIPPED, MAX_CLIPPED = 0.995, 0.005  # level, and share of samples above it


@dataclass(frozen=True)
class Problem:
    """Why something is left out: ``reason`` is the same for all such cases, ``detail`` has the numbers."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Crop:
    """A square in a video, in even whole pixels: ``x``, ``y`` of its corner and ``side``; ``face`` is in heights."""

    x: int
    y: int
    side: int
    face: float


def find_crop(
    faces: Sequence[np.ndarray | None], size: tuple[int, int], *, scale: float, min_face: float
) -> Crop | Problem:
    """The square that holds a face through a whole clip, inside the picture.

    Args:
        faces: (478, 3) landmarks of each frame looked at, in pixels, or None where no face was found.
        size: width and height of the picture in pixels.
        scale: side of the square in face heights; it grows by up to 1.4 where the face moves.
        min_face: least height of the face in pixels.
    """
    found = [points[:, :2] for points in faces if points is not None]
    lost = 1 - len(found) / max(1, len(faces))
    if not found:
        return Problem("no face")
    if lost > MAX_LOST:
        return Problem("no face in part of it", f"in {lost:.0%} of the frames")
    low, high = (np.stack([pick(points, 0) for points in found]) for pick in (np.min, np.max))
    height = float(np.median(high[:, 1] - low[:, 1]))
    if height < min_face:
        return Problem("face too small", f"{height:.0f} pixels high, at least {min_face:.0f} are needed")
    middle = (low + high) / 2
    jump = float(np.linalg.norm(np.diff(middle, axis=0), axis=1).max(initial=0)) / height
    if jump > MAX_JUMP:
        return Problem("a cut, or a face that jumps", f"by {jump:.1f} face heights")
    x, y, side = face_square(np.median(np.stack(found), axis=0), scale)
    centre = np.array([x + side / 2, y + side / 2])
    for grown in (1.0, MAX_GROWTH):
        edge = min(side * grown, *size) // 2 * 2
        if edge < MIN_ROOM * height:
            return Problem("face fills the picture", f"{edge / height:.1f} face heights of it")
        corner = np.clip((centre - edge / 2) // 2 * 2, 0, np.array(size) - edge) // 2 * 2
        inside = ((low >= corner) & (high <= corner + edge)).all(1)
        if np.mean(~inside) <= MAX_OUTSIDE:
            return Crop(int(corner[0]), int(corner[1]), int(edge), height / edge)
    return Problem("face does not stay in one crop", f"outside in {np.mean(~inside):.0%} of the frames")


def speech_problem(pcm: np.ndarray) -> Problem | None:
    """Why a sound (n,) float32 in [-1, 1] at 16 kHz is no clear speech, or None.

    Speech is loud and quiet in turn; music, hum and noise over speech are not. No words are recognised.
    """
    count = len(pcm) // LEVEL_SAMPLES
    if not count:
        return Problem("no sound")
    power = np.square(pcm[: count * LEVEL_SAMPLES].astype(np.float64)).reshape(count, -1).mean(1)
    loud, quiet = np.percentile(10 * np.log10(power + 1e-10), [95, 10])
    if loud < SILENT:
        return Problem("silent", f"{loud:.0f} dB, at least {SILENT:.0f} are needed")
    if loud - quiet < NO_PAUSES:
        return Problem("noise or music", f"quiet parts are only {loud - quiet:.0f} dB below loud ones")
    clipped = float(np.mean(np.abs(pcm) > CLIPPED))
    if clipped > MAX_CLIPPED:
        return Problem("overdriven sound", f"{clipped:.1%} of the samples are clipped")
    return None
