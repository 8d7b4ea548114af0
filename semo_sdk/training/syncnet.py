"""A small SyncNet: do these lips belong to this sound? (Chung and Zisserman 2016, section 2, made small.)

Two encoders map five frames of lips and the sound of the same 200 ms to points that lie close together where they
belong together. Lips are grey crops that follow the eyes, so head motion, place and size are gone, and each sequence is
brought to the same contrast; the sequence's mean features, which say whose lips they are, are taken off. Both encoders
are convolutions along time: a whole clip goes through at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.config import AudioConfig
from semo_sdk.constants import MEL_BINS, MEL_HISTORY, MEL_HOP, SAMPLES_PER_FRAME, exact_div
from semo_sdk.errors import CheckpointError
from semo_sdk.files import replacing
from semo_sdk.media.face import LEFT_EYE, RIGHT_EYE
from semo_sdk.models.whisper import LogMel

WINDOW = 5  # frames that a comparison sees: 200 ms
SIDE = 64  # pixels of a crop
CROP = 0.95  # side of a crop in distances between the outer eye corners
DROP = 0.08  # how far the crop's middle lies below the lips' corners, in the same unit: the chin moves too
CORNERS = (61, 291)  # of the mouth, in the mesh
STEADY = 5  # frames over which the eyes' place is averaged
MELS = exact_div(SAMPLES_PER_FRAME, MEL_HOP)  # mel frames in a video frame
FLOOR = (AudioConfig().log_floor + 4) / 4  # of the log-mel features
WIDTH = 64  # of an embedding


class SyncNet(nn.Module):
    """Embeddings of lips and of sound, window by window; unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 96)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            size = 5 if number == 0 else 3
            layers += [nn.Conv2d(before, after, size, 2, size // 2), nn.GroupNorm(after // 8, after), nn.ReLU()]
        self.frame = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * (SIDE // 16) ** 2, 96))
        self.frame_norm = nn.LayerNorm(96)
        self.lip_window = _window(96)
        self.mel = nn.Sequential(
            nn.Conv1d(MEL_BINS, 96, 3, padding=1), nn.ReLU(), nn.Conv1d(96, 128, MELS, MELS), nn.ReLU()
        )
        self.mel_norm = nn.LayerNorm(128)
        self.sound_window = _window(128)

    def lips(self, crops: Tensor) -> Tensor:
        """Crops (B, n, 64, 64), grey, 0 to 255 -> (B, n - 4, 64)."""
        x = crops.float()
        x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1)
        x = self.frame(x.flatten(0, 1).unsqueeze(1)).unflatten(0, crops.shape[:2])
        x = self.frame_norm(x - x.mean(1, keepdim=True))
        return F.normalize(self.lip_window(x.transpose(1, 2)).transpose(1, 2), dim=-1)

    def sound(self, mel: Tensor) -> Tensor:
        """Log-mel features (B, 80, 4 n) -> (B, n - 4, 64)."""
        x = self.mel_norm(self.mel(mel).transpose(1, 2))
        return F.normalize(self.sound_window(x.transpose(1, 2)).transpose(1, 2), dim=-1)


def _window(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(width, 128, WINDOW), nn.ReLU(), nn.Conv1d(128, WIDTH, 1))


def mouth_crops(frames: Iterable[np.ndarray], points: np.ndarray) -> np.ndarray:
    """Grey crops around the lips that follow the eyes: where the lips are on average, they stay in the middle.

    Args:
        frames: n times (H, W, 3) uint8 RGB.
        points: (n, 468 or 478, 2 or more) mesh in pixels; frames without (NaN) take that of the nearest frame.

    Returns:
        (n, 64, 64) uint8.

    Raises:
        ValueError: no frame has a mesh.
    """
    import cv2

    seen = np.flatnonzero(np.isfinite(points[:, 0, 0]))
    if not len(seen):
        raise ValueError("no frame of the video has a face")
    nearest = seen[np.abs(np.arange(len(points))[:, None] - seen[None]).argmin(1)]
    flat = points[nearest][..., :2].astype(np.float64)
    right, left = _steady(flat[:, RIGHT_EYE]), _steady(flat[:, LEFT_EYE])
    axis, middle = left - right, (left + right) / 2
    across = np.stack([-axis[:, 1], axis[:, 0]], -1)  # down the face, as long as the eyes are apart
    basis = np.stack([axis, across], -1)  # (n, 2, 2) columns: from units of the face to pixels
    lips = flat[:, list(CORNERS)].mean(1) - middle
    home = np.linalg.solve(basis, lips[..., None])[..., 0].mean(0) + np.array([0, DROP])
    crops = []
    for frame, turn, eyes in zip(frames, basis, middle, strict=True):
        linear = turn * (CROP / SIDE)
        # OpenCV counts from the middle of a pixel
        corner = eyes + turn @ home - linear @ np.full(2, (SIDE - 1) / 2) - 0.5
        matrix = np.concatenate([linear, corner[:, None]], 1)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crop = cv2.warpAffine(frame, matrix, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        crops.append(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY))
    return np.stack(crops)


def _steady(places: np.ndarray) -> np.ndarray:
    """(n, 2) averaged over five frames."""
    half = STEADY // 2
    padded = np.pad(places, ((half, half), (0, 0)), mode="edge")
    window = np.full(STEADY, 1 / STEADY)
    return np.stack([np.convolve(line, window, mode="valid") for line in padded.T], -1)


@torch.no_grad()
def log_mel(pcm: np.ndarray, frames: int) -> np.ndarray:
    """(80, 4 * frames) float32 log-mel features of the first frames of a sound, silence where it ends before them.

    Args:
        pcm: (m,) float32 mono 16 kHz.
    """
    size = frames * SAMPLES_PER_FRAME
    sound = np.pad(pcm[:size], (MEL_HISTORY, max(0, size - len(pcm))))
    return LogMel(AudioConfig().log_floor)(torch.from_numpy(sound.astype(np.float32))[None])[0].numpy()


def shifted_distances(lips: np.ndarray, sound: np.ndarray, shift: int) -> np.ndarray:
    """Distances of each window of lips to the sound up to ``shift`` frames before and after it.

    Args:
        lips, sound: (m, d) embeddings of the windows of one video.

    Returns:
        (m - 2 * shift, 2 * shift + 1): windows for which every shift exists; column ``shift`` is no shift, column 0
        compares with the sound of ``shift`` frames earlier. No rows for a video that is too short.
    """
    windows = np.arange(shift, min(len(lips), len(sound)) - shift)
    places = windows[:, None] + np.arange(-shift, shift + 1)
    if not len(windows):
        return np.zeros((0, 2 * shift + 1))
    return np.linalg.norm(lips[windows][:, None] - sound[places], axis=-1)


def found_in_time(distances: np.ndarray, windows: int, tolerance: int = 1) -> float:
    """How often the shift of least distance is right, when some consecutive windows are averaged.

    Args:
        distances: (m, 2 * shift + 1) of :func:`shifted_distances`; its true shift is 0.
        windows: how many are averaged, at most m.
        tolerance: frames that a shift may be off.
    """
    sums = np.cumsum(np.concatenate([np.zeros((1, distances.shape[1])), distances]), axis=0)
    found = (sums[windows:] - sums[:-windows]).argmin(1) - distances.shape[1] // 2
    return float(np.mean(np.abs(found) <= tolerance)) if len(found) else float("nan")


def save_syncnet(network: SyncNet, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes weights in half precision (safetensors), with what they come from."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().half().contiguous() for key, value in network.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, dict(metadata))


def load_syncnet(path: Path) -> tuple[SyncNet, dict[str, str]]:
    """The network (float32, evaluation mode) and what its weights come from.

    Raises:
        CheckpointError: no such file, or not these weights.
    """
    from safetensors import SafetensorError, safe_open

    network = SyncNet()
    try:
        with safe_open(path, "pt") as file:
            state: dict[str, Any] = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        network.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds no SyncNet of this package: {error}") from error
    return network.eval(), metadata
