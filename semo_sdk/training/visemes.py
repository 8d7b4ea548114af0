"""From phones and their times to lips: learned from films whose words are known.

Where the phones lie in a film is found by saying the same words with a synthetic voice and aligning the two sounds. A
linear model then tells the expression from the phones around each frame; on words that it has never seen, a narrow
context does better than a wide one. Lips close fully at b, m and p, whatever their neighbours, and in silence: a mean
would not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from semo_sdk.config import AudioConfig
from semo_sdk.constants import FPS, MEL_HOP, MEL_WINDOW, SAMPLE_RATE
from semo_sdk.errors import InputError
from semo_sdk.models.whisper import LogMel
from semo_sdk.training import puppet_geometry as geometry
from semo_sdk.training.puppet_driver import Driver
from semo_sdk.training.spoken import PAUSE, Phone

__all__ = ["Visemes", "align", "fit_visemes"]

PHONES = (
    "pau aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh"
).split()
# whose lips serve for a phone that the films hardly have
LIKE = {
    "aa": "ay", "ch": "jh", "er": "r", "hh": "ah", "jh": "ch", "m": "b", "ng": "n", "oy": "ow", "sh": "jh", "th": "t",
    "uh": "uw", "v": "f", "y": "iy", "zh": "jh",
}  # fmt: skip
FEW = 20  # occurrences of a phone that are too few to learn it
CLOSED = ("b", "m", "p")
CLOSED_GAP = 0.001  # face heights between the inner lips: where the films have them at these phones
CLOSING = 0.05  # seconds that lips take
LONG_PAUSE = 0.3  # seconds of silence in which lips close too
RATE = 4  # steps of the phones' time in a video frame: 100 a second
BLURS = ((4, (-8, 0, 8)), (12, (0,)))  # deviation and places around a frame, in these steps
RIDGE = 20.0
LIPS = 2  # leading coefficients, jaw and lips: their deviation is the films' again after the mean took some of it
MOST_GAIN = 1.4

ALIGN_STEP = 2  # mel frames of 10 ms
CEPSTRA = 16
SLANT = 1.15  # cost of time standing still in one of two aligned sounds


@dataclass(frozen=True)
class Visemes:
    """A linear model from phones to expression.

    Attributes:
        weights: (features, 24). mean: (24,). gain: (24,) of the deviation from it.
        known: phones that the films have often enough.
        rest: inner-lip gap in face heights at zero coefficients. opening: (24,) what each coefficient adds to it.
    """

    weights: np.ndarray
    mean: np.ndarray
    gain: np.ndarray
    known: frozenset[str]
    rest: float
    opening: np.ndarray

    def __call__(self, phones: Sequence[Phone], frames: int) -> np.ndarray:
        """Expression (frames, 24) while the phones are said, see ``Driver``; before and after them there is silence."""
        learned = [p if p.name in self.known else Phone(LIKE.get(p.name, p.name), p.start, p.end) for p in phones]
        said = self.mean + self.gain * (_features(learned, frames) @ self.weights)
        return self.close(said, phones)

    def gap(self, expression: np.ndarray) -> np.ndarray:
        """(n, 24) -> (n,) between the inner lips, in face heights."""
        return np.asarray(self.rest + expression @ self.opening)

    def close(self, expression: np.ndarray, phones: Iterable[Phone]) -> np.ndarray:
        """The same expression (frames, 24), with closed lips where b, m or p are said, and in long pauses."""
        times = (np.arange(len(expression)) + 0.5) / FPS
        shut = np.zeros(len(expression))
        for phone in phones:
            if phone.name in CLOSED or (phone.name == PAUSE and phone.end - phone.start > LONG_PAUSE):
                away = np.maximum(np.maximum(phone.start - times, times - phone.end), 0)
                shut = np.maximum(shut, 1 - away / CLOSING)
                middle = int(FPS * (phone.start + phone.end) / 2)
                shut[middle : middle + 1] = 1
        missing = np.minimum(CLOSED_GAP - self.gap(expression), 0) * np.maximum(shut, 0)
        return expression + missing[:, None] * (self.opening / np.square(self.opening).sum())


def fit_visemes(clips: Sequence[tuple[Sequence[Phone], np.ndarray]], driver: Driver) -> Visemes:
    """Learns from films.

    Args:
        clips: phones of each, and its expression (T, 24). driver: whose expression it is.

    Raises:
        InputError: the films say too little: fewer than ten phones have been heard often enough.
    """
    counts = Counter(phone.name for phones, _ in clips for phone in phones)
    known = frozenset(name for name in PHONES if counts[name] >= FEW)
    if len(known) < 10 or PAUSE not in known:
        raise InputError(
            f"films with {len(known)} phones that are said {FEW} times: too few to learn visemes; "
            "give films with transcripts (a .txt beside each), or prepare without spoken sentences"
        )
    x = np.concatenate([_features([p for p in phones if p.name in known], len(y)) for phones, y in clips])
    y = np.concatenate([expression for _, expression in clips]).astype(np.float64)
    mean = y.mean(0)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - mean))
    gain = np.ones(len(mean))
    gain[:LIPS] = (y.std(0) / (x @ weights).std(0))[:LIPS].clip(1, MOST_GAIN)

    def gap(coefficients: np.ndarray) -> np.ndarray:
        shape = driver.neutral + driver.decode(coefficients)
        lower, upper = (shape[:, ring[4:7], 1] for ring in (geometry.INNER_LOWER, geometry.INNER_UPPER))
        return np.asarray((lower - upper).mean(1))

    rest, *opened = gap(np.concatenate([np.zeros((1, len(mean))), np.eye(len(mean))]))
    return Visemes(weights, mean, gain, known, float(rest), np.array(opened) - rest)


def _features(phones: Iterable[Phone], frames: int) -> np.ndarray:
    """Which phone is said (frames, phones x places), blurred over several widths and places in time."""
    from scipy.ndimage import gaussian_filter1d

    said = np.zeros((frames * RATE, len(PHONES)))
    for phone in phones:
        start = round(phone.start * FPS * RATE)
        end = max(round(phone.end * FPS * RATE), start + 1)
        said[max(start, 0) : max(end, 0), PHONES.index(phone.name)] = 1
    said[said.sum(1) == 0, 0] = 1
    parts = []
    for sigma, places in BLURS:
        blurred = gaussian_filter1d(said, sigma, axis=0, mode="nearest")
        for place in places:
            at = np.clip(np.arange(RATE // 2, frames * RATE, RATE) - place, 0, frames * RATE - 1)
            parts.append(blurred[at])
    return np.concatenate(parts, 1)


def align(recorded: np.ndarray, said: np.ndarray, phones: Sequence[Phone]) -> list[Phone]:
    """Where the phones of synthetic speech lie in a recording of the same words (dynamic time warping of cepstra).

    Args:
        recorded, said: (n,) float32 at 16 kHz. phones: of ``said``.
    """
    hop = ALIGN_STEP * MEL_HOP / SAMPLE_RATE
    silence = np.zeros(3 * SAMPLE_RATE // 10, np.float32)  # a recording begins and ends with some
    pairs = _warp(_cepstra(recorded), _cepstra(np.concatenate([silence, said, silence])))
    here, there = pairs[:, 0] * hop, pairs[:, 1] * hop - len(silence) / SAMPLE_RATE

    def place(time: float) -> float:
        return float(np.interp(time, there, here))

    return [Phone(p.name, place(p.start), place(p.end)) for p in phones]


def _cepstra(pcm: np.ndarray) -> np.ndarray:
    """(frames, 2 * 16) mel cepstra and their slopes, without what the voice and the room have in common."""
    from scipy.fft import dct

    padded = np.concatenate([np.zeros(MEL_WINDOW - MEL_HOP, np.float32), pcm])
    mel = LogMel(AudioConfig().log_floor)(torch.from_numpy(padded)[None])[0].T.numpy()
    loud = mel.mean(1) > np.quantile(mel.mean(1), 0.3)
    mel = (mel - mel[loud].mean(0)) / (mel[loud].std(0) + 0.1)
    cepstra = dct(mel, axis=1, norm="ortho")[:, :CEPSTRA]
    return np.asarray(np.concatenate([cepstra, 3 * np.gradient(cepstra, axis=0)], 1)[::ALIGN_STEP])


def _warp(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows of a and of b (n, 2) that belong together, both ascending."""
    from scipy.spatial.distance import cdist

    distance = cdist(a, b)
    rows, columns = distance.shape
    cost = np.full((rows + 1, columns + 1), np.inf)
    cost[0, 0] = 0
    came = np.zeros((rows, columns), np.int8)
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        still = SLANT * distance[i, j]
        ways = np.stack([cost[i, j] + distance[i, j], cost[i, j + 1] + still, cost[i + 1, j] + still])
        came[i, j] = ways.argmin(0)
        cost[i + 1, j + 1] = ways.min(0)
    i, j = rows - 1, columns - 1
    path = []
    while i >= 0 and j >= 0:
        path.append((i, j))
        way = came[i, j]
        i, j = i - (way != 2), j - (way != 1)
    return np.array(path[::-1])
