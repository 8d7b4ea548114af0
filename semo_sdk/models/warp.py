"""Where the flow starts when ``prior`` is ``warp``: the reference, moved and with its mouth opened by the motion.

With a small training budget this is what moves the face; the flow then repairs mouth, eyes and disocclusions. It works
in two stages, because head and features move in different ways:

1. a transformer that sees the pair of motions moves the head: a coarse backward warp, as if the expression stayed;
2. *maps* of the reference, made once per portrait by a convolutional network at quarter size, say how each place of it
   answers to a few *levers*, numbers read from the motions. Lips move nearly linearly, and a map can follow the line
   between two lips to a pixel. Where landmarks are known, one of the maps holds the lines of the eyes instead, and
   :mod:`~semo_sdk.models.eyelids` closes them.

A map is looked up at the place where the coarse warp comes from, so it need not know where the head has gone.

No warp can bring what a closed mouth hides. A few learned pictures of the inside of a mouth, mixed by the motion, are
laid where the maps say that the lips are apart: teeth stay teeth, where a network that paints freely paints a blur.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.config import PAINT_SCALE, SemoConfig
from semo_sdk.models.eyelids import LINES, close_eyes
from semo_sdk.models.face_places import PLACES
from semo_sdk.models.layers import AdaBlock, LayerNorm, grid_embedding, unpatchify

POSE_LEVERS = 6  # linear read-outs of the motion that every patch of the coarse warp responds to
BLINK_LEVER = 1  # how far the eyes are closed, see training.teacher.set_levers
SHY = 4.0  # subtracted from the opacity's logit: an untrained head paints nothing


MOUTH_SIZE = (40, 56)  # cells of a learned mouth, height and width


class Moved(NamedTuple):
    """What the warp head says of n frames each of B portraits, in units of half the image side and [-1, 1].

    Attributes:
        coarse: (B * n, 2, S, S) backward offsets of the head alone.
        offsets: (B * n, 2, S, S) all backward offsets but those of closing eyes, x and y.
        lids: (B * n, 2, S, S) and (B * n, 1, S, S), see :func:`~semo_sdk.models.eyelids.close_eyes`; None without
            landmarks.
        place: (B * n, 2, S, S) x and y in the mouth's picture, its edges at -1 and 1.
        tint: (B * n, 4) what the mouth's colours, from black, are multiplied by, and how colourful it is; both less 1.
        opacity: (B * n, 1, 2 S, 2 S) logit of how much of the mouth shows.
        mouth: (B * n, 3, 40, 56) picture of the inside of the mouth.
    """

    coarse: Tensor
    offsets: Tensor
    lids: tuple[Tensor, Tensor] | None
    place: Tensor
    tint: Tensor
    opacity: Tensor
    mouth: Tensor

    def field(self, size: int) -> Tensor:
        """All backward offsets (B * n, 2, size, size), float32."""
        offsets = enlarge(self.offsets, size)
        if self.lids is None:
            return offsets
        skin, there = (enlarge(part, size) for part in self.lids)
        return offsets + skin * there.clamp(0.0, 1.0)


class WarpHead(nn.Module):
    """Backward warp and mouth from the reference's features and the pair of motions."""

    bent: Tensor

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
        self.lids = config.has_controls
        # how far the eyes are closed is read, not learned: blinks are rare, a bend learns to undo them
        self.register_buffer("bent", (torch.arange(c.warp_levers) != BLINK_LEVER).float(), persistent=False)
        self.maps = ReferenceMaps(config)
        self.guide = Guide(config) if c.warp_guided else None
        self.mix = nn.Sequential(
            nn.Linear(config.motion_dim, c.hidden),
            nn.SiLU(),
            nn.Linear(c.hidden, c.hidden),
            nn.SiLU(),
            nn.Linear(c.hidden, c.warp_mouths),
        )
        self.mean_mouth = nn.Parameter(torch.full((3, *MOUTH_SIZE), -0.5))
        self.mouths = nn.Parameter(torch.randn(c.warp_mouths, 3, *MOUTH_SIZE) * 0.05)
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
        levers = self.levers(pair) + self.bent * self.bend(pair)
        if self.lids:
            levers = levers * self.bent
        answer = (levers @ maps.flatten(2)).flatten(0, 1).unflatten(1, maps.shape[2:])
        coarse = coarse.float()
        fine, place, tint = look_up(answer[:, :8], coarse).split((2, 2, 4), dim=1)
        lids = None
        if self.lids:
            lines = maps[:, None, BLINK_LEVER, :LINES].expand(-1, frames, -1, -1, -1).flatten(0, 1)
            closure = (motion - reference_motion) @ self.levers.weight[BLINK_LEVER, motion.shape[-1] :]
            lids = close_eyes(look_up(lines, coarse), closure.flatten())
        wide = enlarge(coarse, PAINT_SCALE * coarse.shape[-1])
        logit = look_up(F.pixel_shuffle(answer[:, 8:], PAINT_SCALE), wide)
        shown = F.avg_pool2d(opacity(logit.detach()), PAINT_SCALE) + 1e-4
        tint = (tint * shown).sum((2, 3)) / shown.sum((2, 3))  # one colour: teeth have no green edges
        return Moved(coarse, coarse + fine, lids, place, tint, logit, self._mouth(motion).flatten(0, 1))

    def _mouth(self, motion: Tensor) -> Tensor:
        """(B, n, T * D) -> pictures (B, n, 3, 40, 56)."""
        mixed = self.mix(motion) @ self.mouths.flatten(1)
        return mixed.unflatten(-1, self.mouths.shape[1:]) + self.mean_mouth

    def _coarse(self, appearance: Tensor, pair: Tensor) -> Tensor:
        condition = F.silu(self.pair(pair)).flatten(0, 1).unsqueeze(1)
        levers = self.pose_levers(pair).flatten(0, 1)[:, None, None]
        x = self.embed(appearance)
        dtype = x.dtype
        x = (x.float() + self.position.float())[:, None].expand(-1, pair.shape[1], -1, -1).flatten(0, 1)
        for block in self.blocks:  # in float32 between the layers: it grows beyond float16 for poses never seen
            x = block(x, condition)
        x = self.norm(x).to(dtype)
        pulled = (levers @ self.respond(x).unflatten(-1, (POSE_LEVERS, -1))).squeeze(-2)
        return unpatchify(self.out(x) + pulled, self.cells, self.grid)


