"""Motion generator: a DiT that turns speech into motion tokens (paper, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.config import SemoConfig
from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES, FEATURE_FRAMES, FEATURES_PER_FRAME
from semo_sdk.models import flow
from semo_sdk.models.layers import AdaBlock, Float32Buffers, LayerNorm, TimeEmbedding, modulate, sincos

MIN_TIME = 0.05  # the velocity (x - x_t) / t is regular down to here


class MotionGenerator(Float32Buffers):
    """Self-attention over [reference, context, noised target] motion tokens, cross-attention to speech features.

    The network predicts the clean motion x; the velocity follows as v = (x - x_t) / t (x - e with the noise e that x_t
    implies). Motion lies near a surface of few dimensions inside its 512, noise does not: x is the easier target for a
    network that is narrower than the token. Motion is standardised by statistics of the training set.
    """

    moments: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        c, dim = config.generator, config.motion_dim
        self.motion_shape = (config.motion_tokens, config.motion_width)
        self.embed, self.embed_target = (
            nn.Linear(config.motion_width, c.hidden),
            nn.Linear(config.motion_width, c.hidden),
        )
        self.roles = nn.Parameter(torch.randn(3, c.hidden) * 0.02)  # reference, context, target
        self.embed_audio = nn.Linear(config.audio.width, c.hidden)
        self.audio_norm = LayerNorm(c.hidden)
        self.align_audio = nn.Linear(FEATURES_PER_FRAME * c.hidden, c.hidden)
        self.silence = nn.Parameter(torch.randn(c.hidden) * 0.02)  # stands for audio that is masked or dropped
        self.time = TimeEmbedding(c.hidden)
        moments = torch.arange(-CONTEXT_FRAMES, CHUNK_FRAMES)
        self.register_buffer("moments", sincos(moments * 16, c.hidden), persistent=False)
        self.blocks = nn.ModuleList(AdaBlock(c.hidden, c.heads, cross=c.hidden) for _ in range(c.layers))
        self.norm, self.ada = LayerNorm(c.hidden, affine=False), nn.Linear(c.hidden, 2 * c.hidden)
        self.out = nn.Linear(c.hidden, config.motion_width)
        for layer in (self.ada, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def standardise(self, motion: Tensor) -> Tensor:
        return ((motion.float() - self.mean) / self.std).to(motion.dtype)

    def restore(self, motion: Tensor) -> Tensor:
        return (motion.float() * self.std + self.mean).to(motion.dtype)

    def forward(
        self, x_t: Tensor, t: Tensor, context: Tensor, reference: Tensor, features: Tensor, heard: Tensor
    ) -> Tensor:
        """Clean motion predicted from the noised one, all standardised.

        Args:
            x_t: (B, 16, T * D). t: (B,) in (0, 1]. context: (B, 8, T * D). reference: (B, 1, T * D).
            features: (B, 24, 2 * width) Whisper features of the 8 context and 16 target frames.
            heard: (B, 24) bool, which frames' features may be used.
        """
        moments = self.moments.to(x_t.dtype)
        audio = self._audio(features, heard) + moments.repeat_interleave(FEATURES_PER_FRAME, 0)
        aligned = self.align_audio(audio.unflatten(1, (FEATURE_FRAMES, FEATURES_PER_FRAME)).flatten(2))
        past = self._tokens(self.embed, context, 1, moments[:CONTEXT_FRAMES] + aligned[:, :CONTEXT_FRAMES])
        target = self._tokens(self.embed_target, x_t, 2, moments[CONTEXT_FRAMES:] + aligned[:, CONTEXT_FRAMES:])
        x = torch.cat([self._tokens(self.embed, reference, 0, torch.zeros_like(moments[:1])), past, target], 1)
        condition = F.silu(self.time(t)).unsqueeze(1).to(x.dtype)
        for block in self.blocks:
            x = block(x, condition, features=audio)
        x = modulate(self.norm(x[:, -target.shape[1] :]), *self.ada(condition).chunk(2, dim=-1))
        return self.out(x).flatten(1).unflatten(1, (CHUNK_FRAMES, -1))

    def sample(
        self,
        noise: Tensor,
        context: Tensor,
        reference: Tensor,
        features: Tensor,
        heard: Tensor,
        guidance: Tensor,
        *,
        steps: int,
    ) -> Tensor:
        """Motion (B, 16, T * D) from noise; ``guidance`` (B,) scales the influence of the speech (1 = as trained)."""
        batch = noise.shape[0]
        context, reference = self.standardise(context), self.standardise(reference)

        def twice(x: Tensor) -> Tensor:
            return torch.cat([x, x])

        both = torch.cat([heard, torch.zeros_like(heard)])  # with the speech, and without
        context2, reference2, features2 = twice(context), twice(reference), twice(features)
        weight = guidance.to(noise.dtype)[:, None, None]

        def field(x_t: Tensor, t: float) -> Tensor:
            time = torch.full((2 * batch,), t, device=x_t.device)
            x = self(twice(x_t), time, context2, reference2, features2, both)
            guided = x[batch:] + weight * (x[:batch] - x[batch:])
            return (guided - x_t) / max(t, MIN_TIME)

        return self.restore(flow.sample(field, noise, steps))

    def _audio(self, features: Tensor, heard: Tensor) -> Tensor:
        """(B, 24, 2 * width) -> (B, 48, hidden), with the learned stand-in where nothing is heard."""
        x = self.audio_norm(self.embed_audio(features.unflatten(2, (FEATURES_PER_FRAME, -1))))
        x = torch.where(heard[:, :, None, None], x, self.silence.to(x.dtype))
        return x.flatten(1, 2)

    def _tokens(self, embed: nn.Module, motion: Tensor, role: int, extra: Tensor) -> Tensor:
        x = embed(motion.unflatten(-1, self.motion_shape)) + self.roles[role].to(motion.dtype)
        return (x + extra.unsqueeze(-2)).flatten(1, 2)


def align_features(features: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
    """Puts trailing features under the frames they belong to.

    The audio graph gives the last 24 frames of a window that ends with the last *available* target frame. A pass wants
    8 context + 16 target frames; of the target only ``available`` (1..16) have been heard.

    Args:
        features: (B, 24, width). available: (B,) int64.

    Returns:
        Features (B, 24, width) of frames n - 8 .. n + 15, and which of them were heard (B, 24) bool.
    """
    place = torch.arange(FEATURE_FRAMES, device=features.device)[None, :] + (CHUNK_FRAMES - available)[:, None]
    heard = place < FEATURE_FRAMES
    index = place.clamp(max=FEATURE_FRAMES - 1).unsqueeze(-1).expand(-1, -1, features.shape[-1])
    return features.gather(1, index), heard
