"""Where the flow starts when ``prior`` is ``warp``: the reference, moved and with its mouth opened by the motion.

With a small training budget this is what moves the face; the flow then repairs mouth, eyes and disocclusions. It works
in two stages, because head and features move in different ways:

1. a transformer that sees the pair of motions moves the head: a coarse backward warp, as if the expression stayed;
2. *maps* of the reference, made once per portrait by a convolutional network at quarter size, say how each place of it
   answers to a few *levers*, numbers read from the motions. Lips and lids move nearly linearly, and a map can follow
   the line between two lips to a pixel. Beside a fine warp the maps hold a colour and its opacity: what appears between
   lips that the reference shows closed. No warp can bring that.

A map is looked up at the place where the coarse warp comes from, so it need not know where the head has gone.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.config import PAINT_SCALE, SemoConfig
from semo_sdk.models.layers import AdaBlock, LayerNorm, grid_embedding, unpatchify

POSE_LEVERS = 6  # linear read-outs of the motion that every patch of the coarse warp responds to
SHY = 4.0  # subtracted from the opacity's logit: an untrained head paints nothing


class Moved(NamedTuple):
    """What the warp head says of n frames each of B portraits, in units of half the image side and [-1, 1].

    Attributes:
        coarse: (B * n, 2, S, S) backward offsets of the head alone.
        offsets: (B * n, 2, S, S) all backward offsets, x and y.
        paint: (B * n, 4, 2 S, 2 S) red, green, blue, and the logit of the opacity.
    """

    coarse: Tensor
    offsets: Tensor
    paint: Tensor


class WarpHead(nn.Module):
    """Backward warp and paint from the reference's features and the pair of motions."""

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        c = config.decoder
        self.grid, self.cells = config.grid, config.warp_size // config.grid
        pair = 2 * config.motion_dim
        self.embed = nn.Linear(config.encoder.hidden, c.hidden)
        self.pair = nn.Sequential(nn.Linear(pair, c.hidden), nn.SiLU(), nn.Linear(c.hidden, c.hidden))
        self.register_buffer("position", grid_embedding(config.grid, c.hidden), persistent=False)
        self.blocks = nn.ModuleList(AdaBlock(c.hidden, c.heads) for _ in range(c.warp_layers))
        self.norm = LayerNorm(c.hidden)
        self.out = nn.Linear(c.hidden, 2 * self.cells**2)
        self.pose_levers = nn.Linear(pair, POSE_LEVERS)
        self.respond = nn.Linear(c.hidden, POSE_LEVERS * 2 * self.cells**2)
        self.levers = nn.Linear(pair, c.warp_levers)
        self.bend = nn.Sequential(nn.Linear(pair, c.hidden), nn.SiLU(), nn.Linear(c.hidden, c.warp_levers))
        self.maps = ReferenceMaps(config)
        for layer in (self.out, self.respond, self.bend[2]):
            nn.init.zeros_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)

    def forward(self, appearance: Tensor, maps: Tensor, reference_motion: Tensor, motion: Tensor) -> Moved:
        """The warp of each frame.

        Args:
            appearance: (B, N, encoder hidden) the motion encoder's features of the reference's patches: they know
                which part of the face each patch shows. maps: (B, levers, channels, S, S) from
                :class:`ReferenceMaps`. reference_motion: (B, 1, T * D). motion: (B, n, T * D).
        """
        frames = motion.shape[1]
        pair = torch.cat([reference_motion.expand(-1, frames, -1), motion - reference_motion], dim=-1)
        coarse = self._coarse(appearance, pair)
        levers = self.levers(pair) + self.bend(pair)
        answer = (levers @ maps.flatten(2)).flatten(0, 1).unflatten(1, maps.shape[2:])
        paint = F.pixel_shuffle(answer[:, 2:], PAINT_SCALE)
        coarse = coarse.float()
        fine = look_up(answer[:, :2], coarse)
        wide = F.interpolate(coarse, scale_factor=PAINT_SCALE, mode="bilinear", align_corners=False)
        return Moved(coarse, coarse + fine, look_up(paint, wide))

    def _coarse(self, appearance: Tensor, pair: Tensor) -> Tensor:
        condition = F.silu(self.pair(pair)).flatten(0, 1).unsqueeze(1)
        levers = self.pose_levers(pair).flatten(0, 1)[:, None, None]
        x = self.embed(appearance)
        x = (x + self.position.to(x.dtype))[:, None].expand(-1, pair.shape[1], -1, -1).flatten(0, 1)
        for block in self.blocks:
            x = block(x, condition)
        x = self.norm(x)
        pulled = (levers @ self.respond(x).unflatten(-1, (POSE_LEVERS, -1))).squeeze(-2)
        return unpatchify(self.out(x) + pulled, self.cells, self.grid)


class ReferenceMaps(nn.Module):
    """Reference -> how each of its places answers to the levers; once per portrait."""

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        width = config.decoder.warp_channels
        self.grid, self.cells = config.grid, config.warp_size // config.grid
        zoom = config.warp_size // config.latent_size
        self.features = nn.Linear(config.encoder.hidden, width * self.cells**2)
        self.image = nn.Sequential(nn.Conv2d(config.latent_channels, width * zoom**2, 1), nn.PixelShuffle(zoom))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(4, width),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(3)
        )
        self.shape = config.map_shape
        self.out = nn.Conv2d(width, self.shape[0] * self.shape[1], 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def forward(self, latents: Tensor, appearance: Tensor) -> Tensor:
        """(B, C, h, w) whitened latents and (B, N, encoder hidden) features -> (B, levers, channels, S, S)."""
        x = unpatchify(self.features(appearance), self.cells, self.grid) + self.image(latents)
        for block in self.blocks:
            x = x + block(x)
        return self.out(F.gelu(x)).unflatten(1, self.shape[:2])


def look_up(image: Tensor, offsets: Tensor) -> Tensor:
    """Samples (B, C, H, W) at the identity grid plus offsets (B, 2, H, W); float32, edges repeated."""
    height, width = image.shape[-2:]
    ys = (torch.arange(height, device=image.device) + 0.5) * (2 / height) - 1
    xs = (torch.arange(width, device=image.device) + 0.5) * (2 / width) - 1
    grid = torch.stack([offsets[:, 0] + xs, offsets[:, 1] + ys[:, None]], dim=-1)
    return F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def move(image: Tensor, offsets: Tensor) -> Tensor:
    """(B, C, H, W) moved by backward offsets (B, 2, any, any) in units of half the image side; the image's dtype."""
    flow = F.interpolate(offsets.float(), size=image.shape[-2:], mode="bilinear", align_corners=False)
    return look_up(image, flow).to(image.dtype)


def cover(image: Tensor, paint: Tensor) -> Tensor:
    """Puts paint (B, 4, any, any), see :class:`Moved`, over an image (B, 3, H, W)."""
    paint = F.interpolate(paint.float(), size=image.shape[-2:], mode="bilinear", align_corners=False)
    return image + opacity(paint[:, 3:]) * (paint[:, :3] - image)


def opacity(logit: Tensor) -> Tensor:
    """Opacity in [0, 1]; exactly 0 and 1 where the head is sure, so that the rest of the photo stays as it is."""
    return ((torch.sigmoid(logit - SHY) - 0.1) / 0.8).clamp(0, 1)
