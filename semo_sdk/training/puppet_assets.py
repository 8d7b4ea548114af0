"""What puppet groups are rendered from: tracked clips, measured portraits and the driver's model, cached on disk.

``prepare_assets`` leaves in the output folder: ``driver/<clip>.npy`` (raw landmarks of every clip), ``portraits.npz``
(landmarks of every portrait), ``driver.npz`` (:class:`~semo_sdk.training.puppet_driver.Driver`) and
``driver_cache.npz`` with the smoothed motion of every clip, held-out ones included: ``names`` (n,), ``starts`` (n + 1,)
and, frame after frame, ``poses`` (T, 6) in pixels of the video and ``coefficients`` (T, 24).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from semo_sdk.errors import ConfigError
from semo_sdk.media.lips import close_lips
from semo_sdk.training import puppet_driver, puppet_geometry
from semo_sdk.training.puppet_driver import Driver, DriverClip

__all__ = ["HELD_OUT_CLIPS", "HELD_OUT_PORTRAITS", "Assets", "prepare_assets"]

Row = TypeVar("Row")
logger = logging.getLogger(__name__)

HELD_OUT_CLIPS, HELD_OUT_PORTRAITS = 60, 50  # the last ones by name
FIT_CLIPS = 160  # clips that the driver's model is fitted on
MAX_LOST = 2  # frames without a face that a clip may have
MAX_YAW, MAX_PITCH, MAX_ROLL = 20.0, 18.0, 20.0  # degrees
MIN_FACE = 115.0  # face height in pixels
MAX_GAP = 0.12  # inner-lip gap in face heights: wider mouths look forced when they are closed


@dataclass(frozen=True)
class Assets:
    """Everything a worker needs to render groups. Portraits come twice: as they are, then mirrored.

    Attributes:
        driver: model of the speaker.
        grid_dir, portraits_dir, cache: folders.
        train_clips: names of clips that may be rendered.
        video_size: height and width of the clips.
        names: (n,) file name of each portrait.
        mirrored: (n,) whether it is turned left to right.
        meshes: (n, 478, 3) landmarks in pixels of the (mirrored) photo; 468 without irises.
        poses: (n, 6) in the photo.
        sizes: (n, 2) width and height of the photo.
    """

    driver: Driver
    grid_dir: Path
    portraits_dir: Path
    cache: Path
    train_clips: list[str]
    video_size: tuple[int, int]
    names: np.ndarray
    mirrored: np.ndarray
    meshes: np.ndarray
    poses: np.ndarray
    sizes: np.ndarray

    def title(self, index: int) -> str:
        """Name of a portrait for the record."""
        return f"{self.names[index]}{':mirror' if self.mirrored[index] else ''}"

    def portrait(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Photo (H, W, 3) uint8 RGB and its mesh (478, 3), lips closed as those of every portrait that is animated."""
        photo = read_photo(self.portraits_dir / str(self.names[index]))
        photo = np.ascontiguousarray(photo[:, ::-1]) if self.mirrored[index] else photo
        return close_lips(photo, self.meshes[index])

    def clip(self, name: str) -> DriverClip:
        """Motion of a clip."""
        return self.driver.clip(name, self.landmarks(name))

    def landmarks(self, name: str) -> np.ndarray:
        """(T, 478, 3) raw landmarks of a clip."""
        return puppet_driver.track_clip(self.grid_dir / f"{name}.mp4", self.cache / f"{name}.npy")

    def video(self, name: str) -> list[np.ndarray]:
        """Frames of a clip."""
        return list(puppet_driver.read_frames(self.grid_dir / f"{name}.mp4"))


