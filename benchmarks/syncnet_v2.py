"""Sync-C and Sync-D: the published SyncNet (Chung and Zisserman 2016), where its weights can be had.

The network's shapes and the numbers around it (MFCC of 13 coefficients, crops of 224 pixels in the order BGR, a padded
shift of 15 frames) are those of the authors' evaluation. One thing differs: faces are found by MediaPipe, not by S3FD,
so numbers are close to those of papers but not to the last digit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks.sync import SHIFT, SyncMeter
from semo_sdk.constants import MEL_HOP, MEL_WINDOW, SAMPLE_RATE
from semo_sdk.errors import MissingDependencyError
from semo_sdk.media.face import warp_affine

FILE = "syncnet_v2.model"
URL = f"https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/{FILE}"
SHA256 = "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442"
WINDOW, STEPS = 5, 4  # frames that the network sees; MFCC vectors in a frame
BATCH = 8  # windows at once
CROP = 224
MARGIN = 0.4  # of the face's half size that the crop adds on each side, and below
STEADY = 13  # frames whose median is the face's place
GREY = 110  # around the picture
COEFFICIENTS, FILTERS, FFT = 13, 26, 512
EMPHASIS, LIFTER = 0.97, 22
ABOUT = f"SyncNet of Chung and Zisserman 2016 ({FILE}), faces found by MediaPipe, shifts within {SHIFT} frames"


class PublishedSyncNet(SyncMeter):
    """SyncNet as published.

    Raises:
        MissingDependencyError: torch is not installed.
        OSError: the weights cannot be downloaded, or are another file.
        RuntimeError: they do not fit the network.
    """

    definitions = {
        "sync_d": f"Sync-D: distance, {ABOUT}",
        "sync_c": f"Sync-C: confidence, {ABOUT}",
        "sync_offset": f"offset in frames, {ABOUT}",
    }

    def __init__(self, weights: Path | None = None) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingDependencyError(
                "torch is not installed: pip install 'semo-sdk[quality]'", name="torch"
            ) from error
        self._torch: Any = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        path = weights_file() if weights is None else weights
        self._network: Any = network().to(self._device)
        state = torch.load(path, map_location=self._device, weights_only=True)
        lost, foreign = self._network.load_state_dict(state, strict=False)
        if foreign or any(not name.endswith("num_batches_tracked") for name in lost):  # which older files lack
            raise RuntimeError(f"{path} holds no weights of SyncNet: {[*foreign, *lost][:3]}")
        self._network.eval()

    def lips(self, frames: np.ndarray, mesh: np.ndarray) -> np.ndarray:
        crops = face_crops(frames, mesh).transpose(3, 0, 1, 2)[::-1]  # (3, n, 224, 224), BGR
        pieces = [crops[:, i : i + WINDOW] for i in range(len(frames) - WINDOW)]
        return self._embed(pieces, "lip")

    def sound(self, pcm: np.ndarray, frames: int) -> np.ndarray:
        features = mfcc(np.rint(np.clip(pcm, -1, 1) * 32767)).T[None]  # (1, 13, steps)
        width = WINDOW * STEPS
        pieces = [features[..., i * STEPS : i * STEPS + width] for i in range(frames - WINDOW)]
        return self._embed([piece for piece in pieces if piece.shape[-1] == width], "aud")

    def distances(self, lips: np.ndarray, sound: np.ndarray) -> np.ndarray:
        """As published: beyond its ends the sound is an embedding of zeros."""
        count = min(len(lips), len(sound))
        padded = np.pad(sound[:count], ((SHIFT, SHIFT), (0, 0)))
        places = np.arange(count)[:, None] + np.arange(2 * SHIFT + 1)
        return np.asarray(np.linalg.norm(lips[:count, None] - padded[places] + 1e-6, axis=-1))

    def _embed(self, pieces: Sequence[np.ndarray], kind: str) -> np.ndarray:
        torch, found = self._torch, []
        for start in range(0, len(pieces), BATCH):
            batch = torch.from_numpy(np.stack(pieces[start : start + BATCH]).astype(np.float32)).to(self._device)
            with torch.inference_mode():
                middle = self._network[f"netcnn{kind}"](batch).flatten(1)
                found.append(self._network[f"netfc{kind}"](middle).cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, 1024), np.float32)


def weights_file() -> Path:
    """The published weights in torch's cache folder, downloaded when they are not there; their hash is checked.

    Raises:
        OSError: they cannot be downloaded, or are another file.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise OSError(f"the weights {FILE} could not be downloaded from {URL} ({error})") from error
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise OSError(f"{path} is not the published {FILE} (its sha256 differs): delete it")
    return path


