"""Renders the puppet's training groups to disk (DESIGN, section 5): ``python -m semo_sdk.training.puppet_dataset``.

A *group* is one second of a driver's speech played by several identities in the same absolute poses, so frame ``i`` of
one identity and frame ``i`` of another show the same motion. A group is a folder of plain ``.npy`` files (memory-map
them) with K identities and F frames:

=====================  ===========================  =================================================================
``frames.npy``         (K, 1 + F, 256, 256, 3) u8   RGB; 0 is the original portrait (own pose and face, crop jittered)
``points.npy``         (K, 1 + F, P, 2) f32         mesh (468), inner ring, outer ring, border; pixels, corner = 0
``triangles.npy``      (K, F, 4096, 3) i16          points around each cell of the 64 x 64 field, row by row
``barycentric.npy``    (K, F, 4096, 2) f16          first two weights; the third is 1 - their sum
``weight.npy``         (K, F, 64, 64) u8            0 background, 1 face, 2 mouth + eyes + brows, 3 open mouth
``motion.npy``         (K, 1 + F, 30) f32           see :func:`motion_target`; the expression of a portrait is NaN
``meta.json``                                       clip, first frame, identities, sway, cut, gaze, seed
=====================  ===========================  =================================================================

The field of frame i from *any* frame j of the same identity is ``sum(barycentric * points[j][triangles])``: where each
cell's centre lies in frame j. In groups without sway the last identity is the filmed driver himself, unrendered; only
groups with sway have procedural blinks, brows and gaze, so that his eyes agree with the others'. The gaze is off unless
asked for, and the field does not hold it, as it does not hold what is between open lips.

In a few groups ``cut``, the edge of the crop, cuts a part of the face off: ``left``, ``right``, ``forehead`` or
``chin``. Points and fields then lie outside the crop where the face does.

The last 60 clips and the last 50 portraits by name are never rendered: they are for validation.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semo_sdk.constants import ANGLE_UNIT, IMAGE_SIZE, OFFSET_UNIT, SCALE_UNIT, SIZE_UNIT
from semo_sdk.training import puppet, puppet_driver, puppet_geometry
from semo_sdk.training.puppet_assets import Assets, one_thread_each, prepare_assets
from semo_sdk.training.puppet_gaze import gaze_path
from semo_sdk.training.puppet_plan import Motion, cast, plan

__all__ = ["motion_target", "render_dataset", "render_group"]

logger = logging.getLogger(__name__)


def motion_target(pose: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Auxiliary target of a motion token, (..., 30) float32, all entries of order one.

    Args:
        pose: (..., 6) in the 256 crop: becomes yaw, pitch, roll (radians * 5), log(face height / 128 px) * 5 and the
            offset of the face's centre from the crop's in units of 64 px.
        coefficients: (..., 24) expression, passed on.
    """
    angles = pose[..., :3] * ANGLE_UNIT
    size = np.log(pose[..., 3:4] / SCALE_UNIT) * SIZE_UNIT
    offset = (pose[..., 4:6] - IMAGE_SIZE / 2) / OFFSET_UNIT
    return np.concatenate([angles, size, offset, coefficients], -1).astype(np.float32)


def pose_of(motion: np.ndarray) -> np.ndarray:
    """Poses (..., 6) in the 256 crop from auxiliary targets (..., >= 6): the inverse of :func:`motion_target`."""
    size = np.exp(motion[..., 3:4] / SIZE_UNIT) * SCALE_UNIT
    return np.concatenate([motion[..., :3] / ANGLE_UNIT, size, motion[..., 4:6] * OFFSET_UNIT + IMAGE_SIZE / 2], -1)


def _jitter(centre: np.ndarray, side: float, rng: np.random.Generator) -> tuple[np.ndarray, float, np.ndarray]:
    """A crop near another one, and the (2, 3) map of crop pixels from the old to the new."""
    new_side = side * float(np.exp(rng.uniform(-0.06, 0.06)))
    new_centre = centre + rng.uniform(-0.04, 0.04, 2) * side
    scale = side / new_side
    shift = (centre - side / 2 - new_centre + new_side / 2) * IMAGE_SIZE / new_side
    return new_centre, new_side, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])


