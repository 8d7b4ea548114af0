"""Trains :class:`~semo_sdk.training.syncnet.SyncNet`: ``semo train syncnet``.

Lips and sound of one clip, of which only what belongs together should lie close: every other moment of the clip is a
counterexample (the paper's shifted audio, with a softmax over all shifts instead of one pair at a time). Beside the
filmed speaker, puppets: the same sentences on other people's lips, so that it is not *his* lips that are learned.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from semo_sdk.config import Strict
from semo_sdk.constants import MEL_BINS
from semo_sdk.errors import InputError, VideoError
from semo_sdk.files import replacing, write_text
from semo_sdk.media.audio import load_audio
from semo_sdk.training.data import read_ahead
from semo_sdk.training.loop import LoopConfig, Trainer
from semo_sdk.training.puppet_assets import HELD_OUT_CLIPS
from semo_sdk.training.puppet_driver import read_frames, track_clip
from semo_sdk.training.syncnet import (
    FLOOR,
    MELS,
    SIDE,
    SyncNet,
    found_in_time,
    log_mel,
    mouth_crops,
    save_syncnet,
    shifted_distances,
)

SHIFT = 15  # frames either way, in validation
PUPPET_SHARE = 0.5  # of a batch
IGNORED = 1  # frames beside the true moment that are no counterexample


class SyncConfig(Strict):
    """Everything that the network depends on besides its data."""

    loop: LoopConfig = LoopConfig(steps=1500, learning_rate=1e-3, warmup=100, ema=0.995, save_every=250)
    batch: int = 12  # sequences
    frames: int = 25  # of a sequence
    clips: int = 480  # filmed clips at most, spread evenly over those for training
    identities: int = 4  # of each puppet group
    sharpness: float = 15.0  # of the softmax over cosines
    data: str = ""  # what the data is, whence and under which licence: kept with the weights


@dataclass(frozen=True)
class Row:
    """A sequence of lips.

    Attributes:
        clip: whose sound goes with it. first: its first frame's number in that clip.
        start, length: rows in ``lips``. kind: ``"filmed"``, ``"puppet"`` or ``"held_out"``.
    """

    clip: int
    first: int
    start: int
    length: int
    kind: str


@dataclass(frozen=True)
class SyncBatch:
    """B sequences: lips (B, n, 64, 64) uint8, sound of their whole clips (B, 80, 4 m), first frames (B,)."""

    lips: Tensor
    sound: Tensor
    first: Tensor


class SyncData:
    """What :func:`collect` wrote; batches are a pure function of the random generator."""

    def __init__(self, folder: Path) -> None:
        self.lips = np.load(folder / "lips.npy", mmap_mode="r")
        self.sounds = np.load(folder / "sounds.npy")
        index = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        self.frames: list[int] = index["frames"]  # of each clip; its sound is silent after them
        rows = [Row(**row) for row in index["rows"]]
        self.rows = {kind: [row for row in rows if row.kind == kind] for kind in ("filmed", "puppet", "held_out")}

    def batch(self, rng: np.random.Generator, size: int, frames: int) -> SyncBatch:
        """Random stretches of ``frames`` frames, half of them of puppets where there are any."""
        parts = []
        for number in range(size):
            puppets = self.rows["puppet"] if number < size * PUPPET_SHARE else []
            rows = puppets or self.rows["filmed"]
            row = rows[int(rng.integers(len(rows)))]
            skip = int(rng.integers(row.length - frames + 1))
            begin = row.start + skip
            parts.append((self.lips[begin : begin + frames], self.sounds[row.clip], row.first + skip))
        lips, sound, first = (np.stack(x) for x in zip(*parts, strict=True))
        return SyncBatch(torch.from_numpy(lips), torch.from_numpy(sound).float(), torch.from_numpy(first))


def collect(config: SyncConfig, clips: Path, puppets: Path | None, out: Path) -> None:
    """Writes lips and sounds of filmed clips and puppet groups to ``out``; what is there already is left as it is.

    Raises:
        InputError: too few clips.
    """
    if (out / "rows.json").is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted(clips.glob("*.mp4"))
    if len(paths) <= HELD_OUT_CLIPS:
        raise InputError(f"{clips} has {len(paths)} clips (*.mp4); more than {HELD_OUT_CLIPS} are needed")
    landmarks = (puppets or out) / "driver"
    training, held = paths[:-HELD_OUT_CLIPS], paths[-HELD_OUT_CLIPS:]
    training = [training[i] for i in sorted({*np.linspace(0, len(training) - 1, config.clips).round().astype(int)})]
    lips: list[np.ndarray] = []
    rows: list[Row] = []
    numbers: dict[str, int] = {}
    sounds: list[np.ndarray] = []
    count = 0

    def number_of(path: Path) -> int:
        if path.stem not in numbers:
            numbers[path.stem] = len(sounds)
            sounds.append(load_audio(path))
        return numbers[path.stem]

    def add(crops: np.ndarray, path: Path, first: int, kind: str) -> None:
        nonlocal count
        rows.append(Row(number_of(path), first, count, len(crops), kind))
        lips.append(crops)
        count += len(crops)

    for path in tqdm([*training, *held], desc="filmed clips", unit="clip"):
        try:
            points = track_clip(path, landmarks / f"{path.stem}.npy")
            crops = mouth_crops(read_frames(path), points)
        except VideoError:
            continue
        add(crops, path, 0, "held_out" if path in held else "filmed")
    groups = [] if puppets is None else sorted(meta.parent for meta in puppets.glob("group_*/meta.json"))
    for group in tqdm(groups, desc="puppets", unit="group", disable=not groups):
        meta = json.loads((group / "meta.json").read_text(encoding="utf-8"))
        frames, mesh = (np.load(group / f"{name}.npy", mmap_mode="r") for name in ("frames", "points"))
        for person in range(min(config.identities, len(frames))):
            path = clips / f"{meta['clip']}.mp4"
            add(mouth_crops(frames[person, 1:], mesh[person, 1:]), path, int(meta["first"]), "puppet")
    longest = max(row.first + row.length for row in rows)
    for name, array in (("lips", np.concatenate(lips)), ("sounds", np.stack([log_mel(s, longest) for s in sounds]))):
        with replacing(out / f"{name}.npy") as temporary:
            np.save(temporary, array.astype(np.float16) if array.dtype == np.float32 else array)
    lengths = [0] * len(sounds)
    for row in rows:
        lengths[row.clip] = max(lengths[row.clip], row.first + row.length)
    write_text(out / "rows.json", json.dumps({"frames": lengths, "rows": [vars(row) for row in rows]}))


def vary(batch: SyncBatch) -> tuple[Tensor, Tensor]:
    """Lips and sound as other people, cameras and microphones might give them: alike within a sequence.

    Lips are mirrored, shifted, turned, resized, blurred and darkened a little; sound is louder or softer, moved along
    the mel axis, tilted, and has noise.
    """
    lips, sound = batch.lips.float(), batch.sound
    size = len(lips)
    turn, zoom = (torch.rand(2, size) * 2 - 1) * torch.tensor([[0.07], [0.08]])
    flip = torch.where(torch.rand(size) < 0.5, -1.0, 1.0)
    cos, sin = turn.cos() * (1 + zoom), turn.sin() * (1 + zoom)
    shift = (torch.rand(2, size) * 2 - 1) * 0.09
    matrix = torch.stack([cos * flip, -sin, shift[0], sin * flip, cos, shift[1]], -1).unflatten(-1, (2, 3))
    grid = F.affine_grid(matrix, [size, 1, SIDE, SIDE], align_corners=False)
    lips = F.grid_sample(lips, grid, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(lips, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blur = torch.rand(size, 1, 1, 1) * 1.4 - 0.4  # below 0: sharpened
    lips = lips + blur * (soft - lips)
    gamma = torch.exp((torch.rand(size, 1, 1, 1) * 2 - 1) * 0.4)
    lips = 255 * (lips / 255).clamp(0, 1) ** gamma + 4 * torch.rand(size, 1, 1, 1) * torch.randn_like(lips)
    bins = torch.arange(MEL_BINS)[None] + torch.randint(-5, 6, (size, 1))
    sound = sound.gather(1, bins.clamp(0, MEL_BINS - 1)[..., None].expand_as(sound))
    slope = torch.linspace(-1, 1, MEL_BINS)[None, :, None] * (torch.rand(size, 1, 1) * 2 - 1) * 0.15
    gain = (torch.rand(size, 1, 1) * 2 - 1) * 0.2  # a quarter is 20 dB
    floor = FLOOR + torch.rand(size, 1, 1) * 0.3
    sound = torch.maximum(sound + slope + gain, floor + 0.03 * torch.randn_like(sound))
    return lips, sound


def contrast(network: SyncNet, batch: SyncBatch, sharpness: float) -> dict[str, Tensor]:
    """Softmax over all moments of the clip for each window of lips, and over these windows for its sound."""
    lips, sound = vary(batch)
    with torch.autocast("cpu", torch.bfloat16):
        seen, heard = network.lips(lips), network.sound(sound)
    cosine = sharpness * seen.float() @ heard.float().transpose(1, 2)  # (B, windows, windows of the clip)
    windows = seen.shape[1]
    truth = batch.first[:, None] + torch.arange(windows)
    away = (torch.arange(heard.shape[1]) - truth[..., None]).abs()
    cosine = cosine.masked_fill((away > 0) & (away <= IGNORED), -torch.inf)
    loss = F.cross_entropy(cosine.flatten(0, 1), truth.flatten())
    own = cosine.gather(2, truth[:, None].expand(-1, windows, -1)).transpose(1, 2)
    back = F.cross_entropy(own.flatten(0, 1), torch.arange(windows).repeat(len(own)))
    return {"loss": loss + back, "to_sound": loss, "to_lips": back}


@torch.no_grad()
def validate(network: SyncNet, data: SyncData) -> dict[str, float]:
    """How often the held-out clips' true moment is found within a frame among 31, by one window and by all."""
    one, whole = [], []
    for row in data.rows["held_out"]:
        crops = torch.from_numpy(np.array(data.lips[row.start : row.start + row.length]))[None]
        mel = torch.from_numpy(data.sounds[row.clip][:, : MELS * row.length]).float()[None]
        distances = shifted_distances(network.lips(crops)[0].numpy(), network.sound(mel)[0].numpy(), SHIFT)
        one.append(found_in_time(distances, 1))
        whole.append(found_in_time(distances, len(distances)))
    return {"one_window": float(np.mean(one)), "whole_clip": float(np.mean(whole))}


