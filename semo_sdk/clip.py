"""Clip: a talking-head video that is made while it is read or saved."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from semo_sdk.constants import FPS, IMAGE_SIZE, SAMPLES_PER_FRAME
from semo_sdk.media.image import Portrait
from semo_sdk.media.video import VideoWriter
from semo_sdk.motion import Motion
from semo_sdk.pipeline.stream import Chunk
from semo_sdk.provenance.policy import Provenance

__all__ = ["Clip", "Progress"]

log = logging.getLogger(__name__)

MAX_SIDE = 1920  # pixels: larger photos are made smaller before faces are pasted back, players cannot show more

Progress = Callable[[int, int], Any]  # frames done, frames altogether


class Clip:
    """A video of known length whose frames do not exist yet.

    Nothing is computed before it is needed, and frames are not kept: each iteration makes them anew, the same ones
    bit for bit. Made by :meth:`semo_sdk.Animator.from_audio`, ``reenact`` and ``render_motion``.

    >>> clip = animator.from_audio("speech.wav")
    >>> clip.save("talking.mp4", progress=True)
    >>> for chunk in clip:
    ...     show(chunk.frames, chunk.audio)

    ``len(clip)`` is its number of frames; iteration gives :class:`~semo_sdk.Chunk` objects of up to 16 frames.

    Args:
        portrait: whose face it is.
        frames: number of frames.
        chunks: starts an iteration.
        motion: makes the motion tokens without drawing any frame.
        audio: (frames * 640,) float32 mono 16 kHz in [-1, 1], or None for a silent video.
        provenance: what files carry, and frames that are pasted back; None if nothing.
    """

    def __init__(
        self,
        *,
        portrait: Portrait,
        frames: int,
        chunks: Callable[[], Iterator[Chunk]],
        motion: Callable[[], Motion],
        audio: np.ndarray | None,
        provenance: Provenance | None,
    ) -> None:
        self.portrait = portrait
        self.audio = audio
        self._count = frames
        self._chunks = chunks
        self._plan = motion
        self._provenance = provenance

    def __len__(self) -> int:
        """Frames."""
        return self._count

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks()

    @property
    def duration(self) -> float:
        """Seconds."""
        return self._count / FPS

    @cached_property
    def motion(self) -> Motion:
        """Motion tokens of all frames; costs no drawing. Computed once."""
        return self._plan()

    @cached_property
    def frames(self) -> np.ndarray:
        """All frames, (n, 256, 256, 3) uint8 RGB. Computed once and kept: 5 MB for each second."""
        frames = np.empty((self._count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for chunk in self:
            frames[chunk.index : chunk.index + len(chunk)] = chunk.frames
        return frames

    def save(
        self, path: str | Path, *, paste_back: bool = False, progress: Progress | Literal[True] | None = None
    ) -> Path:
        """Writes an MP4 (H.264, 25 frames a second, AAC sound) while the frames are made.

        It says that it is AI-generated, by a watermark and a signed C2PA manifest, unless the animator was made with
        ``provenance=False``; see :func:`semo_sdk.verify`. The file appears under its name only when it is complete.

        Args:
            path: of the file.
            paste_back: show the whole photo with the moving face in it, at the photo's size (at most 1920 pixels on
                a side), instead of the 256 x 256 crop.
            progress: called after each chunk with (frames done, frames altogether), or True for a progress bar.

        Returns:
            The path, as given.

        Raises:
            EncodeError: the file cannot be written.
            EngineError: the engine failed.
            ConfigError: the certificate that signs the file cannot be used.
            MissingDependencyError: c2pa-python, which signs it, does not work here.
        """
        start = time.perf_counter()
        done = 0
        if paste_back:
            shown = self.portrait.limited(MAX_SIDE)
            height, width = shown.photo.shape[:2]
        else:
            shown, height, width = None, IMAGE_SIZE, IMAGE_SIZE
        with (
            _Reporter(progress, self._count) as report,
            VideoWriter(path, (width, height), audio=self.audio, seal=self._provenance) as writer,
        ):
            for chunk in self:
                writer.write(pasted(shown, chunk, self._provenance) if shown else chunk.frames)
                done += len(chunk)
                report(done)
        seconds = time.perf_counter() - start
        log.info(
            "%s: %d frames in %.2f s, real-time factor %.2f", path, done, seconds, seconds / max(self.duration, 1 / FPS)
        )
        return Path(path)

    def __repr__(self) -> str:
        sound = "silent" if self.audio is None else "with sound"
        return f"Clip({self._count} frames, {self.duration:.2f} s, {sound})"


class _Reporter:
    """Calls the caller's progress function, or drives a bar."""

    def __init__(self, progress: Progress | Literal[True] | None, total: int) -> None:
        self._progress, self._total = progress, total
        self._bar: Any = None

    def __enter__(self) -> _Reporter:
        if self._progress is True:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit="frame", dynamic_ncols=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif callable(self._progress):
            self._progress(done, self._total)


def pasted(portrait: Portrait, chunk: Chunk, provenance: Provenance | None) -> np.ndarray:
    """(n, H, W, 3) uint8 RGB: a chunk's frames put back into the whole photo, which is marked as a whole."""
    photos = portrait.paster(chunk.drawn)
    return provenance.watermark(photos) if provenance else photos


def fit_audio(audio: np.ndarray, frames: int) -> np.ndarray:
    """(n,) samples cut or filled up with zeros to ``frames`` * 640 samples."""
    fitted = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    taken = audio[: len(fitted)]
    fitted[: len(taken)] = taken
    return fitted