class Guide(nn.Module):
    """Places on the face (B, 21, S, S) -> what they add to the features of the patches, (B, N, encoder hidden)."""

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.out = nn.Linear(PLACES, config.encoder.hidden)

    def forward(self, places: Tensor) -> Tensor:
        return self.out(F.adaptive_avg_pool2d(places, self.grid).flatten(2).transpose(1, 2))


class ReferenceMaps(nn.Module):
    """Reference -> how each of its places answers to the levers; once per portrait."""

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        width = config.decoder.warp_channels
        self.grid, self.cells = config.grid, config.warp_size // config.grid
        zoom = config.warp_size // config.latent_size
        self.features = nn.Linear(config.encoder.hidden, width * self.cells**2)
        self.image = nn.Sequential(nn.Conv2d(config.latent_channels, width * zoom**2, 1), nn.PixelShuffle(zoom))
        self.places = nn.Conv2d(PLACES, width, 1) if config.decoder.warp_guided else None
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(4, width),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(3)
        )
        self.norm = nn.GroupNorm(4, width)  # without it the sums drift below zero, and every GELU dies
        self.shape = config.map_shape
        self.out = nn.Conv2d(width, self.shape[0] * self.shape[1], 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def forward(self, latents: Tensor, appearance: Tensor, places: Tensor | None = None) -> Tensor:
        """Maps of a portrait.

        Args:
            latents: (B, C, h, w), whitened. appearance: (B, N, encoder hidden) features of the patches.
            places: (B, 21, S, S) see :mod:`semo_sdk.models.face_places`, for a head that is guided by them.

        Returns:
            (B, levers, channels, S, S).
        """
        x = unpatchify(self.features(appearance), self.cells, self.grid) + self.image(latents)
        if self.places is not None and places is not None:
            x = x + self.places(places)
        for block in self.blocks:
            x = x + block(x)
        return self.out(F.gelu(self.norm(x))).unflatten(1, self.shape[:2])


def set_lids(maps: Tensor, lines: Tensor) -> Tensor:
    """Maps (B, levers, channels, S, S) that hold ``lines`` (B, 6, S, S) of the eyes in the place of the blink lever's.

    What that lever would learn is left out: eyes are read with noise, so the least error is half a blink.
    """
    rest = torch.zeros_like(maps[:, BLINK_LEVER, LINES:])
    blink = torch.cat([lines.to(maps.dtype), rest], 1)
    return torch.cat([maps[:, :BLINK_LEVER], blink[:, None], maps[:, BLINK_LEVER + 1 :]], 1)


def look_up(image: Tensor, offsets: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Samples (B, C, H, W) at the identity grid plus offsets (B, 2, H, W); float32, edges repeated."""
    height, width = image.shape[-2:]
    ys = (torch.arange(height, device=image.device) + 0.5) * (2 / height) - 1
    xs = (torch.arange(width, device=image.device) + 0.5) * (2 / width) - 1
    return sample(image, torch.stack([offsets[:, 0] + xs, offsets[:, 1] + ys[:, None]], dim=1), mode=mode)


def sample(image: Tensor, place: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Samples (B, C, H, W) at places (B, 2, h, w), x and y with the image's edges at -1 and 1; float32."""
    grid = place.movedim(1, -1)
    return F.grid_sample(image.float(), grid, mode=mode, padding_mode="border", align_corners=False)


def enlarge(field: Tensor, size: int) -> Tensor:
    """(B, C, S, S) -> (B, C, size, size), bilinear, float32; as two matrix products, which run faster than resizing."""
    cells = field.shape[-1]
    if cells == size:
        return field.float()
    place = ((torch.arange(size, device=field.device) + 0.5) * (cells / size) - 0.5).clamp(0, cells - 1)
    hats = (1 - (place[:, None] - torch.arange(cells, device=field.device)).abs()).clamp(min=0.0)
    return hats @ field.float() @ hats.T


def move(image: Tensor, offsets: Tensor) -> Tensor:
    """(B, C, H, H) moved by backward offsets (B, 2, any, any) in units of half the image side; the image's dtype.

    Bicubic: a bilinear look-up halves the sharpness of a photo that moves by parts of a pixel.
    """
    return look_up(image, enlarge(offsets, image.shape[-1]), mode="bicubic").to(image.dtype)


def cover(image: Tensor, moved: Moved) -> Tensor:
    """Lays the inside of the mouth over an image (B, 3, H, W)."""
    place, logit = (enlarge(field, image.shape[-1]) for field in (moved.place, moved.opacity))
    return image + opacity(logit) * (sample(tinted(moved.mouth, moved.tint), place) - image)


def tinted(mouth: Tensor, tint: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in the colours of a portrait, see :class:`Moved` (B, 4); float32."""
    factor = 1 + tint.float()[:, :, None, None]
    colour = mouth.float() + 1
    grey = colour.mean(1, keepdim=True)
    return (grey + (colour - grey) * factor[:, 3:]) * factor[:, :3] - 1


def opacity(logit: Tensor) -> Tensor:
    """Opacity in [0, 1]; exactly 0 and 1 where the head is sure, so that the rest of the photo stays as it is."""
    return ((torch.sigmoid(logit - SHY) - 0.1) / 0.8).clamp(0, 1)
