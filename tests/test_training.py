"""Both training stages on a made-up data set: they learn something, resume exactly, and refuse what they must."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from semo_sdk.config import DecoderConfig, EncoderConfig, GeneratorConfig, SemoConfig
from semo_sdk.constants import SAMPLES_PER_FRAME, TAUGHT_SIZE, WINDOW_SAMPLES
from semo_sdk.errors import CheckpointError, ConfigError, InputError
from semo_sdk.media.audio import load_audio
from semo_sdk.models.checkpoint import load_checkpoint, save_checkpoint
from semo_sdk.pipeline.features import extend_window
from semo_sdk.training import autoencoder, generator, motion_data, motion_prepare, teacher
from semo_sdk.training.data import PuppetData, offsets_from, open_mouth, read_ahead, source_points, turn_back
from semo_sdk.training.loop import LoopConfig
from semo_sdk.training.puppet_dataset import motion_target
from semo_sdk.training.puppet_driver import Driver
from semo_sdk.training.puppet_geometry import INNER_LOWER, INNER_UPPER, MESH, from_canonical
from tests.conftest import SMALL_AUDIO

SIDE, POINTS = 64, 500

MODEL = SemoConfig(
    name="small",
    vae="patch",
    encoder=EncoderConfig(hidden=32, layers=1, heads=2),
    decoder=DecoderConfig(
        hidden=32, layers=1, heads=2, temporal_window=4, prior="warp", prior_noise=0.0, warp_layers=1,
        warp_channels=8, refine_channels=8, steps=1,
    ),
    generator=GeneratorConfig(hidden=32, layers=1, heads=2, steps=2),
    audio=SMALL_AUDIO,
)  # fmt: skip


def shifted(image: np.ndarray, by: int) -> np.ndarray:
    return np.roll(image, by, axis=1)


@pytest.fixture(scope="module")
def puppets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three groups of two identities; a frame is the portrait moved sideways, and the field says so."""
    folder = tmp_path_factory.mktemp("puppets")
    rng = np.random.default_rng(0)
    frames, identities = 6, 2
    centres = (np.arange(SIDE) + 0.5) * 4
    grid = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
    for number in range(3):
        group = folder / f"group_{number:05d}"
        group.mkdir()
        shifts = np.concatenate([[0], rng.integers(-12, 13, frames)])
        portraits = rng.integers(0, 255, (identities, 8, 8, 3)).repeat(32, 1).repeat(32, 2).astype(np.uint8)
        images = np.stack([[shifted(p, int(s)) for s in shifts] for p in portraits])
        base = rng.random((identities, 1, POINTS, 2)) * 256
        points = base + np.stack([shifts, np.zeros(len(shifts))], -1)[None, :, None]
        # each cell hangs on three points; weights that are 1 on the first would ignore the others
        triangles = np.zeros((identities, frames, SIDE * SIDE, 3), np.int16)
        barycentric = np.zeros((identities, frames, SIDE * SIDE, 2), np.float16)
        barycentric[..., 0] = 1
        motion = np.zeros((identities, 1 + frames, 30), np.float32)
        motion[..., 4] = shifts / 8
        motion[:, 0, 6:] = np.nan
        arrays = {
            "frames": images,
            "points": points.astype(np.float32),
            "triangles": triangles,
            "barycentric": barycentric,
            "weight": rng.integers(0, 4, (identities, frames, SIDE, SIDE)).astype(np.uint8),
            "motion": motion,
        }
        for name, array in arrays.items():
            np.save(group / f"{name}.npy", array)
        (group / "meta.json").write_text(json.dumps({"clip": "a000", "first": 2}))
    face, basis = rng.standard_normal((2, 468, 3)), rng.standard_normal((2, 24, 468, 3))
    Driver(face[0], face[0], 0.05 * basis[0], 0.02 * basis[1], 0.01 * face[1], face[1]).save(folder / "driver.npz")
    assert len(grid) == SIDE * SIDE
    return folder


