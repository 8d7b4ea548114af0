"""A small world for tests of the puppet: two photos, a driver with made-up motion, and assets to render from."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.media.face import FaceDetector, FaceMesh
from semo_sdk.training import puppet, puppet_assets, puppet_driver, puppet_geometry
from semo_sdk.training.puppet_assets import Assets

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ["portrait.jpg", "portrait2.jpg"]
SIZE = 400  # pixels of both examples
FRAMES = 12  # of the procedural clip


def load(name: str) -> np.ndarray:
    """(400, 400, 3) uint8 RGB of an example."""
    return np.asarray(Image.open(EXAMPLES / name).convert("RGB"))


def mesh_of(image: np.ndarray) -> np.ndarray:
    """(478, 3) landmarks that are found in an image."""
    landmarks = FaceMesh()(image, FaceDetector()(image)[0])
    assert landmarks is not None
    return landmarks.points.astype(np.float64)


@functools.cache
def meshes() -> np.ndarray:
    """(2, 478, 3) of both examples."""
    return np.stack([mesh_of(load(name)) for name in NAMES])


@functools.cache
def canonical() -> np.ndarray:
    """(468, 3) their mean face."""
    return puppet_geometry.canonical_face(meshes()[:, : puppet_geometry.MESH])


def procedural_clip(mesh: np.ndarray, canonical: np.ndarray, seed: int, frames: int = FRAMES) -> np.ndarray:
    """Landmarks (T, 478, 3) of a face that nods, opens its mouth and blinks."""
    rng = np.random.default_rng(seed)
    pose = puppet_geometry.fit_pose(mesh, canonical)
    rest = puppet_geometry.frontal(mesh[: puppet_geometry.MESH], pose, canonical)
    time = np.arange(frames) / frames * 2 * np.pi
    talk, blink = np.clip(np.sin(time), 0, 1), np.clip(np.cos(time * 2 + seed) - 0.5, 0, 1)
    out = []
    for step in range(frames):
        shape = rest + rng.normal(0, 2e-4, rest.shape)
        below = np.clip((rest[:, 1] - rest[13, 1]) / 0.1, 0, 1)
        below[puppet_geometry.UPPER_LIPS] = 0
        below[puppet_geometry.LOWER_LIPS[:, 1:-1]] = 1
        shape[:, 1] += 0.07 * talk[step] * below
        for eye in (0, 1):
            upper, lower = puppet_geometry.UPPER_LIDS[eye], puppet_geometry.LOWER_LIDS[eye]
            shape[upper] += blink[step] * (rest[lower] - rest[upper])
        moved = pose + np.array([0.05 * np.sin(time[step]), 0.05 * np.cos(time[step]), 0, 0, 2, 0])
        points = puppet_geometry.from_canonical(shape, moved)
        out.append(np.concatenate([points, np.zeros((478 - len(points), 3))]))
    return np.asarray(out, np.float32)


@functools.cache
def driver() -> puppet_driver.Driver:
    """Fitted on two clips of the first example."""
    clips = [procedural_clip(meshes()[0], canonical(), seed, frames=30) for seed in range(2)]
    return puppet_driver.Driver.fit(clips, canonical())


def film(folder: Path, name: str, *, seed: int = 0, frames: int = FRAMES) -> None:
    """A video of the first example that does not move, and the landmarks of one that does, as if tracked in it."""
    writer = cv2.VideoWriter(str(folder / f"{name}.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (SIZE, SIZE))
    for _ in range(frames):
        writer.write(load(NAMES[0])[..., ::-1])
    writer.release()
    (folder / "driver").mkdir(exist_ok=True)
    np.save(folder / "driver" / f"{name}.npy", procedural_clip(meshes()[0], canonical(), seed, frames))


def make_assets(folder: Path) -> Assets:
    """One procedural clip and both examples with their mirror images."""
    film(folder, "clip")
    mirrored = puppet_assets._mirror(meshes(), np.full((2, 2), SIZE), canonical())
    both = np.concatenate([meshes(), mirrored])
    return Assets(
        driver=driver(),
        grid_dir=folder,
        portraits_dir=EXAMPLES,
        cache=folder / "driver",
        train_clips=["clip"],
        video_size=(SIZE, SIZE),
        names=np.array(NAMES * 2),
        mirrored=np.array([False, False, True, True]),
        meshes=both,
        poses=puppet_geometry.fit_pose(both, canonical()),
        sizes=np.full((4, 2), SIZE),
    )


def make_identities() -> list[puppet.Identity]:
    """Both examples, ready to be animated, in crops of two face heights."""
    people = []
    for name, mesh in zip(NAMES, meshes(), strict=True):
        pose = puppet_geometry.fit_pose(mesh, canonical())
        side = 2.0 * pose[3]
        crop = puppet.square_crop(load(name), pose[4:6], side)
        moved = (mesh - np.array([*(pose[4:6] - side / 2), 0])) * (IMAGE_SIZE / side)
        people.append(puppet.make_identity(crop, moved, canonical(), driver().opening))
    return people
