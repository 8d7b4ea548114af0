"""A whole SeMo model: autoencoder, motion encoder, motion decoder, motion generator and Whisper encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from semo_sdk.config import SemoConfig
from semo_sdk.models.eyelids import eye_lines
from semo_sdk.models.face_mesh import FaceReader
from semo_sdk.models.face_places import face_places
from semo_sdk.models.motion_decoder import MotionDecoder, make_prior
from semo_sdk.models.motion_encoder import MotionEncoder
from semo_sdk.models.motion_generator import MotionGenerator
from semo_sdk.models.vae import PatchVae, make_vae
from semo_sdk.models.warp import set_lids
from semo_sdk.models.whisper import WhisperEncoder


class SemoModel(nn.Module):
    """The parts of one model and how they meet; the flow runs in whitened latents."""

    def __init__(self, config: SemoConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = make_vae(config.vae)
        self.encoder = MotionEncoder(config)
        self.reader = FaceReader(config) if config.encoder.reader == "mesh" else None
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

    def look(self, frames: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the encoder sees in portraits (B, 256, 256, 3) with latents (B, C, h, w).

        Returns:
            Motion (B, T * D); features of the patches (B, N, encoder hidden); maps of the warp head, if there is one.
        """
        motion, features, _ = self.encoder.encode(latents)
        points = None
        if self.reader is not None:
            points = self.reader.landmarks(frames)
            motion = self.reader.tokens(points)
        assert motion is not None
        return motion, *self.appearance(latents, features, points)

    def appearance(self, latents: Tensor, features: Tensor, points: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the warp head needs of references: features, placed on the face, and maps, with the lines of the eyes.

        Args:
            latents: (B, C, h, w). features: (B, N, encoder hidden) of their patches. points: (B, 478, 3) landmarks in
                pixels, if known.

        Returns:
            Features, the same where the head is not guided by landmarks; maps (B, levers, channels, S, S), None without
            a warp head.
        """
        head = self.decoder.warp
        if head is None:
            return features, None
        places = None
        if head.guide is not None and self.reader is not None and points is not None:
            places = face_places(points, self.reader.canonical, self.config.warp_size).to(features.dtype)
            features = features + head.guide(places)
        maps = head.maps(self.whiten(latents), features, places)
        return features, maps if points is None else set_lids(maps, eye_lines(points, self.config.warp_size))

    def read_motion(self, frames: Tensor) -> Tensor:
        """Motion tokens (B, T * D) of frames (B, 256, 256, 3) uint8 RGB, without masking (paper, section 3.2)."""
        return self.encoder(self.to_latents(frames)) if self.reader is None else self.reader(frames)

    def to_frames(self, latents: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Latents (..., C, h, w), and pixels (..., 3, 256, 256) in [-1, 1] to add -> (..., 256, 256, 3) uint8 RGB."""
        image = self.vae.decode(latents.flatten(0, -4)).float().unflatten(0, latents.shape[:-3])
        if pixels is not None:
            image = image + pixels
        return ((image.movedim(-3, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def render(self, *tensors: Any, steps: int) -> Tensor:
        """Target latents (B, n, C, h, w), not whitened; arguments as in :meth:`render_frames`."""
        prior, added, _ = self._flow(*tensors, steps=steps)
        return self.unwhiten(prior + added)

    def render_frames(self, *tensors: Any, steps: int) -> Tensor:
        """Frames (B, n, 256, 256, 3) uint8 RGB, from the reference and n frames of motion.

        Where the warped photo is at hand in pixels and the autoencoder is linear, the photo goes around network and
        latents in float32, and half precision rounds only what the network adds. (A coordinate of the warp in bfloat16
        is a quarter of a pixel off.) In float32 it is the same as decoding :meth:`render`.

        Args:
            tensors: noise (B, n, C, h, w) standard normal, or None when the prior has none; latents (B, C, h, w) of the
                reference; reference motion (B, 1, T * D); cache (B, layers, 2, N, hidden) of the reference, or None for
                joint attention; appearance (B, N, encoder hidden) and maps (B, levers, channels, S, S) of the
                reference for the warp prior, or None; motion (B, n, T * D).
            steps: Euler steps.
        """
        prior, added, pixels = self._flow(*tensors, steps=steps)
        return self.to_frames(self.unwhiten(prior + added if pixels is None else added), pixels)

    def _flow(
        self,
        noise: Tensor | None,
        latents: Tensor,
        reference_motion: Tensor,
        cache: Tensor | None,
        appearance: Tensor | None,
        maps: Tensor | None,
        motion: Tensor,
        *,
        steps: int,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Whitened prior, what the flow adds to it, and the prior as pixels (B, n, 3, 256, 256) where that is exact."""
        decoder, frames = self.decoder, motion.shape[1]
        moved = pixels = None
        if decoder.warp is not None and appearance is not None and maps is not None:
            moved = decoder.warp(appearance, maps, reference_motion, motion)
        if moved is not None and noise is None and isinstance(self.vae, PatchVae):
            pixels = self.vae.warp_pixels(latents, moved, frames)
            start = self.vae.encode(pixels.flatten(0, 1)).to(latents.dtype)
            prior = self.whiten(start).unflatten(0, (latents.shape[0], frames))
        else:
            prior = make_prior(self.config, self.vae, latents, noise, moved, frames)
        pairs = None if cache is None else [(layer[:, 0], layer[:, 1]) for layer in cache.unbind(1)]
        joint = self.whiten(latents) if cache is None else None
        added = decoder.displacement(prior, reference_motion, motion, steps=steps, cache=pairs, reference=joint)
        return prior, added, pixels
