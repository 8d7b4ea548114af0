"""What a face does in a video, as series over its frames: mouth, eyelids, head. From MediaPipe landmarks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from semo_sdk.benchmarks import mouth
from semo_sdk.constants import FPS
from semo_sdk.media.face import LEFT_EYE, RIGHT_EYE, FaceTracker, mouth_opening

MESH = 478
MOUTH_CORNERS = (61, 291)
# Two corners, then two pairs of upper and lower lid: the eye aspect ratio of Soukupova and Cech (2016).
EYES = ((33, 133, 160, 144, 158, 153), (362, 263, 385, 380, 387, 373))
CLOSED_EYE = 0.6  # of the open eye's aspect: below, the lids are closed
BLINK_FRAMES = (2, 20)  # 80 to 800 ms: shorter is noise, longer is sleep
SPEED_WINDOW = 5  # frames over which the head's place is averaged before its speed is taken
LIP_RANGE = (5, 95)  # percentiles between which a mouth's range is taken


@dataclass(frozen=True)
class FaceSeries:
    """Landmarks of the largest face of a video.

    Attributes:
        mesh: (n, 478, 3) pixels; NaN where no face was seen.
    """

    mesh: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """(n, 478, 2) pixels."""
        return self.mesh[..., :2]

    @property
    def seen(self) -> np.ndarray:
        """(n,) bool: frames with a face."""
        return np.asarray(np.isfinite(self.points[:, 0, 0]))

    @property
    def eye_line(self) -> np.ndarray:
        """(n, 2) from the right to the left outer eye corner."""
        return np.asarray(self.points[:, LEFT_EYE] - self.points[:, RIGHT_EYE])

    @property
    def eye_distance(self) -> np.ndarray:
        """(n,) pixels between the outer eye corners: the unit of all the series below."""
        return np.asarray(np.linalg.norm(self.eye_line, axis=-1))

    @property
    def width(self) -> np.ndarray:
        """(n,) distance of the mouth's corners."""
        right, left = MOUTH_CORNERS
        return np.asarray(np.linalg.norm(self.points[:, left] - self.points[:, right], axis=-1) / self.eye_distance)

    @property
    def eye_aspect(self) -> np.ndarray:
        """(n,) opening of the eyes over their width, mean of both: about 0.3 open, 0.1 closed."""
        ratios = []
        for right, left, *lids in EYES:
            gaps = [np.linalg.norm(self.points[:, a] - self.points[:, b], axis=-1) for a, b in (lids[:2], lids[2:])]
            corners = np.linalg.norm(self.points[:, right] - self.points[:, left], axis=-1)
            ratios.append(np.sum(gaps, axis=0) / (2 * corners))
        return np.asarray(np.mean(ratios, axis=0))

    @property
    def track(self) -> mouth.Track:
        """Mouth opening, place of the head and roll, as the lip-sync benchmark measures them."""
        opening = [mouth_opening(points) for points in self.points]
        line, seen = self.eye_line, self.seen
        unit = float(np.median(self.eye_distance[seen])) if seen.any() else np.nan
        roll = np.degrees(np.arctan2(line[:, 1], line[:, 0]))
        return mouth.Track(np.asarray(opening), self.points[:, mouth.NOSE_BRIDGE] / unit, roll)

    def boxes(self) -> np.ndarray:
        """(n, 4) x0, y0, x1, y1 of the face; NaN where none was seen."""
        return np.concatenate([self.points.min(1), self.points.max(1)], axis=1)


def follow(frames: Iterable[np.ndarray], *, threads: int = 1) -> FaceSeries:
    """Follows the largest face through a video.

    Args:
        frames: (H, W, 3) uint8 RGB each.
        threads: CPU threads of the landmark network.
    """
    lost = np.full((MESH, 3), np.nan)
    found = [
        lost if landmarks is None else landmarks.points.astype(np.float64)
        for landmarks in FaceTracker(threads=threads).track(frames)
    ]
    return FaceSeries(np.stack(found) if found else np.zeros((0, MESH, 3)))


def blinks(eye_aspect: np.ndarray) -> int:
    """How often the eyes close and open again.

    A blink is 2 to 20 frames below 60 % of the open eye's aspect, which is the series' 90th percentile; eyes that were
    closed at the beginning or stay closed at the end count too.

    Args:
        eye_aspect: (n,) NaN where unknown (the frame before is repeated).
    """
    known = np.isfinite(eye_aspect)
    if known.sum() < mouth.MIN_FRAMES:
        return 0
    filled = np.interp(np.arange(len(eye_aspect)), np.flatnonzero(known), eye_aspect[known])
    closed = filled < CLOSED_EYE * np.percentile(filled, 90)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], closed.astype(int), [0]])))
    lengths = edges[1::2] - edges[::2]
    return int(np.sum((lengths >= BLINK_FRAMES[0]) & (lengths <= BLINK_FRAMES[1])))


def head_speed(track: mouth.Track) -> float:
    """Root mean square speed of the point between the eyes, in eye distances a second; 0 without a face.

    The place is averaged over 5 frames first, or the landmarks' trembling would outweigh the movement.
    """
    head = track.head[np.isfinite(track.head[:, 0])]
    if len(head) < SPEED_WINDOW + 2:
        return 0.0
    window = np.full(SPEED_WINDOW, 1 / SPEED_WINDOW)
    smooth = np.stack([np.convolve(axis, window, mode="valid") for axis in head.T], axis=1)
    return float(np.sqrt(np.mean(np.sum(np.diff(smooth, axis=0) ** 2, axis=1))) * FPS)


def lip_range(opening: np.ndarray) -> float:
    """From the 5th to the 95th percentile of a mouth's opening, in eye distances; 0 without a face."""
    known = opening[np.isfinite(opening)]
    if not len(known):
        return 0.0
    low, high = np.percentile(known, LIP_RANGE)
    return float(high - low)


def landmark_error(made: FaceSeries, real: FaceSeries) -> float:
    """Mean distance of the landmarks of two videos in the same crop, as a share of the real face's eye distance.

    NaN when no frame has a face in both.
    """
    both = made.seen & real.seen
    if not both.any():
        return float("nan")
    distance = np.linalg.norm(made.points[both] - real.points[both], axis=-1).mean(1)
    return float(np.mean(distance / real.eye_distance[both]))
