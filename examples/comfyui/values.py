"""Between ComfyUI's values and semo-sdk's.

IMAGE is (n, H, W, 3) float32 in [0, 1]; AUDIO is {"waveform": (1, channels, samples) float32, "sample_rate": Hz}.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from semo_sdk.clip import MAX_SIDE, Clip
from semo_sdk.constants import FPS
from semo_sdk.errors import AudioError, ImageError, VideoError

__all__ = ["MotionType", "ModelType", "PortraitType", "Progress", "draw", "fit", "photo", "pictures", "speech", "times"]

Audio = dict[str, Any]

ModelType = io.Custom("SEMO_MODEL")  # semo_sdk.pipeline.graphs.Graphs
PortraitType = io.Custom("SEMO_PORTRAIT")  # semo_sdk.Animator
MotionType = io.Custom("SEMO_MOTION")  # semo_sdk.Motion


class Progress:
    """The bar under the node. Each step also ends the run if the user has cancelled it.

    Args:
        total: frames altogether.
    """

    def __init__(self, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)
        self._done = 0

    def step(self, frames: int, shown: np.ndarray | None = None) -> None:
        """Some frames more.

        Args:
            frames: how many.
            shown: (H, W, 3) uint8 RGB to show as the preview.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._done += frames
        preview = None if shown is None else ("JPEG", Image.fromarray(shown), 256)
        self._bar.update_absolute(self._done, preview=preview)


def pixels(image: torch.Tensor) -> np.ndarray:
    """One (H, W, 3 or 4) picture of an IMAGE as (H, W, 3) uint8 RGB: exactly what ComfyUI had read from a file."""
    return (image[..., :3].cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def photo(image: torch.Tensor) -> np.ndarray:
    """The only picture of an IMAGE.

    Raises:
        ImageError: it has several.
    """
    if len(image) != 1:
        raise ImageError(f"{len(image)} images: a portrait is one; choose it with the node Image From Batch")
    return pixels(image[0])


def pictures(frames: np.ndarray) -> torch.Tensor:
    """(n, H, W, 3) uint8 RGB as an IMAGE."""
    return torch.from_numpy(frames).to(torch.float32) / 255


def speech(audio: Audio) -> tuple[np.ndarray, int]:
    """(n, channels) float32 samples of an AUDIO, and their rate in Hz.

    Raises:
        AudioError: several recordings at once.
    """
    waveform = audio["waveform"]
    if len(waveform) != 1:
        raise AudioError(f"a batch of {len(waveform)} recordings: give one at a time")
    return waveform[0].T.cpu().numpy(), int(audio["sample_rate"])


def fit(audio: Audio, frames: int) -> Audio:
    """The sound at its own rate, cut or filled up with silence to the length of the frames."""
    rate = int(audio["sample_rate"])
    samples = -(-frames * rate // FPS)
    waveform = audio["waveform"][:1, :, :samples]
    return {"waveform": torch.nn.functional.pad(waveform, (0, samples - waveform.shape[2])), "sample_rate": rate}


def times(count: int, fps: float) -> list[int]:
    """Which of ``count`` pictures, ``fps`` a second, to show at 25 frames a second.

    Raises:
        VideoError: no picture.
    """
    if not count:
        raise VideoError("the driving video has no frames")
    return [min(int((number + 0.5) * fps / FPS), count - 1) for number in range(max(round(count * FPS / fps), 1))]


def draw(clip: Clip, paste_back: bool, progress: Progress) -> tuple[torch.Tensor, np.ndarray]:
    """Makes a clip's frames.

    Args:
        clip: of n frames.
        paste_back: the whole photo, at most 1920 pixels on a side, instead of the 256 x 256 crop.
        progress: told after each chunk.

    Returns:
        IMAGE of n frames, and (n, D) float32 motion tokens.
    """
    portrait = clip.portrait.limited(MAX_SIDE) if paste_back else clip.portrait
    shape = portrait.photo.shape if paste_back else portrait.crop.shape
    images = torch.empty((len(clip), *shape), dtype=torch.float32)
    tokens = []
    for chunk in clip:
        frames = portrait.paster(chunk.frames) if paste_back else chunk.frames
        images[chunk.index : chunk.index + len(chunk)] = pictures(frames)
        tokens.append(chunk.motion)
        progress.step(len(chunk), frames[-1])
    return images, np.concatenate(tokens)
