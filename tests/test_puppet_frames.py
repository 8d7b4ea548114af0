"""What is said of held-out puppets: each region on its own, with the motion that is known and the one that is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from semo_sdk.benchmarks import puppet_frames  # noqa: E402
from semo_sdk.models.checkpoint import save_checkpoint  # noqa: E402
from semo_sdk.training.data import PuppetData  # noqa: E402
from tests.conftest import random_model  # noqa: E402
from tests.test_training import MODEL, puppets  # noqa: E402, F401 - a fixture

SIDE = 64


def test_frames_are_scored_with_motion_as_taught_and_as_read(tmp_path: Path, puppets: Path) -> None:  # noqa: F811
    checkpoint = tmp_path / "model.safetensors"
    save_checkpoint(checkpoint, random_model(MODEL))
    result = puppet_frames.measure(checkpoint, PuppetData(puppets).part(2, None), draws=2)
    assert result["groups"] == ["group_00002"] and result["frames"] == 2 * MODEL.decoder.temporal_window
    assert set(result["rows"]) == set(puppet_frames.ROWS)
    assert all(5 < row["whole"] < 60 and row["sharpness"] > 0 for row in result["rows"].values())
    text = puppet_frames.markdown(result)
    assert all(f"| {label} |" in text for label in [*puppet_frames.ROWS.values(), *puppet_frames.COLUMNS.values()])


def test_an_error_in_the_mouth_is_seen_there_and_small_regions_are_not_scored() -> None:
    real = np.random.default_rng(0).integers(0, 255, (2, 256, 256, 3)).astype(np.uint8)
    weight = np.zeros((2, SIDE, SIDE), np.uint8)
    weight[:, 20:40, 20:40], weight[0, 30:36, 26:32] = 1, 3
    made = real.copy()
    made[0, 120:144, 104:128] = 255 - made[0, 120:144, 104:128]
    first, second = (puppet_frames.scores(made[i : i + 1], real[i : i + 1], weight[i : i + 1]) for i in range(2))
    assert first["mouth"] == first["features"] and first["mouth"][0] < first["face"][0] < first["whole"][0] < 60
    assert second["whole"] == second["face"] == [pytest.approx(100)] and second["sharpness"] == [1]
    assert second["mouth"] == second["features"] == []
