"""The watermark's code: a key chooses frequencies and phases, a payload shifts some of them.

The mark is a periodic picture, two tiles across the short side of a frame. Its energy lies in a band of frequencies
that H.264 and resizing keep. Each frequency has a phase that the key chooses at random. They are divided into four
groups: the first is the same for every payload and says that there is a mark, and where; each of the three others is
shifted by one of 32 x 32 steps, which spells ten bits.

The key is public, as this source is: whoever has it can find a mark, and can remove or forge one.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

__all__ = [
    "BITS",
    "CELLS",
    "KEY",
    "STEP",
    "SYMBOLS",
    "TILE",
    "Band",
    "Payload",
    "all_symbols",
    "band",
    "model_number",
    "tile",
]

KEY = b"semo-sdk watermark 1"
TILE = 128  # samples a side of the tile; a frame's short side has two tiles
LOWEST, HIGHEST = 8.0, 30.0  # waves in a tile: 16 to 60 in a frame's short side
SYMBOLS = 3
CELLS = 32  # positions of a symbol's group, in each direction
STEP = TILE // CELLS  # samples between two of them
SYMBOL_BITS = 10
BITS = SYMBOLS * SYMBOL_BITS

VERSION = 1  # 4 bits
MODEL_BITS = 16
SHARES = (0, 0, 1, 2, 3)  # groups of frequencies: two fifths say that there is a mark, the rest spells the payload


def model_number(name: str) -> int:
    """16 bits that stand for a model's name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:2], "big")


@dataclass(frozen=True)
class Payload:
    """What a watermark says: 4 bits of version, 16 bits of the model's number; the third symbol checks both."""

    model: int
    version: int = VERSION

    @property
    def symbols(self) -> tuple[int, ...]:
        """Three numbers of 10 bits; two payloads differ in two of them at least."""
        first, second = divmod(self.version << MODEL_BITS | self.model, 1 << SYMBOL_BITS)
        return first, second, first ^ second


@functools.cache
def all_symbols() -> np.ndarray:
    """(65536, 3) symbols of every payload of this version, in the order of the models' numbers."""
    first, second = np.divmod(np.arange(1 << MODEL_BITS) + (VERSION << MODEL_BITS), 1 << SYMBOL_BITS)
    return np.stack([first, second, first ^ second], axis=1)


@dataclass(frozen=True, eq=False)
class Band:
    """A key's frequencies: one of each conjugate pair.

    Attributes:
        rows, columns: (m,) places in the FFT of a tile.
        phases: (m,) in radians.
        groups: (m,) 0 for those that are the same for every payload, 1 to 3 for those of a symbol.
    """

    rows: np.ndarray
    columns: np.ndarray
    phases: np.ndarray
    groups: np.ndarray


@functools.lru_cache(maxsize=4)
def band(key: bytes = KEY) -> Band:
    """The frequencies of a key."""
    wave = np.fft.fftfreq(TILE, 1 / TILE)
    radius = np.hypot(wave[:, None], wave)
    half = (wave[:, None] > 0) | ((wave[:, None] == 0) & (wave > 0))
    rows, columns = np.nonzero((radius >= LOWEST) & (radius <= HIGHEST) & half)
    # raw numbers of Philox are the same in every version of numpy
    words = np.frombuffer(hashlib.sha256(key).digest(), np.uint64)
    raw = np.random.Philox(key=words[:2]).random_raw(2 * len(rows))
    phases = raw[: len(rows)] * (2 * np.pi / 2.0**64)
    return Band(rows, columns, phases, np.array(SHARES)[(raw[len(rows) :] % np.uint64(len(SHARES))).astype(int)])


def offsets(symbol: int) -> tuple[int, int]:
    """Rows and columns by which a symbol's group is shifted."""
    return symbol // CELLS * STEP, symbol % CELLS * STEP


@functools.lru_cache(maxsize=8)
def tile(payload: Payload, key: bytes = KEY, size: int = TILE) -> np.ndarray:
    """(size, size) float32 tile of a payload, mean 0, standard deviation 1; ``size`` samples it more finely."""
    own = band(key)
    phases = own.phases.copy()
    for group, symbol in enumerate(payload.symbols, start=1):
        mine = own.groups == group
        down, right = offsets(symbol)
        phases[mine] -= 2 * np.pi / TILE * (own.rows[mine] * down + own.columns[mine] * right)
    waves = np.fft.fftfreq(TILE, 1 / TILE).astype(int)
    spectrum = np.zeros((size, size), complex)
    spectrum[waves[own.rows], waves[own.columns]] = np.exp(1j * phases)
    picture = np.fft.ifft2(spectrum).real  # half of the pairs suffice: the real part
    return np.asarray(picture / picture.std(), np.float32)
