"""What the second stage learns from, made once: motion of clips, and what Whisper hears in them.

With taught tokens motion is pose and expression of filmed clips. Otherwise it is encoded by a frozen first stage from
filmed clips and from puppet groups: the same speech with other faces, so that the generator learns to keep whatever its
reference shows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from semo_sdk.constants import CHUNK_FRAMES, FPS, SAMPLES_PER_FRAME, WINDOW_SAMPLES
from semo_sdk.errors import InputError
from semo_sdk.files import replacing, write_text
from semo_sdk.media.audio import load_audio
from semo_sdk.models.semo import SemoModel
from semo_sdk.models.whisper import fingerprint
from semo_sdk.training.data import PuppetData
from semo_sdk.training.motion_data import CROP, Sequence

__all__ = ["Collection", "encode", "prepare", "taught_motion"]

HELD_OUT_CLIPS = 60  # the last by name: see semo_sdk.training.puppet_dataset


class Collection:
    """Motion and speech features on their way to the files that :class:`MotionData` reads."""

    def __init__(self, model: SemoModel, windows: int, rng: np.random.Generator) -> None:
        """
        Args:
            model: whose Whisper hears. windows: of speech, in each sound. rng: of their places, loudness and noise.
        """
        self.model, self.windows, self.rng = model, windows, rng
        self.rows: list[Sequence] = []
        self.motion: list[np.ndarray] = []
        self.ends: list[np.ndarray] = []
        self.features: list[np.ndarray] = []
        self.count = 0

    def hear(self, pcm: np.ndarray, *, every_pass: bool) -> int:
        """Adds a sound, (n,) float32 at 16 kHz; returns its number.

        Windows end with random frames, and their loudness and noise vary; with ``every_pass``, for validation, they end
        with every sixteenth frame.
        """
        rng = self.rng
        frames = len(pcm) // SAMPLES_PER_FRAME
        if every_pass:
            ends = np.arange(CHUNK_FRAMES, frames + 1, CHUNK_FRAMES)[: self.windows]
        else:
            ends = np.sort(rng.choice(np.arange(4, frames + 1), min(self.windows, frames - 3), replace=False))
        padded = np.concatenate([np.zeros(WINDOW_SAMPLES, np.float32), pcm])
        batch = np.stack([padded[e * SAMPLES_PER_FRAME :][:WINDOW_SAMPLES] for e in ends])
        if not every_pass:
            gain = 10 ** (rng.uniform(-10, 6, (len(ends), 1)) / 20)
            noise = 10 ** (rng.uniform(-70, -35, (len(ends), 1)) / 20) * rng.standard_normal(batch.shape)
            batch = (batch * gain + noise * (rng.random((len(ends), 1)) < 0.5)).astype(np.float32)
        device = self.model.encoder.tokens.device
        with torch.autocast(device.type, torch.bfloat16):
            found = self.model.whisper.last(torch.from_numpy(batch).to(device)).half().cpu().numpy()
        features = np.zeros((self.windows, *found.shape[1:]), np.float16)
        features[: len(ends)] = found
        self.features.append(features)
        self.ends.append(np.pad(ends, (0, self.windows - len(ends))).astype(np.int32))
        return len(self.ends) - 1

    def move(
        self,
        motion: np.ndarray,
        sound: int,
        *,
        first: int = 0,
        held_out: bool,
        still: bool = False,
        spoken: bool = False,
    ) -> None:
        """Adds the motion (L, T * D) that belongs to a sound from its frame ``first`` on.

        Args:
            still: row 0 is a still of the same face. spoken: by a synthetic voice.
        """
        start, length = self.count + still, len(motion) - still
        self.rows.append(Sequence(sound, first, start, length, self.count if still else -1, held_out, spoken))
        self.motion.append(motion.astype(np.float16))
        self.count += len(motion)

    def write(self, out: Path, *, taught: bool) -> None:
        """Writes the folder; ``taught``: motion is pose and expression, not tokens."""
        out.mkdir(parents=True, exist_ok=True)
        columns = {
            "motion": np.concatenate(self.motion),
            "ends": np.stack(self.ends),
            "features": np.stack(self.features),
        }
        for name, array in columns.items():
            with replacing(out / f"{name}.npy") as temporary:
                np.save(temporary, array)
        index = {
            "taught": taught,
            "width": self.model.config.motion_dim,
            "speech": fingerprint(self.model.whisper),
            "sequences": [vars(r) for r in self.rows],
        }
        write_text(out / "sequences.json", json.dumps(index))


@torch.no_grad()
def prepare(
    model: SemoModel,
    grid: Path,
    puppets: Path,
    out: Path,
    *,
    taught: bool = True,
    spoken: int = 0,
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
        spoken: recordings of synthetic voices to add, see :mod:`semo_sdk.training.spoken_data`; 0: none, and no other
            speeds of the filmed ones.
        held_out: clips of the held-out ones for validation.
        groups, identities: puppet groups, and faces of each, when encoding. windows: speech windows of each clip.

    Raises:
        InputError: no clips, or too few held-out ones; ``spoken`` without ``taught``, or without transcripts.
        MissingDependencyError: ``spoken`` without flite.
    """
    if spoken and not taught:
        raise InputError("spoken sentences have no pictures to encode: leave out either --spoken or --encode")
    rng = np.random.default_rng(seed)
    names = sorted(p.stem for p in grid.glob("*.mp4"))
    if len(names) <= HELD_OUT_CLIPS:
        raise InputError(f"{grid} has {len(names)} clips; more than {HELD_OUT_CLIPS} are needed")
    training, held = names[:-HELD_OUT_CLIPS], names[-HELD_OUT_CLIPS:][:held_out]
    source = taught_motion(puppets) if taught else None
    if source is not None:
        training, held = [n for n in training if n in source], [n for n in held if n in source]
    collection = Collection(model, windows, rng)
    sounds: dict[str, int] = {}

    def hear(name: str) -> int:
        if name not in sounds:
            sounds[name] = collection.hear(load_audio(grid / f"{name}.mp4"), every_pass=name in held)
        return sounds[name]

    for name in tqdm([*training, *held], desc="filmed clips", unit="clip"):
        if source is None:
            crops = filmed_crops(grid / f"{name}.mp4", puppets / "driver" / f"{name}.npy", rng)
            motion = encode(model, crops).numpy()
        else:
            motion = source[name]
        collection.move(motion, hear(name), held_out=name in held)
    if source is None:
        puppet_data = PuppetData(puppets).part(0, groups)
        for i in tqdm(range(len(puppet_data)), desc="puppet groups", unit="group"):
            data, meta = puppet_data.open(i), puppet_data.meta(i)
            name, first = str(meta["clip"]), int(str(meta["first"]))
            for k in rng.permutation(len(data["frames"]))[:identities]:
                motion = encode(model, np.array(data["frames"][k])).numpy()
                collection.move(motion, hear(name), first=first, held_out=name in held, still=True)
    elif spoken:
        from semo_sdk.training.spoken_data import recordings

        filmed = {name: source[name] for name in training}
        for one in recordings(grid, puppets, filmed, rng, spoken):
            number = collection.hear(one.pcm, every_pass=one.held_out)
            collection.move(one.motion, number, held_out=one.held_out, spoken=one.spoken)
    collection.write(out, taught=taught)


def taught_motion(puppets: Path) -> dict[str, np.ndarray]:
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
