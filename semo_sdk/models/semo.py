"""A whole SeMo model: autoencoder, motion encoder, motion decoder, motion generator and Whisper encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from semo_sdk.config import SemoConfig
from semo_sdk.models.motion_decoder import MotionDecoder, make_prior
from semo_sdk.models.motion_encoder import MotionEncoder
from semo_sdk.models.motion_generator import MotionGenerator
from semo_sdk.models.vae import make_vae
from semo_sdk.models.whisper import WhisperEncoder


class SemoModel(nn.Module):
    """The parts of one model and how they meet; the flow runs in whitened latents."""

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = make_vae(config.vae)
        self.encoder = MotionEncoder(config)
        self.decoder = MotionDecoder(config)
        self.generator = MotionGenerator(config)
        self.whisper = WhisperEncoder(config.audio)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.embed.weight.dtype

    def whiten(self, latents: Tensor) -> Tensor:
        """Latents (..., C, h, w) divided by the autoencoder's typical deviation of each channel."""
        return latents / self.vae.latent_std.to(latents.dtype)[:, None, None]

    def unwhiten(self, latents: Tensor) -> Tensor:
        return latents * self.vae.latent_std.to(latents.dtype)[:, None, None]

    def to_latents(self, frames: Tensor) -> Tensor:
        """(B, 256, 256, 3) uint8 RGB -> latents (B, C, h, w)."""
        # TensorRT takes uint8 only where it is cast at once.
        return self.vae.encode(frames.to(self.dtype).permute(0, 3, 1, 2) / 127.5 - 1)

    def to_frames(self, latents: Tensor) -> Tensor:
        """Latents (..., C, h, w) -> (..., 256, 256, 3) uint8 RGB."""
        image = self.vae.decode(latents.flatten(0, -4)).float().permute(0, 2, 3, 1)
        image = image.unflatten(0, latents.shape[:-3])
        return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def render(
        self,
        noise: Tensor | None,
        latents: Tensor,
        reference_motion: Tensor,
        cache: Tensor | None,
        appearance: Tensor | None,
        motion: Tensor,
        *,
        steps: int,
    ) -> Tensor:
        """Target latents (B, n, C, h, w), not whitened, from the reference and n frames of motion.

        Args:
            noise: (B, n, C, h, w) standard normal, or None when the prior has none.
            latents: (B, C, h, w) of the reference. reference_motion: (B, 1, T * D). motion: (B, n, T * D).
            cache: (B, layers, 2, N, hidden) of the reference, or None for joint attention.
            appearance: (B, N, encoder hidden) of the reference, for the warp prior. steps: Euler steps.
        """
        decoder = self.decoder
        reference = self.whiten(latents)
        offsets = None
        if decoder.warp is not None and appearance is not None:
            offsets = decoder.warp(appearance, reference_motion, motion)
        prior = make_prior(self.config, self.vae, latents, noise, offsets, motion.shape[1])
        pairs = None if cache is None else [(layer[:, 0], layer[:, 1]) for layer in cache.unbind(1)]
        joint = reference if cache is None else None
        x = decoder.sample(prior, reference_motion, motion, steps=steps, cache=pairs, reference=joint)
        return self.unwhiten(x)
