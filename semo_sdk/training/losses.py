"""Losses of the first stage that the paper does not have: what the puppet knows, region by region."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semo_sdk.models.warp import MOUTH_SIZE
from semo_sdk.training.teacher import UNITS, read, teach

# Of pose and expression in the token's loss; their sum is 1. The last ones are mostly noise.
ENTRY_WEIGHT = tuple(w / 45.6 for w in (*(2.0,) * 6, *(4.0,) * 6, *(1.0,) * 6, *(0.3,) * 12))
TEXTURE_BANDS = ((2.0, 4.0), (4.0, 10.0))  # radius in cycles per 16 px


def texture_loss(made: Tensor, truth: Tensor) -> Tensor:
    """Difference of the deviation of fine detail in each 8 x 8 patch, DCT coefficients (..., 192, h, w) of pixels.

    A picture whose details are a little off place has a large error in every pixel but none here; a blurred one has.
    """
    frequency = torch.arange(8, device=made.device)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).float().sqrt().flatten()
    losses = []
    for low, high in TEXTURE_BANDS:
        band = torch.nonzero((radius >= low) & (radius < high)).flatten()

        def deviation(x: Tensor, band: Tensor = band) -> Tensor:
            # 8 x 8 orthonormal coefficients of a patch: their squares add up to 64 times the pixels' variance
            grey = x.float().unflatten(-3, (3, 64)).mean(-4)[..., band, :, :]
            return (grey.square().sum(-3) / 64 + 1e-5).sqrt()

        losses.append((deviation(made) - deviation(truth)).abs().mean())
    return torch.stack(losses).sum()


def token_loss(tokens: Tensor, motion: Tensor) -> Tensor:
    """Error of the encoder's tokens (B, D) against pose and expression (B, 30), NaN where unknown."""
    difference = read(tokens - teach(motion, tokens.shape[-1])) * torch.tensor(UNITS, device=tokens.device)
    error = F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=0.5, reduction="none")
    free = tokens - teach(read(tokens), tokens.shape[-1])  # what the teacher does not use is kept small
    return (error @ torch.tensor(ENTRY_WEIGHT, device=tokens.device)).mean() + 0.1 * free.square().mean()


def region_weight(weight: Tensor, table: tuple[float, ...]) -> Tensor:
    """Region numbers (..., S, S) uint8 -> their weights, float32."""
    return torch.tensor(table, device=weight.device)[weight.long()]


def mouth_places(mouth: Tensor, size: int) -> Tensor:
    """Places in a mouth's picture of each of ``size * size`` cells of the image: (B, 2, size, size), see ``Batch``."""
    return affine(mouth, _centres(size, size, mouth.device))


def cells_in_image(mouth: Tensor) -> Tensor:
    """Places in the image of each cell of a mouth's picture: (B, 2, 40, 56), the inverse of :func:`mouth_places`."""
    linear = torch.linalg.inv(mouth[..., :2])
    back = torch.cat([linear, -linear @ mouth[..., 2:]], -1)
    return affine(back, _centres(*MOUTH_SIZE, mouth.device))


def affine(matrix: Tensor, places: Tensor) -> Tensor:
    """(B, 2, 3) maps of places (2, h, w): (B, 2, h, w)."""
    return (matrix[..., :2] @ places.flatten(1) + matrix[..., 2:]).unflatten(-1, places.shape[1:])


def _centres(height: int, width: int, device: torch.device) -> Tensor:
    """(2, height, width) x and y of cells' centres, the outer edges at -1 and 1."""
    y, x = ((torch.arange(n, device=device) + 0.5) * (2 / n) - 1 for n in (height, width))
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])


def field_loss(predicted: Tensor, target: Tensor, weight: Tensor, table: tuple[float, ...]) -> Tensor:
    """Mean absolute error of a warp in cells of 1/16 image side, weighted by region; (B, 2, S, S) and (B, S, S)."""
    cells = region_weight(weight, table).unsqueeze(1)
    error = F.smooth_l1_loss(predicted * 8, target * 8, beta=0.02, reduction="none")
    return (error * cells).sum() / (2 * cells.sum())
