"""The puppet's driver: poses and expressions of a filmed speaker, and a linear basis of the expressions.

Landmarks are tracked once per clip and cached; :class:`Driver` holds what is common to all clips (neutral face,
basis), :class:`DriverClip` the motion of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semo_sdk.constants import FPS
from semo_sdk.errors import VideoError
from semo_sdk.files import replacing
from semo_sdk.training import puppet_geometry as geometry

__all__ = ["COMPONENTS", "Driver", "DriverClip", "read_frames", "smooth_clip", "track_clip"]

COMPONENTS = 24  # expression coefficients
BROWS_AT = 10  # the two that are brows raised and frowning: behind those that speech moves most
BROW_UNIT = 0.4  # of a full raise or frown, at a coefficient of one
POSE_SMOOTHING, FACE_SMOOTHING, LIP_SMOOTHING = 1.5, 1.0, 0.4  # frames, sigma of a Gaussian
CLOSED = 0.012  # inner-lip gap below which a mouth counts as closed, in face heights
BROW_PAUSE, BROW_LENGTH, BROW_EASE = (1.5, 5.0), (0.5, 1.6), 0.2  # seconds between two moves, of one, of its onset
BLINK_FRAMES = (0.0, 0.35, 0.85, 1.0, 0.8, 0.4, 0.12)  # closure through a procedural blink


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Frames of a video file, (H, W, 3) uint8 RGB.

    Raises:
        VideoError: if there is none.
    """
    import cv2

    capture = cv2.VideoCapture(str(path))
    count = 0
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        count += 1
        yield np.ascontiguousarray(frame[..., ::-1])
    capture.release()
    if not count:
        raise VideoError(f"{path} has no frames that can be read: is it a video file?")


def track_clip(path: Path, cache: Path | None = None) -> np.ndarray:
    """Raw landmarks of a clip, (T, 478, 3) float32 in pixels; frames without a face are filled from neighbours.

    Args:
        path: the video.
        cache: ``.npy`` file to read the result from, or to write it to.

    Raises:
        VideoError: if the clip cannot be read or no frame has a face.
    """
    from semo_sdk.media.face import FaceTracker

    if cache is not None and cache.exists():
        points = np.load(cache)
    else:
        tracker = FaceTracker()
        missing = np.full((478, 3), np.nan, np.float32)
        found = [tracker(frame) for frame in read_frames(path)]
        points = np.stack([missing if one is None else one.points for one in found])
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            temporary = cache.with_suffix(".partial.npy")
            np.save(temporary, points)
            temporary.replace(cache)
    seen = np.flatnonzero(np.isfinite(points[:, 0, 0]))
    if not len(seen):
        raise VideoError(f"no face in {path}: leave this clip out")
    nearest = seen[np.abs(np.arange(len(points))[:, None] - seen[None]).argmin(1)]
    return np.asarray(points[nearest], np.float32)


