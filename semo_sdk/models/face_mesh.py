"""Motion from a face mesh: the motion encoder of small models, which have no budget to learn faces from nothing.

A published network finds 478 landmarks; what they say of pose and expression is written into token space by a fixed
rotation (see :mod:`semo_sdk.training.teacher`). Tokens of a portrait, of a driving video and of the motion generator
then speak the same language. The network is MediaPipe's face landmarker (Apache-2.0), the same as in
:mod:`semo_sdk.media.face`, here as a part of the graphs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.config import SemoConfig
from semo_sdk.constants import ANGLE_UNIT, IMAGE_SIZE, OFFSET_UNIT, POSE_SIZE, SCALE_UNIT, SIZE_UNIT, TAUGHT_SIZE

POINTS, MESH = 478, 468  # with and without irises
WIDTHS = (16, 32, 64, 128, 128, 128, 128)  # channels from 128 x 128 down to 2 x 2 cells
RIGHT_EYE, LEFT_EYE = 33, 263  # outer corners
CROP_SCALE = 1.5  # side of the network's crop over the longer side of the face
LOOKS = 3  # each look's crop comes from the landmarks of the one before; the first sees the middle of the image
FIRST_LOOK = 0.8  # its share of the image's side

Similarity = tuple[Tensor, Tensor, Tensor, Tensor]


class _Bottleneck(nn.Module):
    def __init__(self, width: int, out: int, *, down: bool = False) -> None:
        super().__init__()
        self.down, self.wider = down, out - width
        self.squeeze = nn.Conv2d(width, out // 2, 1 + down, stride=1 + down)
        self.squeezed = nn.PReLU(out // 2)
        self.depthwise = nn.Conv2d(out // 2, out // 2, 3, padding=1, groups=out // 2)
        self.expand = nn.Conv2d(out // 2, out, 1)
        self.act = nn.PReLU(out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.depthwise(self.squeezed(self.squeeze(x))))
        if self.down:
            x = F.pad(F.max_pool2d(x, 2), (0, 0, 0, 0, 0, self.wider))
        return self.act(x + y)


class FaceMesh(nn.Module):
    """Crops of a face (B, 3, 256, 256) in [0, 1] -> landmarks (B, 478, 3) in pixels of the crop."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, WIDTHS[0], 3, stride=2), nn.PReLU(WIDTHS[0])
        blocks = [_Bottleneck(WIDTHS[0], WIDTHS[0]) for _ in range(4)]
        for width, out in zip(WIDTHS, WIDTHS[1:], strict=False):
            blocks += [_Bottleneck(width, out, down=True), *(_Bottleneck(out, out) for _ in range(4))]
        self.blocks = nn.Sequential(*blocks)
        self.points = nn.Conv2d(WIDTHS[-1], 3 * POINTS, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.stem(F.pad(image, (0, 1, 0, 1))))
        return self.points(self.blocks(x)).flatten(1).unflatten(1, (POINTS, 3))


