"""The script that trains on a lent GPU, on a CPU: what travels arrives, runs fit their time, weights come back."""

# ruff: noqa: F401, F811 - a fixture of another file
from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file

from semo_sdk.benchmarks import gpu_box, gpu_training, gpu_training_data, gpu_training_run, gpu_training_weights
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.errors import CheckpointError
from semo_sdk.models.checkpoint import load_checkpoint, save_checkpoint
from semo_sdk.models.semo import SemoModel
from semo_sdk.training import autoencoder, generator
from semo_sdk.training.loop import LoopConfig
from semo_sdk.training.motion_data import MotionData
from semo_sdk.training.motion_prepare import HELD_OUT_CLIPS
from semo_sdk.training.settings import parse_settings, recipe
from semo_sdk.training.spoken_data import Recording
from tests.test_training import MODEL, first_stage, puppets, write_clip

SCRIPT = gpu_box.ROOT / "benchmarks" / "gpu_training.py"
FRAMES = 40  # of a film


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A box's folder for what it makes."""
    monkeypatch.setenv("SEMO_WORK", str(tmp_path / "box"))
    monkeypatch.setenv("SEMO_SITE", str(tmp_path / "site"))
    return tmp_path / "box" / "training"


def sources(folder: Path, driver: Path) -> argparse.Namespace:
    """What `pack` is given: as many films as are held out and two more, one after the other the same film."""
    rng = np.random.default_rng(0)
    for name in ("clips", "portraits", "puppets"):
        (folder / name).mkdir(parents=True)
    write_clip(folder / "film.mp4", rng)
    names = [f"a{number:03}" for number in range(HELD_OUT_CLIPS + 2)]
    for name in names:
        shutil.copy(folder / "film.mp4", folder / "clips" / f"{name}.mp4")
    shutil.copy(driver, folder / "puppets" / "driver.npz")
    np.savez(folder / "puppets" / "portraits.npz", names=np.array([]))
    frames = len(names) * FRAMES
    np.savez(
        folder / "puppets" / "driver_cache.npz",
        names=np.array(names),
        starts=np.arange(0, frames + 1, FRAMES),
        poses=np.tile([0.0, 0.0, 0.0, 30.0, 32.0, 32.0], (frames, 1)) + 0.1 * rng.standard_normal((frames, 6)),
        coefficients=rng.standard_normal((frames, 24)),
    )
    (folder / "portraits" / "nobody.jpg").write_bytes(rng.bytes(3000))
    (folder / "whisper.safetensors").write_bytes(rng.bytes(2000))
    paths = {name: folder / name for name in ("clips", "portraits", "puppets")}
    return argparse.Namespace(**paths, whisper=folder / "whisper.safetensors", init=None, spoken=0, wheels=False)


def say_noise(*_: object) -> list[Recording]:
    """Stands for flite."""
    rng = np.random.default_rng(3)
    lengths = [(30, False), (25, False), (33, True)]
    sounds = [(0.2 * rng.standard_normal(n * SAMPLES_PER_FRAME)).astype(np.float32) for n, _ in lengths]
    films = Recording(sounds[0], rng.standard_normal((30, 30)), held_out=False, spoken=False)
    return [films] + [Recording(s, rng.standard_normal((n, 30)), h, True) for s, (n, h) in zip(sounds, lengths)]  # noqa: B905


@pytest.fixture
def small_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_box, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(gpu_box, "LOAD_BYTES", 250_000)