def _gaussian(values: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    return np.asarray(gaussian_filter1d(values, sigma, axis=0, mode="nearest"))


def smooth_clip(points: np.ndarray, canonical: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses (T, 6) and frontal shapes (T, 468, 3) of raw landmarks, rigid motion smoothed more than lips."""
    raw = geometry.fit_pose(points, canonical)
    shapes = geometry.frontal(points[:, : geometry.MESH], raw, canonical)
    shapes[..., 2] = _gaussian(shapes[..., 2], POSE_SMOOTHING)
    quick = np.unique(np.concatenate([geometry.LIPS, geometry.UPPER_LIDS.ravel(), geometry.LOWER_LIDS.ravel()]))
    smooth = _gaussian(shapes, FACE_SMOOTHING)
    smooth[:, quick, :2] = _gaussian(shapes[:, quick, :2], LIP_SMOOTHING)
    return _gaussian(raw, POSE_SMOOTHING), smooth


@dataclass(frozen=True)
class DriverClip:
    """Motion of one clip.

    Attributes:
        name: file name without its ending.
        points: (T, 478, 3) float32 raw landmarks in pixels of the video.
        poses: (T, 6), see :mod:`semo_sdk.training.puppet_geometry`.
        coefficients: (T, 24) expression, about unit variance.
    """

    name: str
    points: np.ndarray
    poses: np.ndarray
    coefficients: np.ndarray


@dataclass(frozen=True)
class Driver:
    """What all clips of a speaker share.

    Attributes:
        canonical: (468, 3) mean face that poses refer to.
        neutral: (468, 3) the speaker's face at rest with closed lips, in canonical space.
        basis: (24, 468, 3) displacement per unit coefficient. Two are brows, which filmed speakers hardly move; the
            others are the leading ones of what the films show beside.
        whitener: (24, 468, 3): coefficients of a displacement e are ``(whitener * (e - mean)).sum((1, 2))``.
        mean: (468, 3) displacement at zero coefficients.
        opening: (468, 3) displacement per unit of inner-lip gap.
    """

    canonical: np.ndarray
    neutral: np.ndarray
    basis: np.ndarray
    whitener: np.ndarray
    mean: np.ndarray
    opening: np.ndarray

    def encode(self, displacement: np.ndarray) -> np.ndarray:
        """Coefficients (..., 24) of displacements (..., 468, 3)."""
        return np.tensordot(displacement - self.mean, self.whitener, axes=((-2, -1), (1, 2)))

    def decode(self, coefficients: np.ndarray) -> np.ndarray:
        """Displacements (..., 468, 3) of coefficients (..., 24)."""
        return np.tensordot(coefficients, self.basis, axes=(-1, 0)) + self.mean

    def clip(self, name: str, points: np.ndarray) -> DriverClip:
        """Poses and coefficients of raw landmarks (T, 478, 3)."""
        poses, shapes = smooth_clip(points, self.canonical)
        return DriverClip(name, points, poses, self.encode(shapes - self.neutral))

    def blink(self, closure: np.ndarray) -> np.ndarray:
        """Coefficients (T, 24) to add for lids closed by ``closure`` (T,), 0 to 1."""
        displacement = np.zeros((len(closure), geometry.MESH, 3))
        for upper, lower, crease in zip(geometry.UPPER_LIDS, geometry.LOWER_LIDS, geometry.CREASES, strict=True):
            travel = (self.neutral[lower] - self.neutral[upper]) * geometry.FULL_CLOSURE
            displacement[:, upper] = closure[:, None, None] * travel
            displacement[:, crease] = closure[:, None, None] * travel * geometry.CREASE_TRAVEL
        return self.encode(displacement + self.mean)

    def brows(self, strength: np.ndarray) -> np.ndarray:
        """Coefficients (T, 24) to add for brows raised and frowning by ``strength`` (T, 2), 0 to 1.

        Zeros from a basis without brows, which a :class:`Driver` saved by older versions has.
        """
        moves = geometry.brow_moves(self.neutral)
        added = self.encode(moves + self.mean)
        lost = np.abs(np.tensordot(added, self.basis, axes=1) - moves).sum() > 0.1 * np.abs(moves).sum()
        return np.zeros((len(strength), COMPONENTS)) if lost else strength @ added

    def save(self, path: Path) -> None:
        """Writes an ``.npz`` file."""
        with replacing(path) as temporary:
            np.savez(temporary, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: Path) -> Driver:
        """Reads what :meth:`save` wrote."""
        with np.load(path) as data:
            return cls(**{name: data[name] for name in cls.__dataclass_fields__})

    @classmethod
    def fit(cls, clips: list[np.ndarray], canonical: np.ndarray) -> Driver:
        """Neutral face and basis of a speaker from the raw landmarks (T, 478, 3) of many clips."""
        from scipy.linalg import eigh

        shapes = np.concatenate([smooth_clip(points, canonical)[1] for points in clips]).astype(np.float32)
        gap = (shapes[:, geometry.INNER_LOWER[3:8], 1] - shapes[:, geometry.INNER_UPPER[3:8], 1]).mean(1)
        closed = gap <= max(CLOSED, float(np.quantile(gap, 0.1)))
        neutral = np.median(shapes[closed], axis=0).astype(np.float64)
        moves = shapes - neutral.astype(np.float32)
        mean = moves.mean(0)
        moves -= mean
        # Displacement per unit of gap (regression through all frames), exact at the lips' middle.
        centred = gap - gap.mean()
        opening = np.tensordot(centred, moves, axes=(0, 0)) / np.square(centred).sum()
        opening[geometry.STABLE] = 0
        weights = _vertex_weights()
        flat = (moves * weights[:, None]).reshape(len(moves), -1)
        size = flat.shape[1]
        brows, lengths = np.linalg.qr((geometry.brow_moves(neutral) * weights[:, None]).reshape(2, size).T)
        flat -= (flat @ brows) @ brows.T
        _, vectors = eigh(flat.T @ flat, subset_by_index=[size - COMPONENTS + 2, size - 1])
        axes = vectors[:, ::-1].T  # (22, 468 * 3), orthonormal in weighted space, as are the brows
        scale = np.insert((flat @ axes.T).std(0), [BROWS_AT] * 2, BROW_UNIT * np.diag(lengths))[:, None, None]
        axes = np.insert(axes, [BROWS_AT] * 2, brows.T, axis=0).reshape(COMPONENTS, geometry.MESH, 3)
        return cls(
            canonical=canonical,
            neutral=neutral,
            basis=(axes * scale / weights[:, None]).astype(np.float64),
            whitener=(axes / scale * weights[:, None]).astype(np.float64),
            mean=mean.astype(np.float64),
            opening=opening.astype(np.float64),
        )


def _vertex_weights() -> np.ndarray:
    """(468,) how much each vertex counts in the basis: lips and lids most, stable points hardly."""
    weights = np.ones(geometry.MESH)
    weights[geometry.BROWS.ravel()] = 1.5
    weights[geometry.STABLE] = 0.3
    for group in (geometry.LIPS, geometry.UPPER_LIDS.ravel(), geometry.LOWER_LIDS.ravel()):
        weights[group] = 3
    return weights


def blink_closures(frames: int, rng: np.random.Generator) -> np.ndarray:
    """(frames,) closure of procedural blinks, 0 to 1: one every two to four seconds, 5 to 7 frames each."""
    closure = np.zeros(frames + len(BLINK_FRAMES))
    shape = np.array(BLINK_FRAMES)
    start = int(rng.integers(-5, 60))
    while start < frames:
        kept = slice(max(0, -start), len(shape))
        closure[max(0, start) : max(0, start) + len(shape[kept])] = shape[kept]
        start += int(rng.integers(50, 100))
    return closure[:frames]


def brow_strengths(frames: int, rng: np.random.Generator) -> np.ndarray:
    """(frames, 2) how far procedural brows are raised and frowning, 0 to 1, with smooth ends.

    Moves last half a second to 1.6 s and come every few seconds; two of three are raises.
    """
    strengths = np.zeros((frames, 2))
    time = np.arange(frames) / FPS
    start = float(rng.uniform(-BROW_LENGTH[0], BROW_PAUSE[1] / 2))
    while start < frames / FPS:
        length, kind, height = rng.uniform(*BROW_LENGTH), int(rng.random() < 1 / 3), rng.uniform(0.4, 1)
        inside = np.minimum(time - start, start + length - time)
        strengths[:, kind] += height * (0.5 - 0.5 * np.cos(np.pi * np.clip(inside / BROW_EASE, 0, 1)))
        start += length + float(rng.uniform(*BROW_PAUSE))
    return strengths