def network() -> Any:
    """Both encoders, under the names of the published weights; embeddings of 1024 numbers.

    ``netcnnlip`` takes (B, 3, 5, 224, 224) BGR in [0, 255], ``netcnnaud`` (B, 1, 13, 20) MFCC; each is flattened into
    its ``netfc``.
    """
    from torch import nn

    def flat(before: int, after: int, size: Any, padding: Any = 0) -> list[nn.Module]:
        return [nn.Conv2d(before, after, size, padding=padding), nn.BatchNorm2d(after), nn.ReLU()]

    def deep(before: int, after: int, size: tuple[int, int, int], stride: Any = 1, padding: Any = 0) -> list[nn.Module]:
        return [nn.Conv3d(before, after, size, stride, padding), nn.BatchNorm3d(after), nn.ReLU()]

    def head() -> nn.Module:
        return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))

    sound = [
        *flat(1, 64, 3, 1),
        nn.MaxPool2d(1, 1),
        *flat(64, 192, 3, 1),
        nn.MaxPool2d(3, (1, 2)),
        *flat(192, 384, 3, 1),
        *flat(384, 256, 3, 1),
        *flat(256, 256, 3, 1),
        nn.MaxPool2d(3, 2),
        *flat(256, 512, (5, 4)),
    ]
    lips = [
        *deep(3, 96, (5, 7, 7), (1, 2, 2)),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
        *deep(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1)),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        *deep(256, 256, (1, 3, 3), padding=(0, 1, 1)),
        *deep(256, 256, (1, 3, 3), padding=(0, 1, 1)),
        *deep(256, 256, (1, 3, 3), padding=(0, 1, 1)),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
        *deep(256, 512, (1, 6, 6)),
    ]
    parts = {"netcnnaud": nn.Sequential(*sound), "netfcaud": head(), "netfclip": head()}
    return nn.ModuleDict({**parts, "netcnnlip": nn.Sequential(*lips)})


def face_crops(frames: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """Faces as the authors' pipeline cuts them: (n, 224, 224, 3) float32 RGB.

    With half the face's longer side s around its middle, medians of 13 frames: from s above the middle to 1.8 s below
    it, 1.4 s to each side.

    Args:
        frames: (n, H, W, 3) uint8 RGB. mesh: (n, 478, 3) landmarks in pixels; NaN takes the nearest frame's.
    """
    seen = np.flatnonzero(np.isfinite(mesh[:, 0, 0]))
    nearest = seen[np.abs(np.arange(len(mesh))[:, None] - seen[None]).argmin(1)]
    low, high = mesh[nearest, :, :2].min(1), mesh[nearest, :, :2].max(1)
    places = np.concatenate([(low + high) / 2, (high - low).max(1, keepdims=True) / 2], 1)
    padded = np.pad(places, ((STEADY // 2, STEADY // 2), (0, 0)), mode="edge")
    steady = np.median(np.lib.stride_tricks.sliding_window_view(padded, STEADY, axis=0), axis=-1)
    crops = []
    for frame, (x, y, half) in zip(frames, steady, strict=True):
        side = 2 * half * (1 + MARGIN)
        scale = side / CROP
        matrix = np.array([[scale, 0, x - half * (1 + MARGIN)], [0, scale, y - half]])
        crops.append(warp_affine(frame, matrix, CROP, border=GREY))
    return np.stack(crops)


def mfcc(samples: np.ndarray) -> np.ndarray:
    """(steps, 13) mel-frequency cepstral coefficients, 100 a second, the first one the logarithm of the energy.

    Args:
        samples: (m,) at 16 kHz, in the range of 16-bit integers.
    """
    size, hop = MEL_WINDOW, MEL_HOP
    signal = np.append(samples[:1], samples[1:] - EMPHASIS * samples[:-1])
    count = 1 + max(0, -(-(len(signal) - size) // hop))
    signal = np.pad(signal, (0, max(0, (count - 1) * hop + size - len(signal))))
    pieces = np.lib.stride_tricks.sliding_window_view(signal, size)[::hop][:count]
    power = np.abs(np.fft.rfft(pieces, FFT)) ** 2 / FFT
    tiny = np.finfo(float).eps
    energy = np.maximum(power.sum(1), tiny)
    logs = np.log(np.maximum(power @ _filters().T, tiny))
    n, k = np.arange(FILTERS), np.arange(COEFFICIENTS)[:, None]
    cosine = np.cos(np.pi * k * (2 * n + 1) / (2 * FILTERS)) * np.where(k == 0, 1 / FILTERS, 2 / FILTERS) ** 0.5
    lift = 1 + LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / LIFTER)
    found = logs @ cosine.T * lift
    found[:, 0] = np.log(energy)
    return np.asarray(found)


def _filters() -> np.ndarray:
    """(26, 257) triangles on the mel scale (2595 log10(1 + f / 700)) between 0 and 8 kHz."""
    edges = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), FILTERS + 2)
    bins = np.floor((FFT + 1) * 700 * (10 ** (edges / 2595) - 1) / SAMPLE_RATE)
    low, middle, high = bins[:-2, None], bins[1:-1, None], bins[2:, None]
    place = np.arange(FFT // 2 + 1)
    rise, fall = (place - low) / np.maximum(middle - low, 1), (high - place) / np.maximum(high - middle, 1)
    up, down = (place >= low) & (place < middle), (place >= middle) & (place < high)
    return np.where(up, rise, np.where(down, fall, 0.0))