def first_stage(steps: int, **changes: object) -> autoencoder.TrainConfig:
    loop = LoopConfig(steps=steps, save_every=3, log_every=1, warmup=1, learning_rate=1e-3)
    return autoencoder.TrainConfig(
        **{
            "model": MODEL, "loop": loop, "stills": 4, "pairs": 2, "warp_from": 0.3, "flow_from": 0.6,
            "stills_later": 2, "min_face": 0.0, "validation_groups": 1, **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(puppets: Path, whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage1")
    autoencoder.train(first_stage(9), puppets, out, whisper=whisper)
    return out


def test_field_of_a_shift_is_the_shift() -> None:
    centres = (np.arange(SIDE) + 0.5) * 4
    grid = np.stack(np.meshgrid(centres, centres), -1).reshape(1, -1, 2).astype(np.float32)
    corners = np.arange(SIDE * SIDE)[None, None, :, None].repeat(3, -1)
    weights = np.full((1, 1, SIDE * SIDE, 2), 1 / 3, np.float32)
    source = source_points(grid[None] + [5, 0], corners, weights)  # the reference's points lie 5 px further right
    np.testing.assert_allclose(offsets_from(source)[0, 0, 0], 5 / 128, atol=1e-3)
    np.testing.assert_allclose(offsets_from(source)[0, 0, 1], 0, atol=1e-3)


def test_turning_back_undoes_the_pose_and_keeps_the_expression() -> None:
    rng = np.random.default_rng(0)
    canonical = rng.standard_normal((MESH, 3)) * 0.3
    poses = np.array([[[0.1, -0.1, 0.05, 120, 130, 120], [-0.2, 0.1, 0.1, 130, 120, 140], [0.1, 0, 0, 110, 128, 128]]])
    shapes = canonical + 0.05 * rng.standard_normal((1, 3, MESH, 3)) * [1, 1, 0]  # expression in the plane
    seen = from_canonical(shapes, poses)[..., :2]
    motion = motion_target(poses, np.zeros((1, 3, 24)))
    wanted = from_canonical(shapes[:, 1:], np.repeat(poses[:, :1], 2, axis=1))[..., :2]
    np.testing.assert_allclose(turn_back(seen[:, 1:], motion, canonical), wanted, atol=1e-3)


def test_an_open_mouth_is_marked_between_the_lips_only() -> None:
    points = np.full((MESH, 2), 128.0)
    across = np.linspace(100, 156, len(INNER_UPPER))
    bend = 8 * np.sin(np.linspace(0, np.pi, len(INNER_UPPER)))
    points[INNER_UPPER] = np.stack([across, 160 - bend], 1)
    points[INNER_LOWER] = np.stack([across, 160 + bend], 1)
    marked = open_mouth(points)
    assert marked[80, 64] == 1
    assert marked.sum() == pytest.approx(2 * 8 * 2 / np.pi * 56 / 4, rel=0.1)
    points[INNER_LOWER] = points[INNER_UPPER]
    assert not open_mouth(points).any()


def test_batches_depend_on_the_generator_alone(puppets: Path) -> None:
    data = PuppetData(puppets)
    a, b, c = (data.batch(np.random.default_rng(seed), groups=2, identities=2, frames=2) for seed in (1, 1, 2))
    assert torch.equal(a.target, b.target)
    assert torch.equal(a.field, b.field)
    assert not torch.equal(a.target, c.target)
    assert a.target.shape == (4, 2, 256, 256, 3)
    assert a.field.shape == a.coarse.shape == (4, 2, 2, SIDE, SIDE)
    assert a.opening.shape == (4, 2, 2 * SIDE, 2 * SIDE)
    groups = torch.arange(4) // 2
    assert torch.equal(groups[a.driver], groups)  # a driver is always of the same group


def test_no_data_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="semo data puppet"):
        PuppetData(tmp_path)
    with pytest.raises(InputError, match="semo data motion"):
        motion_data.MotionData(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_read_ahead_keeps_the_order_and_hands_on_errors(workers: int) -> None:
    def make(step: int) -> int:
        if step == 6:
            raise OSError("disk")
        return step

    seen = []
    with pytest.raises(OSError, match="disk"):
        for item in read_ahead(make, 2, 10, workers=workers):
            seen.append(item)
    assert seen == [2, 3, 4, 5]
    assert not list(read_ahead(make, 5, 3, workers=workers))


def test_first_stage_runs_through_its_phases(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert "surface" in rows[0] and "field" not in rows[0]
    assert "field" in rows[4] and "flow" not in rows[3]
    assert "flow" in rows[-1]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert (trained / "loss.png").stat().st_size > 1000
    assert list((trained / "samples").glob("*.png"))
    model, metadata = load_checkpoint(trained / "autoencoder.safetensors")
    assert metadata["stage"] == "autoencoder"
    assert model.config == MODEL


def test_resumed_run_equals_an_uninterrupted_one(puppets: Path, whisper: Path, trained: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    config = first_stage(9)
    saved = autoencoder.save_checkpoint

    def stop_at_first_save(*args: object, **kwargs: object) -> None:
        saved(*args, **kwargs)  # type: ignore[arg-type]
        raise Stopped

    autoencoder.save_checkpoint = stop_at_first_save
    try:
        with pytest.raises(Stopped):
            autoencoder.train(config, puppets, tmp_path, whisper=whisper)
    finally:
        autoencoder.save_checkpoint = saved
    with pytest.raises(CheckpointError, match="resume"):
        autoencoder.train(config, puppets, tmp_path, whisper=whisper)
    autoencoder.train(config, puppets, tmp_path, whisper=whisper, resume=True)
    a, b = load_file(trained / "autoencoder.safetensors"), load_file(tmp_path / "autoencoder.safetensors")
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_resume_without_a_run_or_of_another_model(puppets: Path, whisper: Path, tmp_path: Path, trained: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        autoencoder.train(first_stage(3), puppets, tmp_path / "new", whisper=whisper, resume=True)
    (tmp_path / "state.safetensors").write_bytes((trained / "state.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="truncated"):
        autoencoder.train(first_stage(3), puppets, tmp_path, whisper=whisper, resume=True)


def write_clip(path: Path, rng: np.random.Generator) -> None:
    from semo_sdk.media.video import VideoWriter

    frames = rng.integers(0, 255, (40, 64, 64, 3)).astype(np.uint8)
    sound = (0.1 * rng.standard_normal(40 * 640)).astype(np.float32)
    with VideoWriter(path, (64, 64)) as writer:
        writer.write(frames, sound)


@pytest.mark.parametrize("taught", [True, False])
def test_second_stage_from_clips_to_a_whole_model(puppets: Path, trained: Path, tmp_path: Path, taught: bool) -> None:
    rng = np.random.default_rng(0)
    grid, landmarks = tmp_path / "grid", puppets / "driver"
    grid.mkdir()
    landmarks.mkdir(exist_ok=True)
    names = ("a000", "b000", "c000", "d000")
    for name in names:
        write_clip(grid / f"{name}.mp4", rng)
        np.save(landmarks / f"{name}.npy", 16 + 32 * rng.random((40, 478, 3)).astype(np.float32))
    poses = np.tile([0.0, 0.0, 0.0, 30.0, 32.0, 32.0], (160, 1)) + 0.1 * rng.standard_normal((160, 6))
    np.savez(
        puppets / "driver_cache.npz",
        names=np.array(names),
        starts=np.arange(0, 161, 40),
        poses=poses,
        coefficients=rng.standard_normal((160, 24)),
    )
    model, _ = load_checkpoint(trained / "autoencoder.safetensors")
    data = tmp_path / "motion"
    held, motion_prepare.HELD_OUT_CLIPS = motion_prepare.HELD_OUT_CLIPS, 2
    try:
        motion_prepare.prepare(model, grid, puppets, data, taught=taught, held_out=2, groups=2, identities=2, windows=5)
    finally:
        motion_prepare.HELD_OUT_CLIPS = held
    loaded = motion_data.MotionData(data)
    assert len(loaded.held_out) == 2
    batch = loaded.batch(np.random.default_rng(0), 8)
    assert batch.target.shape == (8, 16, 512)
    assert batch.context.shape == (8, 8, 512)
    assert set(batch.available.tolist()) <= set(range(4, 17))
    assert batch.valid.any(1).all()
    config = generator.TrainConfig(
        generator=MODEL.generator, loop=LoopConfig(steps=4, save_every=2, log_every=1, warmup=1), batch=8
    )
    path = generator.train(config, trained / "autoencoder.safetensors", data, tmp_path / "stage2")
    whole, metadata = load_checkpoint(path)
    assert metadata["stage"] == "generator"
    assert torch.equal(whole.encoder.embed.weight, model.encoder.embed.weight)  # the first stage is frozen
    assert whole.generator.std.std() > 0
    scores = [json.loads(line) for line in (tmp_path / "stage2" / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in scores] == [2, 4]
    assert {"matched", "mismatched"} <= set(scores[0])

    heard = np.zeros(WINDOW_SAMPLES, np.float32)  # what is trained on is what a live session hears
    for end, features in loaded.passes(loaded.held_out[0]):
        sound = load_audio(grid / f"{names[-2]}.mp4")[(end - 16) * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME]
        heard = extend_window(heard, sound)
        with torch.no_grad():
            live = whole.whisper.last(torch.from_numpy(heard)[None])[0].numpy()
        assert np.corrcoef(live.ravel(), features.ravel())[0, 1] > 0.99

    deaf, _ = load_checkpoint(trained / "autoencoder.safetensors")
    torch.nn.init.normal_(next(deaf.whisper.parameters()))
    save_checkpoint(tmp_path / "deaf.safetensors", deaf, {"stage": "autoencoder"})
    with pytest.raises(InputError, match="other Whisper weights"):
        generator.train(config, tmp_path / "deaf.safetensors", data, tmp_path / "stage2b")


def test_teacher_writes_and_reads_the_same() -> None:
    motion = torch.randn(5, TAUGHT_SIZE)
    token = teacher.teach(motion, 512)
    torch.testing.assert_close(teacher.read(token), motion, atol=1e-4, rtol=1e-4)
    assert torch.equal(teacher.teach(torch.full((1, 30), torch.nan), 512), torch.zeros(1, 512))
    known = torch.randn(2, 4, 30)
    reference = teacher.teach(torch.randn(2, 1, 30), 512)  # the encoder's opinion, wrong about the pose
    still = known.clone()
    still[:, 1:, :6] = known[:, :1, :6]
    targets = teacher.read(teacher.taught_targets(still, reference))
    torch.testing.assert_close(
        targets[..., :6], teacher.read(reference)[..., :6].expand(-1, 3, -1), atol=1e-4, rtol=1e-4
    )


def test_a_self_supervised_first_stage_trains_too_and_in_mixed_precision(
    puppets: Path, whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    linear = torch.nn.Linear.forward

    def watched(self: torch.nn.Linear, x: Tensor) -> Tensor:
        out = linear(self, x)
        seen.add((self.weight.dtype, out.dtype))
        return out

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    path = autoencoder.train(first_stage(4, taught=False), puppets, tmp_path, whisper=whisper)
    assert load_checkpoint(path)[1]["step"] == "4"
    assert seen == {(torch.float32, torch.bfloat16)}


def test_the_flow_learns_last_from_a_warp_that_stays(puppets: Path, whisper: Path, tmp_path: Path) -> None:
    autoencoder.train(first_stage(8, warp_from=0.0, flow_from=0.75), puppets, tmp_path, whisper=whisper)
    state = load_file(tmp_path / "state.safetensors")
    steps = {name.removeprefix("optimizer/step/"): int(n) for name, n in state.items() if "/step/" in name}
    fixed = {name for name in steps if name.startswith(("encoder.", "surface.", "decoder.warp."))}
    assert {steps[name] for name in fixed} == {6} and {steps[name] for name in steps.keys() - fixed} == {2}
    assert all(torch.equal(state[f"weight/{name}"], state[f"ema/{name}"]) for name in fixed)
    rates = [json.loads(line)["rate"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates[5] > 5 * rates[4]  # as logged after the step: the schedule begins anew with the flow


def test_a_run_for_the_flow_alone_leaves_encoder_and_warp(
    puppets: Path, whisper: Path, trained: Path, tmp_path: Path
) -> None:
    start = trained / "autoencoder.safetensors"
    config = first_stage(3, flow_from=0.0, huber=0.05, targets=4)
    path = autoencoder.train(config, puppets, tmp_path, whisper=whisper, init=start)
    before, after = load_file(start), load_file(path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("decoder.out.") for name in changed)
    assert not [name for name in changed if name.startswith("encoder.") or ".warp." in name]
    with pytest.raises(ConfigError, match="init"):
        autoencoder.train(config, puppets, tmp_path / "new", whisper=whisper)


def test_stage_files_are_not_pickles(trained: Path) -> None:
    for path in trained.glob("*.safetensors"):
        assert load_file(path)
    assert not [p for p in trained.rglob("*") if p.suffix in {".pt", ".pth", ".pkl", ".ckpt"}]
