"""What a puppet group plays and who plays it: clip, crop, poses, expressions, and portraits that can take the poses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semo_sdk.constants import FPS, IMAGE_SIZE
from semo_sdk.errors import ConfigError
from semo_sdk.training import puppet_driver, puppet_geometry
from semo_sdk.training.puppet_assets import Assets

__all__ = ["CUTS", "Motion", "cast", "plan"]

CROP = (1.4, 2.6)  # side of the crop in face heights
SWAY = np.array([np.radians(12), np.radians(8), np.radians(8), 0.04, 0.04, 0.04])  # yaw, pitch, roll, log scale, x, y
NECK = np.array([0.0, 0.6, 0.35])  # canonical point that a head turns about
NECK_SHARE = 0.6  # how far the head really swings about it
INSIDE, INSIDE_CUT = 0.82, 0.65  # least share of a crop that must lie inside its photo; of one that cuts a face off
# Of the groups: the crop is to cut a part of the face off (the paper's "edge" and "partial" cases). About a sixth of
# them cannot, for the film's picture ends too soon: about one group in twenty does.
CUT_SHARE = 0.06
CUT_FILM = 1.7  # face heights: in larger crops the film's picture ends before they can cut the filmed face
CUTS = {"left": 0.4, "right": 0.4, "forehead": 0.35, "chin": 0.15}  # most of the face that is outside
MARGIN = IMAGE_SIZE // 2  # pixels around the crop that are rendered from where a face comes near its edge
NEAR = 8  # pixels


@dataclass(frozen=True)
class Motion:
    """What a group plays.

    Attributes:
        clip: of the driver.
        first: frame in it.
        sway: motion was added to the film's.
        poses: (F, 6) absolute, in the 256 crop.
        coefficients: (F, 24).
        centre: (2,) of the driver's crop in his video.
        side: of that crop.
        cut: which part of the face lies outside the crop, one of :data:`CUTS`, or None.
        margin: pixels around the crop that are needed, because a face comes near its edge or crosses it.
    """

    clip: puppet_driver.DriverClip
    first: int
    sway: bool
    poses: np.ndarray
    coefficients: np.ndarray
    centre: np.ndarray
    side: float
    cut: str | None
    margin: int


def sway_offsets(frames: int, rng: np.random.Generator) -> np.ndarray:
    """(frames, 6) smooth offsets: three low frequencies an axis, within :data:`SWAY`."""
    time = np.arange(frames)[:, None] / FPS
    rate, phase = rng.uniform(0.1, 0.9, (3, 6)), rng.uniform(0, 2 * np.pi, (3, 6))
    share = rng.dirichlet(np.ones(3), 6).T
    waves = sum(share[i] * np.sin(2 * np.pi * rate[i] * time + phase[i]) for i in range(3))
    return np.asarray(waves * SWAY * rng.uniform(0.3, 1.3, 6).clip(max=1))


def plan(assets: Assets, frames: int, rng: np.random.Generator) -> Motion:
    """Chooses clip, place in it, crop and poses."""
    name = assets.train_clips[int(rng.integers(len(assets.train_clips)))]
    clip = assets.clip(name)
    first = int(rng.integers(0, len(clip.poses) - frames + 1))
    now = slice(first, first + frames)
    rest = np.median(clip.poses, axis=0)
    sway = bool(rng.random() < 0.5)
    cut = str(rng.choice(list(CUTS))) if rng.random() < CUT_SHARE else None
    zoom = rng.uniform(CROP[0], CROP[1] if sway or cut is None else CUT_FILM)
    shift = np.array([rng.uniform(-0.04, 0.04), rng.uniform(-0.06, 0.03)])
    height, width = assets.video_size
    side = min(zoom * rest[3], height - 6)
    least, most = np.full(2, side / 2 + 3), np.array([width, height]) - side / 2 - 3
    centre = np.clip(rest[4:6] + shift * side, least, most)
    scale = IMAGE_SIZE / side
    poses = clip.poses[now].copy()
    poses[:, 3] *= scale
    poses[:, 4:6] = (poses[:, 4:6] - centre + side / 2) * scale
    coefficients = clip.coefficients[now]
    if sway:
        base = assets.poses[int(rng.integers(len(assets.poses)))] * np.array([1, 1, 0.5, 1, 1, 1])
        offsets = sway_offsets(frames, rng)
        size = IMAGE_SIZE / zoom
        deviation = clip.poses[now] - rest
        poses[:, :3] = base[:3] + deviation[:, :3] + offsets[:, :3]
        poses[:, 3] = size * clip.poses[now, 3] / rest[3] * np.exp(offsets[:, 3])
        still = puppet_geometry.rotation(*base[:3])
        turned = puppet_geometry.rotation(poses[:, 0], poses[:, 1], poses[:, 2])
        swing = ((still - turned) @ NECK)[:, :2] * poses[:, 3:4] * NECK_SHARE
        home = IMAGE_SIZE * (0.5 - shift)
        poses[:, 4:6] = home + deviation[:, 4:6] / rest[3] * size + swing + offsets[:, 4:6] * IMAGE_SIZE
        coefficients = coefficients + assets.driver.blink(puppet_driver.blink_closures(frames, rng))
        coefficients = coefficients + assets.driver.brows(puppet_driver.brow_strengths(frames, rng))
    if cut is not None:
        edge = assets.driver.canonical, cut
        away, touching = _to_edge(poses, *edge, rng.uniform(0, CUTS[cut])), _to_edge(poses, *edge, 0.0)
        if not sway:  # the film's picture may still end too soon for it
            moved = np.clip(centre - away / scale, least, most)
            centre, away = moved, (centre - moved) * scale
            cut = cut if (np.abs(away) >= np.abs(touching)).all() else None
        poses[:, 4:6] += away
    shown = puppet_geometry.from_canonical(assets.driver.canonical, poses)[..., :2]
    near = shown.min() < NEAR or shown.max() > IMAGE_SIZE - NEAR
    return Motion(clip, first, sway, poses, coefficients, centre, side, cut, MARGIN if near else 0)


def _to_edge(poses: np.ndarray, canonical: np.ndarray, cut: str, share: float) -> np.ndarray:
    """Shift (2,) of poses, px, after which the crop's edge cuts so much of the mean face off in the median pose."""
    face = puppet_geometry.from_canonical(canonical, np.median(poses, axis=0))[:, :2]
    low, high = face.min(0), face.max(0)
    axis = int(cut in ("forehead", "chin"))
    away = np.zeros(2)
    if cut in ("left", "forehead"):
        away[axis] = -(low + share * (high - low))[axis]
    else:
        away[axis] = IMAGE_SIZE - (high - share * (high - low))[axis]
    return away


def cast(assets: Assets, motion: Motion, count: int, rng: np.random.Generator) -> list[int]:
    """Portraits whose own yaw and pitch are near the group's and whose photo covers the crop."""
    middle = np.median(motion.poses, axis=0)
    own = assets.poses
    distance = np.degrees(np.abs(own[:, :3] - middle[:3])) * np.array([1, 1, 0.5])
    side = IMAGE_SIZE * own[:, 3] / middle[3]
    low = own[:, 4:6] - middle[4:6] * (side / IMAGE_SIZE)[:, None]
    covered = np.clip(np.minimum(low + side[:, None], assets.sizes) - np.maximum(low, 0), 0, None).prod(1)
    inside = INSIDE if motion.cut is None else INSIDE_CUT
    weights = np.exp(-np.square(np.linalg.norm(distance, axis=1) / 6)) * (covered / side**2 >= inside)
    chosen: list[int] = []
    for _ in range(count):
        if weights.sum() <= 0:
            raise ConfigError(f"fewer than {count} portraits fit a group: give more portraits or fewer identities")
        chosen.append(int(rng.choice(len(weights), p=weights / weights.sum())))
        weights[assets.names == assets.names[chosen[-1]]] = 0  # neither this one nor its mirror image
    return chosen
