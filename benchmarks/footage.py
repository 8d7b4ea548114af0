"""Real clips, prepared once: the crop that the model sees, its landmarks, its sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks.faces import FaceSeries, follow
from semo_sdk.benchmarks.identity import FaceEmbedder
from semo_sdk.benchmarks.pixels import sharpness
from semo_sdk.constants import CHUNK_FRAMES
from semo_sdk.driving import face_crops
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import Portrait, find_portrait
from semo_sdk.media.video import read_video

IDENTITY_FRAMES = 3  # frames of a clip whose face is compared with the portrait
SHARP_EVERY = 5  # frames


@dataclass(frozen=True, eq=False)
class Footage:
    """A real clip in the square around its first face.

    Attributes:
        path: the file.
        group: ``"held_out_clips"`` or ``"other_speakers"``.
        portrait: its first frame as a portrait.
        frames: (n, 256, 256, 3) uint8 RGB.
        pcm: (m,) float32 mono 16 kHz.
        face: landmarks of the frames.
    """

    path: Path
    group: str
    portrait: Portrait
    frames: np.ndarray
    pcm: np.ndarray
    face: FaceSeries

    @property
    def name(self) -> str:
        """File name without its ending."""
        return self.path.stem


def load_footage(path: Path, group: str) -> Footage:
    """Reads a clip.

    Raises:
        InputError: not a video, no sound, or no face in its first frame.
    """
    portrait = find_portrait(next(read_video(path)))
    crops = np.concatenate(list(face_crops(path, CHUNK_FRAMES, face_index=None, crop_scale=2.0)))
    return Footage(path, group, portrait, crops, load_audio(path), follow(crops))


def face_sharpness(frames: np.ndarray, face: FaceSeries) -> float:
    """Mean sharpness of the face over every fifth frame that has one; 0 without any."""
    boxes = face.boxes()
    values = [sharpness(frames[i], tuple(boxes[i])) for i in range(0, len(frames), SHARP_EVERY) if face.seen[i]]
    return float(np.mean(values)) if values else 0.0


def portrait_sharpness(portrait: Portrait) -> float:
    """Sharpness of a portrait's face in its crop."""
    mesh = portrait.mesh
    x0, y0, x1, y1 = (float(value) for value in (*mesh[:, :2].min(0), *mesh[:, :2].max(0)))
    return sharpness(portrait.crop, (x0, y0, x1, y1))


def embeddings(
    embedder: FaceEmbedder, frames: np.ndarray, face: FaceSeries, count: int = IDENTITY_FRAMES
) -> np.ndarray:
    """(k, 128) embeddings of up to ``count`` frames with a face, evenly spread, the first one left out."""
    seen = np.flatnonzero(face.seen)
    if not len(seen):
        return np.zeros((0, 128))
    chosen = seen[np.unique(np.linspace(0, len(seen) - 1, count + 1).round().astype(int))[1:]]
    return np.stack([embedder(frames[i], face.mesh[i]) for i in chosen]) if len(chosen) else np.zeros((0, 128))


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, smallest and largest of each number over the rows that have it (not None, not NaN)."""
    summary = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        known = np.asarray([value for value in values if np.isfinite(value)], dtype=float)
        if len(known):
            summary[name] = {"mean": float(known.mean()), "min": float(known.min()), "max": float(known.max())}
    return summary
