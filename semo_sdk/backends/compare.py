"""How far the pictures of two runtimes are apart: for export and engines, which both ask it."""

from __future__ import annotations

import numpy as np

PSNR_SAME = 99.0  # what identical frames report, in dB


def psnr(expected: np.ndarray, found: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 images in dB, at most ``PSNR_SAME``."""
    error = float(np.mean((expected.astype(np.float64) - found.astype(np.float64)) ** 2))
    return PSNR_SAME if error == 0 else min(PSNR_SAME, 10 * float(np.log10(255.0**2 / error)))
