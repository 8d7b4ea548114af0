"""Motion decoder: reference latents + motion -> target latents by rectified flow (paper, section 3.1).

Each denoising layer is a Motion Control Module block (self-attention over reference features, noised target, reference
motion and target motion, then a feed-forward network) followed by a Temporal Align Module block (self-attention of each
place along time).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.config import SemoConfig
from semo_sdk.models import flow
from semo_sdk.models.layers import (
    AdaBlock,
    LayerNorm,
    TimeEmbedding,
    grid_embedding,
    modulate,
    patchify,
    sincos,
    unpatchify,
)
from semo_sdk.models.vae import Vae
from semo_sdk.models.warp import Moved, WarpHead

Cache = Sequence[tuple[Tensor, Tensor]]  # keys and values of the reference tokens, a pair per layer


class MotionDecoder(nn.Module):
    """Velocity network of the first stage, with the head that predicts the warp when ``prior`` is ``warp``."""

    moments: Tensor

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        c = config.decoder
        self.config, self.grid, self.patch = c, config.grid, config.patch
        self.motion_shape = (config.motion_tokens, config.motion_width)
        inputs = config.latent_channels * config.patch**2
        self.embed_reference, self.embed_target = nn.Linear(inputs, c.hidden), nn.Linear(inputs, c.hidden)
        self.embed_motion = nn.Linear(config.motion_width, c.hidden)
        self.roles = nn.Parameter(torch.randn(2, c.hidden) * 0.02)  # reference motion, target motion
        self.time = TimeEmbedding(c.hidden)
        self.register_buffer("position", grid_embedding(config.grid, c.hidden), persistent=False)
        self.register_buffer("moments", sincos(torch.arange(c.temporal_window), c.hidden), persistent=False)
        self.control = nn.ModuleList(AdaBlock(c.hidden, c.heads) for _ in range(c.layers))
        self.align = nn.ModuleList(AdaBlock(c.hidden, c.heads, mlp=False) for _ in range(c.layers))
        self.warp = WarpHead(config) if c.warp_layers else None
        self.out = OutputHead(config)

    def encode_reference(self, latents: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the reference tokens in every layer; they see only each other, at t = 0.

        Args:
            latents: (B, C, h, w) whitened reference latents.

        Returns:
            For each layer keys and values (B, N, hidden).
        """
        x = self._embed(self.embed_reference, latents)
        condition = self._condition(torch.zeros(1, device=x.device), x)
        cache = []
        for block in self.control:
            x, k, v = cast(AdaBlock, block).run(x, condition)
            cache.append((k, v))
        return cache

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        reference_motion: Tensor,
        motion: Tensor,
        *,
        cache: Cache | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """Velocity of the noised target frames.

        Args:
            x_t: (B, n, C, h, w) whitened noised latents of n frames (a multiple of ``temporal_window``, or fewer).
            t: (B,) flow time in [0, 1].
            reference_motion: (B, 1, T * D). motion: (B, n, T * D).
            cache: from :meth:`encode_reference`; or
            reference: (B, C, h, w) whitened reference latents for the paper's joint attention, where reference
                tokens also see the target.

        Returns:
            (B, n, C, h, w) velocity in whitened latents.
        """
        batch, frames = x_t.shape[:2]
        x_flat = x_t.flatten(0, 1)
        x = self._embed(self.embed_target, x_flat)
        controls = torch.cat(
            [
                self._motion_tokens(reference_motion, 0).expand(-1, frames, -1, -1),
                self._motion_tokens(motion, 1),
            ],
            2,
        ).flatten(0, 1)
        head = controls.shape[1]
        if reference is not None:
            tokens = self._embed(self.embed_reference, reference)
            tokens = tokens[:, None].expand(-1, frames, -1, -1).flatten(0, 1)
            controls, head = torch.cat([controls, tokens], 1), head + tokens.shape[1]
        x = torch.cat([controls, x], dim=1)
        per_frame = self._condition(t, x)  # (B, 1, width)
        condition = per_frame[:, None].expand(-1, frames, -1, -1).flatten(0, 1)
        for i, (control, align) in enumerate(zip(self.control, self.align, strict=True)):
            extra = None if cache is None else (_per_frame(cache[i][0], frames), _per_frame(cache[i][1], frames))
            x = control(x, condition, extra=extra)
            place = self._along_time(x[:, head:], align, per_frame, batch, frames)
            x = torch.cat([x[:, :head], place], dim=1)
        return self.out(x[:, head:], x_flat, condition).unflatten(0, (batch, frames))

    def displacement(
        self,
        prior: Tensor,
        reference_motion: Tensor,
        motion: Tensor,
        *,
        steps: int,
        cache: Cache | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """What ``steps`` Euler steps add to the prior: whitened latents (B, n, C, h, w)."""

        def field(x_t: Tensor, t: float) -> Tensor:
            time = torch.full((x_t.shape[0],), t, device=x_t.device)
            return self(x_t, time, reference_motion, motion, cache=cache, reference=reference)

        return flow.displacement(field, prior, steps)

    def _embed(self, layer: nn.Module, latents: Tensor) -> Tensor:
        x = layer(patchify(latents, self.patch))
        return x + self.position.to(x.dtype)

    def _condition(self, t: Tensor, like: Tensor) -> Tensor:
        return F.silu(self.time(t)).unsqueeze(1).to(like.dtype)

    def _motion_tokens(self, motion: Tensor, role: int) -> Tensor:
        x = self.embed_motion(motion.unflatten(-1, self.motion_shape))
        return x + self.roles[role].to(x.dtype)

    def _along_time(self, x: Tensor, block: nn.Module, condition: Tensor, batch: int, frames: int) -> Tensor:
        """Temporal Align Module: each place attends along time inside windows of ``temporal_window`` frames."""
        window = min(self.config.temporal_window, frames)
        places, width = x.shape[1:]
        shaped = x.reshape(batch, frames // window, window, places, width).transpose(2, 3)
        moments = self.moments[:window].to(x.dtype)
        # the block is residual, so what the embedding of time added is taken off again
        out = block(shaped + moments, condition[:, None, None]) - moments
        return out.transpose(2, 3).reshape(batch * frames, places, width)


def _per_frame(x: Tensor, frames: int) -> Tensor:
    return x[:, None].expand(-1, frames, -1, -1).flatten(0, 1)


class OutputHead(nn.Module):
    """Tokens -> velocity in latents: linear (the paper), or with a convolutional stage that sees x_t at full size."""

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        c, channels = config.decoder, config.latent_channels
        self.patch, self.grid, width = config.patch, config.grid, c.refine_channels
        self.norm, self.ada = LayerNorm(c.hidden, affine=False), nn.Linear(c.hidden, 2 * c.hidden)
        self.linear = nn.Linear(c.hidden, (width or channels) * config.patch**2)
        if width:
            self.skip = nn.Conv2d(channels, width, 1)
            self.refine = nn.ModuleList(
                nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))
                for _ in range(2)
            )
            self.last = nn.Conv2d(width, channels, 1)
        final = self.last if width else self.linear
        for layer in (self.ada, final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, tokens: Tensor, x_t: Tensor, condition: Tensor) -> Tensor:
        """(B, N, hidden) tokens and (B, C, h, w) whitened x_t -> (B, C, h, w)."""
        x = self.linear(modulate(self.norm(tokens), *self.ada(condition).chunk(2, dim=-1)))
        x = unpatchify(x, self.patch, self.grid)
        if not hasattr(self, "refine"):
            return x
        x = x + self.skip(x_t)
        for block in self.refine:
            x = x + block(F.gelu(x))
        return self.last(F.gelu(x))


def make_prior(
    config: SemoConfig, vae: Vae, reference: Tensor, noise: Tensor | None, moved: Moved | None, frames: int
) -> Tensor:
    """Where the flow starts (DESIGN, "Prior"), as whitened latents (B, n, C, h, w).

    Args:
        reference: (B, C, h, w) latents, not whitened. noise: (B, n, C, h, w), or None when ``prior_noise`` is 0.
        moved: from :class:`~semo_sdk.models.warp.WarpHead` when ``prior`` is ``warp``.
        frames: n.
    """
    std = vae.latent_std.to(reference.dtype)[:, None, None]
    c = config.decoder
    if c.prior == "noise":
        assert noise is not None
        return noise
    start = reference[:, None].expand(-1, frames, -1, -1, -1)
    if moved is not None:
        start = vae.warp(start.flatten(0, 1), moved).unflatten(0, (reference.shape[0], frames))
    start = start / std
    return start if noise is None else start + c.prior_noise * noise
