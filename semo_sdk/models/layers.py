"""Transformer pieces shared by the encoder, the decoder and the generator.

Numerically delicate parts (layer norm, softmax) run in float32 whatever the module's dtype, with explicit casts: that
is what makes a ``.half()`` model a safe, strongly typed float16 graph.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float32Buffers(nn.Module):
    """Module whose own buffers stay float32 when the model is cast: constants that half precision would spoil."""

    def _apply(self, fn: Any, recurse: bool = True) -> Float32Buffers:
        kept = {k: v for k, v in self._buffers.items() if v is not None and v.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            self._buffers[name] = value.to(fn(value).device)
        return self


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32; ``affine=False`` for adaLN blocks."""

    def __init__(self, width: int, *, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16:  # the kernel itself computes in float32
            return F.layer_norm(x, (self.width,), _to(self.weight, x.dtype), _to(self.bias, x.dtype), eps=1e-6)
        weight, bias = _to(self.weight, torch.float32), _to(self.bias, torch.float32)
        return F.layer_norm(x.float(), (self.width,), weight, bias, eps=1e-6).to(x.dtype)


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention of (..., Q, width) queries over (..., K, width) keys and values; softmax in float32."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(-2, -3)

    q, k, v = split(q), split(k), split(v)
    if torch.onnx.is_in_onnx_export():
        scores = (q * (q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)
        out = scores.float().softmax(-1).to(v.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(-2, -3).flatten(-2)


class Mlp(nn.Sequential):
    """Feed-forward network, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))


class Block(nn.Module):
    """Plain pre-norm transformer block (ViT), used by the motion encoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.qkv, self.proj, self.mlp = nn.Linear(width, 3 * width), nn.Linear(width, width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.proj(attention(q, k, v, self.heads))
        return x + self.mlp(self.norm2(x))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


class AdaBlock(nn.Module):
    """Transformer block modulated by a condition (adaLN-Zero, as in DiT).

    The attention takes extra keys and values, so the same block serves joint attention over a cached reference.
    """

    def __init__(self, width: int, heads: int, *, cross: int | None = None, mlp: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(width, affine=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = Mlp(width) if mlp else None
        self.norm2 = LayerNorm(width, affine=False) if mlp else None
        self.ada = nn.Linear(width, (6 if mlp else 3) * width)
        nn.init.zeros_(self.ada.weight)
        nn.init.zeros_(self.ada.bias)
        if cross is not None:  # queries from the tokens, keys and values from features of width `cross`
            self.norm_cross = LayerNorm(width)
            self.q_cross, self.kv_cross = nn.Linear(width, width), nn.Linear(cross, 2 * width)
            self.proj_cross = nn.Linear(width, width)
            nn.init.zeros_(self.proj_cross.weight)
            nn.init.zeros_(self.proj_cross.bias)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        *,
        extra: tuple[Tensor, Tensor] | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        return self.run(x, condition, extra=extra, features=features)[0]

    def run(
        self,
        x: Tensor,
        condition: Tensor,
        *,
        extra: tuple[Tensor, Tensor] | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Block output and its own keys and values.

        Args:
            x: (..., N, width) tokens; float32 ones stay float32 between the layers of a half-precision block.
            condition: (..., 1, width), after its activation.
            extra: keys and values (..., M, width) to attend to besides its own.
            features: (..., K, cross) features for cross-attention.
        """
        ada = self.ada(condition).chunk(3 if self.mlp is None else 6, dim=-1)
        dtype = ada[0].dtype
        q, k, v = self.qkv(modulate(self.norm1(x).to(dtype), ada[0], ada[1])).chunk(3, dim=-1)
        if extra is None:
            out = attention(q, k, v, self.heads)
        else:
            out = attention(q, torch.cat([extra[0], k], -2), torch.cat([extra[1], v], -2), self.heads)
        x = torch.addcmul(x, ada[2].to(x.dtype), self.proj(out).to(x.dtype))
        if features is not None:
            kc, vc = self.kv_cross(features).chunk(2, dim=-1)
            x = x + self.proj_cross(attention(self.q_cross(self.norm_cross(x)), kc, vc, self.heads))
        if self.mlp is not None and self.norm2 is not None:
            out = self.mlp(modulate(self.norm2(x).to(dtype), ada[3], ada[4]))
            x = torch.addcmul(x, ada[5].to(x.dtype), out.to(x.dtype))
        return x, k, v


class TimeEmbedding(Float32Buffers):
    """Flow time t in [0, 1] -> (..., width): sinusoids, then a two-layer network."""

    scale: Tensor

    def __init__(self, width: int, frequencies: int = 128) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        scale = torch.exp(-math.log(10_000.0) * torch.arange(frequencies) / frequencies) * 1000.0
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.float().unsqueeze(-1) * self.scale
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(cast(nn.Linear, self.mlp[0]).weight.dtype))


def sincos(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding (..., width) of positions (...), float32."""
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(width // 2) / (width // 2))
    angles = positions.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_embedding(side: int, width: int) -> Tensor:
    """Fixed 2-D sinusoidal embedding (side * side, width) of a square grid, row by row."""
    line = sincos(torch.arange(side), width // 2)
    rows = line[:, None].expand(side, side, -1)
    columns = line[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width)


def patchify(latents: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, H/p * W/p, C * p * p)."""
    return F.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int, side: int) -> Tensor:
    """(B, side * side, C * p * p) -> (B, C, side * p, side * p): the inverse of :func:`patchify`."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), patch)