def _move_pose(pose: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    moved = pose.copy()
    moved[..., 3] *= matrix[0, 0]
    moved[..., 4:6] = pose[..., 4:6] * matrix[0, 0] + matrix[:, 2]
    return moved


@dataclass
class _Rows:
    """Arrays of one identity, in the order of the files."""

    frames: list[np.ndarray]
    points: list[np.ndarray]
    warps: list[puppet.Warp]
    weight: list[np.ndarray]
    motion: np.ndarray


def _perform(
    assets: Assets,
    index: int,
    motion: Motion,
    video: list[np.ndarray],
    rng: np.random.Generator,
    gaze: np.ndarray | None,
) -> _Rows:
    """A portrait plays the motion, and the gaze (F, 2)."""
    driver = assets.driver
    own, middle = assets.poses[index], np.median(motion.poses, axis=0)
    side = IMAGE_SIZE * own[3] / middle[3]
    centre = own[4:6] + (IMAGE_SIZE / 2 - middle[4:6]) * side / IMAGE_SIZE
    photo, mesh = assets.portrait(index)
    in_crop = (mesh - np.array([*(centre - side / 2), 0])) * (IMAGE_SIZE / side)
    wide = puppet.square_crop(photo, centre, side, motion.margin)
    identity = puppet.make_identity(wide, in_crop, driver.canonical, driver.opening, margin=motion.margin)
    new_centre, new_side, matrix = _jitter(centre, side, rng)
    at_rest = np.concatenate([in_crop[: puppet_geometry.MESH, :2], identity.points[puppet_geometry.MESH :]])
    points = [at_rest @ matrix[:, :2].T + matrix[:, 2]]
    frames, warps, weight = [puppet.square_crop(photo, new_centre, new_side)], [], []
    expressions = driver.decode(motion.coefficients)
    for i, pose in enumerate(motion.poses):
        shape = puppet_geometry.transfer(identity.neutral, driver.neutral, expressions[i])
        target = puppet.target_points(identity, pose, shape)
        source = puppet.MouthSource(video[motion.first + i], motion.clip.points[motion.first + i])
        frame, warp = puppet.render(identity, target, source, None if gaze is None else gaze[i])
        frames.append(frame)
        points.append(target)
        warps.append(warp)
        weight.append(puppet.region_weights(target))
    first = motion_target(_move_pose(identity.pose, matrix), np.full(puppet_driver.COMPONENTS, np.nan))
    rest = motion_target(motion.poses, motion.coefficients)
    return _Rows(frames, points, warps, weight, np.concatenate([first[None], rest]))


def _film(assets: Assets, motion: Motion, video: list[np.ndarray], rng: np.random.Generator) -> _Rows:
    """The driver himself, as filmed; the reference is a frame from another part of the clip."""
    driver, clip, count = assets.driver, motion.clip, len(motion.poses)
    away = np.abs(np.arange(len(clip.poses)) - (motion.first + count / 2))
    candidates = np.flatnonzero(away >= min(count / 2 + 5, away.max()))
    chosen = [int(rng.choice(candidates)), *range(motion.first, motion.first + count)]
    scale, low = IMAGE_SIZE / motion.side, motion.centre - motion.side / 2
    meshes = (clip.points[chosen] - np.array([*low, 0])) * scale
    poses = clip.poses[chosen].copy()
    poses[:, 3] *= scale
    poses[:, 4:6] = (poses[:, 4:6] - low) * scale
    new_centre, new_side, matrix = _jitter(motion.centre, motion.side, rng)
    identity = puppet.make_identity(
        puppet.square_crop(video[chosen[1]], motion.centre, motion.side, motion.margin),
        meshes[1], driver.canonical, driver.opening, neutral=driver.neutral, margin=motion.margin,
    )  # fmt: skip
    frames, points, warps, weight = [], [], [], []
    for i, frame in enumerate(chosen):
        target = puppet.target_points(identity, poses[i], driver.neutral)
        target[: puppet_geometry.MESH] = meshes[i, : puppet_geometry.MESH, :2]
        points.append(target)
        if i:
            frames.append(puppet.square_crop(video[frame], motion.centre, motion.side))
            warps.append(puppet.triangulate(target, identity.hidden(target)))
            weight.append(puppet.region_weights(target))
    frames.insert(0, puppet.square_crop(video[chosen[0]], new_centre, new_side))
    points[0] = points[0] @ matrix[:, :2].T + matrix[:, 2]
    poses[0] = _move_pose(poses[0], matrix)
    return _Rows(frames, points, warps, weight, motion_target(poses, clip.coefficients[chosen]))


def render_group(
    assets: Assets, out: Path, *, index: int, identities: int, frames: int, seed: int, gaze: bool = False
) -> Path:
    """Renders one group; the same arguments give the same files. A finished group is left as it is.

    With ``gaze`` irises move where heads sway; all else stays the same to the bit.

    Returns:
        The group's folder.
    """
    folder = out / f"group_{index:05d}"
    if folder.exists():
        return folder
    rng = np.random.default_rng([seed, index])
    motion = plan(assets, frames, rng)
    looks = gaze_path(frames, np.random.default_rng([seed, index, 1])) if gaze and motion.sway else None
    video = assets.video(motion.clip.name)
    people = cast(assets, motion, identities if motion.sway else identities - 1, rng)
    rows = [_perform(assets, person, motion, video, rng, looks) for person in people]
    names = [assets.title(person) for person in people]
    if not motion.sway:
        rows.append(_film(assets, motion, video, rng))
        names.append("driver")
    arrays = {
        "frames": np.stack([np.stack(row.frames) for row in rows]),
        "points": np.stack([np.stack(row.points) for row in rows]).astype(np.float32),
        "triangles": np.stack([np.stack([warp.triangles for warp in row.warps]) for row in rows]),
        "barycentric": np.stack([np.stack([warp.weights for warp in row.warps]) for row in rows]).astype(np.float16),
        "weight": np.stack([np.stack(row.weight) for row in rows]),
        "motion": np.stack([row.motion for row in rows]),
    }
    partial = out / f".partial_{index:05d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(partial / f"{name}.npy", array)
    meta = {
        "clip": motion.clip.name, "first": motion.first, "identities": names, "sway": motion.sway, "cut": motion.cut,
        "gaze": None if looks is None else looks.round(4).tolist(), "seed": seed,
    }  # fmt: skip
    (partial / "meta.json").write_text(json.dumps(meta, indent=1))
    partial.rename(folder)
    return folder


_worker: dict[str, Assets] = {}


def _start_worker(assets: Assets) -> None:
    import cv2

    cv2.setNumThreads(1)
    _worker["assets"] = assets


def _work(job: tuple[Path, int, int, int, int, bool]) -> Path:
    out, index, identities, frames, seed, gaze = job
    return render_group(_worker["assets"], out, index=index, identities=identities, frames=frames, seed=seed, gaze=gaze)


def render_dataset(
    grid_dir: Path,
    portraits_dir: Path,
    out_dir: Path,
    *,
    groups: int,
    identities: int = 8,
    frames: int = 25,
    seed: int = 0,
    workers: int = 2,
    gaze: bool = False,
) -> Iterator[Path]:
    """Renders groups that are not there yet, in order, and yields each one's folder.

    Args:
        grid_dir: videos of one speaker, ``*.mp4``.
        portraits_dir: photos, ``*.jpg``.
        out_dir: where the groups go; landmarks are cached in it too.
        groups: how many there shall be in all.
        identities: people in a group.
        frames: frames in a group, at most a clip's length.
        seed: with the group's index it decides everything.
        workers: processes.
        gaze: irises move. For models whose tokens are encoded from pixels: taught tokens hold no gaze
            (:mod:`semo_sdk.training.puppet_gaze`).

    Raises:
        ConfigError: if there are too few clips or portraits.
    """
    import multiprocessing

    assets = prepare_assets(grid_dir, portraits_dir, out_dir, workers=workers)
    jobs = [(out_dir, index, identities, frames, seed, gaze) for index in range(groups)]
    with one_thread_each(), multiprocessing.get_context("spawn").Pool(workers, _start_worker, (assets,)) as pool:
        yield from pool.imap(_work, jobs)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    import argparse

    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m semo_sdk.training.puppet_dataset", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("grid_dir", type=Path, help="videos of one speaker (*.mp4)")
    parser.add_argument("portraits_dir", type=Path, help="photos (*.jpg)")
    parser.add_argument("out_dir", type=Path, help="where the groups go")
    parser.add_argument("--groups", type=int, default=420, help="50 MB each; 420, as for semo-tiny")
    parser.add_argument("--identities", type=int, default=8, help="people in a group; 8")
    parser.add_argument("--frames", type=int, default=25, help="frames of a group, at most a clip's; 25")
    parser.add_argument("--seed", type=int, default=0, help="with a group's number decides everything; 0")
    parser.add_argument("--workers", type=int, default=2, help="processes; 2")
    parser.add_argument("--gaze", action="store_true", help="irises move: for models whose tokens are not taught")
    options = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO)
    for _ in tqdm(render_dataset(**options), total=options["groups"], unit="group"):
        pass


if __name__ == "__main__":
    main()
