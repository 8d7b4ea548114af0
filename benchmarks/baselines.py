"""What a result is worth: methods without the model that see more, or less, than it does.

* ``copy_reference`` repeats the photo: the floor.
* ``vae_round_trip`` encodes and decodes the real frames with the model's own autoencoder: the ceiling.
* ``puppet`` warps the photo by the *real* frames' landmarks and takes the inside of the mouth from the *real* frames.
  It is the model's teacher, needs the answer, and is no rival: it says how far a warp by a face's landmarks could come.
* ``flow_warp`` looks up each pixel of the photo where dense optical flow finds it in the *real* frame: about as far as
  any warp of one photo could come, that of hair and shoulders too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from semo_sdk.bundle import Bundle
from semo_sdk.errors import MissingDependencyError

if TYPE_CHECKING:
    from semo_sdk.training.puppet_driver import Driver

FramesToFrames = Callable[[np.ndarray], np.ndarray]

BATCH = 8  # frames that the autoencoder gets at once
CANONICAL_EVERY = 10  # frames: so many are enough for the mean shape of a face


def copy_reference(reference: np.ndarray, frames: int) -> np.ndarray:
    """(frames, 256, 256, 3) uint8: the photo, again and again."""
    return np.repeat(reference[None], frames, axis=0)


def vae_round_trip(bundle: Bundle) -> FramesToFrames:
    """The model's autoencoder alone, in float32: (n, 256, 256, 3) uint8 RGB to the same.

    Raises:
        MissingDependencyError: torch or safetensors is not installed.
    """
    try:
        import torch

        from semo_sdk.models.checkpoint import load_checkpoint

        vae = load_checkpoint(bundle.weights_path)[0].vae
    except ImportError as error:
        raise MissingDependencyError(
            f"{error.name} is not installed: pip install 'semo-sdk[quality]'", name=error.name
        ) from error

    def through(frames: np.ndarray) -> np.ndarray:
        out = []
        for start in range(0, len(frames), BATCH):
            image = torch.from_numpy(frames[start : start + BATCH].transpose(0, 3, 1, 2).copy())
            with torch.inference_mode():
                decoded = vae.decode(vae.encode(image.float() / 127.5 - 1))
            pixels = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            out.append(pixels.numpy().transpose(0, 2, 3, 1))
        return np.concatenate(out)

    return through


def puppet_runs() -> bool:
    """True when the puppet can run here.

    Raises:
        MissingDependencyError: one of its packages is not installed.
    """
    try:
        import cv2  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"{error.name} is not installed: pip install 'semo-sdk[quality]'", name=error.name
        ) from error
    return True


def flow_warp(real: np.ndarray) -> np.ndarray:
    """The first frame of a video, warped to the others by dense optical flow (DIS).

    Args:
        real: (n, 256, 256, 3) uint8 RGB.

    Returns:
        (n, 256, 256, 3) uint8 RGB.
    """
    import cv2

    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in real]
    x, y = np.meshgrid(np.arange(real.shape[2], dtype=np.float32), np.arange(real.shape[1], dtype=np.float32))
    frames = []
    for one in grey:
        flow = np.asarray(search.calc(one, grey[0], np.zeros((*one.shape, 2), np.float32)))
        at = x + flow[..., 0], y + flow[..., 1]
        frames.append(cv2.remap(real[0], *at, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))
    return np.stack(frames)


def puppet_same_person(real: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """The first frame of a video, warped to the landmarks of the others.

    Args:
        real: (n, 256, 256, 3) uint8 RGB.
        mesh: (n, 478, 3) its landmarks; frames without (NaN) take those of the nearest frame.

    Returns:
        (n, 256, 256, 3) uint8 RGB.
    """
    from semo_sdk.training import puppet, puppet_geometry

    mesh = _filled(mesh)
    driver = _driver(mesh, mesh[:1])
    identity = puppet.make_identity(real[0], mesh[0], driver.canonical, driver.opening, neutral=driver.neutral)
    poses = puppet_geometry.fit_pose(mesh[:, : puppet_geometry.MESH], driver.canonical)
    frames = []
    for frame, points, pose in zip(real, mesh, poses, strict=True):
        target = puppet.target_points(identity, pose, driver.neutral)
        target[: puppet_geometry.MESH] = points[: puppet_geometry.MESH, :2]
        frames.append(puppet.render(identity, target, puppet.MouthSource(frame, points))[0])
    return np.stack(frames)


def puppet_other_person(crop: np.ndarray, own: np.ndarray, real: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """A portrait that takes on the head motion and the expressions of a video.

    Args:
        crop: (256, 256, 3) uint8 RGB.
        own: (478, 3) the portrait's landmarks in the crop.
        real: (n, 256, 256, 3) uint8 RGB, the video.
        mesh: (n, 478, 3) its landmarks; frames without (NaN) take those of the nearest frame.

    Returns:
        (n, 256, 256, 3) uint8 RGB.
    """
    from semo_sdk.training import puppet, puppet_driver, puppet_geometry

    mesh = _filled(mesh)
    driver = _driver(mesh, own[None])
    poses, shapes = puppet_driver.smooth_clip(mesh, driver.canonical)
    identity = puppet.make_identity(crop, own, driver.canonical, driver.opening)
    start, frames = poses[0], []
    for frame, points, pose, shape in zip(real, mesh, poses, shapes, strict=True):
        moved = identity.pose.copy()
        moved[:3] += pose[:3] - start[:3]
        moved[3] *= pose[3] / start[3]
        moved[4:6] += (pose[4:6] - start[4:6]) * identity.pose[3] / start[3]
        spoken = puppet_geometry.transfer(identity.neutral, driver.neutral, shape - driver.neutral)
        target = puppet.target_points(identity, moved, spoken)
        frames.append(puppet.render(identity, target, puppet.MouthSource(frame, points))[0])
    return np.stack(frames)


def _driver(mesh: np.ndarray, others: np.ndarray) -> Driver:
    """The puppet's model of a speaker from one video (n, 478, 3), poses as seen from the mean of it and other faces."""
    from semo_sdk.training import puppet_driver, puppet_geometry

    faces = np.concatenate([mesh[::CANONICAL_EVERY], others])[:, : puppet_geometry.MESH]
    return puppet_driver.Driver.fit([mesh], puppet_geometry.canonical_face(faces))


def _filled(mesh: np.ndarray) -> np.ndarray:
    seen = np.flatnonzero(np.isfinite(mesh[:, 0, 0]))
    if not len(seen):
        raise ValueError("no frame of the video has a face")
    nearest = seen[np.abs(np.arange(len(mesh))[:, None] - seen[None]).argmin(1)]
    return np.asarray(mesh[nearest])
