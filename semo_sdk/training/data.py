"""Batches for the first stage from a folder of rendered puppet groups.

A group (see :mod:`semo_sdk.training.puppet_dataset`) shows several identities making the same motion. That gives exact
cross-identity pairs: the token of identity A at frame k must render identity B at frame k.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.errors import InputError

T = TypeVar("T")
SURFACE_SCALE = 2.0  # the mean face is about one unit high
FILES = ("frames", "points", "triangles", "barycentric", "weight", "motion")


@dataclass
class Batch:
    """G sequences of F frames; each has a reference of its own identity and a driver that may be another one.

    Attributes:
        reference: (G, 256, 256, 3) uint8 RGB.
        target: (G, F, 256, 256, 3) uint8 RGB.
        driver: (G,) index of the sequence whose frames give the motion tokens.
        field: (G, F, 2, S, S) float32, true backward offsets target -> reference, in units of half the image side.
        weight: (G, F, S, S) uint8: 0 background, 1 face, 2 mouth and eyes, 3 inside of the mouth.
        motion: (G, 1 + F, 30) float32 pose and expression of the reference and the targets; NaN where unknown.
    """

    reference: Tensor
    target: Tensor
    driver: Tensor
    field: Tensor
    weight: Tensor
    motion: Tensor


@dataclass
class Stills:
    """Unrelated frames and what the puppet knows of them.

    Attributes:
        images: (B, 256, 256, 3) uint8 RGB.
        motion: (B, 30) float32 pose and expression; NaN where unknown.
        surface: (B, S, S, 4) float32: the point of the mean face that each cell shows (in units of half its height,
            NaN off the skin), and 1 where the cell is inside an open mouth, else 0.
    """

    images: Tensor
    motion: Tensor
    surface: Tensor


class PuppetData:
    """Read-only view of rendered groups; batches are a pure function of the random generator given."""

    def __init__(self, folder: str | Path, *, min_face: float = 0.0) -> None:
        """Complete groups in order of name, those whose face is at least ``min_face`` of the crop high.

        Raises:
            InputError: no such group there.
        """
        complete = sorted(p.parent for p in Path(folder).glob("group_*/meta.json"))
        self.groups = [group for group in complete if _face_height(group) >= min_face]
        if not self.groups:
            raise InputError(f"no rendered groups in {folder}; make them with: semo data puppet")
        with np.load(Path(folder) / "driver.npz") as driver:
            self.canonical = driver["canonical"].astype(np.float32)

    def part(self, first: int, last: int | None) -> PuppetData:
        """The groups ``first`` to ``last`` alone."""
        view = copy(self)
        view.groups = self.groups[first:last]
        return view

    def __len__(self) -> int:
        return len(self.groups)

    def open(self, index: int) -> dict[str, np.ndarray]:
        """Memory-mapped arrays of one group."""
        return {name: np.load(self.groups[index] / f"{name}.npy", mmap_mode="r") for name in FILES}

    def meta(self, index: int) -> dict[str, object]:
        return json.loads((self.groups[index] / "meta.json").read_text(encoding="utf-8"))

    def stills(self, rng: np.random.Generator, size: int) -> Stills:
        """``size`` unrelated frames of any group, identity and time, with what the puppet knows of them."""
        parts = []
        for index in rng.integers(len(self.groups), size=size):
            data = self.open(int(index))
            k, i = int(rng.integers(data["frames"].shape[0])), int(rng.integers(1, data["frames"].shape[1]))
            surface = self._surface(
                data["triangles"][k, i - 1], data["barycentric"][k, i - 1], data["weight"][k, i - 1] == 3
            )
            parts.append((data["frames"][k, i], data["motion"][k, i], surface))
        return Stills(*(torch.from_numpy(np.stack(x)) for x in zip(*parts, strict=True)))

    def _surface(self, triangles: np.ndarray, barycentric: np.ndarray, inside: np.ndarray) -> np.ndarray:
        on_face = np.all(triangles < len(self.canonical), axis=-1)
        corners = np.where(on_face[:, None], triangles, 0)
        places = source_points(self.canonical[None], corners[None, None], barycentric[None, None])[0, 0]
        places = np.where((on_face.reshape(inside.shape) & ~inside)[..., None], places * SURFACE_SCALE, np.nan)
        return np.concatenate([places, inside[..., None]], -1).astype(np.float32)

    def batch(self, rng: np.random.Generator, *, groups: int, identities: int, frames: int) -> Batch:
        """A batch of ``groups * identities`` sequences of ``frames`` frames, one to six frames apart."""
        parts = [self._group(rng, identities, frames, i * identities) for i in range(groups)]
        return Batch(*(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True)))

    def _group(self, rng: np.random.Generator, identities: int, frames: int, offset: int) -> tuple[np.ndarray, ...]:
        data = self.open(int(rng.integers(len(self.groups))))
        total, length = data["triangles"].shape[:2]
        chosen = np.sort(rng.choice(total, identities, replace=total < identities))
        stride = int(rng.integers(1, 1 + min(6, (length - 1) // max(1, frames - 1))))
        start = int(rng.integers(length - (frames - 1) * stride))
        index = start + stride * np.arange(frames)
        # half of the references are the original portrait, as at inference; the others another rendered frame
        references = np.where(rng.random(identities) < 0.5, 0, rng.integers(1, 1 + length, identities))
        target = data["frames"][chosen[:, None], 1 + index]
        reference = data["frames"][chosen, references]
        points = data["points"][chosen, references]
        source = source_points(
            points, data["triangles"][chosen[:, None], index], data["barycentric"][chosen[:, None], index]
        )
        motion = np.concatenate(
            [data["motion"][chosen, references][:, None], data["motion"][chosen[:, None], 1 + index]], axis=1
        )
        # most tokens come from another identity of the group: the token must not carry who is seen
        shift = np.where(rng.random(identities) < 0.3, 0, rng.integers(1, max(2, identities)))
        driver = offset + (np.arange(identities) + shift) % identities
        weight = data["weight"][chosen[:, None], index]
        return reference, target, driver, offsets_from(source), weight, motion


def _face_height(group: Path) -> float:
    """Mean height of the face in a group's frames, as a share of the crop (see ``motion_target``)."""
    size = np.load(group / "motion.npy", mmap_mode="r")[:, 1:, 3]
    return float(np.exp(size.mean() / 5) * 128 / IMAGE_SIZE)


