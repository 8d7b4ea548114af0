"""Masked motion encoder: one frame's latents -> motion tokens (paper, section 3.1, "Motion Encoder")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from semo_sdk.config import SemoConfig
from semo_sdk.models.layers import Block, LayerNorm, grid_embedding, patchify


class MotionEncoder(nn.Module):
    """ViT over latent patches with T learnable tokens; their outputs are the frame's motion.

    In training a random part of the patches (uniform ratio in [0, mask_max]) is dropped before the transformer, so that
    the tokens keep salient motion and forget detail.
    """

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        c = config.encoder
        self.patch, self.mask_max = config.patch, c.mask_max
        self.embed = nn.Linear(config.latent_channels * config.patch**2, c.hidden)
        self.register_buffer("position", grid_embedding(config.grid, c.hidden), persistent=False)
        self.tokens = nn.Parameter(torch.randn(config.motion_tokens, c.hidden) * 0.02)
        self.blocks = nn.ModuleList(Block(c.hidden, c.heads) for _ in range(c.layers))
        self.norm = LayerNorm(c.hidden)
        # with a mesh to read motion from, the tokens are registers, and the patches' features are what is wanted
        self.out = nn.Linear(c.hidden, config.motion_width) if c.reader == "tokens" else None

    def forward(self, latents: Tensor, mask_ratio: float = 0.0) -> Tensor:
        """Motion of each frame.

        Args:
            latents: (B, C, h, w), one frame each: frames are encoded independently.
            mask_ratio: part of the patches to drop, in [0, 1).

        Returns:
            (B, T * D) motion, T tokens of width D side by side.
        """
        motion = self.encode(latents, mask_ratio)[0]
        assert motion is not None, "this model reads motion from a face mesh: SemoModel.reader"
        return motion

    def encode(self, latents: Tensor, mask_ratio: float = 0.0) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Motion (B, T * D) or None, the patches' features (B, kept, hidden), and which were kept (None = all)."""
        x = self.embed(patchify(latents, self.patch))
        x = x + self.position.to(x.dtype)
        kept = None
        if mask_ratio > 0:
            x, kept = drop_patches(x, mask_ratio)
        tokens = self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        x = torch.cat([tokens, x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        count = self.tokens.shape[0]
        motion = None if self.out is None else self.out(x[:, :count]).flatten(1)
        return motion, x[:, count:], kept


def drop_patches(x: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Keeps a random ``1 - ratio`` of the (B, N, width) tokens of each sample, in their original order.

    Returns:
        The kept tokens (B, kept, width) and their numbers (B, kept).
    """
    keep = max(1, round(x.shape[1] * (1 - ratio)))
    order = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)[:, :keep].sort(dim=1).values
    return x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1])), order
