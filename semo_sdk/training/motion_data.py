"""Data of the second stage: motion tokens and speech features of clips, made once with a frozen first stage.

Filmed clips give long sequences of one speaker; puppet groups give the same speech with other faces, so that the
generator learns to keep whatever its reference and context show (pose, place, traces of identity) and changes the rest.
"""

from __future__ import annotations

import json
import os
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
from semo_sdk.models.semo import SemoModel
from semo_sdk.training.data import PuppetData

HELD_OUT_CLIPS = 60  # the last by name: see semo_sdk.training.puppet_dataset


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
    landmarks: Path,
    puppets: Path,
    out: Path,
    *,
    clips: int = 480,
    held_out: int = 10,
    groups: int = 100,
    identities: int = 4,
    windows: int = 24,
    seed: int = 0,
) -> None:
    """Encodes clips and puppet groups with a trained first stage.

    Args:
        grid: folder of filmed clips. landmarks: ``driver`` folder beside the puppet groups, meshes of each clip.
        puppets: folder of rendered groups. out: folder to write.
        clips, held_out: filmed clips to take for training, and of the held-out ones for validation.
        groups, identities: puppet groups, and faces of each. windows: speech windows of each clip.

    Raises:
        InputError: no clips, or too few held-out ones.
    """
    rng = np.random.default_rng(seed)
    names = sorted(p.stem for p in grid.glob("*.mp4"))
    if len(names) <= HELD_OUT_CLIPS:
        raise InputError(f"{grid} has {len(names)} clips; more than {HELD_OUT_CLIPS} are needed")
    training, held = names[:-HELD_OUT_CLIPS], names[-HELD_OUT_CLIPS:][:held_out]
    puppet_data = PuppetData(puppets).part(0, groups)
    wanted = [str(puppet_data.meta(i)["clip"]) for i in range(len(puppet_data))]
    filmed = [str(n) for n in rng.permutation(training)[:clips]]
    order = list(dict.fromkeys([*filmed, *wanted, *held]))

    motion: list[np.ndarray] = []
    rows: list[Sequence] = []
    known: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0

    def add(tokens: Tensor, clip: str, first: int, *, reference: bool) -> None:
        nonlocal count
        still = int(reference)
        rows.append(
            Sequence(
                order.index(clip), first, count + still, len(tokens) - still, count if reference else -1, clip in held
            )
        )
        motion.append(tokens.half().numpy())
        count += len(tokens)

    for name in tqdm([*filmed, *held], desc="filmed clips", unit="clip"):
        add(encode(model, filmed_crops(grid / f"{name}.mp4", landmarks / f"{name}.npy", rng)), name, 0, reference=False)
    for i in tqdm(range(len(puppet_data)), desc="puppet groups", unit="group"):
        data, meta = puppet_data.open(i), puppet_data.meta(i)
        for k in rng.permutation(len(data["frames"]))[:identities]:
            tokens = encode(model, np.array(data["frames"][k]))
            add(tokens, wanted[i], int(str(meta["first"])), reference=True)
            known.append((tokens[1:].numpy(), np.asarray(data["motion"][k, 1:])))
    ends, features = [], []
    for name in tqdm(order, desc="speech", unit="clip"):
        end, feature = speech_windows(model, grid / f"{name}.mp4", windows, rng, every_pass=name in held)
        ends.append(end)
        features.append(feature)
    probe = fit_probe(np.concatenate([a for a, _ in known]), np.concatenate([b for _, b in known]))
    out.mkdir(parents=True, exist_ok=True)
    arrays = {"motion": np.concatenate(motion), "ends": np.stack(ends), "features": np.stack(features), "probe": probe}
    for key, array in arrays.items():
        np.save(out / f"{key}.partial.npy", array)
        os.replace(out / f"{key}.partial.npy", out / f"{key}.npy")
    (out / "sequences.json").write_text(json.dumps([vars(r) for r in rows]), encoding="utf-8")


def encode(model: SemoModel, frames: np.ndarray, batch: int = 25) -> Tensor:
    """(n, 256, 256, 3) uint8 RGB -> (n, T * D) float32 motion."""
    parts = []
    for piece in torch.from_numpy(frames).split(batch):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(model.encoder(model.to_latents(piece)).float())
    return torch.cat(parts)


