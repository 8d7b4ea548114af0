"""Data of the second stage: samples of motion and of the speech features that were heard at the same time.

With taught tokens (see :mod:`semo_sdk.training.teacher`) motion is pose and expression, and each sample places the face
anew in the crop. :mod:`semo_sdk.training.motion_prepare` writes what is read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES
from semo_sdk.errors import InputError
from semo_sdk.training.teacher import POSE_SIZE, UNITS, directions, read

CROP = (1.6, 2.2)  # side of the crop in face heights


@dataclass(frozen=True)
class Sequence:
    """Consecutive frames of one face.

    Attributes:
        clip: row in ``features`` and ``ends``. first: its first frame's number in the clip.
        start, length: rows in ``motion``. reference: row of a still of the same face, or -1 for any of its frames.
        spoken: by a synthetic voice.
    """

    clip: int
    first: int
    start: int
    length: int
    reference: int
    held_out: bool
    spoken: bool = False


def place_face(motion: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Puts relative motion (L, 30), see ``taught_motion``, into a crop, as ``motion_target`` counts it.

    With ``rng`` size, place and the turn of the head are random, as portraits' are; else the middle of the range.
    """
    ratio = float(np.mean(CROP)) if rng is None else float(rng.uniform(*CROP))
    height = 256 / ratio
    placed = motion.copy()
    placed[:, 3] += 5 * np.log(height / 128)
    placed[:, 4:6] *= height / 64
    if rng is not None:
        placed[:, :3] += 5 * np.radians([12, 7, 5]) * rng.uniform(-1, 1, 3)
        placed[:, 4:6] += rng.uniform(-0.25, 0.25, 2)
    return placed


@dataclass
class MotionBatch:
    """Samples of the second stage, B of each: shapes as in :class:`~semo_sdk.models.motion_generator.MotionGenerator`.

    ``valid`` (B, 16) tells which target frames exist; ``available`` (B,) how many of them have been heard.
    """

    target: Tensor
    valid: Tensor
    context: Tensor
    reference: Tensor
    features: Tensor
    available: Tensor


class MotionData:
    """What ``semo data motion`` wrote; batches are a pure function of the random generator."""

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            InputError: nothing prepared there.
        """
        folder = Path(folder)
        if not (folder / "sequences.json").is_file():
            raise InputError(f"no prepared motion in {folder}; make it with: semo data motion")
        self.motion, self.ends, self.features = (
            np.load(folder / f"{name}.npy", mmap_mode="r" if name == "features" else None)
            for name in ("motion", "ends", "features")
        )
        index = json.loads((folder / "sequences.json").read_text(encoding="utf-8"))
        self.taught, self.width, self.speech = bool(index["taught"]), int(index["width"]), str(index["speech"])
        rows = [Sequence(**r) for r in index["sequences"]]
        self.training = [r for r in rows if not r.held_out]
        self.held_out = [r for r in rows if r.held_out]
        self.samples = [(r, w) for r in self.training for w in self._windows(r)]
        self.weights = np.array([r.length for r, _ in self.samples], float) ** 0.5
        self.weights /= self.weights.sum()

    def _windows(self, row: Sequence) -> list[int]:
        ends = self.ends[row.clip] - row.first
        return [int(i) for i in np.flatnonzero((ends >= 4) & (ends <= row.length))]

    def frames(self, row: Sequence, rng: np.random.Generator | None) -> np.ndarray:
        """Motion tokens (L, T * D) float32 of a sequence; taught ones with the face placed at random."""
        motion = self.motion[row.start : row.start + row.length].astype(np.float32)
        return place_face(motion, rng) @ directions(self.width).numpy() if self.taught else motion

    def reference(self, row: Sequence, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A still's token (T * D,): as an encoder sees it, which is sure of the pose at best."""
        if row.reference >= 0:
            return self.motion[row.reference].astype(np.float32)
        still = frames[int(rng.integers(len(frames)))]
        if not self.taught:
            return still
        seen = read(torch.from_numpy(still)).numpy()
        seen[:POSE_SIZE] += 0.05 * rng.standard_normal(POSE_SIZE) / np.array(UNITS[:POSE_SIZE])
        seen[POSE_SIZE:] = rng.uniform(0, 1) * seen[POSE_SIZE:] + 0.3 * rng.standard_normal(len(seen) - POSE_SIZE)
        return seen.astype(np.float32) @ directions(self.width).numpy()

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (T * D,) of training motion."""
        rng = np.random.default_rng(0)
        rows = np.concatenate([self.frames(r, rng) for r in self.training])
        return rows.mean(0), rows.std(0) + 1e-3

    def batch(self, rng: np.random.Generator, size: int) -> MotionBatch:
        """Random samples; short hops (8 and 4 frames heard) as often as whole chunks together."""
        parts = [self._sample(rng, *self.samples[i]) for i in rng.choice(len(self.samples), size, p=self.weights)]
        return MotionBatch(*(torch.from_numpy(np.stack(x)) for x in zip(*parts, strict=True)))

    def _sample(self, rng: np.random.Generator, row: Sequence, window: int) -> tuple[Any, ...]:
        end = int(self.ends[row.clip, window]) - row.first  # frames of the sequence that have been heard
        hop = min(int(rng.choice([16, 16, 8, 4])), end)
        n = end - hop
        frames = self.frames(row, rng)
        reference = self.reference(row, frames, rng)
        if rng.random() < 0.15 or n == 0:
            context = np.repeat(reference[None], CONTEXT_FRAMES, 0)  # the start of a session
        else:
            before = np.arange(n - CONTEXT_FRAMES, n)
            context = np.where((before >= 0)[:, None], frames[np.maximum(before, 0)], reference)
        index = np.arange(n, n + CHUNK_FRAMES)
        target = frames[np.minimum(index, row.length - 1)]
        return (
            target.astype(np.float32),
            index < row.length,
            context.astype(np.float32),
            reference[None].astype(np.float32),
            np.asarray(self.features[row.clip, window], np.float32),
            np.int64(hop),
        )

    def passes(self, row: Sequence) -> Iterator[tuple[int, np.ndarray]]:
        """Ends and features of a held-out sequence, pass by pass (every sixteenth frame)."""
        for window, end in enumerate(self.ends[row.clip]):
            if 0 < end <= row.length:
                yield int(end), np.asarray(self.features[row.clip, window], np.float32)
