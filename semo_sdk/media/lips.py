"""Closes the lips of a photo before it speaks: a smile keeps its cheeks and loses its teeth.

A photo with parted lips is the usual one, and a hard one: whatever stands between its lips would show through all that
the mouth does later. So both lips are moved onto one line, the lower one farther, as jaws do, and what was between
them is covered. Cheeks, corners of the mouth and chin stay where they are.
"""

from __future__ import annotations

import numpy as np

from semo_sdk.constants import LOWER_LIPS, UPPER_LIPS

__all__ = ["close_lips", "lip_gap"]

OUTER_UPPER, OUTER_LOWER = UPPER_LIPS[0], LOWER_LIPS[0]
INNER_UPPER, INNER_LOWER = UPPER_LIPS[-1], LOWER_LIPS[-1]

CLOSED, WIDE = 0.01, 0.15  # gap in face heights: below the first lips touch, above the second no lip reaches the other
UPPER_SHARE = 1 / 3  # of the gap that the upper lip closes
INSET = 0.15  # of a lip: how much of its inner edge is covered too, for landmarks are not exact and teeth are bright
REACH = (0.06, 1.6)  # how far the move fades out: face heights, and gaps; beyond 1.2 gaps nothing folds


def lip_gap(points: np.ndarray) -> float:
    """Mean distance of the inner lips in the middle of the mouth, in face heights; negative where they overlap.

    Args:
        points: (478 or 468, 2 or 3) mesh in pixels.
    """
    _, down = _axes(points)
    along = points[:, :2] @ down
    return float((along[list(INNER_LOWER)] - along[list(INNER_UPPER)])[3:8].mean() / np.ptp(along))


def close_lips(photo: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The photo with its lips together, if they were apart.

    Args:
        photo: (H, W, 3) uint8.
        points: (478 or 468, 2 or 3) mesh of its face in pixels, (0, 0) the corner of the first pixel.

    Returns:
        Photo and mesh: new ones, or those given where lips touch already, are too far apart (a yawn), or are seen from
        the side.
    """
    if not CLOSED < lip_gap(points) <= WIDE:
        return photo, points
    mouth = _Mouth(points)
    if (np.diff(mouth.columns) <= 0).any():
        return photo, points
    reach = 3 * mouth.reach + np.ptp(mouth.seam)
    around = points[list(OUTER_UPPER + OUTER_LOWER), :2]
    low = np.maximum(np.floor(around.min(0) - reach).astype(int), 0)
    high = np.minimum(np.ceil(around.max(0) + reach).astype(int), photo.shape[1::-1])
    x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
    source = mouth.source(np.stack([x, y], -1))
    moves = np.abs(source - np.stack([x, y], -1)).max(-1) > 1e-3
    out, moved = photo.copy(), points.copy()
    out[low[1] : high[1], low[0] : high[0]][moves] = _cubic(photo, source[moves])
    moved[:, :2] = mouth.target(points[:, :2])
    return out, moved


def _axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (2,) from the right corner of the mouth to the left one, and down."""
    across = points[INNER_UPPER[-1], :2] - points[INNER_UPPER[0], :2]
    across = across / max(float(np.linalg.norm(across)), 1e-6)
    return across, np.array([-across[1], across[0]])


class _Mouth:
    """Where the lips of a face meet, and how its places move when they do; all in pixels."""

    def __init__(self, points: np.ndarray) -> None:
        self.across, self.down = _axes(points)
        flat = points[:, :2].astype(np.float64)
        along, height = flat @ self.across, flat @ self.down
        self.columns = (along[list(INNER_UPPER)] + along[list(INNER_LOWER)]) / 2
        upper, lower = height[list(INNER_UPPER)], height[list(INNER_LOWER)]
        gap = np.maximum(lower - upper, 0)
        gap[[0, -1]] = 0
        self.seam = upper + UPPER_SHARE * gap
        covered = gap > 0
        self.upper = UPPER_SHARE * gap + INSET * covered * np.maximum(upper - height[list(OUTER_UPPER)], 0)
        self.lower = (1 - UPPER_SHARE) * gap + INSET * covered * np.maximum(height[list(OUTER_LOWER)] - lower, 0)
        self.reach = max(REACH[0] * float(np.ptp(height)), REACH[1] * float(gap.max()))

    def _parts(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Heights of places (..., 2), of the seam there, and how far the lip on their side moves (up is negative)."""
        along, height = places @ self.across, places @ self.down
        seam, upper, lower = (np.interp(along, self.columns, line) for line in (self.seam, self.upper, self.lower))
        outside = (along < self.columns[0]) | (along > self.columns[-1])
        return height, seam, np.where(outside, 0.0, np.where(height < seam, -upper, lower))

    def _fade(self, distance: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-np.square(distance / self.reach)))

    def source(self, places: np.ndarray) -> np.ndarray:
        """Where in the photo with open lips places (..., 2) of the one with closed lips come from."""
        height, seam, move = self._parts(places)
        return np.asarray(places + (move * self._fade(height - seam))[..., None] * self.down)

    def target(self, places: np.ndarray) -> np.ndarray:
        """Where places (..., 2) of the photo with open lips go: the inverse of :meth:`source`, found by iteration.

        What is covered (the lips' inner edges, and all between them) comes to lie on the seam.
        """
        height, seam, move = self._parts(places)
        closed = height
        for _ in range(30):
            closed = height - move * self._fade(closed - seam)
        closed = np.where(height < seam, np.minimum(closed, seam), np.maximum(closed, seam))
        return np.asarray(places + (closed - height)[..., None] * self.down)


def _cubic(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 at places (n, 2) in pixels, bicubic (Catmull-Rom), its edge repeated: (n, 3) uint8."""
    corner = np.floor(places - 0.5).astype(int)
    t = (places - 0.5 - corner)[:, None, :]
    tap = np.arange(-1, 3)[None, :, None]
    d = np.abs(t - tap)
    weight = np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2)  # (n, 4, 2)
    column = np.clip(corner[:, None, 0] + tap[..., 0], 0, image.shape[1] - 1)
    row = np.clip(corner[:, None, 1] + tap[..., 0], 0, image.shape[0] - 1)
    taps = image[row[:, :, None], column[:, None, :]].astype(np.float32)
    mixed = np.einsum("nyxc,ny,nx->nc", taps, weight[..., 1].astype(np.float32), weight[..., 0].astype(np.float32))
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