def filmed_crops(video: Path, mesh: Path, rng: np.random.Generator) -> np.ndarray:
    """Frames (n, 256, 256, 3) uint8 RGB of a clip in one fixed crop around the face, of random size and place."""
    import cv2

    from semo_sdk.media.image import face_square
    from semo_sdk.media.video import read_video

    points = np.nanmedian(np.load(mesh), axis=0)
    x, y, side = face_square(points, float(rng.uniform(1.6, 2.4)))
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
    with torch.autocast("cpu", torch.bfloat16):
        found = model.whisper.last(torch.from_numpy(batch)).half().numpy()
    features = np.zeros((windows, *found.shape[1:]), np.float16)
    features[: len(ends)] = found
    return np.pad(ends, (0, windows - len(ends))).astype(np.int32), features


def fit_probe(tokens: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Linear read-out of pose and expression by ridge regression: (T * D + 1, 30) float32, the last row a bias."""
    x = np.concatenate([tokens, np.ones((len(tokens), 1), np.float32)], 1).astype(np.float64)
    gram = x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1])
    return np.linalg.solve(gram, x.T @ motion.astype(np.float64)).astype(np.float32)


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
        self.motion, self.ends, self.features, self.probe = (
            np.load(folder / f"{name}.npy", mmap_mode="r" if name == "features" else None)
            for name in ("motion", "ends", "features", "probe")
        )
        rows = [Sequence(**r) for r in json.loads((folder / "sequences.json").read_text(encoding="utf-8"))]
        self.training = [r for r in rows if not r.held_out]
        self.held_out = [r for r in rows if r.held_out]
        self.samples = [(r, w) for r in self.training for w in self._windows(r)]
        self.weights = np.array([r.length for r, _ in self.samples], float) ** 0.5
        self.weights /= self.weights.sum()

    def _windows(self, row: Sequence) -> list[int]:
        ends = self.ends[row.clip] - row.first
        return [int(i) for i in np.flatnonzero((ends >= 4) & (ends <= row.length))]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (T * D,) of all training motion."""
        rows = np.concatenate([self.motion[r.start : r.start + r.length] for r in self.training]).astype(np.float32)
        return rows.mean(0), rows.std(0) + 1e-3

    def batch(self, rng: np.random.Generator, size: int) -> MotionBatch:
        """Random samples; short hops (8 and 4 frames heard) as often as whole chunks together."""
        parts = [self._sample(rng, *self.samples[i]) for i in rng.choice(len(self.samples), size, p=self.weights)]
        return MotionBatch(*(torch.from_numpy(np.stack(x)) for x in zip(*parts, strict=True)))

    def _sample(self, rng: np.random.Generator, row: Sequence, window: int) -> tuple[Any, ...]:
        end = int(self.ends[row.clip, window]) - row.first  # frames of the sequence that have been heard
        hop = min(int(rng.choice([16, 16, 8, 4])), end)
        n = end - hop
        frames = self.motion[row.start : row.start + row.length]
        reference = self.motion[row.reference] if row.reference >= 0 else frames[int(rng.integers(row.length))]
        if rng.random() < 0.1:
            n_context = np.repeat(reference[None], CONTEXT_FRAMES, 0)  # the start of a session
        else:
            before = np.arange(n - CONTEXT_FRAMES, n)
            first = frames[0] if row.reference < 0 else reference
            n_context = np.where((before >= 0)[:, None], frames[np.maximum(before, 0)], first)
        index = np.arange(n, n + CHUNK_FRAMES)
        target = frames[np.minimum(index, row.length - 1)]
        return (
            target.astype(np.float32),
            index < row.length,
            n_context.astype(np.float32),
            reference[None].astype(np.float32),
            np.asarray(self.features[row.clip, window], np.float32),
            np.int64(hop),
        )

    def passes(self, row: Sequence) -> Iterator[tuple[int, np.ndarray]]:
        """Ends and features of a held-out sequence, pass by pass (every sixteenth frame)."""
        for window, end in enumerate(self.ends[row.clip]):
            if 0 < end <= row.length:
                yield int(end), np.asarray(self.features[row.clip, window], np.float32)
