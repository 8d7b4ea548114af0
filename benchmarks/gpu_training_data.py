"""Motion data on a box without flite: synthetic speech is recorded where flite is, and heard where the GPU is.

What Whisper hears in 2,000 recordings is 2 GB, synthetic speech itself less than 80 MB. So the recordings travel (one
FLAC file, 16 bit, without loss, and their motion), and the features are made on the box, as ``semo data motion
--spoken`` makes them: films, the same films at other speeds, synthetic voices; only the random numbers differ.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.errors import InputError
from semo_sdk.media.audio import load_audio
from semo_sdk.models.semo import SemoModel
from semo_sdk.training.motion_prepare import HELD_OUT_CLIPS, Collection, taught_motion
from semo_sdk.training.spoken import faster
from semo_sdk.training.spoken_data import SPEEDS, Recording, at_speed, recordings

SOUND, MOTION = "spoken.flac", "spoken.npz"
WINDOWS, VALIDATION_CLIPS = 24, 10  # as `semo data motion`
READERS = 8  # films whose sound is decoded at once


def record(clips: Path, puppets: Path, folder: Path, count: int, *, seed: int = 0) -> None:
    """Speaks: ``count`` recordings and the held-out ones, as files in ``folder``.

    Args:
        clips: films of one speaker, with transcripts. puppets: folder with his motion.

    Raises:
        InputError: no clips, or clips without transcripts. MissingDependencyError: no flite.
    """
    training, _ = filmed(clips, puppets)
    rows = [r for r in recordings(clips, puppets, training, np.random.default_rng(seed), count) if r.spoken]
    pcm = np.concatenate([r.pcm for r in rows])
    samples = np.round(pcm * 32768).clip(-32768, 32767).astype("<i2")
    from imageio_ffmpeg import get_ffmpeg_exe

    source = [get_ffmpeg_exe(), "-v", "error", "-y", "-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", "-"]
    command = [*source, "-c:a", "flac", "-compression_level", "8", str(folder / SOUND)]
    subprocess.run(command, input=samples.tobytes(), check=True)
    np.savez_compressed(
        folder / MOTION,
        samples=np.array([len(r.pcm) for r in rows]),
        frames=np.array([len(r.motion) for r in rows]),
        motion=np.concatenate([r.motion for r in rows]).astype(np.float16),
        held_out=np.array([r.held_out for r in rows]),
    )


def recorded(folder: Path) -> list[Recording]:
    """What :func:`record` wrote; nothing where it wrote nothing."""
    if not (folder / MOTION).is_file():
        return []
    pcm = load_audio(folder / SOUND, max_seconds=float("inf"))
    with np.load(folder / MOTION) as stored:
        samples, frames, motion, held_out = (stored[k] for k in ("samples", "frames", "motion", "held_out"))
    sounds = np.split(pcm, np.cumsum(samples)[:-1])
    moves = np.split(motion.astype(np.float64), np.cumsum(frames)[:-1])
    return [Recording(s, m, bool(h), spoken=True) for s, m, h in zip(sounds, moves, held_out, strict=True)]


def filmed(clips: Path, puppets: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Motion (T, 30) by name: of clips to train on, and of held-out ones for validation.

    Raises:
        InputError: too few clips.
    """
    names = sorted(p.stem for p in clips.glob("*.mp4"))
    if len(names) <= HELD_OUT_CLIPS:
        raise InputError(f"{clips} has {len(names)} clips; more than {HELD_OUT_CLIPS} are needed")
    motion = taught_motion(puppets)
    training, held = names[:-HELD_OUT_CLIPS], names[-HELD_OUT_CLIPS:][:VALIDATION_CLIPS]
    return {n: motion[n] for n in training if n in motion}, {n: motion[n] for n in held if n in motion}


@torch.no_grad()
def hear(model: SemoModel, clips: Path, puppets: Path, spoken: Path, out: Path, *, seed: int = 0) -> None:
    """Motion data in ``out``: films, and, where synthetic speech was recorded, films at other speeds and that speech.

    Args:
        model: whose Whisper hears, on the device where it shall. spoken: folder that :func:`record` was given.
    """
    rng = np.random.default_rng(seed)
    training, held = filmed(clips, puppets)
    speech = recorded(spoken)
    collection = Collection(model, WINDOWS, rng)
    for name, pcm in _sounds(clips, [*training, *held]):
        motion = held.get(name, training.get(name))
        assert motion is not None
        collection.move(motion, collection.hear(pcm, every_pass=name in held), held_out=name in held)
        if speech and name in training:
            speed = float(rng.uniform(*SPEEDS))
            number = collection.hear(faster(pcm, speed), every_pass=False)
            collection.move(at_speed(motion, speed), number, held_out=False)
    for one in tqdm(speech, desc="synthetic speech", unit="recording"):
        number = collection.hear(one.pcm, every_pass=one.held_out)
        collection.move(one.motion, number, held_out=one.held_out, spoken=True)
    collection.write(out, taught=True)


def _sounds(clips: Path, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and sounds (n,) float32 at 16 kHz, in order; several are decoded at once."""
    with ThreadPoolExecutor(READERS) as pool:
        sounds = pool.map(lambda name: load_audio(clips / f"{name}.mp4"), names)
        yield from tqdm(zip(names, sounds, strict=True), total=len(names), desc="films", unit="clip")
