"""Strict, frozen configuration of a SeMo model, and the presets.

A config travels with the weights (``config.json`` in a bundle, metadata in a checkpoint): nobody has to tell a loader
any size. Unknown keys are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.errors import ConfigError

FORMAT_VERSION: Literal[1] = 1

# latent channels, downsampling factor
VAE_SHAPES: dict[str, tuple[int, int]] = {"sd": (4, 8), "taef2": (32, 8), "patch": (192, 8)}

PAINT_SCALE = 2  # the warp head's opacity has this many cells on a side of one cell of its warp


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderConfig(Strict):
    """Masked motion encoder (paper, section 3.1): a ViT over latent patches plus learnable motion tokens."""

    hidden: int = Field(768, ge=32, description="width of the transformer")
    layers: int = Field(8, ge=1)
    heads: int = Field(8, ge=1)
    mask_max: float = Field(0.9, ge=0.0, lt=1.0, description="masking ratio in training is uniform in [0, mask_max]")
    reader: Literal["tokens", "mesh"] = Field(
        "tokens", description="where motion is read: learnable tokens of the ViT (paper), or a face mesh"
    )


class DecoderConfig(Strict):
    """Motion decoder (paper, section 3.1): Motion Control Module + Temporal Align Module in each layer."""

    hidden: int = Field(768, ge=32)
    layers: int = Field(12, ge=1, description="denoising layers, each one MCM block and one TAM block")
    heads: int = Field(8, ge=1)
    temporal_window: int = Field(16, ge=1, le=16, description="frames that attend to each other in the TAM")
    prior: Literal["noise", "reference", "warp"] = Field(
        "noise", description="where the flow starts: noise (paper), the reference, or the warped reference"
    )
    prior_noise: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="standard deviation of the noise in the prior (1 when prior is noise)",
    )
    cache_reference: bool = Field(
        True, description="reference tokens see only the reference: their keys and values are computed once"
    )
    warp_layers: int = Field(0, ge=0, description="blocks of the head that predicts the warp field")
    warp_channels: int = Field(48, ge=4, multiple_of=4, description="channels of the network that makes its maps")
    warp_levers: int = Field(20, ge=1, description="numbers read from the motion that the reference's maps answer to")
    warp_mouths: int = Field(16, ge=1, description="learned pictures of the inside of a mouth that the motion mixes")
    warp_guided: bool = Field(False, description="landmarks tell the warp head which place of the face a cell shows")
    refine_channels: int = Field(0, ge=0, description="channels of the convolutional output stage; 0 = linear (paper)")
    steps: int = Field(4, ge=1, le=50, description="Euler steps in the exported render graph")

    @model_validator(mode="after")
    def _check(self) -> DecoderConfig:
        if (self.prior == "warp") != (self.warp_layers > 0):
            raise ValueError("prior='warp' needs warp_layers > 0, and the other priors need warp_layers = 0")
        if self.prior == "noise" and self.prior_noise != 1.0:
            raise ValueError("prior='noise' needs prior_noise = 1")
        return self


class GeneratorConfig(Strict):
    """Motion generator (paper, section 3.2): a DiT over motion tokens with cross-attention to speech."""

    hidden: int = Field(768, ge=32)
    layers: int = Field(8, ge=1)
    heads: int = Field(8, ge=1)
    steps: int = Field(8, ge=1, le=50, description="Euler steps in the exported motion graph")
    guidance: float = Field(1.0, ge=0.0, le=10.0, description="default classifier-free guidance on the speech")


class AudioConfig(Strict):
    """Whisper encoder whose features drive the generator."""

    model: str = Field("tiny.en", description="openai-whisper model name")
    width: int = Field(384, ge=1, description="feature width (n_audio_state)")
    heads: int = Field(6, ge=1)
    layers: int = Field(4, ge=1)
    log_floor: float = Field(
        -6.5,
        description="log10 mel values below are clamped; fixed, so that no feature depends on the future",
    )


class SemoConfig(Strict):
    """One model: what a bundle or a checkpoint holds."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str = "semo-base"
    vae: Literal["sd", "taef2", "patch"] = "sd"
    patch: int = Field(2, ge=1, description="latent cells on a side of one transformer token")
    motion_tokens: int = Field(1, ge=1, le=8, description="T in the paper's Table 3")
    motion_width: int = Field(512, ge=16, description="D in the paper's Table 3")
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    generator: GeneratorConfig = GeneratorConfig()
    audio: AudioConfig = AudioConfig()

    @property
    def latent_channels(self) -> int:
        return VAE_SHAPES[self.vae][0]

    @property
    def latent_size(self) -> int:
        """Cells on a side of the latent image."""
        return IMAGE_SIZE // VAE_SHAPES[self.vae][1]

    @property
    def warp_size(self) -> int:
        """Cells on a side of the warp field and its maps: a quarter of the image's pixels."""
        return 2 * self.latent_size

    @property
    def grid(self) -> int:
        """Transformer tokens on a side of the image."""
        return self.latent_size // self.patch

    @property
    def motion_dim(self) -> int:
        """Numbers in one frame's motion: tokens x width, flattened."""
        return self.motion_tokens * self.motion_width

    @property
    def map_shape(self) -> tuple[int, int, int, int]:
        """The warp head's maps of a reference: levers, channels (offsets, place in a mouth, tint, opacity), cells.

        With ``reader="mesh"`` one lever's channels are lines of the eyes, see :mod:`semo_sdk.models.eyelids`.
        """
        return self.decoder.warp_levers, 2 + 2 + 4 + PAINT_SCALE**2, self.warp_size, self.warp_size

    @property
    def has_controls(self) -> bool:
        """Whether head motion and blinks can be turned: the meaning of the motion tokens' directions is known."""
        return self.encoder.reader == "mesh"

    @property
    def needs_noise(self) -> bool:
        """Whether the render graph takes noise."""
        return self.decoder.prior_noise > 0

    @model_validator(mode="after")
    def _check(self) -> SemoConfig:
        for part in (self.encoder, self.decoder, self.generator):
            if part.hidden % part.heads:
                raise ValueError(f"hidden {part.hidden} is not a multiple of heads {part.heads}")
        if self.decoder.warp_guided and not (self.decoder.warp_layers and self.encoder.reader == "mesh"):
            raise ValueError("decoder.warp_guided needs prior='warp', and encoder.reader='mesh', which finds landmarks")
        if self.latent_size % self.patch:
            raise ValueError(f"patch {self.patch} does not divide the latent size {self.latent_size}")
        return self


