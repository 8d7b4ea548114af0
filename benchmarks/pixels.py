"""How close pictures are to each other: PSNR, SSIM, sharpness, and the Frechet distance of two sets of features."""

from __future__ import annotations

import functools

import numpy as np

PSNR_CEILING = 100.0  # dB, of identical pictures; without a bound it would be infinite
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # the 11 x 11 Gaussian window of Wang et al. (2004)
SSIM_K1, SSIM_K2 = 0.01, 0.03
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def mean_squared_error(made: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(n,) mean squared difference of each frame, in units of 0-255 squared.

    Args:
        made, real: (n, H, W, 3) uint8 RGB.

    Raises:
        ValueError: other shapes.
    """
    if made.shape != real.shape or made.ndim != 4:
        raise ValueError(f"frames {made.shape} against {real.shape}: both must be the same (n, H, W, 3)")
    pairs = zip(made, real, strict=True)
    return np.array([np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2) for a, b in pairs])


def psnr(made: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(n,) peak signal-to-noise ratio of each frame in dB, at most 100. Arguments as :func:`mean_squared_error`."""
    error = np.maximum(mean_squared_error(made, real), 255**2 * 10 ** (-PSNR_CEILING / 10))
    return np.asarray(10 * np.log10(255**2 / error))


def ssim(made: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(n,) structural similarity of each frame (Wang et al. 2004), 1 = identical.

    Each colour channel on its own, Gaussian window of 11 x 11 with sigma 1.5, the border of 5 pixels left out.

    Args:
        made, real: (n, H, W, 3) uint8 RGB, at least 11 pixels on each side.

    Raises:
        ValueError: other shapes.
    """
    if made.shape != real.shape or made.ndim != 4 or min(made.shape[1:3]) < 2 * SSIM_RADIUS + 1:
        raise ValueError(f"frames {made.shape} against {real.shape}: both must be the same (n, H, W, 3), H, W >= 11")
    return np.array([_ssim_of_frame(a, b) for a, b in zip(made, real, strict=True)])


def _ssim_of_frame(made: np.ndarray, real: np.ndarray) -> float:
    rows, columns = (_window_matrix(side) for side in made.shape[:2])

    def blur(image: np.ndarray) -> np.ndarray:
        return np.asarray(rows @ image @ columns.T)

    a, b = (image.astype(np.float32).transpose(2, 0, 1) / 255 for image in (made, real))
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))))


@functools.cache
def _window_matrix(side: int) -> np.ndarray:
    """(side - 10, side) float32: each row averages 11 neighbours with the Gaussian's weights."""
    place = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    window = np.exp(-(place**2) / (2 * SSIM_SIGMA**2))
    matrix = np.zeros((side - 2 * SSIM_RADIUS, side), np.float32)
    for row in range(len(matrix)):
        matrix[row, row : row + len(window)] = window / window.sum()
    return matrix


def sharpness(image: np.ndarray, box: tuple[float, float, float, float] | None = None) -> float:
    """Variance of the Laplacian of the brightness: the usual measure of focus; it grows with detail and with noise.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: x0, y0, x1, y1 in pixels of the part to measure; None is all of it.
    """
    grey = image.astype(np.float32) @ LUMA
    if box is not None:
        x0, y0 = (max(int(value), 0) for value in box[:2])
        grey = grey[y0 : max(int(box[3]), y0 + 3), x0 : max(int(box[2]), x0 + 3)]
    if min(grey.shape) < 3:
        return 0.0
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var())


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017).

    Args:
        first, second: (n, d) and (m, d) features, at least two each. With fewer samples than dimensions the distance
            is biased upwards: compare only numbers of equally many samples.

    Raises:
        ValueError: too few samples.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"{len(first)} and {len(second)} samples: a Frechet distance needs at least 2 of each")
    a, b = (features.astype(np.float64) for features in (first, second))
    shift = np.sum((a.mean(0) - b.mean(0)) ** 2)
    a, b = (_square_root(features) for features in (a, b))
    # The trace of sqrt(cov_a cov_b) is the sum of the singular values of a b^T: exact also for singular covariances.
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(shift + np.sum(a**2) + np.sum(b**2) - 2 * cross, 0.0))


def _square_root(features: np.ndarray) -> np.ndarray:
    """(min(n, d), d) r with r^T r = the covariance of features (n, d)."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred
