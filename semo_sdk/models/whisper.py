"""Whisper's log-mel front end and audio encoder, as one graph over a short trailing window of PCM.

Whisper itself pads to 30 s, centres its analysis windows and normalises by the loudest point of the buffer, so its
features depend on the future. Here, in training and live alike: a window of 2.56 s that ends with the last sample
heard, analysis windows that end with their hop, and a fixed floor. Streamed features therefore equal offline ones.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.config import AudioConfig
from semo_sdk.constants import (
    ENCODER_STRIDE,
    FEATURE_FRAMES,
    FEATURES_PER_FRAME,
    MEL_BINS,
    MEL_HOP,
    MEL_WINDOW,
    SAMPLE_RATE,
    WINDOW_MELS,
)
from semo_sdk.errors import CheckpointError, MissingDependencyError
from semo_sdk.models.layers import Float32Buffers, LayerNorm, attention


def mel_filterbank() -> Tensor:
    """Slaney-normalised mel filters (80, 201) on the Slaney mel scale, 0 to 8 kHz: those of Whisper's training."""

    def to_hz(mel: Tensor) -> Tensor:
        linear = mel * (200.0 / 3)
        return torch.where(mel < 15, linear, 1000.0 * torch.exp((mel - 15) * (math.log(6.4) / 27)))

    top = 15 + 27 * math.log(SAMPLE_RATE / 2 / 1000.0) / math.log(6.4)
    edges = to_hz(torch.linspace(0, top, MEL_BINS + 2, dtype=torch.float64))
    bins = torch.linspace(0, SAMPLE_RATE / 2, MEL_WINDOW // 2 + 1, dtype=torch.float64)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangle = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
    return (triangle * (2 / (high - low))).float()


class LogMel(Float32Buffers):
    """PCM (B, samples) in [-1, 1] -> Whisper's log-mel (B, 80, frames), always float32, without look-ahead."""

    kernel: Tensor
    filters: Tensor

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor
        n = torch.arange(MEL_WINDOW, dtype=torch.float64)
        window = 0.5 - 0.5 * torch.cos(2 * torch.pi * n / MEL_WINDOW)
        angles = 2 * torch.pi * torch.arange(MEL_WINDOW // 2 + 1, dtype=torch.float64)[:, None] * n / MEL_WINDOW
        kernel = torch.cat([torch.cos(angles), -torch.sin(angles)]) * window
        self.register_buffer("kernel", kernel.float()[:, None], persistent=False)
        self.register_buffer("filters", mel_filterbank(), persistent=False)

    def forward(self, pcm: Tensor) -> Tensor:
        spectrum = F.conv1d(pcm.float().unsqueeze(1), self.kernel, stride=MEL_HOP)
        real, imaginary = spectrum.chunk(2, dim=1)
        mel = self.filters @ (real * real + imaginary * imaginary)
        log = mel.clamp(min=1e-10).log10().clamp(min=self.floor)
        return (log + 4) / 4


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attention(self.query(x), self.key(x), self.value(x), self.heads))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.attn_ln, self.mlp_ln = _Attention(width, heads), LayerNorm(width), LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp(self.mlp_ln(x))


class WhisperEncoder(nn.Module):
    """Whisper's audio encoder with openai-whisper's state-dict names, cut to the window's positions."""

    positional_embedding: Tensor

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width = config.width
        self.log_mel = LogMel(config.log_floor)
        self.conv1 = nn.Conv1d(MEL_BINS, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=ENCODER_STRIDE, padding=1)
        positions = WINDOW_MELS // ENCODER_STRIDE
        self.register_buffer("positional_embedding", torch.zeros(positions, width))
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.layers))
        self.ln_post = LayerNorm(width)
        self.requires_grad_(False)

    def forward(self, pcm: Tensor) -> Tensor:
        """Features of a whole window.

        Args:
            pcm: (B, WINDOW_SAMPLES) float32 in [-1, 1], ending with the last sample heard.

        Returns:
            (B, 64, 2 * width): two Whisper features for each video frame of the window.
        """
        x = self.log_mel(pcm).to(self.conv1.weight.dtype)
        x = F.gelu(self.conv2(F.gelu(self.conv1(x)))).transpose(1, 2)
        x = x + self.positional_embedding.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        x = self.ln_post(x)
        return x.unflatten(1, (-1, FEATURES_PER_FRAME)).flatten(2)

    def last(self, pcm: Tensor) -> Tensor:
        """Features (B, 24, 2 * width) of the last 24 frames of the window: what a pass of the generator needs."""
        return self(pcm)[:, -FEATURE_FRAMES:]


def load_whisper(encoder: WhisperEncoder, source: str | Path) -> None:
    """Fills the encoder with OpenAI's weights.

    Args:
        encoder: the module to fill.
        source: a ``.safetensors`` or ``.pt`` file with the encoder's (or a whole Whisper's) state dict, or a model name
            such as ``tiny.en``, which openai-whisper downloads and verifies.

    Raises:
        MissingDependencyError: a model name without openai-whisper installed.
        CheckpointError: not such a file, or weights of another size.
    """
    state = _read_state(source)
    prefix = "encoder." if any(k.startswith("encoder.") for k in state) else ""
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    try:
        state["positional_embedding"] = state["positional_embedding"][: len(encoder.positional_embedding)]
        encoder.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{source} does not fit this config's Whisper encoder: {error}") from error


def _read_state(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".pt" and path.is_file():
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return loaded.get("model_state_dict", loaded)
    if path.suffix in (".safetensors", ".pt"):
        raise CheckpointError(f"Whisper weights {path} do not exist; give a file, or a name such as 'tiny.en'")
    try:
        import whisper
    except ImportError as error:
        raise MissingDependencyError(
            f"loading Whisper {str(source)!r} by name needs openai-whisper: pip install 'semo-sdk[export]'",
            name="whisper",
        ) from error
    try:
        return whisper.load_model(str(source), device="cpu").state_dict()
    except RuntimeError as error:
        raise CheckpointError(f"openai-whisper could not load {source!r}: {error}") from error


def fingerprint(encoder: WhisperEncoder) -> str:
    """SHA-256 of the weights in half precision: tells whether two models hear alike."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()
