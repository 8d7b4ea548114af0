"""How a portrait's eyes close: a warp known from its landmarks, for lids are a few pixels high and blinks are rare.

A small network that sees a blink in one frame of thirty does not learn it in an hour; where the lids are is known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semo_sdk.constants import EYE_CREASES, IMAGE_SIZE, LOWER_LIDS, UPPER_LIDS

LID_TRAVEL, CREASE_TRAVEL = 1.05, 0.4  # of the eye's opening
REACH = 1.5  # how far above its crease the skin still moves, in heights from crease to lid
SMOOTH = 0.13  # half eye widths over which a line between two landmarks is rounded
LEAST = 1.0  # pixels from a closed lid to what does not move


def closing(points: Tensor, size: int) -> Tensor:
    """Backward offsets of a face whose eyes close, everything else as it is.

    Args:
        points: (B, >= 468, 2 or 3) landmarks in pixels of the 256 x 256 image.
        size: cells on a side of the result.

    Returns:
        (B, 2, size, size) x and y in units of half the image side; zero away from the eyes.
    """
    line = (torch.arange(size, device=points.device) + 0.5) * (IMAGE_SIZE / size)
    cells = torch.stack([line.expand(size, -1), line[:, None].expand(-1, size)], -1).flatten(0, 1)
    total = torch.zeros(points.shape[0], size * size, 2, device=points.device)
    for upper, lower, crease in zip(UPPER_LIDS, LOWER_LIDS, EYE_CREASES, strict=True):
        total = total + _eye(points[..., :2].float(), cells, upper, lower, crease)
    return total.movedim(-1, 1).unflatten(-1, (size, size)) / (IMAGE_SIZE / 2)


Line = tuple[int, ...]


def _eye(points: Tensor, cells: Tensor, upper: Line, lower: Line, crease: Line) -> Tensor:
    """(B, cells, 2) pixels; the landmarks of each line go from corner to corner, the corners included."""
    first, last = points[:, upper[0]], points[:, upper[-1]]
    middle, half = (first + last) / 2, (last - first) / 2
    width = half.square().sum(-1, keepdim=True).sqrt().clamp(min=1.0)
    along = half / width
    down = torch.stack([-along[:, 1], along[:, 0]], -1)
    down = down * torch.where(((points[:, lower[4]] - points[:, upper[4]]) * down).sum(-1, keepdim=True) < 0, -1.0, 1.0)

    def local(places: Tensor) -> tuple[Tensor, Tensor]:
        """Along the eye, -1 and 1 at its corners, and pixels below the line between them."""
        from_middle = places - middle[:, None]
        return (from_middle * along[:, None]).sum(-1) / width, (from_middle * down[:, None]).sum(-1)

    s, t = local(cells.expand(points.shape[0], -1, -1))

    def height(indices: Line) -> Tensor:
        """Of a line at each cell: its landmarks, weighted by how near they are along the eye."""
        at, heights = local(points[:, list(indices)])
        near = (-(s.clamp(-1.0, 1.0)[..., None] - at[:, None]).square() / (2 * SMOOTH**2)).softmax(-1)
        return (near * heights[:, None]).sum(-1)

    lid, floor = height(upper), height(lower)
    fold = torch.minimum(height(crease), lid - LEAST)
    opening = (floor - lid).clamp(min=0.0)
    moved_fold, moved_lid = fold + CREASE_TRAVEL * opening, lid + LID_TRAVEL * opening
    top = fold - REACH * (lid - fold)
    # piecewise linear from the brow down: skin comes from above, the lower lid stays
    rising = ((t - top) / (moved_fold - top)).clamp(0.0, 1.0) * CREASE_TRAVEL
    rest = LID_TRAVEL - CREASE_TRAVEL
    on_lid = ((t - moved_fold) / (moved_lid - moved_fold).clamp(min=LEAST)).clamp(0.0, 1.0) * rest
    below = 1 - ((t - moved_lid) / (floor - moved_lid).clamp(min=LEAST)).clamp(0.0, 1.0)
    beside = (1 - (s.abs() - 1).clamp(min=0.0) / 0.3).clamp(0.0, 1.0)
    return -((rising + on_lid) * below * beside * opening)[..., None] * down[:, None]
