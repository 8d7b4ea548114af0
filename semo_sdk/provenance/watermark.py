"""Putting the watermark into frames: a few grey levels of brightness, stronger where the picture is busy.

Whole numbers only, and each frame by itself: the same frame gets the same mark alone, in a batch, live and offline.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.provenance.code import KEY, TILE, Payload, model_number, tile

__all__ = ["Watermark"]

SIZES = 8  # of frames for which the pattern is kept: whole photos come in any size, and 12 MB of it for full HD
TILES = IMAGE_SIZE // TILE  # across the short side of a frame
FINE = 8  # samples of the pattern between two of the tile
PEAK = 2.5  # standard deviations beyond which the pattern is cut
UNIT_BITS, GAIN_BITS = 6, 4  # of fixed-point numbers: the pattern in 1/64 grey level, gains in 1/16
SAMPLES = 128  # across the short side: where busyness is measured
CELL = 4  # of those samples: the side of a square with one gain
FLAT, BUSY = 10, 48  # gains: standard deviations of the mark in grey levels, times 16
SLOPE_BITS = 4
MOST = 920  # mean of the gains' squares in a frame: the mark stays 42 dB below full scale, however busy the frame is


class Watermark:
    """Marks the frames of one model.

    Calls are independent of each other and may come from any thread.

    Args:
        model: its name; the mark says it, as a number.
        key: of the code; :func:`semo_sdk.provenance.detect.detect` needs the same.
    """

    def __init__(self, model: str, *, key: bytes = KEY) -> None:
        self.payload = Payload(model_number(model))
        self.key = key
        self._plan = functools.lru_cache(SIZES)(self._make_plan)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Marked frames.

        Args:
            frames: (n, H, W, 3) or one (H, W, 3), uint8 RGB, of any size.

        Returns:
            A new array of the same shape.
        """
        frames = np.ascontiguousarray(frames)
        height, width = frames.shape[-3:-1]
        plan = self._plan(height, width)
        marked = np.empty_like(frames)
        for frame, out in zip(frames.reshape(-1, height, width, 3), marked.reshape(-1, height, width, 3), strict=True):
            plan.mark(frame, out)
        return marked

    def _make_plan(self, height: int, width: int) -> _Plan:
        return _plan(height, width, tile(self.payload, self.key, TILE * FINE))


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is computed once for a size of frames.

    Attributes:
        pattern: (H, W * 3) int16.
        step: pixels between two samples of busyness.
        heights, widths: of the cells, in pixels, and in pixels times 3.
    """

    pattern: np.ndarray
    step: int
    heights: np.ndarray
    widths: np.ndarray

    def mark(self, frame: np.ndarray, out: np.ndarray) -> None:
        """Writes the marked (H, W, 3) frame into ``out``."""
        gains = np.repeat(self._gains(frame), self.widths, axis=1)
        mark = np.repeat(gains, self.heights, axis=0)
        mark *= self.pattern
        mark += 1 << UNIT_BITS + GAIN_BITS - 1
        mark >>= UNIT_BITS + GAIN_BITS
        mark += frame.reshape(mark.shape)
        np.clip(mark, 0, 255, out=mark)
        out.reshape(mark.shape)[...] = mark

    def _gains(self, frame: np.ndarray) -> np.ndarray:
        """(rows, columns) int16 gain of each cell: differences between neighbours hide the mark."""
        green = frame[:: self.step, :: self.step, 1].astype(np.int16)
        busy = np.zeros(green.shape, np.int32)
        busy[:, 1:] += np.abs(green[:, 1:] - green[:, :-1])
        busy[1:] += np.abs(green[1:] - green[:-1])
        for axis in (1, 0):
            busy = np.add.reduceat(busy, np.arange(0, busy.shape[axis], CELL), axis=axis)
        gains = np.minimum(FLAT + (busy >> SLOPE_BITS), BUSY)
        power = int(np.square(gains).sum())
        if power > MOST * gains.size:
            gains = gains * math.isqrt(MOST * gains.size * 2**16 // power) >> 8
        return gains.astype(np.int16)


def _plan(height: int, width: int, fine: np.ndarray) -> _Plan:
    short = min(height, width)
    step = max(round(short / SAMPLES), 1)
    # place of each pixel's centre in the fine tile; the mark grows with the picture
    places = [
        np.floor((np.arange(size) + 0.5) * (TILES * len(fine) / short)).astype(int) % len(fine)
        for size in (height, width)
    ]
    pattern = np.clip(fine[np.ix_(*places)], -PEAK, PEAK)
    whole = np.rint(pattern * 2**UNIT_BITS).astype(np.int16)
    heights, widths = (np.diff([*range(0, size, CELL * step), size]) for size in (height, width))
    return _Plan(np.repeat(whole, 3, axis=1), step, heights, widths * 3)
