"""Training on real videos: any layout of folders becomes clips, both stages train on them, and the model animates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from semo_sdk.animator import Animator
from semo_sdk.cli import app
from semo_sdk.cli.training import parse_settings, recipe
from semo_sdk.config import AudioConfig, DecoderConfig, EncoderConfig, GeneratorConfig, SemoConfig, preset
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.errors import ConfigError, InputError
from semo_sdk.export import export_bundle
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import crop_square, load_image
from semo_sdk.media.video import VideoWriter
from semo_sdk.models.checkpoint import load_checkpoint
from semo_sdk.models.whisper import WhisperEncoder
from semo_sdk.training import autoencoder, generator
from semo_sdk.training.motion_data import MotionData
from semo_sdk.training.videos import VideoData, read_frames
from semo_sdk.training.videos_check import Crop, Problem, find_crop, speech_problem
from semo_sdk.training.videos_prepare import Options, find_videos, prepare_videos

EXAMPLES = Path(__file__).parent.parent / "examples"
FRAMES, SIDE = 55, 256

# the paper's model (noise prior, tokens of a transformer, joint attention), but small
MODEL = SemoConfig(
    name="small",
    vae="patch",
    encoder=EncoderConfig(hidden=32, layers=1, heads=2),
    decoder=DecoderConfig(hidden=32, layers=1, heads=2, temporal_window=4, cache_reference=False, steps=2),
    generator=GeneratorConfig(hidden=32, layers=1, heads=2, steps=2),
    audio=AudioConfig(width=32, heads=2, layers=1),
)


def write_video(path: Path, picture: np.ndarray | None, sound: np.ndarray | None, frames: int = FRAMES) -> None:
    """A photo that sways (or noise), as a video."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, (SIDE, SIDE)) as writer:
        for i in range(frames):
            if picture is None:
                frame = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
            else:
                height, width = picture.shape[:2]
                side = 0.94 * min(height, width)
                x, y = (
                    (width - side) / 2 + 0.02 * side * np.sin(i / 5),
                    (height - side) / 2 + 0.02 * side * np.cos(i / 7),
                )
                frame = crop_square(picture, (x, y, side), SIDE)
            piece = None if sound is None else sound[i * SAMPLES_PER_FRAME : (i + 1) * SAMPLES_PER_FRAME]
            writer.write(frame, piece)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets side by side: sound inside, MEAD's layout with the sound elsewhere, and what must be left out."""
    folder = tmp_path_factory.mktemp("videos")
    one, two = (load_image(EXAMPLES / name) for name in ("portrait.jpg", "portrait2.jpg"))
    speech = load_audio(EXAMPLES / "speech.wav")[: FRAMES * SAMPLES_PER_FRAME]
    write_video(folder / "flat" / "a b'c.mp4", one, speech)
    write_video(folder / "flat" / "two.mp4", two, speech)
    write_video(folder / "mead" / "M003" / "video" / "front" / "level_1" / "001.mp4", one, None)
    beside = folder / "mead" / "M003" / "audio" / "level_1" / "001.wav"
    beside.parent.mkdir(parents=True)
    beside.write_bytes((EXAMPLES / "speech.wav").read_bytes())
    write_video(folder / "mead" / "W009" / "video" / "front" / "level_1" / "001.mp4", two, None)
    write_video(folder / "bad" / "noise.mp4", None, speech)
    write_video(folder / "bad" / "short.mp4", one, speech, frames=20)
    (folder / "bad" / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def clips(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clips")
    result = CliRunner().invoke(app, ["data", "videos", str(folder), str(out), "--workers", "2"])
    assert result.exit_code == 0, result.output
    assert "1 left out: no face" in result.output and "1 used without sound: no sound" in result.output
    return out


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("whisper") / "encoder.safetensors"
    save_file({k: v.contiguous() for k, v in WhisperEncoder(MODEL.audio).state_dict().items()}, path)
    return path


def test_every_layout_finds_the_sound_that_belongs_to_it(folder: Path, tmp_path: Path) -> None:
    found = {v.path.as_posix(): v.sound.relative_to(folder).as_posix() for v in find_videos(folder, tmp_path)}
    assert found["mead/M003/video/front/level_1/001.mp4"] == "mead/M003/audio/level_1/001.wav"
    silent = "mead/W009/video/front/level_1/001.mp4"
    assert found[silent] == silent  # not another speaker's
    assert found["flat/two.mp4"] == "flat/two.mp4"
    for video, sound in (("v/x.mp4", "v/x.wav"), ("w/video/y.mov", "w/audio/y.m4a")):
        for path in (video, sound):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        assert {v.path: v.sound for v in find_videos(tmp_path, tmp_path / "out")}[Path(video)] == tmp_path / sound
    with pytest.raises(InputError, match="no videos"):
        find_videos(tmp_path / "v" / "..", tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        find_videos(tmp_path / "none", tmp_path)


def test_clips_are_faces_at_256_with_their_own_sound(clips: Path) -> None:
    rows = {r["video"]: r for r in map(json.loads, (clips / "clips.jsonl").read_text().splitlines())}
    assert len(rows) == 4 and sum(r["held_out"] for r in rows.values()) == 1
    for row in rows.values():
        frames = read_frames(clips / "clips" / row["name"], range(row["frames"]))
        assert abs(len(frames) - FRAMES) <= 1 and frames.shape[1:] == (256, 256, 3)
        assert 0.4 < row["face"] < 0.75
    assert not rows["mead/W009/video/front/level_1/001.mp4"]["speech"]
    whole = load_audio(EXAMPLES / "speech.wav")
    for video, least in (
        ("mead/M003/video/front/level_1/001.mp4", 0.999),
        ("flat/a b'c.mp4", 0.9),
    ):  # AAC in the latter
        sound = load_audio(clips / "clips" / rows[video]["name"] / "sound.wav")
        assert len(sound) == rows[video]["frames"] * SAMPLES_PER_FRAME
        length = 50 * SAMPLES_PER_FRAME
        assert np.corrcoef(sound[:length], whole[:length])[0, 1] > least


def test_the_report_says_what_was_left_out_and_why(clips: Path) -> None:
    report = json.loads((clips / "report.json").read_text())
    assert (report["videos"], report["videos_used"], report["clips"]) == (7, 4, 4)
    assert report["left_out"] == {"no face": 1, "too short": 1, "not a readable video": 1}
    assert report["pictures_only"] == {"no sound": 1}
    assert {row["video"] for row in report["rows"]} == {"bad/noise.mp4", "bad/short.mp4", "bad/broken.mp4"}


def test_a_second_run_looks_at_new_videos_only(folder: Path, clips: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in clips.rglob("frames.jpgs")}
    (gone,) = clips.glob("videos/two-*.json")
    gone.unlink()  # as if the first run had been cut short
    assert list(prepare_videos(folder, clips, Options())) == [(6, 7), (7, 7)]
    after = {p: p.stat().st_mtime_ns for p in clips.rglob("frames.jpgs")}
    assert {p.parent.name[:4] for p in before if before[p] != after[p]} == {"two-"}
    with pytest.raises(ConfigError, match="another folder"):
        list(prepare_videos(folder, clips, Options(crop=1.8)))


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


def test_batches_of_videos_show_one_person_each(clips: Path) -> None:
    data = VideoData(clips).part(held_out=False)
    a, b = (data.batch(np.random.default_rng(1), groups=2, identities=2, frames=4) for _ in range(2))
    assert torch.equal(a.target, b.target) and a.target.shape == (4, 4, 256, 256, 3)
    assert a.driver.tolist() == [0, 1, 2, 3]
    near = (a.reference[:, None].float() - a.target.float()).abs().mean((1, 2, 3, 4))
    other = (a.reference.roll(1, 0)[:, None].float() - a.target.float()).abs().mean((1, 2, 3, 4))
    assert (near < 20).all() and other.max() > 20
    with pytest.raises(InputError, match="semo data videos"):
        VideoData(clips / "clips")


def config_files(folder: Path) -> Iterator[tuple[str, Path]]:
    loop = {"steps": 4, "save_every": 2, "log_every": 1, "warmup": 1}
    first = {"model": MODEL.model_dump(mode="json"), "loop": loop, "pairs": 4, "targets": 4, "taught": False}
    second = {"generator": MODEL.generator.model_dump(mode="json"), "loop": loop, "batch": 4}
    for name, values in (("first", first), ("second", second)):
        (folder / f"{name}.json").write_text(json.dumps(values))
        yield name, folder / f"{name}.json"


def semo(*words: object) -> None:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output


def test_from_videos_to_an_animated_portrait(clips: Path, whisper: Path, tmp_path: Path) -> None:
    config = dict(config_files(tmp_path))
    one, two, motion = tmp_path / "one", tmp_path / "two", tmp_path / "motion"
    semo("train", "autoencoder", "--data", clips, "--out", one, "--config", config["first"], "--whisper", whisper)
    rows = [json.loads(line) for line in (one / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and set(rows[0]) >= {"loss", "flow", "norm", "rate"}
    assert {p.name for p in (one / "samples").iterdir()} == {"step_000002.png", "step_000004.png"}
    checkpoint = one / "autoencoder.safetensors"
    semo("data", "motion", "--autoencoder", checkpoint, "--videos", clips, "--out", motion)
    data = MotionData(motion)
    assert not data.taught and len(data.training) == 2 or len(data.training) + len(data.held_out) == 3
    semo(
        "train", "generator", "--autoencoder", checkpoint, "--data", motion, "--out", two, "--config", config["second"]
    )
    export_bundle(two / "semo.safetensors", tmp_path / "bundle", precisions=["fp32"], licence="test")
    clip = Animator(EXAMPLES / "portrait.jpg", bundle=tmp_path / "bundle", backend="onnxruntime").from_audio(
        load_audio(EXAMPLES / "speech.wav")[: 16 * SAMPLES_PER_FRAME]
    )
    assert np.asarray(clip.frames).shape == (16, 256, 256, 3)


def test_the_encoder_learns_from_videos_with_masked_patches(clips: Path, whisper: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loop = autoencoder.LoopConfig(steps=3, save_every=3, log_every=1, warmup=1, learning_rate=1e-2, ema=0.0)
    config = autoencoder.TrainConfig(model=MODEL, loop=loop, pairs=4, targets=4, taught=False)
    made = load_checkpoint(autoencoder.train(config, clips, tmp_path, whisper=whisper))[0]
    torch.manual_seed(config.loop.seed)
    from semo_sdk.models.semo import SemoModel

    fresh = SemoModel(MODEL)
    assert not torch.equal(made.encoder.embed.weight, fresh.encoder.embed.weight)
    assert not torch.equal(made.encoder.tokens, fresh.encoder.tokens)


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({"taught": True}, MODEL, "taught=false"),
        ({"only_flow": True}, MODEL, "init"),
        ({}, preset("semo-tiny"), "reader='mesh'"),
        ({"targets": 6}, MODEL, "temporal_window"),
        ({}, MODEL.model_copy(update={"vae": "taef2"}), "--vae"),
    ],
)
def test_settings_that_videos_cannot_satisfy(
    clips: Path, whisper: Path, tmp_path: Path, changes: dict[str, object], model: SemoConfig, message: str
) -> None:
    config = autoencoder.TrainConfig(model=model, **{"taught": False, "targets": 4, **changes})
    with pytest.raises(ConfigError, match=message):
        autoencoder.train(config, clips, tmp_path, whisper=whisper)


def test_recipes_are_complete_and_those_of_semo_base_are_the_papers() -> None:
    names = [p.name.split(".")[:2] for p in sorted((Path(autoencoder.__file__).parent / "recipes").glob("*.json"))]
    assert {tuple(n) for n in names} >= {
        (m, s) for m in ("semo-base", "semo-tiny") for s in ("autoencoder", "generator")
    }
    kinds = {"autoencoder": autoencoder.TrainConfig, "generator": generator.TrainConfig}
    made = {(n, s): parse_settings(kinds[s], recipe(n, s), [], {}) for n, s in names}
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
        autoencoder.TrainConfig, recipe("semo-base", "autoencoder"), ["model.patch=4", "loop.steps=5"], {}
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