def read_photo(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB.

    Raises:
        ConfigError: if it is not an image.
    """
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ConfigError(f"{path} is not an image that can be read: remove it from the portraits")
    return np.ascontiguousarray(image[..., ::-1])


def _measure(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Mesh of the largest face, NaN when there is none, and the photo's width and height."""
    from semo_sdk.media.face import FaceDetector, FaceMesh

    photo = read_photo(path)
    faces = FaceDetector()(photo)
    found = FaceMesh()(photo, faces[0]) if faces else None
    points = np.full((478, 3), np.nan, np.float32) if found is None else found.points
    return points, (photo.shape[1], photo.shape[0])


def _lost(path: Path, cache: Path) -> int:
    """Tracks a clip into its cache; how many frames have no face."""
    if not cache.exists():
        puppet_driver.track_clip(path, cache)
    return int(np.isnan(np.load(cache, mmap_mode="r")[:, 0, 0]).sum())


def _cached_portraits(paths: list[Path], cache: Path, workers: int) -> dict[str, np.ndarray]:
    names = np.array([path.name for path in paths])
    if cache.exists():
        with np.load(cache) as data:
            stored = dict(data)
        if np.array_equal(stored["names"], names):
            return stored
    rows = _in_parallel(_measure, [(path,) for path in paths], workers, "portraits")
    stored = {
        "names": names,
        "points": np.stack([points for points, _ in rows]),
        "sizes": np.array([size for _, size in rows]),
    }
    temporary = cache.with_suffix(".partial.npz")
    np.savez(temporary, **stored)
    temporary.replace(cache)
    return stored


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside use one BLAS thread each: with more, two workers get in each other's way."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _in_parallel(function: Callable[..., Row], jobs: list[tuple[Path, ...]], workers: int, what: str) -> list[Row]:
    import multiprocessing

    from tqdm import tqdm

    calls = [functools.partial(function, *job) for job in jobs]
    bar = functools.partial(tqdm, total=len(calls), desc=what, unit="file", leave=False)
    if workers < 2:
        return [call() for call in bar(calls)]
    with one_thread_each(), multiprocessing.get_context("spawn").Pool(workers) as pool:
        return list(bar(pool.imap(_call, calls, chunksize=4)))


def _call(call: Callable[[], Row]) -> Row:
    return call()


def _mirror(meshes: np.ndarray, sizes: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Meshes of the photos turned left to right."""
    pairs = np.concatenate([puppet_geometry.mirror_pairs(canonical), puppet_geometry.IRIS_PAIRS])
    flipped = meshes[:, pairs[: meshes.shape[1]]].copy()
    flipped[..., 0] = sizes[:, None, 0] - flipped[..., 0]
    return flipped


def _usable(meshes: np.ndarray, poses: np.ndarray, sizes: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Which portraits are frontal, large and whole enough, with lips that can be closed."""
    limits = np.radians([MAX_YAW, MAX_PITCH, MAX_ROLL])
    whole = ((meshes[..., :2] > 0) & (meshes[..., :2] < sizes[:, None])).all((1, 2))
    own = puppet_geometry.frontal(meshes, poses, canonical)
    gap = (own[:, puppet_geometry.INNER_LOWER[3:8], 1] - own[:, puppet_geometry.INNER_UPPER[3:8], 1]).mean(1)
    return np.asarray((np.abs(poses[:, :3]) < limits).all(1) & (poses[:, 3] >= MIN_FACE) & whole & (gap <= MAX_GAP))


def _fit_driver(clips: list[Path], meshes: np.ndarray, cache: Path, grid_dir: Path) -> Driver:
    if cache.exists():
        return Driver.load(cache)
    canonical = puppet_geometry.canonical_face(meshes)
    step = max(1, len(clips) // FIT_CLIPS)
    tracks = [puppet_driver.track_clip(grid_dir / f"{path.stem}.mp4", path) for path in clips[::step]]
    driver = Driver.fit(tracks, canonical)
    driver.save(cache)
    return driver


def _save_motion(clips: list[Path], driver: Driver, grid_dir: Path, cache: Path) -> None:
    if cache.exists():
        return
    motions = [driver.clip(path.stem, puppet_driver.track_clip(grid_dir / f"{path.stem}.mp4", path)) for path in clips]
    temporary = cache.with_suffix(".partial.npz")
    np.savez(
        temporary,
        names=np.array([motion.name for motion in motions]),
        starts=np.cumsum([0] + [len(motion.poses) for motion in motions]),
        poses=np.concatenate([motion.poses for motion in motions]).astype(np.float32),
        coefficients=np.concatenate([motion.coefficients for motion in motions]).astype(np.float32),
    )
    temporary.replace(cache)


def prepare_assets(grid_dir: Path, portraits_dir: Path, out_dir: Path, *, workers: int = 2) -> Assets:
    """Tracks clips, measures portraits, fits the driver's model; what is already cached is read.

    Raises:
        ConfigError: if too few clips or portraits remain after the held-out ones are left out.
    """
    clips = sorted(grid_dir.glob("*.mp4"))
    photos = sorted(portraits_dir.glob("*.jpg"))
    if len(clips) <= HELD_OUT_CLIPS or len(photos) <= HELD_OUT_PORTRAITS:
        raise ConfigError(
            f"{len(clips)} clips and {len(photos)} portraits: more than {HELD_OUT_CLIPS} and {HELD_OUT_PORTRAITS} "
            "are needed, for the last ones are kept for validation"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    tracks = [out_dir / "driver" / f"{path.stem}.npy" for path in clips]
    lost = _in_parallel(_lost, list(zip(clips, tracks, strict=True)), workers, "clips")
    good = [lost_frames <= MAX_LOST for lost_frames in lost]
    stored = _cached_portraits(photos, out_dir / "portraits.npz", workers)
    seen = np.isfinite(stored["points"][:, 0, 0])
    seen[-HELD_OUT_PORTRAITS:] = False
    meshes = stored["points"][seen].astype(np.float64)
    names, sizes = stored["names"][seen], stored["sizes"][seen]
    train = [path for path, fine in zip(tracks[:-HELD_OUT_CLIPS], good, strict=False) if fine]
    driver = _fit_driver(train, meshes[:, : puppet_geometry.MESH], out_dir / "driver.npz", grid_dir)
    if not driver.brows(np.ones((1, 2))).any():
        logger.warning("%s has no brows: they move as filmed; render into a new folder to have them", out_dir)
    _save_motion([path for path, fine in zip(tracks, good, strict=True) if fine], driver, grid_dir,
                 out_dir / "driver_cache.npz")  # fmt: skip
    keep = _usable(meshes, puppet_geometry.fit_pose(meshes, driver.canonical), sizes, driver.canonical)
    meshes, names, sizes = meshes[keep], names[keep], sizes[keep]
    both = np.concatenate([meshes, _mirror(meshes, sizes, driver.canonical)])
    frame = next(puppet_driver.read_frames(clips[0]))
    logger.info("%d clips and %d portraits to render from", len(train), len(names))
    return Assets(
        driver=driver,
        grid_dir=grid_dir,
        portraits_dir=portraits_dir,
        cache=out_dir / "driver",
        train_clips=[path.stem for path in train],
        video_size=(frame.shape[0], frame.shape[1]),
        names=np.concatenate([names, names]),
        mirrored=np.arange(2 * len(names)) >= len(names),
        meshes=both,
        poses=puppet_geometry.fit_pose(both, driver.canonical),
        sizes=np.concatenate([sizes, sizes]),
    )
