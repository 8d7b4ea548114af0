"""Portraits: read, crop, paste back (numpy and Pillow)."""

from __future__ import annotations

import numpy as np

__all__ = ["face_square"]


def face_square(points: np.ndarray, scale: float) -> tuple[float, float, float]:
    """The square crop around a face: the one definition that training and runtime share.

    Args:
        points: (n, 2 or 3) face mesh in pixels; x right, y down.
        scale: side of the square in face heights.

    Returns:
        x0, y0, side in pixels: centred on the mesh's bounding box, ``scale`` times as high as that box. May
        leave the image.
    """
    low, high = points[:, :2].min(0).astype(float), points[:, :2].max(0).astype(float)
    side = scale * float(high[1] - low[1])
    x, y = (low + high) / 2 - side / 2
    return float(x), float(y), side
