"""Batches for the first stage from a folder of rendered puppet groups.

A group (see :mod:`semo_sdk.training.puppet_dataset`) shows several identities making the same motion. That gives exact
cross-identity pairs: the token of identity A at frame k must render identity B at frame k.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semo_sdk.constants import IMAGE_SIZE, POSE_SIZE
from semo_sdk.errors import InputError
from semo_sdk.models.warp import MOUTH_SIZE
from semo_sdk.training.puppet import CELLS
from semo_sdk.training.puppet_dataset import pose_of
from semo_sdk.training.puppet_driver import Driver
from semo_sdk.training.puppet_geometry import INNER_LIPS, MESH, rotation
from semo_sdk.training.puppet_mouth import OPEN_MOUTH, fill_polygon, mouth_gap

T = TypeVar("T")
D = TypeVar("D", bound=Any)
REFERENCES = 11
BLINK_SHARE = 8.0  # a frame with closed eyes counts as so many more in a random choice
SURFACE_SCALE = 2.0  # the mean face is about one unit high
MOUTH_MARGIN, MOUTH_DROP = 1.24, 0.35  # a mouth's picture against the inner lips at rest: width, and how far down
FILES = ("frames", "points", "triangles", "barycentric", "weight", "motion")


@dataclass
class Batch:
    """G sequences of F frames; each has a reference of its own identity and a driver that may be another one.

    Attributes:
        reference: (G, 256, 256, 3) uint8 RGB.
        target: (G, F, 256, 256, 3) uint8 RGB.
        driver: (G,) index of the sequence whose frames give the motion tokens.
    """

    reference: Tensor
    target: Tensor
    driver: Tensor


@dataclass
class PuppetBatch(Batch):
    """A batch of which everything is known.

    Attributes:
        field: (G, F, 2, S, S) float32, true backward offsets target -> reference, in units of half the image side.
        coarse: the same of the head alone: what they would be if the reference had the target's expression.
        opening: (G, F, 2 S, 2 S) float32, 1 between open lips, 0 elsewhere.
        mouth: (G, F, 2, 3) float32, affine map from (x, y, 1) in the target, in units of half the image side from its
            middle, to the learned pictures of a mouth, whose edges are at -1 and 1.
        weight: (G, F, S, S) uint8: 0 background, 1 face, 2 mouth and eyes, 3 inside of the mouth.
        motion: (G, 1 + F, 30) float32 pose and expression of the reference and the targets; NaN where unknown.
        seen: (G, 478, 3) landmarks of the reference, px, as a face reader sees them; zeros where they are not known.
    """

    field: Tensor
    coarse: Tensor
    opening: Tensor
    mouth: Tensor
    weight: Tensor
    motion: Tensor
    seen: Tensor


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


class Source(Protocol):
    """What the first stage draws its batches from: puppets, or real videos."""

    knows_motion: bool  # batches are PuppetBatch, and there are stills

    def stills(self, rng: np.random.Generator, size: int) -> Stills | None: ...

    def batch(
        self, rng: np.random.Generator, *, groups: int, identities: int, frames: int, neighbours: bool = True
    ) -> Batch: ...


class PuppetData:
    """Read-only view of rendered groups; batches are a pure function of the random generator given."""

    knows_motion = True

    def __init__(self, folder: str | Path, *, min_face: float = 0.0) -> None:
        """Complete groups in order of name, those whose face is at least ``min_face`` of the crop high.

        Raises:
            InputError: no such group there.
        """
        complete = sorted(p.parent for p in Path(folder).glob("group_*/meta.json"))
        self.groups = [group for group in complete if _face_height(group) >= min_face]
        if not self.groups:
            raise InputError(f"no rendered groups in {folder}; make them with: semo data puppet")
        self.driver = Driver.load(Path(folder) / "driver.npz")
        self.canonical = self.driver.canonical.astype(np.float32)
        blink = self.driver.blink(np.ones(1))[0]
        self.eyes = blink / np.square(blink).sum()  # reads the closure of the eyes from an expression
        self.landmarks: dict[str, np.ndarray] = {}  # by group, see training.reader.find_landmarks

    def part(self, first: int, last: int | None) -> PuppetData:
        """The groups ``first`` to ``last`` alone."""
        view = copy(self)
        view.groups = self.groups[first:last]
        return view

    def joined(self, other: PuppetData) -> PuppetData:
        """The groups of both parts."""
        view = copy(self)
        view.groups = sorted({*self.groups, *other.groups})
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
        places = source_points(self.canonical[None, None], corners[None, None], barycentric[None, None])[0, 0]
        places = np.where((on_face.reshape(inside.shape) & ~inside)[..., None], places * SURFACE_SCALE, np.nan)
        return np.concatenate([places, inside[..., None]], -1).astype(np.float32)

    def batch(
        self, rng: np.random.Generator, *, groups: int, identities: int, frames: int, neighbours: bool = True
    ) -> PuppetBatch:
        """A batch of ``groups * identities`` sequences of ``frames`` frames.

        The frames are one to six apart, or, without ``neighbours``, anywhere in the group, closed eyes more often than
        they come.
        """
        parts = [self._group(rng, identities, frames, i * identities, neighbours) for i in range(groups)]
        return PuppetBatch(*(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True)))

    def _group(
        self, rng: np.random.Generator, identities: int, frames: int, offset: int, neighbours: bool
    ) -> tuple[np.ndarray, ...]:
        number = int(rng.integers(len(self.groups)))
        data = self.open(number)
        total, length = data["triangles"].shape[:2]
        chosen = np.sort(rng.choice(total, identities, replace=total < identities))
        if neighbours:
            stride = int(rng.integers(1, 1 + min(6, (length - 1) // max(1, frames - 1))))
            index = int(rng.integers(length - (frames - 1) * stride)) + stride * np.arange(frames)
        else:
            closed = data["motion"][chosen[0], 1:, POSE_SIZE:] @ self.eyes
            share = 1 + BLINK_SHARE * closed.clip(0, 1)
            index = rng.choice(length, frames, replace=length < frames, p=share / share.sum())
        # half of the references are the original portrait, as at inference; the others another rendered frame
        choice = np.where(rng.random(identities) < 0.5, 0, rng.integers(1, REFERENCES, identities))
        references = reference_frames(length)[choice]
        target = data["frames"][chosen[:, None], 1 + index]
        reference = data["frames"][chosen, references]
        motion = np.concatenate(
            [data["motion"][chosen, references][:, None], data["motion"][chosen[:, None], 1 + index]], axis=1
        )
        corners = data["triangles"][chosen[:, None], index], data["barycentric"][chosen[:, None], index]
        own, moved = data["points"][chosen, references], data["points"][chosen[:, None], 1 + index]
        field = offsets_from(source_points(own[:, None], *corners))
        turned = np.repeat(own[:, None], frames, axis=1)
        turned[:, :, :MESH] = turn_back(moved[:, :, :MESH], motion, self.canonical)
        coarse = offsets_from(source_points(turned, *corners))
        opening = np.stack([[open_mouth(frame) for frame in sequence] for sequence in moved])
        mouth = place_mouth(moved, motion[:, 1:], self.driver)
        # most tokens come from another identity of the group: the token must not carry who is seen
        shift = np.where(rng.random(identities) < 0.3, 0, rng.integers(1, max(2, identities)))
        driver = offset + (np.arange(identities) + shift) % identities
        weight = data["weight"][chosen[:, None], index]
        found = self.landmarks.get(self.groups[number].name)
        seen = np.zeros((identities, 478, 3), np.float32) if found is None else found[chosen, choice]
        return reference, target, driver, field, coarse, opening, mouth, weight, motion, seen


def reference_frames(length: int) -> np.ndarray:
    """(REFERENCES,) frames of a group that serve as references: the portrait and frames spread evenly over the rest."""
    return np.concatenate([[0], np.linspace(1, length, REFERENCES - 1).round().astype(int)])


def _face_height(group: Path) -> float:
    """Mean height of the face in a group's frames, as a share of the crop (see ``motion_target``)."""
    size = np.load(group / "motion.npy", mmap_mode="r")[:, 1:, 3]
    return float(np.exp(size.mean() / 5) * 128 / IMAGE_SIZE)


