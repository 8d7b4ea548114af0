"""Data of the second stage: motion and speech features of clips, made once.

With taught tokens (see :mod:`semo_sdk.training.teacher`) motion is pose and expression of filmed clips, and each sample
places the face anew in the crop. Otherwise motion is encoded by a frozen first stage from filmed clips and from puppet
groups: the same speech with other faces, so that the generator learns to keep whatever its reference shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES, FPS, SAMPLES_PER_FRAME, WINDOW_SAMPLES
from semo_sdk.errors import InputError
from semo_sdk.files import replacing, write_text
from semo_sdk.models.semo import SemoModel
from semo_sdk.models.whisper import fingerprint
from semo_sdk.training.data import PuppetData
from semo_sdk.training.teacher import POSE_SIZE, UNITS, directions, read

HELD_OUT_CLIPS = 60  # the last by name: see semo_sdk.training.puppet_dataset
CROP = (1.6, 2.2)  # side of the crop in face heights


@dataclass(frozen=True)
class Sequence:
    """Consecutive frames of one face.

    Attributes:
        clip: row in ``features`` and ``ends``. first: its first frame's number in the clip.
        start, length: rows in ``motion``. reference: row of a still of the same face, or -1 for any of its frames.
    """

    clip: int
    first: int
    start: int
    length: int
    reference: int
    held_out: bool


@torch.no_grad()
def prepare(
    model: SemoModel,
    grid: Path,
    puppets: Path,
    out: Path,
    *,
    taught: bool = True,
    clips: int = 480,
    held_out: int = 10,
    groups: int = 100,
    identities: int = 4,
    windows: int = 24,
    seed: int = 0,
) -> None:
    """Collects motion and speech features.

    Args:
        model: of the first stage: its Whisper encoder, and its motion encoder unless ``taught``.
        grid: folder of filmed clips. puppets: folder of rendered groups, with the driver's landmarks.
        out: folder to write. taught: motion from the driver's landmarks, not from the motion encoder.
        clips, held_out: filmed clips to take for training, and of the held-out ones for validation.
        groups, identities: puppet groups, and faces of each, when encoding. windows: speech windows of each clip.

    Raises:
        InputError: no clips, or too few held-out ones.
    """
    rng = np.random.default_rng(seed)
    names = sorted(p.stem for p in grid.glob("*.mp4"))
    if len(names) <= HELD_OUT_CLIPS:
        raise InputError(f"{grid} has {len(names)} clips; more than {HELD_OUT_CLIPS} are needed")
    training, held = names[:-HELD_OUT_CLIPS], names[-HELD_OUT_CLIPS:][:held_out]
    source = _taught_motion(puppets) if taught else None
    if source is not None:
        training, held = [n for n in training if n in source], [n for n in held if n in source]
    filmed = [str(n) for n in rng.permutation(training)[:clips]]
    puppet_data = None if taught else PuppetData(puppets).part(0, groups)
    wanted = [] if puppet_data is None else [str(puppet_data.meta(i)["clip"]) for i in range(len(puppet_data))]
    order = list(dict.fromkeys([*filmed, *wanted, *held]))
    motion: list[np.ndarray] = []
    rows: list[Sequence] = []
    count = 0

    def add(rows_of_motion: np.ndarray, clip: str, first: int, *, reference: bool) -> None:
        nonlocal count
        still, length = int(reference), len(rows_of_motion)
        place = count if reference else -1
        rows.append(Sequence(order.index(clip), first, count + still, length - still, place, clip in held))
        motion.append(rows_of_motion.astype(np.float16))
        count += length

    for name in tqdm([*filmed, *held], desc="filmed clips", unit="clip"):
        if source is not None:
            add(source[name], name, 0, reference=False)
            continue
        crops = filmed_crops(grid / f"{name}.mp4", puppets / "driver" / f"{name}.npy", rng)
        add(encode(model, crops).numpy(), name, 0, reference=False)
    for i, name in enumerate(tqdm(wanted, desc="puppet groups", unit="group", disable=taught)):
        assert puppet_data is not None
        data, first = puppet_data.open(i), int(str(puppet_data.meta(i)["first"]))
        for k in rng.permutation(len(data["frames"]))[:identities]:
            add(encode(model, np.array(data["frames"][k])).numpy(), name, first, reference=True)
    ends, features = [], []
    for name in tqdm(order, desc="speech", unit="clip"):
        end, feature = speech_windows(model, grid / f"{name}.mp4", windows, rng, every_pass=name in held)
        ends.append(end)
        features.append(feature)
    write_motion(out, model, rows, motion, ends, features, taught=taught)


def write_motion(
    out: Path,
    model: SemoModel,
    rows: list[Sequence],
    motion: list[np.ndarray],
    ends: list[np.ndarray],
    features: list[np.ndarray],
    *,
    taught: bool,
) -> None:
    """Writes what :class:`MotionData` reads: sequences, their motion, and speech windows of each clip."""
    out.mkdir(parents=True, exist_ok=True)
    arrays = {"motion": np.concatenate(motion), "ends": np.stack(ends), "features": np.stack(features)}
    for key, array in arrays.items():
        with replacing(out / f"{key}.npy") as temporary:
            np.save(temporary, array)
    index = {
        "taught": taught,
        "width": model.config.motion_dim,
        "speech": fingerprint(model.whisper),
        "sequences": [vars(r) for r in rows],
    }
    write_text(out / "sequences.json", json.dumps(index))


def _taught_motion(puppets: Path) -> dict[str, np.ndarray]:
    """Pose and expression (T, 30) of each filmed clip, place and size counted in face heights from the clip's median.

    Raises:
        InputError: the puppet's driver cache is missing.
    """
    path = puppets / "driver_cache.npz"
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with: semo data puppet")
    with np.load(path) as cache:
        names, starts, poses, expression = (cache[k] for k in ("names", "starts", "poses", "coefficients"))
    motion = {}
    for name, start, end in zip(names, starts[:-1], starts[1:], strict=True):
        pose = poses[start:end].copy()
        middle = np.median(pose, axis=0)
        pose[:, :3] *= 5
        pose[:, 4:] = (pose[:, 4:] - middle[4:]) / middle[3]
        pose[:, 3] = 5 * np.log(pose[:, 3] / middle[3])
        motion[str(name)] = np.concatenate([pose, expression[start:end]], 1)
    return motion


def place_face(motion: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Puts relative motion (L, 30) of :func:`_taught_motion` into a crop, as ``motion_target`` counts it.

    With ``rng`` size, place and the turn of the head are random, as portraits' are; else the middle of the range.
    """
    ratio = float(np.mean(CROP)) if rng is None else float(rng.uniform(*CROP))
    height = 256 / ratio
    placed = motion.copy()
    placed[:, 3] += 5 * np.log(height / 128)
    placed[:, 4:6] *= height / 64
    if rng is not None:
        placed[:, :3] += 5 * np.radians([12, 7, 5]) * rng.uniform(-1, 1, 3)
        placed[:, 4:6] += rng.uniform(-0.25, 0.25, 2)
    return placed


