"""The image autoencoders that a SeMo model can stand on: ``sd`` (the paper's), ``taef2`` and ``patch``.

All map RGB (B, 3, 256, 256) in [-1, 1] to latents (B, channels, 32, 32) and back, and can move latents along a backward
warp field. All are frozen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.errors import ConfigError, MissingDependencyError
from semo_sdk.models.layers import Float32Buffers
from semo_sdk.models.warp import Moved, cover, move


class Vae(Float32Buffers, ABC):
    """Base: subclasses implement :meth:`encode` and :meth:`decode`.

    ``latent_std`` (channels,) is what the flow divides each latent channel by, of the order of its deviation.
    """

    latent_std: Tensor

    def __init__(self, latent_std: Tensor) -> None:
        super().__init__()
        self.register_buffer("latent_std", latent_std)

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor: ...

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor: ...

    def warp(self, latents: Tensor, moved: Moved) -> Tensor:
        """Latents (B, C, h, w) moved by a warp. Learned latents have no colours: the mouth is left to the flow."""
        return move(latents, moved.field(latents.shape[-1]))


def _dct(n: int) -> Tensor:
    """Orthonormal DCT-II matrix (n, n): rows are frequencies."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None, :]
    matrix = torch.cos(torch.pi * (i + 0.5) * k / n) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


class PatchVae(Vae):
    """Lossless "autoencoder": the orthonormal 8 x 8 DCT of each colour channel (192 x 32 x 32).

    It costs next to nothing, loses nothing (skin, hair and background stay as sharp as the photo), and an error in
    latents is the same error in pixels. The warp moves pixels, so it is exact below 8 px.
    """

    basis: Tensor

    def __init__(self) -> None:
        u = torch.arange(8.0)
        radius = (u[:, None] ** 2 + u[None, :] ** 2).sqrt()
        # spectrum of portraits at 256 px: flat mean, then a fall of about radius^-1.6. Whitening takes off its square
        # root only: full whitening would make nine tenths of a network's input texture noise
        std = torch.where(radius == 0, 3.2, 0.9 * radius.clamp(min=1.0) ** -1.6).clamp(min=0.02).sqrt()
        super().__init__(std.reshape(1, 64).repeat(3, 1).reshape(192))
        basis = torch.einsum("ui,vj->uvij", _dct(8), _dct(8)).reshape(64, 64)
        self.register_buffer("basis", basis.float(), persistent=False)

    def encode(self, image: Tensor) -> Tensor:
        weight = self.basis.repeat(3, 1)[:, :, None, None]
        return F.conv2d(F.pixel_unshuffle(image.float(), 8), weight, groups=3).to(image.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        weight = self.basis.T.repeat(3, 1)[:, :, None, None]
        return F.pixel_shuffle(F.conv2d(latents.float(), weight, groups=3), 8).to(latents.dtype)

    def warp(self, latents: Tensor, moved: Moved) -> Tensor:
        return self.encode(self.warp_pixels(latents, moved, 1)[:, 0]).to(latents.dtype)

    def warp_pixels(self, latents: Tensor, moved: Moved, frames: int) -> Tensor:
        """Pixels (B, frames, 3, 256, 256) float32 of an image (B, C, h, w), moved, with the mouth laid over it."""
        image = self.decode(latents.float()).unsqueeze(1).expand(-1, frames, -1, -1, -1).flatten(0, 1)
        return cover(move(image, moved.field(image.shape[-1])), moved).unflatten(0, (latents.shape[0], frames))


class _TinyBlock(nn.Module):
    def __init__(self, width: int, *, pool: bool = False) -> None:
        super().__init__()
        conv = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(conv[0], nn.ReLU(), conv[1], nn.ReLU(), conv[2])
        self.pool = None
        if pool:
            wide = 4 * width
            self.pool = nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, width, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class _Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class TinyVae(Vae):
    """TAEF2 (MIT): the tiny autoencoder of FLUX.2's latent space, 32 x 32 x 32; state-dict names as published."""

    def __init__(self) -> None:
        super().__init__(torch.full((32,), 0.9))
        w = 64

        def down() -> nn.Module:
            return nn.Conv2d(w, w, 3, stride=2, padding=1, bias=False)

        def up() -> list[nn.Module]:
            return [nn.Upsample(scale_factor=2), nn.Conv2d(w, w, 3, padding=1, bias=False)]

        def blocks(n: int, *, pool: bool = False) -> list[nn.Module]:
            return [_TinyBlock(w, pool=pool) for _ in range(n)]

        self.encoder = nn.Sequential(
            nn.Conv2d(3, w, 3, padding=1),
            *blocks(1),
            *(layer for _ in range(2) for layer in (down(), *blocks(3))),
            down(),
            *blocks(3, pool=True),
            nn.Conv2d(w, 32, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            _Squash(),
            nn.Conv2d(32, w, 3, padding=1),
            nn.ReLU(),
            *blocks(3, pool=True),
            *(layer for _ in range(2) for layer in (*up(), *blocks(3))),
            *up(),
            *blocks(1),
            nn.Conv2d(w, 3, 3, padding=1),
        )

    def encode(self, image: Tensor) -> Tensor:
        return self.encoder((image + 1) / 2)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents) * 2 - 1


class SdVae(Vae):
    """Stable Diffusion's ``AutoencoderKL`` from diffusers (paper, section 3.1): 4 x 32 x 32, scaled by 0.18215.

    Built with the published architecture and random weights; a checkpoint or :func:`load_sd_weights` fills it.

    Raises:
        MissingDependencyError: diffusers is not installed.
    """

    SCALE = 0.18215

    def __init__(self) -> None:
        super().__init__(torch.ones(4))
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise MissingDependencyError(
                "vae='sd' needs diffusers: pip install 'semo-sdk[export]'", name="diffusers"
            ) from error
        kind = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        self.model: Any = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=256,
            **kind,
        )

    def encode(self, image: Tensor) -> Tensor:
        return self.model.encode(image).latent_dist.mean * self.SCALE

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents / self.SCALE, return_dict=False)[0]


def load_sd_weights(vae: SdVae, source: str) -> None:
    """Fills an :class:`SdVae` from a diffusers folder or hub name, for example ``stabilityai/sd-vae-ft-mse``."""
    from diffusers import AutoencoderKL

    vae.model.load_state_dict(AutoencoderKL.from_pretrained(source).state_dict())


def make_vae(name: str) -> Vae:
    """The autoencoder that a config names.

    Raises:
        ConfigError: unknown name.
        MissingDependencyError: ``sd`` without diffusers.
    """
    kinds: dict[str, Callable[[], Vae]] = {"sd": SdVae, "taef2": TinyVae, "patch": PatchVae}
    if name not in kinds:
        raise ConfigError(f"no VAE {name!r}; there are {', '.join(kinds)}")
    vae = kinds[name]().eval()
    return vae.requires_grad_(False)
