"""Training on real videos: any layout of folders becomes clips, both stages train on them, and the model animates."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from semo_sdk.cli import app
from semo_sdk.config import DecoderConfig, EncoderConfig, GeneratorConfig, SemoConfig, preset
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.errors import ConfigError, InputError
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import crop_square, load_image
from semo_sdk.media.video import VideoWriter, read_video
from semo_sdk.models.checkpoint import load_checkpoint
from semo_sdk.training import autoencoder
from semo_sdk.training.motion_data import MotionData
from semo_sdk.training.settings import recipe
from semo_sdk.training.videos import VideoData, read_frames
from semo_sdk.training.videos_prepare import Options, find_videos, prepare_videos
from tests.conftest import SMALL_AUDIO

EXAMPLES = Path(__file__).parent.parent / "examples"
DOCS = (EXAMPLES.parent / "docs" / "training.md").read_text(encoding="utf-8")
CALLS = ("semo ", "semo_sdk.cli ")
FRAMES, SIDE = 55, 256

# the paper's model (noise prior, tokens of a transformer, joint attention), but small
MODEL = SemoConfig(
    name="small",
    vae="patch",
    encoder=EncoderConfig(hidden=32, layers=1, heads=2),
    decoder=DecoderConfig(hidden=32, layers=1, heads=2, temporal_window=4, cache_reference=False, steps=2),
    generator=GeneratorConfig(hidden=32, layers=1, heads=2, steps=2),
    audio=SMALL_AUDIO,
)
WARP = MODEL.decoder.model_copy(update={"prior": "warp", "prior_noise": 0.0, "warp_layers": 1})


def write_video(path: Path, picture: np.ndarray | None, sound: np.ndarray | None, frames: int = FRAMES) -> None:
    """A photo that sways (or noise), as a video."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, (SIDE, SIDE)) as writer:
        for i in range(frames):
            x, y = round(8 + 8 * np.sin(i / 5)), round(8 + 8 * np.cos(i / 7))
            frame = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
            frame = frame if picture is None else picture[y : y + SIDE, x : x + SIDE]
            piece = None if sound is None else sound[i * SAMPLES_PER_FRAME : (i + 1) * SAMPLES_PER_FRAME]
            writer.write(frame, piece)


def photo(name: str) -> np.ndarray:
    """The middle of an example portrait, a little larger than a video's frame."""
    image = load_image(EXAMPLES / name)
    height, width = image.shape[:2]
    side = min(height, width)
    return crop_square(image, ((width - side) / 2, (height - side) / 2, side), SIDE + 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets side by side: sound inside, MEAD's layout with the sound elsewhere, and what must be left out."""
    folder = tmp_path_factory.mktemp("videos")
    one, two = (photo(name) for name in ("portrait.jpg", "portrait2.jpg"))
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


def test_batches_of_videos_show_one_person_each(clips: Path) -> None:
    data = VideoData(clips).part(held_out=False)
    a, b = (data.batch(np.random.default_rng(1), groups=2, identities=2, frames=4) for _ in range(2))
    assert torch.equal(a.target, b.target) and a.target.shape == (4, 4, 256, 256, 3)
    assert a.driver.tolist() == [0, 1, 2, 3]
    films = [torch.from_numpy(read_frames(clip.path, range(clip.frames))) for clip in data.clips]
    for reference, target in zip(a.reference, a.target, strict=True):
        film = next(film for film in films if (film == target[0]).flatten(1).all(1).any())
        first = int((film == target[0]).flatten(1).all(1).nonzero()[0])
        assert torch.equal(film[first : first + 4], target)  # in a row
        assert (film == reference).flatten(1).all(1).any()  # of the same clip
    with pytest.raises(InputError, match="semo data videos"):
        VideoData(clips / "clips")


def config_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """A file of settings for each stage."""
    loop = {"steps": 4, "save_every": 2, "log_every": 1, "warmup": 1}
    first = {"model": MODEL.model_dump(mode="json"), "loop": loop, "pairs": 4, "targets": 4, "taught": False}
    second = {"generator": MODEL.generator.model_dump(mode="json"), "loop": loop, "batch": 4}
    for name, values in (("autoencoder", first), ("generator", second)):
        (folder / f"{name}.json").write_text(json.dumps(values))
        yield name, folder / f"{name}.json"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)


def run(words: list[str]) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_the_guide_leads_from_videos_to_an_animated_portrait(
    folder: Path, clips: Path, whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/training.md's commands as they stand, but for a smaller model."""
    monkeypatch.chdir(tmp_path)
    Path("VIDEOS").symlink_to(folder)
    Path("CLIPS").symlink_to(clips)  # prepared already: the first command has nothing to do
    for name, example in (("photo.jpg", "portrait.jpg"), ("speech.wav", "speech.wav")):
        shutil.copy(EXAMPLES / example, name)
    config = dict(config_files(tmp_path))
    for line in next(block for block in blocks("sh") if "semo data videos" in block).splitlines():
        words = line.split()[1:]
        if words[0] == "train":
            stage = words[1]
            words[words.index("semo-base")] = str(config[stage])
            if stage == "autoencoder":
                words[words.index("--vae") :] = ["--whisper", str(whisper)]
        run(words)
    rows = [json.loads(line) for line in Path("runs/one/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and set(rows[0]) >= {"loss", "flow", "norm", "rate"}
    assert {p.name for p in Path("runs/one/samples").iterdir()} == {"step_000002.png", "step_000004.png"}
    data = MotionData("MOTION")
    assert not data.taught and (len(data.training), len(data.held_out)) == (2, 1)
    (video,) = tmp_path.glob("*.mp4")
    frames = list(read_video(video))
    assert len(frames) == 125 and frames[0].shape == (256, 256, 3)


def test_the_guides_python_runs(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("CLIPS").symlink_to(clips)
    (code,) = blocks("python")
    exec(compile(code, "docs/training.md", "exec"), {"__name__": "__main__"})


def test_the_guides_commands_and_recipes_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line[line.index(start) + len(start) :].split() for line in lines for start in CALLS if start in line]
    assert len(commands) >= 7
    for words in commands:
        name = words[:2] if words[0] in ("train", "data", "bench") else words[:1]
        shown = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
        assert not [word for word in words if word.startswith("--") and word not in shown], words
    for name in re.findall(r"^\| `(semo-[a-z-]+)` \|", DOCS, re.MULTILINE):
        assert recipe(name, "autoencoder") is not None


@pytest.mark.slow
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
        ({}, MODEL.model_copy(update={"decoder": WARP}), "init"),
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