class FaceReader(nn.Module):
    """Frames -> motion tokens: landmarks, laid upright over the mean face, and a small network that reads them.

    Always float32: a pixel's position does not survive half precision.
    """

    canonical: Tensor
    stable: Tensor
    directions: Tensor
    blink: Tensor

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        self.mesh = FaceMesh()
        self.register_buffer("canonical", 0.3 * torch.randn(MESH, 3))  # mean face, about one unit high
        self.register_buffer("stable", torch.ones(MESH))  # 1 for points that speech and blinks do not move, else 0
        self.register_buffer("directions", torch.randn(TAUGHT_SIZE, config.motion_dim) * TAUGHT_SIZE**-0.5)
        self.register_buffer("blink", torch.randn(TAUGHT_SIZE))  # change of pose and expression when the eyes close
        self.linear = nn.Linear(3 * MESH, TAUGHT_SIZE)

    def _apply(self, fn: Any, recurse: bool = True) -> FaceReader:
        return cast(FaceReader, super()._apply(lambda x: x.to(fn(x).device), recurse))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 256, 256, 3) RGB of any dtype in [0, 255] -> tokens (B, T * D)."""
        return self.tokens(self.landmarks(frames))

    @property
    def controls(self) -> Tensor:
        """(7, T * D) directions of token space that an app can turn: the six of the pose, and closing the eyes."""
        return torch.cat([self.directions[:POSE_SIZE], (self.blink @ self.directions)[None]])

    def landmarks(self, frames: Tensor, near: Tensor | None = None) -> Tensor:
        """(B, 256, 256, 3) RGB -> (B, 478, 3) in pixels; (0, 0) is the corner of the first one.

        Args:
            near: (B, >= 468, 2 or 3) px, where the faces are known to be about: one look is enough then.
        """
        if torch.is_autocast_enabled(frames.device.type):
            with torch.autocast(frames.device.type, enabled=False):
                return self.landmarks(frames, near)
        image = frames.float().permute(0, 3, 1, 2) / 255
        if near is not None:
            return self._look(image, *_crop_of(near[:, :MESH]))
        batch = image.shape[0]
        centre, axis = image.new_tensor([[IMAGE_SIZE / 2] * 2, [1.0, 0.0]])[:, None].expand(-1, batch, -1)
        points = self._look(image, centre, image.new_full((batch, 1), FIRST_LOOK * IMAGE_SIZE), axis)
        for _ in range(LOOKS - 1):
            points = self._look(image, *_crop_of(points))
        return points

    def tokens(self, points: Tensor) -> Tensor:
        """Landmarks (B, 478, 3) px -> tokens (B, T * D)."""
        if torch.is_autocast_enabled(points.device.type):
            with torch.autocast(points.device.type, enabled=False):
                return self.tokens(points)
        return self.read(points) @ self.directions

    def read(self, points: Tensor) -> Tensor:
        """Landmarks (B, 478, 3) px -> pose and expression (B, 30), see ``motion_target``."""
        upright, (centre, scale, cos, sin) = self.align(points)
        raw = self.linear(upright.flatten(1))
        x, y = raw[:, 4], raw[:, 5]
        offset = torch.stack([x * cos - y * sin, x * sin + y * cos], 1) * scale[:, None]
        place = (centre + offset - IMAGE_SIZE / 2) / OFFSET_UNIT
        roll = raw[:, 2] + ANGLE_UNIT * torch.atan(sin / cos.clamp(min=0.1))
        size = raw[:, 3] + SIZE_UNIT * torch.log(scale / SCALE_UNIT)
        return torch.cat([raw[:, :2], roll[:, None], size[:, None], place, raw[:, POSE_SIZE:]], 1)

    def align(self, points: Tensor) -> tuple[Tensor, Similarity]:
        """Least-squares similarity in the image plane that lays the mean face on the stable landmarks.

        Returns:
            The landmarks in the mean face's frame, less the mean face (B, 468, 3), and the similarity: the mean face's
            origin (B, 2) px, its scale (B,) px, cosine and sine (B,) of its turn.
        """
        points = points[:, :MESH]
        weight = (self.stable / self.stable.sum())[:, None]
        middle, home = (points * weight).sum(1), (self.canonical * weight).sum(0)
        p, c = points - middle[:, None], self.canonical - home
        norm = (c[:, :2].square() * weight).sum()
        a = (weight * (p[..., :2] * c[:, :2])).sum((1, 2)) / norm
        b = (weight[:, 0] * (p[..., 1] * c[:, 0] - p[..., 0] * c[:, 1])).sum(1) / norm
        scale = (a.square() + b.square()).sqrt().clamp(min=1.0)
        cos, sin = a / scale, b / scale
        turned = torch.stack(
            [
                p[..., 0] * cos[:, None] + p[..., 1] * sin[:, None],
                p[..., 1] * cos[:, None] - p[..., 0] * sin[:, None],
                p[..., 2],
            ],
            -1,
        )
        upright = turned / scale[:, None, None] - c
        x = middle[:, 0] - scale * (home[0] * cos - home[1] * sin)
        y = middle[:, 1] - scale * (home[0] * sin + home[1] * cos)
        return upright, (torch.stack([x, y], 1), scale, cos, sin)

    def _look(self, image: Tensor, centre: Tensor, side: Tensor, axis: Tensor) -> Tensor:
        """Landmarks (B, 478, 3) px from a square crop: its centre (B, 2), side (B, 1) px and x axis (B, 2)."""
        across = axis * side / IMAGE_SIZE  # one pixel of the crop, in the image
        down = torch.stack([-across[:, 1], across[:, 0]], 1)
        line = torch.arange(IMAGE_SIZE, device=image.device) + 0.5 - IMAGE_SIZE / 2
        grid = line[:, None, None] * down[:, None, None] + line[:, None] * across[:, None, None] + centre[:, None, None]
        crop = F.grid_sample(image, grid * (2 / IMAGE_SIZE) - 1, padding_mode="border", align_corners=False)
        points = self.mesh(crop)
        flat = points[..., :2] - IMAGE_SIZE / 2
        place = flat[..., :1] * across[:, None] + flat[..., 1:] * down[:, None] + centre[:, None]
        return torch.cat([place, points[..., 2:] * (side / IMAGE_SIZE)[:, None]], -1)


def _crop_of(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre (B, 2), side (B, 1) px and x axis (B, 2) of the square around known landmarks."""
    axis = points[:, LEFT_EYE, :2] - points[:, RIGHT_EYE, :2]
    axis = axis / axis.square().sum(1, keepdim=True).sqrt().clamp(min=1e-3)
    other = torch.stack([-axis[:, 1], axis[:, 0]], 1)
    flat = points[..., :2]
    along = torch.stack([(flat * axis[:, None]).sum(-1), (flat * other[:, None]).sum(-1)], -1)
    low, high = along.amin(1), along.amax(1)
    middle = (low + high) / 2
    centre = middle[:, :1] * axis + middle[:, 1:] * other
    return centre, CROP_SCALE * (high - low).amax(1, keepdim=True), axis
