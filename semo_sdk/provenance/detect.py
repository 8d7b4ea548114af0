"""Finding the watermark in frames of any size, without the frames as they were before.

The mark is the same in every frame, so frames are averaged first. The average is resampled for every zoom that a crop
may have caused, folded to one tile, and only the phases of its spectrum are kept. If there is no mark they have
nothing to do with those of the key, which are random, so the correlation with the key is a sum of independent
cosines: normal with variance 1 after scaling, whatever the picture shows. That gives the probability of a false
alarm, multiplied by the number of places and zooms that were tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.provenance.code import KEY, STEP, SYMBOLS, TILE, Band, Payload, all_symbols, band

__all__ = ["FALSE_ALARM", "Detection", "average", "correlations", "detect", "search"]

FALSE_ALARM = 1e-6  # of a whole file: less likely ones count as found
WINDOW = 250  # frames that are averaged
WINDOWS = 24  # of a file that are looked at, 4 minutes of it
# Sizes that a frame's short side is brought to: 256 fits whole frames, less fits crops, more fits frames with borders.
SMALLEST, LARGEST, SIZE_STEP = 176, 320, 2
PLACES, CANDIDATES = 4, 48  # shifts of each zoom, and of all of them, where the payload is read
BLUR = 4  # pixels: radius of the neighbourhood that brightness and contrast are compared with
CONTRAST = 0.7  # grey levels added to the contrast: flat neighbourhoods are not blown up


@dataclass(frozen=True)
class Detection:
    """What was found.

    Attributes:
        score: standard deviations of the correlation with the key and the payload that fits best.
        false_alarm: an upper bound of the probability that frames without a mark give such a score for any payload.
        number: of the model that this payload names.
        symbols: what each group of frequencies says by itself, without the check.
        zoom: how much larger the picture is than when it was marked, relative to the frame's short side.
        frames: that were averaged.
    """

    score: float
    false_alarm: float
    number: int
    symbols: tuple[int, ...]
    zoom: float
    frames: int

    @property
    def found(self) -> bool:
        """Whether there is a mark."""
        return self.false_alarm <= FALSE_ALARM

    @property
    def payload(self) -> Payload | None:
        """What it says; None if there is none."""
        return Payload(self.number) if self.found else None


def detect(frames: Iterable[np.ndarray], *, key: bytes = KEY) -> Detection | None:
    """Looks for a mark until it can be read.

    Args:
        frames: (H, W, 3) uint8 RGB of one size; the first 6,000 at most are looked at, 250 at a time.
        key: of the code.

    Returns:
        The best of all looks; None without frames.
    """
    best: Detection | None = None
    for number, (picture, count) in enumerate(_windows(frames), start=1):
        found = search(picture, count, key=key, windows=number)
        if best is None or found.score > best.score:
            best = found
        if best.payload is not None or number == WINDOWS:
            break
    return best


def _windows(frames: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    held: list[np.ndarray] = []
    for frame in frames:
        held.append(_brightness(frame))
        if len(held) == WINDOW:
            yield np.mean(held, axis=0), len(held)
            held = []
    if held:
        yield np.mean(held, axis=0), len(held)


def average(frames: Iterable[np.ndarray]) -> np.ndarray:
    """(h, w) float32 mean brightness of (H, W, 3) uint8 frames, the short side 256 pixels long."""
    return np.asarray(np.mean([_brightness(frame) for frame in frames], axis=0))


def _brightness(frame: np.ndarray) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(frame).convert("L")
    size = _scaled(image.size, IMAGE_SIZE)
    return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC), np.float32)


def _scaled(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Two sides in proportion, the shorter one of this length."""
    return round(size[0] * short / min(size)), round(size[1] * short / min(size))


def search(picture: np.ndarray, frames: int = 1, *, key: bytes = KEY, windows: int = 1) -> Detection:
    """Looks for a mark in one picture, at all zooms.

    Args:
        picture: (h, w) float32 from :func:`average`.
        frames: in it.
        key: of the code.
        windows: pictures of the same file looked at so far, this one included.
    """
    own, flat = band(key), _flattened(picture)
    payloads = len(all_symbols()) * windows
    # Frames that were only resized have the mark where it was: few places to try, and half of the false alarms allowed.
    whole = _unmoved(flat, own)
    kept = max((_read(place, own) for place in whole), key=lambda found: found.score)
    chance = _chance(kept.score, 2 * payloads * len(whole))
    if chance <= FALSE_ALARM:
        return kept.told(chance, frames)
    sizes = range(SMALLEST, LARGEST + 1, SIZE_STEP)
    places = sorted((place for size in sizes for place in _places(flat, size, own)), key=lambda place: -place.clue)
    cut = max((_read(place, own) for place in places[:CANDIDATES]), key=lambda found: found.score)
    near = [place for step in (-1, 1) for place in _places(flat, cut.place.size + step, own)]
    cut = max((cut, *(_read(place, own) for place in near)), key=lambda found: found.score)
    other_chance = _chance(cut.score, 2 * payloads * TILE * TILE * (len(sizes) + 2))
    return kept.told(chance, frames) if chance < other_chance else cut.told(other_chance, frames)