def encode(model: SemoModel, frames: np.ndarray, batch: int = 25) -> Tensor:
    """(n, 256, 256, 3) uint8 RGB -> (n, T * D) float32 motion."""
    device = model.encoder.tokens.device
    parts = []
    for piece in torch.from_numpy(frames).split(batch):
        with torch.autocast(device.type, torch.bfloat16):
            parts.append(model.read_motion(piece.to(device)).float().cpu())
    return torch.cat(parts)


def filmed_crops(video: Path, mesh: Path, rng: np.random.Generator) -> np.ndarray:
    """Frames (n, 256, 256, 3) uint8 RGB of a clip in one fixed crop around the face, of random size and place."""
    import cv2

    from semo_sdk.media.image import face_square
    from semo_sdk.media.video import read_video

    points = np.nanmedian(np.load(mesh), axis=0)
    x, y, side = face_square(points, float(rng.uniform(*CROP)))
    x, y = (np.array([x, y]) + rng.uniform(-0.04, 0.04, 2) * side).tolist()
    matrix = np.array([[256 / side, 0, -x * 256 / side], [0, 256 / side, -y * 256 / side]])
    crops = [
        cv2.warpAffine(f, matrix, (256, 256), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
        for f in read_video(video, fps=FPS)
    ]
    return np.stack(crops)


def speech_windows(
    model: SemoModel, path: Path, windows: int, rng: np.random.Generator, *, every_pass: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Features of windows that end with random frames (or, for validation, with every sixteenth).

    Loudness and background noise vary from window to window in training.

    Returns:
        Ends (windows,) int32, frames heard (0 = unused); features (windows, 24, 2 * width) float16.
    """
    from semo_sdk.media.audio import load_audio

    pcm = load_audio(path)
    frames = len(pcm) // SAMPLES_PER_FRAME
    if every_pass:
        ends = np.arange(CHUNK_FRAMES, frames + 1, CHUNK_FRAMES)[:windows]
    else:
        ends = np.sort(rng.choice(np.arange(4, frames + 1), min(windows, frames - 3), replace=False))
    padded = np.concatenate([np.zeros(WINDOW_SAMPLES, np.float32), pcm])
    batch = np.stack([padded[e * SAMPLES_PER_FRAME :][:WINDOW_SAMPLES] for e in ends])
    if not every_pass:
        gain = 10 ** (rng.uniform(-10, 6, (len(ends), 1)) / 20)
        noise = 10 ** (rng.uniform(-70, -35, (len(ends), 1)) / 20) * rng.standard_normal(batch.shape)
        batch = (batch * gain + noise * (rng.random((len(ends), 1)) < 0.5)).astype(np.float32)
    device = model.encoder.tokens.device
    with torch.autocast(device.type, torch.bfloat16):
        found = model.whisper.last(torch.from_numpy(batch).to(device)).half().cpu().numpy()
    features = np.zeros((windows, *found.shape[1:]), np.float16)
    features[: len(ends)] = found
    return np.pad(ends, (0, windows - len(ends))).astype(np.int32), features


@dataclass
class MotionBatch:
    """Samples of the second stage, B of each: shapes as in :class:`~semo_sdk.models.motion_generator.MotionGenerator`.

    ``valid`` (B, 16) tells which target frames exist; ``available`` (B,) how many of them have been heard.
    """

    target: Tensor
    valid: Tensor
    context: Tensor
    reference: Tensor
    features: Tensor
    available: Tensor


class MotionData:
    """What :func:`prepare` wrote; batches are a pure function of the random generator."""

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            InputError: nothing prepared there.
        """
        folder = Path(folder)
        if not (folder / "sequences.json").is_file():
            raise InputError(f"no prepared motion in {folder}; make it with: semo data motion")
        self.motion, self.ends, self.features = (
            np.load(folder / f"{name}.npy", mmap_mode="r" if name == "features" else None)
            for name in ("motion", "ends", "features")
        )
        index = json.loads((folder / "sequences.json").read_text(encoding="utf-8"))
        self.taught, self.width, self.speech = bool(index["taught"]), int(index["width"]), str(index["speech"])
        rows = [Sequence(**r) for r in index["sequences"]]
        self.training = [r for r in rows if not r.held_out]
        self.held_out = [r for r in rows if r.held_out]
        self.samples = [(r, w) for r in self.training for w in self._windows(r)]
        self.weights = np.array([r.length for r, _ in self.samples], float) ** 0.5
        self.weights /= self.weights.sum()

    def _windows(self, row: Sequence) -> list[int]:
        ends = self.ends[row.clip] - row.first
        return [int(i) for i in np.flatnonzero((ends >= 4) & (ends <= row.length))]

    def frames(self, row: Sequence, rng: np.random.Generator | None) -> np.ndarray:
        """Motion tokens (L, T * D) float32 of a sequence; taught ones with the face placed at random."""
        motion = self.motion[row.start : row.start + row.length].astype(np.float32)
        return place_face(motion, rng) @ directions(self.width).numpy() if self.taught else motion

    def reference(self, row: Sequence, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A still's token (T * D,): as an encoder sees it, which is sure of the pose at best."""
        if row.reference >= 0:
            return self.motion[row.reference].astype(np.float32)
        still = frames[int(rng.integers(len(frames)))]
        if not self.taught:
            return still
        seen = read(torch.from_numpy(still)).numpy()
        seen[:POSE_SIZE] += 0.05 * rng.standard_normal(POSE_SIZE) / np.array(UNITS[:POSE_SIZE])
        seen[POSE_SIZE:] = rng.uniform(0, 1) * seen[POSE_SIZE:] + 0.3 * rng.standard_normal(len(seen) - POSE_SIZE)
        return seen.astype(np.float32) @ directions(self.width).numpy()

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (T * D,) of training motion."""
        rng = np.random.default_rng(0)
        rows = np.concatenate([self.frames(r, rng) for r in self.training])
        return rows.mean(0), rows.std(0) + 1e-3

    def batch(self, rng: np.random.Generator, size: int) -> MotionBatch:
        """Random samples; short hops (8 and 4 frames heard) as often as whole chunks together."""
        parts = [self._sample(rng, *self.samples[i]) for i in rng.choice(len(self.samples), size, p=self.weights)]
        return MotionBatch(*(torch.from_numpy(np.stack(x)) for x in zip(*parts, strict=True)))

    def _sample(self, rng: np.random.Generator, row: Sequence, window: int) -> tuple[Any, ...]:
        end = int(self.ends[row.clip, window]) - row.first  # frames of the sequence that have been heard
        hop = min(int(rng.choice([16, 16, 8, 4])), end)
        n = end - hop
        frames = self.frames(row, rng)
        reference = self.reference(row, frames, rng)
        if rng.random() < 0.15 or n == 0:
            context = np.repeat(reference[None], CONTEXT_FRAMES, 0)  # the start of a session
        else:
            before = np.arange(n - CONTEXT_FRAMES, n)
            context = np.where((before >= 0)[:, None], frames[np.maximum(before, 0)], reference)
        index = np.arange(n, n + CHUNK_FRAMES)
        target = frames[np.minimum(index, row.length - 1)]
        return (
            target.astype(np.float32),
            index < row.length,
            context.astype(np.float32),
            reference[None].astype(np.float32),
            np.asarray(self.features[row.clip, window], np.float32),
            np.int64(hop),
        )

    def passes(self, row: Sequence) -> Iterator[tuple[int, np.ndarray]]:
        """Ends and features of a held-out sequence, pass by pass (every sixteenth frame)."""
        for window, end in enumerate(self.ends[row.clip]):
            if 0 < end <= row.length:
                yield int(end), np.asarray(self.features[row.clip, window], np.float32)
