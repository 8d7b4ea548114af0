"""Batches for the first stage from clips of real videos (``semo data videos``): what the paper trains on.

Of these nothing is known but the pictures: no motion, no warp, no face but the one filmed. A sample is therefore the
paper's (section 3.3): a frame of a clip as reference, and consecutive frames of the same clip to render from their own
motion tokens.
"""

from __future__ import annotations

import io
import json
from copy import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.errors import InputError
from semo_sdk.training.data import Batch, Stills

LIST = "clips.jsonl"


class VideoClip(NamedTuple):
    """One clip: where it is, which top folder its video came from, how long it is, whether it has clear speech."""

    path: Path
    folder: str
    frames: int
    speech: bool
    held_out: bool


class VideoData:
    """Read-only view of prepared clips; batches are a pure function of the random generator given.

    Clips are drawn evenly from the folders at the top of what ``semo data videos`` was given, then evenly from each
    one's clips: with a data set in each, every data set has the same share (paper, section 4.1).
    """

    knows_motion = False

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            InputError: nothing prepared there, or no clip to train on.
        """
        path = Path(folder) / LIST
        if not path.is_file():
            raise InputError(f"no prepared clips in {folder}; make them with: semo data videos")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self.clips = [
            VideoClip(Path(folder) / "clips" / r["name"], r["folder"], r["frames"], r["speech"], r["held_out"])
            for r in rows
        ]
        if all(clip.held_out for clip in self.clips):
            raise InputError(f"{folder} has {len(rows)} clips, at least 2 are needed: report.json says why")

    def part(self, *, held_out: bool) -> VideoData:
        """The clips for validation, or those for training."""
        view = copy(self)
        view.clips = [clip for clip in self.clips if clip.held_out == held_out]
        return view

    def __len__(self) -> int:
        return len(self.clips)

    def stills(self, rng: np.random.Generator, size: int) -> Stills | None:
        """None: what a still would teach is known of puppets only."""
        return None

    def batch(
        self, rng: np.random.Generator, *, groups: int, identities: int, frames: int, neighbours: bool = True
    ) -> Batch:
        """``groups * identities`` clips, ``frames`` targets of each: in a row, or anywhere without ``neighbours``."""
        folders = sorted({clip.folder for clip in self.clips})
        references, targets = [], []
        for _ in range(groups * identities):
            chosen = folders[int(rng.integers(len(folders)))]
            members = [clip for clip in self.clips if clip.folder == chosen]
            clip = members[int(rng.integers(len(members)))]
            if neighbours:
                wanted = int(rng.integers(max(1, clip.frames - frames + 1))) + np.arange(frames)
            else:
                wanted = rng.choice(clip.frames, frames, replace=clip.frames < frames)
            images = read_frames(clip.path, [int(rng.integers(clip.frames)), *np.minimum(wanted, clip.frames - 1)])
            references.append(images[0])
            targets.append(images[1:])
        own = torch.arange(len(references))
        return Batch(torch.from_numpy(np.stack(references)), torch.from_numpy(np.stack(targets)), own)


def read_frames(clip: Path, numbers: list[int] | range) -> np.ndarray:
    """Frames (n, 256, 256, 3) uint8 RGB of a prepared clip.

    Raises:
        InputError: the clip is damaged.
    """
    from PIL import Image

    images = np.empty((len(numbers), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    try:
        offsets = np.load(clip / "offsets.npy")
        with (clip / "frames.jpgs").open("rb") as file:
            for image, number in zip(images, numbers, strict=True):
                file.seek(offsets[number])
                image[:] = np.asarray(Image.open(io.BytesIO(file.read(offsets[number + 1] - offsets[number]))))
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{clip} is damaged ({error}): delete it and its video's record, and prepare again") from error
    return images
