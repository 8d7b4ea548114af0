"""How a portrait's eyes close: a warp known from its landmarks, for lids are a few pixels high and blinks are rare.

A small network that sees a blink in one frame of thirty does not learn it in an hour; where the lids are is known. An
upper lid slides over the eye, which stays as it is: what moves ends at the lid's edge, to the pixel. So maps of the
portrait say only *where* the lines of its eyes are, which is smooth, and each frame draws its own edge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semo_sdk.constants import EYE_CREASES, IMAGE_SIZE, LOWER_LIDS, UPPER_LIDS

LINES = 5  # numbers of eye_lines at each place
LID_TRAVEL, CREASE_TRAVEL = 1.05, 0.4  # of the eye's opening
REACH = 1.5  # how far above its crease the skin still moves, in heights from crease to lid
SMOOTH = 0.13  # half eye widths over which a line between two landmarks is rounded
LEAST = 1.0  # pixels from a crease to its lid
EDGE = 0.3  # pixels over which what moves ends at the lid
MOST = 1.1  # closure beyond which nothing more moves
FAR = 60.0  # pixels: lines further away are not told apart


def eye_lines(points: Tensor, size: int) -> Tensor:
    """Where each place of a face is, seen from the lines of its nearer eye.

    Args:
        points: (B, >= 468, 2 or 3) landmarks in pixels of the 256 x 256 image.
        size: cells on a side of the result.

    Returns:
        (B, 5, size, size): pixels below the crease, from it to the edge of the upper lid, from that to the lower
        lid; the direction, x and y, in which the lid goes, fading out beside the eye.
    """
    line = (torch.arange(size, device=points.device) + 0.5) * (IMAGE_SIZE / size)
    cells = torch.stack([line.expand(size, -1), line[:, None].expand(-1, size)], -1).flatten(0, 1)
    eyes = zip(UPPER_LIDS, LOWER_LIDS, EYE_CREASES, strict=True)
    (right, away), (left, from_left) = (_eye(points[..., :2].float(), cells, *lines) for lines in eyes)
    nearer = torch.where((away < from_left)[..., None], right, left)
    return nearer.movedim(-1, 1).unflatten(-1, (size, size))


def close_eyes(lines: Tensor, closure: Tensor) -> tuple[Tensor, Tensor]:
    """How the skin around closing eyes moves, and where it ends; both are smooth, so a coarse grid will do.

    Args:
        lines: (B, 5, H, W) from :func:`eye_lines`, moved as one likes.
        closure: (B,) 0 as in the portrait, 1 closed; eyes do not open wider.

    Returns:
        (B, 2, H, W) backward offsets, x and y in units of half the image side, as if the skin went on below the edge of
        the upper lid; (B, 1, H, W) how much of it is there, once clamped to [0, 1] at full size.
    """
    below, lid_skin, opening = (lines[:, i : i + 1].float() for i in range(3))
    closing = opening * closure.float().clamp(0.0, MOST)[:, None, None, None]
    lid, fold = LID_TRAVEL * closing, CREASE_TRAVEL * closing
    # piecewise linear from the brow down: skin comes from above, the eye and the lower lid stay
    lid_skin = lid_skin.clamp(min=LEAST)
    reach = REACH * lid_skin
    rising = ((below + reach) / (reach + fold)).clamp(0.0, 1.0) * fold
    on_lid = ((below - fold) / (lid_skin + lid - fold)).clamp(0.0, 1.0) * (lid - fold)
    skin = (rising + on_lid) * (-2 / IMAGE_SIZE) * lines[:, 3:5].float()
    return skin, 0.5 - (below - lid_skin - lid) / EDGE


Line = tuple[int, ...]


def _eye(points: Tensor, cells: Tensor, upper: Line, lower: Line, crease: Line) -> tuple[Tensor, Tensor]:
    """(B, cells, 5) of one eye, and (B, cells) distances from its middle; lines go from corner to corner."""
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
    beside = (1 - (s.abs() - 1).clamp(min=0.0) / 0.3).clamp(0.0, 1.0)
    heights = torch.stack([(t - fold).clamp(-FAR, FAR), lid - fold, (floor - lid).clamp(min=0.0)], -1)
    return torch.cat([heights, beside[..., None] * down[:, None]], -1), (cells - middle[:, None]).square().sum(-1)
