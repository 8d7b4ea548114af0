"""Numbers that say whether a mouth follows speech, from the landmarks of two videos of the same audio."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from semo_sdk.media.face import LEFT_EYE, RIGHT_EYE, FaceTracker, mouth_opening

MAX_LAG = 5  # frames: 200 ms either way
STILL = 1e-4  # a series that varies less has no correlation (0 is reported)
NOSE_BRIDGE = 168  # between the eyes: moves with the skull, not with the mouth
MIN_FRAMES = 10  # frames that a correlation needs


@dataclass(frozen=True)
class Track:
    """Landmarks of a video reduced to what is compared; NaN where no face was seen.

    Attributes:
        mouth: (n,) inner-lip gap in units of the frame's distance between the outer eye corners.
        head: (n, 2) point between the eyes, in units of the video's median distance between them.
        roll: (n,) degrees, angle of the line through the eyes.
    """

    mouth: np.ndarray
    head: np.ndarray
    roll: np.ndarray

    @property
    def detection_rate(self) -> float:
        """Part of the frames in which a face was seen."""
        return float(np.mean(np.isfinite(self.mouth))) if len(self.mouth) else 0.0

    @property
    def head_motion(self) -> float:
        """Root mean square distance of the head from its mean place, in eye distances; 0 without a face."""
        if not np.isfinite(self.mouth).any():
            return 0.0
        centred = self.head - np.nanmean(self.head, axis=0)
        return float(np.sqrt(np.nanmean(np.sum(centred**2, axis=1))))

    @property
    def roll_deviation(self) -> float:
        """Standard deviation of the head's roll, in degrees; 0 when no face was seen."""
        return float(np.nanstd(self.roll)) if np.isfinite(self.roll).any() else 0.0


def track_face(frames: Iterable[np.ndarray], *, threads: int = 1) -> Track:
    """Follows the largest face through a video.

    Args:
        frames: (H, W, 3) uint8 RGB each.
        threads: CPU threads of the landmark network.
    """
    mouth, bridge, eyes = [], [], []
    lost = np.full(2, np.nan)
    for landmarks in FaceTracker(threads=threads).track(frames):
        points = None if landmarks is None else landmarks.points[:, :2].astype(np.float64)
        mouth.append(np.nan if points is None else mouth_opening(points))
        bridge.append(lost if points is None else points[NOSE_BRIDGE])
        eyes.append(lost if points is None else points[LEFT_EYE] - points[RIGHT_EYE])
    line = np.asarray(eyes).reshape(-1, 2)
    seen = np.isfinite(line[:, 0])
    unit = float(np.median(np.linalg.norm(line[seen], axis=1))) if seen.any() else np.nan
    return Track(
        np.asarray(mouth),
        np.asarray(bridge).reshape(-1, 2) / unit,
        np.degrees(np.arctan2(line[:, 1], line[:, 0])),
    )


def correlation(made: np.ndarray, real: np.ndarray) -> float:
    """Pearson correlation of two series over the frames that both have.

    Args:
        made: (n,) with NaN where unknown.
        real: (m,); the longer one is cut.

    Returns:
        -1 to 1; 0 when a series does not vary or fewer than 10 frames are shared.
    """
    count = min(len(made), len(real))
    both = np.isfinite(made[:count]) & np.isfinite(real[:count])
    a, b = made[:count][both], real[:count][both]
    if len(a) < MIN_FRAMES or a.std() < STILL or b.std() < STILL:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def best_lag(made: np.ndarray, real: np.ndarray, max_lag: int = MAX_LAG) -> tuple[float, int]:
    """The best correlation over small shifts, and the shift.

    Returns:
        Correlation, and lag in frames: positive when ``made`` comes later than ``real``.
    """
    scores = {lag: correlation(made[max(lag, 0) :], real[max(-lag, 0) :]) for lag in range(-max_lag, max_lag + 1)}
    lag = max(scores, key=lambda candidate: (scores[candidate], -abs(candidate)))
    return scores[lag], lag


def without_rhythm(series: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each series without what it shares with the average of the others.

    Sentences of one corpus begin, pause and end alike, so even the mouths of two *different* sentences correlate.
    What is left after the average of the others is regressed out is the sentence's own.

    Args:
        series: (n,) each, at least two; NaN is filled from the neighbours, the longer ones are cut.

    Returns:
        As many series of the shortest one's length, each with mean 0.
    """
    length = min(len(one) for one in series)
    table = np.stack([_filled(one[:length]) for one in series])
    rests = []
    for index, one in enumerate(table):
        template = np.delete(table, index, axis=0).mean(axis=0)
        template -= template.mean()
        power = float(template @ template)
        centred = one - one.mean()
        rests.append(centred - template * (centred @ template / power) if power > STILL**2 else centred)
    return rests


def _filled(series: np.ndarray) -> np.ndarray:
    seen = np.isfinite(series)
    if not seen.any():
        return np.zeros(len(series))
    places = np.arange(len(series))
    return np.interp(places, places[seen], series[seen])


def amplitude_ratio(made: np.ndarray, real: np.ndarray) -> float:
    """Standard deviation of ``made`` over that of ``real``: 1 = the mouth moves as much.

    0 when no face was seen in one of them, or ``real`` is still.
    """
    made, real = made[np.isfinite(made)], real[np.isfinite(real)]
    if not len(made) or not len(real) or real.std() < STILL:
        return 0.0
    return float(made.std() / real.std())


def loudness(pcm: np.ndarray, samples_per_frame: int) -> np.ndarray:
    """Root mean square of the speech in each video frame: what a mouth driven by volume alone would do.

    Args:
        pcm: (n,) float32.
        samples_per_frame: samples that go with one frame; an incomplete last frame is dropped.

    Returns:
        (n // samples_per_frame,) float.
    """
    count = len(pcm) // samples_per_frame
    blocks = pcm[: count * samples_per_frame].reshape(count, samples_per_frame)
    return np.asarray(np.sqrt(np.mean(blocks.astype(np.float64) ** 2, axis=1)))