def test_data_travels_in_loads_and_arrives(
    tmp_path: Path,
    box: Path,
    puppets: Path,
    small_loads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = sources(tmp_path / "here", puppets / "driver.npz")
    here.spoken = 2
    monkeypatch.setattr(gpu_training_data, "recordings", say_noise)
    loads = gpu_training.pack(tmp_path / "loads", here)
    assert sorted((tmp_path / "loads").iterdir(), key=lambda path: int(path.name)) == loads and len(loads) > 2
    assert all(sum(path.stat().st_size for path in load.iterdir()) <= 250_000 for load in loads)
    with pytest.raises(SystemExit, match="holds loads already"):
        gpu_training.pack(tmp_path / "loads", here)
    for load in reversed(loads):  # in any order, by the script alone, without any package
        command = [sys.executable, "-S", str(SCRIPT), "stow", str(load)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert told.startswith("whole now: ")
    data = box / "data"
    assert not list((box / "pieces").iterdir()), "nothing waits for more"
    for name in ("clips", "portraits", "puppets"):
        sent = {path.name: path.read_bytes() for path in (tmp_path / "here" / name).iterdir()}
        assert {path.name: path.read_bytes() for path in (data / name).iterdir()} == sent
    assert (data / "whisper.safetensors").read_bytes() == here.whisper.read_bytes()
    came, said = gpu_training_data.recorded(data / "spoken"), say_noise()[1:]
    assert [r.held_out for r in came] == [r.held_out for r in said] and all(r.spoken for r in came)
    for a, b in zip(came, said, strict=True):
        np.testing.assert_allclose(a.pcm, b.pcm.clip(-1, 1), atol=1 / 32768)
        np.testing.assert_allclose(a.motion, b.motion, atol=2e-3)


def test_what_must_travel_is_named_if_it_is_missing(tmp_path: Path, puppets: Path) -> None:
    here = sources(tmp_path / "here", puppets / "driver.npz")
    (here.puppets / "driver_cache.npz").unlink()
    with pytest.raises(SystemExit, match=r"driver_cache\.npz does not exist"):
        gpu_training.pack(tmp_path / "loads", here)


def test_steps_are_as_many_as_the_time_has_room_for() -> None:
    costs = {"encoder": 0.1, "warp": 0.4, "flow": 0.2}
    rows, now = [], 30.0  # the first steps wait for what is made ahead, and for the GPU
    for name, count in (("encoder", 20), ("warp", 130), ("flow", 50)):
        for step in range(count):
            now += costs[name] if step >= count // 2 else 0.0  # batches made ahead cost nothing
            rows.append({"loss": 1.0, name: 1.0, "seconds": now})
    share = (0.1 * 20 + 0.4 * 130 + 0.2 * 50) / 200
    assert gpu_training_run.seconds_per_step(rows) == pytest.approx(share)
    assert gpu_training_run.seconds_per_step(rows[:1]) == rows[0]["seconds"]
    plan = {"step": share, "start": 20.0, "save": 3.0}
    steps = gpu_training_run.fitting_steps(plan, 600)
    took = 20 + steps * share + (gpu_training_run.SAVES + 1) * 3
    assert 600 * gpu_training_run.MARGIN - share <= took <= 600 * gpu_training_run.MARGIN
    assert gpu_training_run.fitting_steps(plan, 30) == 0


@pytest.mark.parametrize(
    ("stage", "kind"), [("autoencoder", autoencoder.TrainConfig), ("generator", generator.TrainConfig)]
)
def test_a_recipe_is_a_name_or_a_file(tmp_path: Path, stage: str, kind: type[BaseModel]) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"loop": {"steps": 70}}')
    made = {name: gpu_training_run.recipe(name, stage) for name in ("semo-tiny", "semo-base", str(own))}
    assert all(isinstance(config, kind) for config in made.values())
    assert made["semo-base"].loop.steps > made["semo-tiny"].loop.steps > made[str(own)].loop.steps == 70


def test_what_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    run = gpu_training_run.Run(tmp_path, argparse.Namespace())
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    process = run.begin("slow", "-c", child)
    log = tmp_path / "runs" / "slow.log"
    while not log.read_text().strip():
        assert process.poll() is None
    assert not run.wait("slow", process, until=0.0)
    state, patience = Path(f"/proc/{int(log.read_text())}/stat"), time.monotonic() + 30
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while state.read_text().split()[2] != "Z":  # killed, but the kernel takes a moment
            assert time.monotonic() < patience
            time.sleep(0.01)
    assert not run.do("bad", float("inf"), "-c", "raise SystemExit(3)")
    assert run.do("good", float("inf"), "-c", "")


def save_runs(runs: Path) -> tuple[SemoModel, SemoModel]:
    """Checkpoints of both stages, as training leaves them: the second one's first stage is not the first one."""
    torch.manual_seed(0)
    first, second = SemoModel(MODEL), SemoModel(MODEL)
    save_checkpoint(runs / gpu_training_weights.FIRST, first, {"stage": "autoencoder", "step": "7"})
    save_checkpoint(runs / gpu_training_weights.SECOND, second, {"stage": "generator", "step": "9"})
    return first, second


def test_weights_come_back_in_pieces_and_are_put_together(
    tmp_path: Path, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_training, "SHARD_BYTES", 1 << 18)
    out, whole = tmp_path / "out", tmp_path / "made" / "model.safetensors"
    assert gpu_training.fetch(tmp_path / "early", 0) == ["run.tar.gz"], "before the first save there are only logs"
    first, second = save_runs(box / "runs")
    (box / "progress.log").write_text("the end\n")
    (box / "runs" / "generator" / "validation.jsonl").write_text("{}\n")
    weights = gpu_training.training_folder() / "model.safetensors"
    needed = -(-(sum(v.numel() for v in first.state_dict().values()) * 2) // gpu_training.SHARD_BYTES)
    monkeypatch.setattr(gpu_training, "SHARDS", needed + 1)
    names = gpu_training.fetch(out, 0)
    assert names[-1] == "run.tar.gz" or "run.tar.gz" in names
    assert len(names) >= 4 and all((out / name).stat().st_size <= gpu_training.SHARD_BYTES for name in names)
    command = [sys.executable, "-S", str(SCRIPT), "join", str(out), "--out", str(whole)]
    subprocess.run(command, check=True, capture_output=True)
    assert whole.read_bytes() == weights.read_bytes()
    assert (whole.with_suffix("") / "progress.log").read_text() == "the end\n"
    assert (whole.with_suffix("") / "runs" / "generator" / "validation.jsonl").is_file()
    wanted = {**first.state_dict(), **{f"generator.{k}": v for k, v in second.generator.state_dict().items()}}
    stored = load_file(whole)
    assert stored.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(stored[name], value.half() if value.is_floating_point() else value), name
    model, about = load_checkpoint(whole)
    assert model.config == MODEL and about["stage"] == "generator"
    assert (about["step"], about["first_stage_step"]) == ("9", "7")

    piece = out / "model.safetensors.001"
    kept = piece.read_bytes()
    piece.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(SystemExit, match="was damaged"):
        gpu_training.join(out, tmp_path / "damaged.safetensors")
    piece.unlink()
    with pytest.raises(SystemExit, match="lacks a piece"):
        gpu_training.join(out, tmp_path / "lacking.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


def test_one_stage_alone_and_weights_that_float16_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights yet"):
        gpu_training_weights.write_whole(tmp_path, tmp_path / "out.safetensors")
    first, _ = save_runs(tmp_path)
    (tmp_path / gpu_training_weights.SECOND).unlink()
    with torch.no_grad():
        first.encoder.tokens.fill_(1e6)
    save_checkpoint(tmp_path / gpu_training_weights.FIRST, first, {"stage": "autoencoder", "step": "7"})
    about = gpu_training_weights.write_whole(tmp_path, tmp_path / "out.safetensors")
    assert about == {"stage": "autoencoder", "step": "7"}
    assert torch.equal(load_checkpoint(tmp_path / "out.safetensors")[0].encoder.tokens, first.encoder.tokens)


def test_a_run_needs_its_data_and_is_alone(
    tmp_path: Path,
    box: Path,
    puppets: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SystemExit, match="stow every load"):
        gpu_training.start(argparse.Namespace())
    work = gpu_training.training_folder()
    (work / "data").mkdir()
    (work / "data" / "whisper.safetensors").touch()
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)", gpu_training.RUN]
    with subprocess.Popen(sleeper) as process:
        (work / "pid").write_text(str(process.pid))
        try:
            assert gpu_training.start(argparse.Namespace()) == process.pid
            assert not (work / "progress.log").exists()
        finally:
            process.kill()
    assert gpu_training.running(work) is None


@pytest.mark.slow
def test_from_data_to_a_checkpoint_as_on_a_box(
    tmp_path: Path,
    box: Path,
    puppets: Path,
    whisper: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the script's path, where the package is not installed; puppets are rendered already, for lack of faces."""
    here = sources(tmp_path / "here", puppets / "driver.npz")
    here.spoken, here.whisper = 2, whisper
    monkeypatch.setattr(gpu_training_data, "recordings", say_noise)
    for load in gpu_training.pack(tmp_path / "loads", here):
        subprocess.run([sys.executable, "-S", str(SCRIPT), "stow", str(load)], check=True)
    for group in puppets.glob("group_*"):
        shutil.copytree(group, box / "data" / "puppets" / group.name)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(first_stage(30).model_dump_json())
    loop = LoopConfig(steps=30, learning_rate=1e-3)
    second.write_text(generator.TrainConfig(generator=MODEL.generator, loop=loop, batch=4).model_dump_json())
    # one group more than there are: rendering fails, for portraits that are none, and nothing else does
    settings = ["--minutes", "60", "--groups", "4", "--most", "1", "--probe", "10", "--share", "0.5"]
    settings += ["--autoencoder", str(first), "--generator", str(second)]

    def once() -> tuple[str, Path]:
        subprocess.run([sys.executable, "-S", str(SCRIPT), "start", *settings], check=True)
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        fetching = [sys.executable, "-S", str(SCRIPT), "fetch", "--wait", "3600", "--out", str(out)]
        return subprocess.run(fetching, check=True, capture_output=True, text=True).stdout, out

    told, out = once()
    assert (tmp_path / "site" / "semo_sdk" / "benchmarks").is_dir(), "the package was not the installed one"
    runs = box / "runs"
    assert "render: failed" in told and "the end" in told and told.count(": failed") == 1, told
    assert "autoencoder: 30 steps" in told and "generator: 30 steps" in told and "evaluate: done" in told, told
    data = MotionData(box / "data" / "motion")
    assert [r.spoken for r in data.training] == [False] * 4 + [True] * 2 and data.held_out[-1].spoken
    scores = (runs / "evaluation.json").read_text()
    assert '"flow"' in scores and '"field"' in scores and '"matched"' in scores
    whole = gpu_training.join(out, tmp_path / "model.safetensors")
    stored = load_file(whole)
    wanted = load_file(runs / gpu_training_weights.FIRST)
    later = load_file(runs / gpu_training_weights.SECOND)
    wanted |= {name: value for name, value in later.items() if name.startswith("generator.")}
    assert all(torch.equal(stored[k], v.half() if v.is_floating_point() else v) for k, v in wanted.items())
    model, about = load_checkpoint(whole)
    assert model.config == MODEL and (about["step"], about["first_stage_step"]) == ("30", "30")
    assert list((whole.with_suffix("") / "runs" / "autoencoder" / "samples").glob("*.png"))
    again, _ = once()
    assert "autoencoder: goes on, 30 steps in all" in again and again.count("render: begins") == 1, again
