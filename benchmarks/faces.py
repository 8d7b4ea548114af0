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
OPEN_SECONDS, OPEN_LEVEL = 2.0, 80  # the open eye's aspect: this percentile of so much around each frame
BLINK_DEPTH = 0.2  # of the opening that the lids close, at least; and four times the deviation of the noise
BLINK_SECONDS = (0.06, 0.8)  # at a third of the depth, and at least two frames: shorter is noise, longer is sleep
GLANCE_DEPTH, GLANCE_SECONDS = 0.4, 0.3  # what closes the eyes by less for longer is a look down
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


def blinks(eye_aspect: np.ndarray, fps: float = FPS) -> int:
    """How often the lids close and open again; the same rule for filmed and for generated eyes.

    What counts is how far the eyes close against their own open level around that moment: landmarks of some faces never
    say "closed". A blink closes them by a fifth at least, is over when half of that is open again, and lasts 0.06 to
    0.8 s, to 0.3 s when it is shallow. Lids that are still closed at the end count too.

    Args:
        eye_aspect: (n,) NaN where unknown: filled from both sides.
        fps: frames a second.
    """
    known = np.isfinite(eye_aspect)
    if known.sum() < mouth.MIN_FRAMES:
        return 0
    closed = eye_closure(eye_aspect, fps)
    noise = 1.4826 * float(np.median(np.abs(closed - np.median(closed))))
    depth = max(BLINK_DEPTH, 4 * noise)
    count, floor, begin, peak = 0, 1.0, -1, 0.0
    for place, value in enumerate([*closed, -np.inf]):
        if begin < 0:
            floor = max(min(floor, float(value)), 0.0)  # after a blink the lids may not be wholly open yet
            if value - floor >= depth:
                begin, peak = place, float(value)
            continue
        peak = max(peak, float(value))
        if value > (peak + floor) / 2:
            continue
        around = closed[max(begin - 1, 0) : place + 1]  # a short blink's first and last frame are half open
        frames = int(np.sum(around - floor >= (peak - floor) / 3))
        longest = BLINK_SECONDS[1] if peak - floor >= GLANCE_DEPTH else GLANCE_SECONDS
        count += frames >= 2 and BLINK_SECONDS[0] <= frames / fps <= longest
        begin, floor = -1, float(value)
    return count


def eye_closure(eye_aspect: np.ndarray, fps: float = FPS) -> np.ndarray:
    """(n,) share of their opening that the eyes are closed by: 0 as open as usual around that moment, 1 closed.

    Args:
        eye_aspect: (n,) NaN where unknown, but not everywhere: filled from both sides.
        fps: frames a second.
    """
    known = np.isfinite(eye_aspect)
    filled = np.interp(np.arange(len(eye_aspect)), np.flatnonzero(known), eye_aspect[known])
    half = max(1, round(OPEN_SECONDS * fps / 2))
    around = np.lib.stride_tricks.sliding_window_view(np.pad(filled, half, mode="reflect"), 2 * half + 1)
    return np.asarray(1 - filled / np.maximum(np.percentile(around, OPEN_LEVEL, axis=1), 1e-6))


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
