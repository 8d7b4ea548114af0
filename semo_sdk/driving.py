"""A driving video as face crops: one fixed square around the face of its beginning, so that head movement shows."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator

import numpy as np

from semo_sdk.constants import FPS
from semo_sdk.errors import AudioError, NoFaceError, VideoError
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import crop_square, find_portrait
from semo_sdk.media.video import read_video

__all__ = ["Driver", "face_crops", "sound_of"]

log = logging.getLogger(__name__)

Driver = str | os.PathLike[str] | bytes | Iterable[np.ndarray]

SEARCH_FRAMES = 2 * FPS  # a face must appear within the first two seconds
LOOK_EVERY = 5  # frames: looking for a face that is not there takes long


def face_crops(
    video: Driver,
    batch: int,
    *,
    face_index: int | None,
    crop_scale: float,
) -> Iterator[np.ndarray]:
    """Face crops of a video, some frames at a time.

    Args:
        video: path or bytes of a file, or (H, W, 3) uint8 RGB frames at 25 a second.
        batch: frames in one piece.
        face_index: which face, when there are several: 0 is the largest.
        crop_scale: side of the square in face heights.

    Yields:
        (n, 256, 256, 3) uint8 RGB, n <= batch.

    Raises:
        VideoError: not a video, no frames, or frames of another kind.
        NoFaceError: no face within the first two seconds.
    """
    frames = read_video(video) if isinstance(video, str | os.PathLike | bytes) else map(_checked, video)
    early, box = _first_face(frames, face_index, crop_scale)
    crops = []
    for frame in itertools.chain(early, frames):
        crops.append(crop_square(frame, box))
        if len(crops) == batch:
            yield np.stack(crops)
            crops = []
    if crops:
        yield np.stack(crops)


def _first_face(
    frames: Iterator[np.ndarray], face_index: int | None, crop_scale: float
) -> tuple[list[np.ndarray], tuple[float, float, float]]:
    """The frames up to the first one with a face, and the square around that face."""
    early: list[np.ndarray] = []
    for number, frame in enumerate(itertools.islice(frames, SEARCH_FRAMES)):
        early.append(frame)
        if number % LOOK_EVERY:
            continue
        try:
            return early, find_portrait(frame, face_index=face_index, crop_scale=crop_scale).box
        except NoFaceError:
            continue
    if not early:
        raise VideoError("the driving video has no frames")
    raise NoFaceError(
        f"no face in the first {SEARCH_FRAMES / FPS:.0f} seconds of the driving video: cut it to start with one"
    )


def _checked(frame: np.ndarray) -> np.ndarray:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.shape} {frame.dtype}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise VideoError(f"a frame of the driving video must be (H, W, 3) uint8 RGB, got {found}")
    return frame


def sound_of(video: Driver) -> np.ndarray | None:
    """(n,) float32 mono 16 kHz sound of a video file, None if it has none."""
    if not isinstance(video, str | os.PathLike | bytes):
        return None
    try:
        return load_audio(video)
    except AudioError as error:
        log.info("%s; the clip will be silent", error)
        return None
