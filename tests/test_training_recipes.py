"""What needs no videos: which faces and sounds are fit for training, recipes, logs for TensorBoard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from semo_sdk.config import preset
from semo_sdk.errors import ConfigError
from semo_sdk.media.audio import load_audio
from semo_sdk.training import autoencoder, generator
from semo_sdk.training.settings import parse_settings, recipe
from semo_sdk.training.videos_check import Crop, Problem, find_crop, speech_problem

EXAMPLES = Path(__file__).parent.parent / "examples"


def face_at(x: float, y: float, height: float = 100.0) -> np.ndarray:
    """Landmarks in a box around (x, y)."""
    points = np.random.default_rng(1).uniform(-0.5, 0.5, (478, 3)) * [0.8 * height, height, 0]
    points[:2] = [[0, -height / 2, 0], [0, height / 2, 0]]
    return points + [x, y, 0]


@pytest.mark.parametrize(
    ("faces", "reason"),
    [
        ([None] * 10, "no face"),
        ([face_at(320, 240)] * 8 + [None] * 2, "no face in part of it"),
        ([face_at(320, 240, 50)] * 10, "face too small"),
        ([face_at(200, 240)] * 5 + [face_at(440, 240)] * 5, "a cut, or a face that jumps"),
        ([face_at(320, 240, 400)] * 10, "face fills the picture"),
        ([face_at(100 + 50 * i, 240) for i in range(10)], "face does not stay in one crop"),
    ],
)
def test_faces_that_no_crop_can_hold(faces: list[np.ndarray | None], reason: str) -> None:
    found = find_crop(faces, (640, 480), scale=2.0, min_face=80)
    assert isinstance(found, Problem) and found.reason == reason


@pytest.mark.parametrize(("x", "y"), [(320, 240), (60, 240), (320, 470), (610, 20)])
def test_a_crop_lies_inside_the_picture_and_holds_the_face(x: float, y: float) -> None:
    found = find_crop([face_at(x, y)] * 10, (700, 521), scale=2.0, min_face=80)
    if y in (470, 20) and isinstance(found, Problem):
        return  # partly outside the picture
    assert isinstance(found, Crop)
    assert found.x % 2 == found.y % 2 == found.side % 2 == 0
    assert 0 <= found.x <= 700 - found.side and 0 <= found.y <= 521 - found.side
    assert found.x <= x - 39 and x + 39 <= found.x + found.side


def test_speech_is_told_from_silence_noise_and_overload() -> None:
    speech = load_audio(EXAMPLES / "speech.wav")
    noise = np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    assert speech_problem(speech) is None and speech_problem(speech + 0.002 * noise) is None
    cases = {"silent": 1e-3 * speech, "noise or music": 0.1 * noise, "overdriven sound": (9 * speech).clip(-1, 1)}
    for reason, sound in {**cases, "no sound": speech[:0]}.items():
        problem = speech_problem(sound)
        assert problem is not None and problem.reason == reason


def test_recipes_are_complete_and_those_of_semo_base_are_the_papers() -> None:
    names = [p.name.split(".")[:2] for p in sorted((Path(autoencoder.__file__).parent / "recipes").glob("*.json"))]
    assert {tuple(n) for n in names} >= {
        (m, s) for m in ("semo-base", "semo-tiny") for s in ("autoencoder", "generator")
    }
    kinds: dict[str, type[BaseModel]] = {"autoencoder": autoencoder.TrainConfig, "generator": generator.TrainConfig}
    made = {(n, s): parse_settings(kinds[s], recipe(n, s)) for n, s in names}
    first, second = made["semo-base", "autoencoder"], made["semo-base", "generator"]
    assert isinstance(first, autoencoder.TrainConfig) and isinstance(second, generator.TrainConfig)
    assert first.model == preset("semo-base") and second.generator == preset("semo-base").generator
    assert (first.loop.steps, second.loop.steps, second.batch) == (300_000, 200_000, 8)
    assert first.targets == 16 and first.pairs // first.targets * 2 == 8 and not first.taught
    for loop in (first.loop, second.loop):
        assert (loop.learning_rate, loop.warmup, loop.betas, loop.clip) == (1e-4, 5000, (0.9, 0.95), 1.0)
    tiny = made["semo-tiny", "autoencoder"]
    assert isinstance(tiny, autoencoder.TrainConfig) and tiny.model == preset("semo-tiny")
    changed = parse_settings(
        autoencoder.TrainConfig, recipe("semo-base", "autoencoder"), ["model.patch=4", "loop.steps=5"]
    )
    assert changed.model == preset("semo-base").model_copy(update={"patch": 4}) and changed.loop.warmup == 5000
    with pytest.raises(ConfigError, match="semo-base, semo-tiny"):
        recipe("semo-huge", "generator")


def test_logs_for_tensorboard_hold_losses_rate_and_sheets(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from semo_sdk.training.loop import LoopConfig, Trainer

    network = torch.nn.Linear(3, 1)
    loop = LoopConfig(steps=4, save_every=2, log_every=1, warmup=1)
    trainer = Trainer(loop, {"network": network}, tmp_path, resume=False)

    def on_save() -> None:
        Image.new("RGB", (8, 8)).save(tmp_path / "sheet.png")
        trainer.show("samples", tmp_path / "sheet.png")
        trainer.note({"score": 0.5})

    trainer.run([torch.ones(2, 3)] * 4, lambda batch: {"loss": network(batch).square().mean()}, on_save)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/rate", "train/norm", "validation/score"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [e.step for e in events.Images("samples")] == [2, 4]