def source_points(points: np.ndarray, triangles: np.ndarray, barycentric: np.ndarray) -> np.ndarray:
    """Where each cell of the target comes from in the reference.

    Args:
        points: (G, P, n) of the reference, px. triangles: (G, F, S * S, 3) vertex numbers, on the target.
        barycentric: (G, F, S * S, 2) first two weights.

    Returns:
        (G, F, S, S, n) float32 of the reference.
    """
    weights = np.concatenate([barycentric, 1 - barycentric.sum(-1, keepdims=True)], -1).astype(np.float32)
    group = np.arange(len(points))[:, None, None, None]
    source = (points[group, triangles] * weights[..., None]).sum(-2)
    side = round(source.shape[2] ** 0.5)
    return source.reshape(*source.shape[:2], side, side, points.shape[-1]).astype(np.float32)


def offsets_from(source: np.ndarray) -> np.ndarray:
    """(G, F, S, S, 2) source positions in px -> (G, F, 2, S, S) offsets in units of half the image side."""
    side = source.shape[2]
    centres = (np.arange(side, dtype=np.float32) + 0.5) * (IMAGE_SIZE / side)
    grid = np.stack(np.meshgrid(centres, centres), axis=-1)
    return np.ascontiguousarray(np.moveaxis((source - grid) / (IMAGE_SIZE / 2), -1, 2)).astype(np.float32)


def prefetch(make: Callable[[int], T], first: int, last: int, *, ahead: int = 3) -> Generator[T, None, None]:
    """``make(step)`` for steps ``first`` .. ``last - 1``, read ahead by one thread.

    As long as ``make`` depends on the step alone, a resumed run sees the same batches.
    """
    queue: Queue[T | BaseException] = Queue(maxsize=ahead)
    stop = Event()

    def work() -> None:
        try:
            for step in range(first, last):
                if stop.is_set():
                    return
                queue.put(make(step))
        except BaseException as error:  # handed to the consumer, who raises it
            queue.put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in range(first, last):
            item = queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        while thread.is_alive():
            while not queue.empty():
                queue.get_nowait()
            thread.join(timeout=0.1)