def train(config: SyncConfig, clips: Path, puppets: Path | None, out: Path, *, resume: bool = False) -> Path:
    """Trains the network and returns its file (``out/syncnet.safetensors``, averaged weights in half precision).

    It runs on the CPU: the network is small, and a run takes minutes.

    Args:
        config: the recipe.
        clips: videos of one speaker with sound, ``*.mp4``; the last 60 by name are held out.
        puppets: what ``semo data puppet`` wrote with the same clips, or None: then filmed lips alone.
        out: folder of the run.
        resume: go on with the run in ``out``.

    Raises:
        InputError: too few clips. CheckpointError: see :class:`~semo_sdk.training.loop.Trainer`.
    """
    torch.manual_seed(config.loop.seed)
    collect(config, clips, puppets, out / "data")
    data = SyncData(out / "data")
    network = SyncNet()
    trainer = Trainer(config.loop, {"syncnet": network}, out, resume=resume)
    trainer.keep_config(config)
    path = out / "syncnet.safetensors"

    def make(step: int) -> SyncBatch:
        return data.batch(np.random.default_rng([config.loop.seed, step]), config.batch, config.frames)

    def losses(batch: SyncBatch) -> dict[str, Tensor]:
        return contrast(network, batch, config.sharpness)

    def on_save() -> None:
        with trainer.averaged():
            scores = validate(network, data)
            trainer.note(scores)
            about = {"data": config.data, "step": str(trainer.step), "validation": json.dumps(scores)}
            save_syncnet(network, path, {**about, "config": config.model_dump_json()})

    trainer.run(read_ahead(make, trainer.step, config.loop.steps), losses, on_save)
    return path