def _chance(score: float, trials: int) -> float:
    """Upper bound of the probability that the best of so many standard normal scores is as high."""
    return min(trials * 0.5 * math.erfc(score / math.sqrt(2)), 1.0)


def correlations(picture: np.ndarray, *, key: bytes = KEY) -> np.ndarray:
    """(128, 128) what :func:`search` takes to be standard normal without a mark: at every shift, without zoom.

    Args:
        picture: (h, w) float32 from :func:`average`.
        key: of the code.
    """
    return _clues(_flattened(picture), IMAGE_SIZE, band(key))[1]


@dataclass(frozen=True, eq=False)
class _Place:
    """A zoom and a shift where the first group of frequencies fits well.

    Attributes:
        clue: how well: standard deviations.
        size: of the short side. row, column: the shift.
        phasors: (m,) the picture's at the key's frequencies, relative to the key.
    """

    clue: float
    size: int
    row: int
    column: int
    phasors: np.ndarray


@dataclass(frozen=True, eq=False)
class _Found:
    """The payload that fits best at a place, and each group's own favourite symbol."""

    score: float
    number: int
    place: _Place
    favourites: tuple[int, ...]

    def told(self, false_alarm: float, frames: int) -> Detection:
        """For the caller."""
        zoom = IMAGE_SIZE / self.place.size
        return Detection(self.score, false_alarm, self.number, self.favourites, zoom, frames)


def _places(flat: np.ndarray, size: int, own: Band) -> list[_Place]:
    """The best shifts at one zoom."""
    phasors, clues = _clues(flat, size, own)
    best = np.argpartition(clues, -PLACES, axis=None)[-PLACES:]
    return [_Place(float(clues.flat[i]), size, int(i) // TILE, int(i) % TILE, phasors) for i in best]


def _unmoved(flat: np.ndarray, own: Band) -> list[_Place]:
    """Where the mark is in frames that were only resized, and one pixel around that."""
    phasors, clues = _clues(flat, IMAGE_SIZE, own)
    shifts = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    return [_Place(float(clues[row, column]), IMAGE_SIZE, row, column, phasors) for row, column in shifts]


def _clues(flat: np.ndarray, size: int, own: Band) -> tuple[np.ndarray, np.ndarray]:
    """Phasors at one zoom, and how well the first group fits at every shift."""
    phasors = _phasors(flat, size)[own.rows, own.columns] * np.exp(-1j * own.phases)
    mine = own.groups == 0
    return phasors, _sums(phasors, own, mine) / math.sqrt(mine.sum() / 2)


def _read(place: _Place, own: Band) -> _Found:
    sums = []
    for group in range(1, SYMBOLS + 1):
        shifted = np.roll(_sums(place.phasors, own, own.groups == group), (-place.row, -place.column), (0, 1))
        sums.append(shifted[::STEP, ::STEP].ravel())
    payloads = sum((own_sums[symbols] for own_sums, symbols in zip(sums, all_symbols().T, strict=True)), np.zeros(1))
    number = int(np.argmax(payloads))
    total = payloads[number] + place.clue * math.sqrt((own.groups == 0).sum() / 2)
    favourites = tuple(int(own_sums.argmax()) for own_sums in sums)
    return _Found(float(total / math.sqrt(len(own.groups) / 2)), number, place, favourites)


def _sums(phasors: np.ndarray, own: Band, mine: np.ndarray) -> np.ndarray:
    """(TILE, TILE) correlation of some frequencies with the key at every shift: a sum of their cosines."""
    spectrum = np.zeros((TILE, TILE), complex)
    spectrum[own.rows[mine], own.columns[mine]] = phasors[mine]
    return np.asarray(np.fft.ifft2(spectrum).real * (TILE * TILE))


def _phasors(flat: np.ndarray, size: int) -> np.ndarray:
    """Spectrum of the picture folded to a tile, all amplitudes 1."""
    from PIL import Image

    width, height = _scaled((flat.shape[1], flat.shape[0]), size)
    zoomed = np.asarray(Image.fromarray(flat).resize((width, height), Image.Resampling.BICUBIC))
    padded = np.zeros((-(-height // TILE) * TILE, -(-width // TILE) * TILE), np.float32)
    padded[:height, :width] = zoomed
    folded = padded.reshape(len(padded) // TILE, TILE, -1, TILE).sum((0, 2))
    spectrum = np.fft.fft2(folded)
    return np.asarray(spectrum / np.maximum(np.abs(spectrum), 1e-9))


def _flattened(picture: np.ndarray) -> np.ndarray:
    """The picture without its slow changes, divided by the contrast around each pixel: edges count as skin does."""
    detail = picture - _blurred(picture)
    contrast = np.sqrt(np.maximum(_blurred(detail * detail), 0.0))
    return np.asarray(detail / (contrast + CONTRAST), np.float32)


def _blurred(picture: np.ndarray) -> np.ndarray:
    """Mean of the square around each pixel."""
    side = 2 * BLUR + 1
    sums = np.pad(picture.astype(np.float64), BLUR, mode="edge").cumsum(0).cumsum(1)
    sums = np.pad(sums, ((1, 0), (1, 0)))
    total = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return np.asarray(total / side**2)
