"""Which place of a face each cell of a portrait shows: drawn from landmarks, so that none has to be found in pixels.

Lips in shadow, behind a beard, or closed over a smile have hardly an edge to be seen by; their landmarks are there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semo_sdk.constants import IMAGE_SIZE

SPREAD = 4.0  # pixels over which landmarks are mixed
MARGIN = 10.0  # pixels beyond the face over which it fades
WAVES = (0.5, 1.0, 2.0, 4.0, 8.0)  # per height of the face: the last one is as fine as lips are high
PLACES = 1 + 4 * len(WAVES)  # channels
CELLS_AT_ONCE = 512  # their distances to all landmarks, 1 MB, stay in a core's cache


def face_places(points: Tensor, canonical: Tensor, size: int) -> Tensor:
    """Where on the mean face each cell lies.

    Args:
        points: (B, >= 468, 2 or 3) landmarks in pixels of the 256 x 256 image.
        canonical: (468, 3) the mean face, about one unit high.
        size: cells on a side of the result.

    Returns:
        (B, 21, size, size) float32: how near the face is, 0 to 1, then sines and cosines of the place's x and y on it
        in ever finer waves, faded out off the face.
    """
    if torch.is_autocast_enabled(points.device.type):
        with torch.autocast(points.device.type, enabled=False):
            return face_places(points, canonical, size)
    landmarks = points[:, : len(canonical), :2].float()
    line = (torch.arange(size, device=points.device) + 0.5) * (IMAGE_SIZE / size)
    cells = torch.stack([line.expand(size, -1), line[:, None].expand(-1, size)], -1).flatten(0, 1)
    # -|a - b|^2 / (2 s^2) multiplied out: a matrix product instead of a tensor of differences
    scaled = landmarks.transpose(1, 2) / SPREAD**2
    square = landmarks.square().sum(-1)[:, None] / (2 * SPREAD**2)
    away: list[Tensor] = []
    places: list[Tensor] = []
    for part in cells.split(len(cells) if torch.onnx.is_in_onnx_export() else CELLS_AT_ONCE):
        # all of it before the maximum: a sum after it OpenVINO 2026.4 fuses, and in batches adds along the wrong axis
        near = part @ scaled - (square + part.square().sum(-1, keepdim=True) / (2 * SPREAD**2))
        away.append(near.amax(-1).clamp(max=0.0) * (SPREAD / MARGIN) ** 2)
        places.append(near.softmax(-1) @ canonical[:, :2].float())
    near = torch.cat(away, 1).exp()
    phases = torch.cat([torch.cat(places, 1) * (2 * math.pi * wave) for wave in WAVES], -1)
    waves = torch.cat([phases.sin(), phases.cos()], -1) * near[..., None]
    return torch.cat([near[..., None], waves], -1).transpose(1, 2).unflatten(-1, (size, size))