def source_points(points: np.ndarray, triangles: np.ndarray, barycentric: np.ndarray) -> np.ndarray:
    """Where each cell of the target comes from in the reference.

    Args:
        points: (G, F or 1, P, n) of the reference, px. triangles: (G, F, S * S, 3) vertex numbers, on the target.
        barycentric: (G, F, S * S, 2) first two weights.

    Returns:
        (G, F, S, S, n) float32 of the reference.
    """
    weights = np.concatenate([barycentric, 1 - barycentric.sum(-1, keepdims=True)], -1).astype(np.float32)
    group, frame = np.ogrid[: triangles.shape[0], : triangles.shape[1]]
    corners = points[group[..., None, None], np.minimum(frame, points.shape[1] - 1)[..., None, None], triangles]
    source = (corners * weights[..., None]).sum(-2)
    side = round(source.shape[2] ** 0.5)
    return source.reshape(*source.shape[:2], side, side, points.shape[-1]).astype(np.float32)


def turn_back(mesh: np.ndarray, motion: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Meshes with their own expression, in the pose of the reference.

    Args:
        mesh: (G, F, 468, 2) px of the targets. motion: (G, 1 + F, 30) of reference and targets.
        canonical: (468, 3) mean face: gives the depth that the meshes lack.

    Returns:
        (G, F, 468, 2) px.
    """
    poses = pose_of(motion.astype(np.float64))
    turn = rotation(poses[..., 0], poses[..., 1], poses[..., 2]) * poses[..., 3, None, None]
    ours, own = turn[:, 1:], turn[:, :1]
    flat = mesh - poses[:, 1:, None, 4:6] - canonical[:, 2:] * ours[:, :, None, :2, 2]
    plane = np.linalg.solve(ours[..., :2, :2], np.swapaxes(flat, -1, -2))
    shape = np.concatenate([np.swapaxes(plane, -1, -2), np.broadcast_to(canonical[:, 2:], (*flat.shape[:3], 1))], -1)
    return shape @ np.swapaxes(own[..., :2, :], -1, -2) + poses[:, :1, None, 4:6]


def open_mouth(points: np.ndarray) -> np.ndarray:
    """(2 S, 2 S) float32 share of each cell that shows the inside of the mouth; points (P, 2) in px of 256."""
    size = 2 * CELLS
    gap = mouth_gap(points)
    if gap <= OPEN_MOUTH:
        return np.zeros((size, size), np.float32)
    polygon = points[INNER_LIPS].astype(np.float64) * (size / IMAGE_SIZE)
    return fill_polygon(polygon, (size, size)) * np.float32(min(1.0, (gap - OPEN_MOUTH) / 1.5 + 0.3))


def place_mouth(points: np.ndarray, motion: np.ndarray, driver: Driver) -> np.ndarray:
    """Affine maps (G, F, 2, 3) from targets to the driver's mouth in his face at rest, see :class:`PuppetBatch`.

    The puppet fits the driver's inner lips to the target's, whatever shape they have.

    Args:
        points: (G, F, P, 2) px of the targets. motion: (G, F, 30) of the targets.
    """
    lips = driver.neutral[INNER_LIPS, :2]
    half = np.array([1.0, MOUTH_SIZE[0] / MOUTH_SIZE[1]]) * MOUTH_MARGIN * np.ptp(lips[:, 0]) / 2
    centre = lips.mean(0) + np.array([0, MOUTH_DROP * half[1]])
    moved = np.tensordot(motion[..., POSE_SIZE:], driver.basis[:, INNER_LIPS, :2], axes=(-1, 0))
    goal = (lips + driver.mean[INNER_LIPS, :2] + moved - centre) / half
    ours = points[..., INNER_LIPS, :].astype(np.float64) / (IMAGE_SIZE / 2) - 1
    middle, aim = ours.mean(-2, keepdims=True), goal.mean(-2, keepdims=True)
    ours, goal = ours - middle, goal - aim
    # a nearly closed mouth says nothing of heights: they are then as the widths say
    wide = np.ptp(goal[..., 0], -1) / np.ptp(ours[..., 0], -1)
    plain = wide[..., None, None] * np.diag([1.0, half[0] / half[1]])
    weak = (0.02**2 * ours.shape[-2]) * np.eye(2)
    square = np.swapaxes(ours, -1, -2) @ ours + weak
    linear = np.swapaxes(np.linalg.solve(square, np.swapaxes(ours, -1, -2) @ goal + weak @ plain), -1, -2)
    shift = aim[..., 0, :] - (linear @ middle[..., 0, :, None])[..., 0]
    return np.concatenate([linear, shift[..., None]], -1).astype(np.float32)


def offsets_from(source: np.ndarray) -> np.ndarray:
    """(G, F, S, S, 2) source positions in px -> (G, F, 2, S, S) offsets in units of half the image side."""
    side = source.shape[2]
    centres = (np.arange(side, dtype=np.float32) + 0.5) * (IMAGE_SIZE / side)
    grid = np.stack(np.meshgrid(centres, centres), axis=-1)
    return np.ascontiguousarray(np.moveaxis((source - grid) / (IMAGE_SIZE / 2), -1, 2)).astype(np.float32)


class _Steps(Dataset[T]):
    def __init__(self, make: Callable[[int], T], first: int, last: int) -> None:
        self.make, self.first, self.count = make, first, last - first

    def __len__(self) -> int:
        return max(0, self.count)

    def __getitem__(self, index: int) -> T:
        return self.make(self.first + index)


def read_ahead(make: Callable[[int], T], first: int, last: int, *, workers: int | None = None) -> Iterable[T]:
    """``make(step)`` for steps ``first`` .. ``last - 1`` in order, made ahead by worker processes.

    As long as ``make`` depends on the step alone, a resumed run sees the same batches.

    Args:
        workers: processes; by default this process's share of all cores but one, at least one, at most 12.
    """
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # see semo_sdk.training.processes
    count = min(12, max(1, (len(os.sched_getaffinity(0)) - 1) // sharing)) if workers is None else workers
    # fork: a closure over memory-mapped files costs nothing to hand over, and no worker touches a GPU
    context = "fork" if count else None
    return DataLoader(
        _Steps(make, first, last), batch_size=None, num_workers=count, prefetch_factor=3 if count else None,
        multiprocessing_context=context,
    )  # fmt: skip


def on(batch: D, device: torch.device) -> D:
    """A dataclass of tensors on a device."""
    return replace(batch, **{f.name: getattr(batch, f.name).to(device, non_blocking=True) for f in fields(batch)})