PRESETS: dict[str, SemoConfig] = {
    # The paper's sizes (section 4.1, Appendix B).
    "semo-base": SemoConfig(),
    # What ships trained: small enough for two plain CPU cores. `patch` is a lossless 8x8 orthonormal DCT instead of a
    # learned autoencoder: TAEF2 alone takes 82 ms a frame on two Zen 4 cores, twice real time.
    "semo-tiny": SemoConfig(
        name="semo-tiny",
        vae="patch",
        encoder=EncoderConfig(hidden=192, layers=5, heads=3, reader="mesh"),
        decoder=DecoderConfig(
            hidden=192,
            layers=3,
            heads=3,
            temporal_window=4,
            prior="warp",
            prior_noise=0.0,
            warp_layers=3,
            warp_guided=True,
            refine_channels=64,
            steps=1,
        ),
        generator=GeneratorConfig(hidden=256, layers=4, heads=4, steps=4, guidance=2.0),
    ),
}


def preset(name: str) -> SemoConfig:
    """A preset by name.

    Raises:
        ConfigError: unknown name; the message lists the presets.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no preset {name!r}; presets: {', '.join(sorted(PRESETS))}") from None


def load_config(source: str | Path) -> SemoConfig:
    """Config from a preset name or a JSON file.

    Raises:
        ConfigError: no such preset or file, not JSON, unknown or impossible settings (named in the message).
    """
    path = Path(source)
    if path.suffix != ".json":
        return preset(str(source))
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist; presets: {', '.join(sorted(PRESETS))}")
    return parse_config(path.read_text(encoding="utf-8"), where=str(path))


def parse_config(text: str, *, where: str = "config") -> SemoConfig:
    """Config from JSON text.

    Raises:
        ConfigError: not JSON, or unknown or impossible settings; the message names ``where`` and each setting.
    """
    try:
        return SemoConfig.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{where}: {problems}") from error
