"""Reads talking videos with ffmpeg: where the faces are, and a fixed crop at 25 frames/s."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.constants import FPS, IMAGE_SIZE
from semo_sdk.errors import VideoError
from semo_sdk.training.videos_check import TRACK_FPS, Crop

TRACK_SIDE = 640  # pixels, longer side of the pictures in which faces are looked for
RIVAL_AREA = 0.6  # of the largest face: a second one this large makes a video useless

logger = logging.getLogger(__name__)


def track(path: Path) -> tuple[list[np.ndarray | None], list[bool], tuple[int, int]]:
    """Looks for faces, five frames a second.

    Returns:
        Landmarks (478, 3) of the largest face in pixels of the video, or None, for each frame looked at; whether a
        second face of similar size is there (looked for once a second); width and height of the video.

    Raises:
        VideoError: not a readable video.
    """
    from semo_sdk.media.face import FaceDetector, FaceTracker
    from semo_sdk.media.video import read_video

    first = next(read_video(path))
    height, width = first.shape[:2]
    shrink = min(1.0, TRACK_SIDE / max(width, height))
    small = (max(2, round(width * shrink)), max(2, round(height * shrink)))
    tracker, detector = FaceTracker(), FaceDetector()
    faces: list[np.ndarray | None] = []
    several: list[bool] = []
    for index, frame in enumerate(
        _frames(path, [f"fps={TRACK_FPS}", f"scale={small[0]}:{small[1]}:flags=area"], small)
    ):
        found = tracker(frame)
        faces.append(None if found is None else found.points / shrink)
        several.append(index % TRACK_FPS == 0 and _rivals(detector(frame)))
    return faces, several, (width, height)


def _rivals(faces: list[Any]) -> bool:
    areas = sorted(((f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) for f in faces), reverse=True)
    return len(areas) > 1 and areas[1] > RIVAL_AREA * areas[0]


def read_crop(path: Path, crop: Crop, second: float, seconds: float) -> list[np.ndarray]:
    """Frames (256, 256, 3) uint8 RGB of a part of a video at 25 frames/s; fewer where it is damaged."""
    square = f"crop={crop.side}:{crop.side}:{crop.x}:{crop.y}"
    scale = f"scale={IMAGE_SIZE}:{IMAGE_SIZE}:flags=lanczos+accurate_rnd+full_chroma_int"
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return list(_frames(path, [f"fps={FPS}", square, scale], size, seek=second, seconds=seconds))


def _frames(
    path: Path, filters: list[str], size: tuple[int, int], *, seek: float = 0.0, seconds: float | None = None
) -> Iterator[np.ndarray]:
    """Filtered frames (height, width, 3) uint8 RGB of a video; ``size`` is what the filters make of it."""
    from semo_sdk.media.ffmpeg import Ffmpeg, local_file

    with local_file(path, VideoError) as (source, name):
        before = ["-ss", f"{seek:.3f}"] if seek else []
        part = [] if seconds is None else ["-t", f"{seconds:.3f}"]
        output = ["-map", "0:V:0", "-vf", ",".join([*filters, "format=rgb24"]), "-f", "rawvideo", "pipe:1"]
        ffmpeg = Ffmpeg(["-threads", "1", *before, *source, *part, *output], write=False)
        try:
            while True:
                frame = np.empty((size[1], size[0], 3), np.uint8)
                if ffmpeg.stdout.readinto(frame.data.cast("B")) < frame.nbytes:  # type: ignore[attr-defined]
                    break
                yield frame
            ffmpeg.wait()
            if complaint := ffmpeg.complaint():
                logger.warning("%s: damaged (%s)", name, complaint)
        finally:
            ffmpeg.stop()
