"""SyncNets: what goes into them, shifts that are found, the published network's loader, and a few training steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semo_sdk.benchmarks import sync, syncnet, syncnet_v2
from semo_sdk.benchmarks.faces import MESH, FaceSeries
from semo_sdk.benchmarks.footage import Footage
from semo_sdk.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from semo_sdk.errors import CheckpointError
from semo_sdk.training import syncnet_train
from semo_sdk.training.syncnet import (
    CORNERS,
    FLOOR,
    SIDE,
    SyncNet,
    found_in_time,
    load_syncnet,
    log_mel,
    mouth_crops,
    save_syncnet,
    shifted_distances,
)


def mesh_of(frames: int, x: float, y: float, size: float) -> np.ndarray:
    """(frames, 478, 3) meshes with eyes ``size`` apart and a mouth below their middle (x, y)."""
    mesh = np.zeros((frames, MESH, 3))
    mesh[:, :, :2] = x, y
    mesh[:, 33, 0], mesh[:, 263, 0] = x - size / 2, x + size / 2
    mesh[:, list(CORNERS), 1] = y + 0.7 * size
    mesh[:, CORNERS[0], 0], mesh[:, CORNERS[1], 0] = x - 0.25 * size, x + 0.25 * size
    return mesh


def test_crops_follow_the_eyes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (25, 25, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.repeat(image[None], 8, axis=0)
    still = mouth_crops(frames, mesh_of(8, 90, 60, 60))
    assert still.shape == (8, SIDE, SIDE) and still.dtype == np.uint8 and still.std() > 10
    moved = mouth_crops(np.roll(frames, (9, 14), axis=(1, 2)), mesh_of(8, 104, 69, 60))
    assert np.array_equal(still, moved)
    wide = frames[:, ::-1].repeat(2, axis=1).repeat(2, axis=2)[:, ::-1]
    large = mouth_crops(wide, mesh_of(8, 180, 120, 120))
    assert np.abs(large.astype(float) - still).mean() < 12
    lost = mesh_of(8, 90, 60, 60)
    lost[3] = np.nan
    assert np.array_equal(mouth_crops(frames, lost), still)
    with pytest.raises(ValueError, match="no frame"):
        mouth_crops(frames, np.full((8, MESH, 3), np.nan))


def test_a_mouth_that_moves_in_its_face_is_seen_to_move() -> None:
    frames = np.repeat(np.arange(0, 200, dtype=np.uint8)[None, :, None, None], 20, 0).repeat(200, 2).repeat(3, 3)
    mesh = mesh_of(20, 100, 60, 50)
    mesh[10:, list(CORNERS), 1] += 6  # the lips drop in half of the frames: the crop stays where they are on average
    crops = mouth_crops(frames, mesh).astype(float)
    assert np.allclose(crops[2], crops[17])


@pytest.mark.parametrize("late", [-4, 0, 7])
def test_a_shift_is_found(late: int) -> None:
    sound = np.random.default_rng(1).standard_normal((90, 8))
    lips = np.roll(sound, late, axis=0)
    distances = shifted_distances(lips, sound, 15)
    assert distances.shape == (60, 31)
    distance, confidence, offset = sync.summary(distances)
    assert (distance, offset) == (0, late) and confidence > 1
    assert found_in_time(distances, 1) == (abs(late) <= 1) and found_in_time(distances, 60, tolerance=7) == 1
    assert not len(shifted_distances(lips[:30], sound[:30], 15))


def test_log_mel_depends_on_the_past_alone_and_is_padded() -> None:
    pcm = np.random.default_rng(2).standard_normal(10 * SAMPLES_PER_FRAME).astype(np.float32) * 0.1
    whole, part = log_mel(pcm, 12), log_mel(pcm, 6)
    assert whole.shape == (80, 48) and np.allclose(whole[:, :24], part, atol=1e-5)
    assert np.allclose(whole[:, 44:], FLOOR)


def test_weights_are_kept_and_others_refused(tmp_path: Path) -> None:
    network, path = SyncNet(), tmp_path / "net.safetensors"
    save_syncnet(network, path, {"step": "3"})
    loaded, metadata = load_syncnet(path)
    assert metadata == {"step": "3"} and path.stat().st_size < 1_000_000
    crops = torch.randint(0, 256, (1, 9, SIDE, SIDE))
    assert torch.allclose(loaded.lips(crops), network.lips(crops), atol=0.05)
    assert torch.allclose(loaded.lips(crops).norm(dim=-1), torch.ones(1, 5))
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="holds no SyncNet"):
        load_syncnet(path)


def synthetic_data() -> syncnet_train.SyncData:
    """Lips that are as bright below as their sound is loud."""
    generator = np.random.default_rng(3)
    data = syncnet_train.SyncData.__new__(syncnet_train.SyncData)
    loud = generator.random((6, 75))
    lips = generator.integers(90, 110, (6, 75, SIDE, SIDE)).astype(np.uint8)
    lips[:, :, 32:] += (100 * loud[..., None, None]).astype(np.uint8)
    data.lips = lips.reshape(-1, SIDE, SIDE)
    data.sounds = np.repeat(loud.repeat(4, 1)[:, None], 80, 1).astype(np.float16)
    rows = [syncnet_train.Row(i, 0, 75 * i, 75, "filmed") for i in range(6)]
    data.rows = {"filmed": rows[:5], "puppet": [], "held_out": rows[5:]}
    return data


def test_training_finds_what_belongs_together() -> None:
    torch.manual_seed(0)
    data, network = synthetic_data(), SyncNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for step in range(30):
        batch = data.batch(np.random.default_rng(step), 4, 12)
        loss = syncnet_train.contrast(network, batch, 15.0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])
    assert set(syncnet_train.validate(network, data)) == {"one_window", "whole_clip"}


def test_mfcc_follow_their_definition() -> None:
    noise = np.random.default_rng(4).standard_normal(SAMPLE_RATE) * 1000
    soft, loud = syncnet_v2.mfcc(noise), syncnet_v2.mfcc(2 * noise)
    assert soft.shape == (99, 13)
    assert np.allclose(loud[:, 0] - soft[:, 0], 2 * np.log(2)) and np.allclose(loud[:, 1:], soft[:, 1:])
    tone = np.sin(np.arange(SAMPLE_RATE) * 2 * np.pi * 300 / SAMPLE_RATE) * 1000
    assert np.abs(syncnet_v2.mfcc(tone)[5] - soft[5]).max() > 5


def test_the_published_network_is_read_from_its_file(tmp_path: Path) -> None:
    state = syncnet_v2.network().state_dict()
    path = tmp_path / "syncnet_v2.model"
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, path)  # as older torch did
    meter = syncnet_v2.PublishedSyncNet(path)
    frames = np.random.default_rng(5).integers(0, 256, (7, 96, 96, 3), dtype=np.uint8)
    lips, sound = meter.lips(frames, mesh_of(7, 48, 30, 30)), meter.sound(np.zeros(9000, np.float32), 7)
    assert lips.shape == (2, 1024) and sound.shape == (2, 1024)
    assert meter.distances(lips, sound).shape == (2, 31) and set(meter.score(lips, sound)) == set(meter.definitions)
    torch.save({"netcnnaud.0.weight": state["netcnnaud.0.weight"]}, path)
    with pytest.raises(RuntimeError, match="no weights of SyncNet"):
        syncnet_v2.PublishedSyncNet(path)


class Echo(sync.SyncMeter):
    """A meter that finds lips and sound alike where the sound is loud."""

    definitions = {"d": "distance", "c": "confidence", "o": "offset"}

    def lips(self, frames: np.ndarray, mesh: np.ndarray) -> np.ndarray:
        return frames[:, 0, 0].astype(float)

    def sound(self, pcm: np.ndarray, frames: int) -> np.ndarray:
        return np.repeat(pcm[: frames * SAMPLES_PER_FRAME : SAMPLES_PER_FRAME, None], 3, 1)

    def distances(self, lips: np.ndarray, sound: np.ndarray) -> np.ndarray:
        return shifted_distances(lips, sound, sync.SHIFT)


def test_scores_stand_beside_those_of_the_real_clip_and_of_another_sound() -> None:
    def footage(name: str, seed: int) -> Footage:
        loud = np.random.default_rng(seed).integers(0, 255, 60)
        frames = np.repeat(loud[:, None, None, None], 3, 3).astype(np.uint8)
        pcm = loud.repeat(SAMPLES_PER_FRAME).astype(np.float32)
        no_portrait: Any = None
        return Footage(Path(name), "held_out_clips", no_portrait, frames, pcm, FaceSeries(mesh_of(60, 1, 1, 1)))

    one, two = footage("a", 0), footage("b", 1)
    scores = sync.SyncScores([Echo()])
    found = scores.numbers(scores.lips(one.frames, one.face), 60, one, two)
    assert found["d"] == found["d_real"] == 0 and found["o"] == 0 and found["d_other"] > 10 and found["c"] > 10
    assert scores.numbers([], 60, one, two) == {key: found[key] for key in ("d_real", "c_real", "o_real")}
    assert sync.SyncScores([]).numbers([], 60, one, two) == {}


def test_a_network_that_cannot_be_had_is_named() -> None:
    class Missing(Echo):
        definitions = {"sync_d": "Sync-D"}

        def __init__(self) -> None:
            raise OSError("the weights could not be downloaded")

    meters, metrics = sync.load_meters([Missing, Echo])
    assert [type(meter) for meter in meters] == [Echo]
    assert metrics["sync_d"]["status"] == "not computed: the weights could not be downloaded"
    assert metrics["d"] == {"status": "computed", "definition": "distance"}


def test_the_weights_in_the_repository_say_where_they_are_from() -> None:
    meter = sync.GridSyncNet()
    assert sync.GRID_WEIGHTS.stat().st_size < 1_000_000
    assert "CC BY 4.0" in meter.metadata["data"] and int(meter.metadata["step"]) > 0


def test_validation_tables() -> None:
    sounds = {kind: {"distance": {"mean": 1.0}, "confidence": {"mean": 0.1}} for kind in syncnet.SOUNDS}
    group = {"clips": 3, "accuracy": {str(n): 0.5 for n in syncnet.WINDOWS}, "sounds": sounds}
    text = syncnet.markdown({"groups": {"held_out_clips": group}, "chance": 3 / 31})
    assert "| chance | 10 % |" in text and "| 1 window (0.20 s) | 50 % |" in text and "silence" in text
