"""Video files, by ffmpeg: MP4 with sound, written while frames are made; driving videos, read as frames."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

import numpy as np

from semo_sdk.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from semo_sdk.errors import EncodeError, VideoError
from semo_sdk.media.ffmpeg import Ffmpeg, local_file

__all__ = ["Seal", "VideoWriter", "read_video"]

logger = logging.getLogger(__name__)

QUALITY = 17  # x264's constant rate factor: visually lossless at 256 x 256
MUX_SECONDS = 600.0  # copying hours of video next to its sound ends well before
# Without these tags players guess how RGB was converted, and guess differently below and above 720 lines.
TO_RGB = "scale=flags=bicubic+accurate_rnd+full_chroma_int,format=rgb24"
TO_YUV = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,"
    "setparams=color_primaries=bt709:color_trc=bt709"
)


class Seal(Protocol):
    """Adds to a finished file what says how it was made, for example :class:`semo_sdk.provenance.policy.Provenance`."""

    def check(self) -> None:
        """Fails at once if :meth:`seal` would fail."""

    def seal(self, source: Path, target: Path) -> None:
        """Writes the MP4 ``source`` again as ``target``."""


class VideoWriter:
    """Writes an MP4 (H.264 yuv420p, AAC mono 16 kHz, 25 frames/s) while its frames are made.

    Everything goes to a temporary folder beside ``path``, which gets the finished file in one move: at no time
    is there half a video at ``path``. Leaving the ``with`` block by an exception, or any failure, discards
    everything.

    >>> with VideoWriter("out.mp4", (256, 256)) as writer:
    ...     for chunk in chunks:
    ...         writer.write(chunk.frames, chunk.audio)

    Args:
        path: the file to write; must end in ``.mp4``, in a folder that exists. An old file is replaced.
        size: width and height of the frames in pixels. An odd column or row at the end is cut off (yuv420p).
        audio: the whole sound, (n,) float in [-1, 1] at 16 kHz, if it is known beforehand. It is cut or filled
            with silence to exactly 640 samples a frame.
        seal: signs the finished file before it appears; ``animator.provenance`` says that it is AI-generated.

    Raises:
        EncodeError: if the file cannot be written.
        SemoError: what ``seal`` raises.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int],
        *,
        audio: np.ndarray | None = None,
        seal: Seal | None = None,
    ) -> None:
        self.path = Path(path)
        self.size = (int(size[0]), int(size[1]))
        self.frames = 0
        self._whole_audio = audio is not None
        self._samples = 0
        self._check_target()
        self._seal = seal
        if seal is not None:
            seal.check()
        try:
            folder = Path(tempfile.mkdtemp(prefix=".semo-", dir=self.path.parent))
        except OSError as error:
            raise EncodeError(f"cannot write into {self.path.parent}: {error.strerror}") from error
        self._video, self._sound = folder / "video.mp4", folder / "sound.f32"
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._pcm: IO[bytes] = stack.enter_context(open(self._sound, "w+b"))
            self._ffmpeg = Ffmpeg(self._encode_arguments(), write=True)
            stack.callback(self._ffmpeg.stop)
            self._clean = weakref.finalize(self, stack.pop_all().close)  # also when forgotten, and at exit
        if audio is not None:
            self._add_audio(audio)

    def _check_target(self) -> None:
        if self.path.suffix.lower() != ".mp4":
            raise EncodeError(f"{self.path}: the name of the video must end in .mp4")
        if not self.path.parent.is_dir():
            raise EncodeError(f"the folder {self.path.parent} does not exist: create it first")
        if self.path.is_dir():
            raise EncodeError(f"{self.path} is a folder")
        if min(self.size) < 2:
            raise EncodeError(f"a video of {self.size[0]} x {self.size[1]} pixels: at least 2 x 2 are needed")

    def _encode_arguments(self) -> list[str]:
        width, height = self.size
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS), "-i", "pipe:0"]
        filters = f"crop={width & ~1}:{height & ~1}:0:0,{TO_YUV}"
        codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", str(QUALITY), "-pix_fmt", "yuv420p"]
        return [*raw, "-vf", filters, *codec, "-threads", "2", "-f", "mp4", "-y", f"file:{self._video}"]

    def write(self, frames: np.ndarray, audio: np.ndarray | None = None) -> None:
        """Appends frames and their sound.

        Args:
            frames: (n, H, W, 3) or one (H, W, 3), uint8 RGB, of the writer's size.
            audio: (n * 640,) float in [-1, 1] at 16 kHz: the sound of exactly these frames. Frames without
                are silent; a video where no frame has any gets no sound track.

        Raises:
            EncodeError: wrong shapes; or the encoder failed (the video is discarded); or the writer is closed.
        """
        if not self._clean.alive:
            raise EncodeError(f"{self.path}: the video was closed or discarded; nothing more can be written")
        frames = np.asarray(frames)
        frames = frames[None] if frames.ndim == 3 else frames
        expected = (self.size[1], self.size[0], 3)
        if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != np.uint8:
            raise EncodeError(
                f"frames {frames.shape} {frames.dtype}: expected (n, {expected[0]}, {expected[1]}, 3) uint8"
            )
        if audio is not None:
            if self._whole_audio:
                raise EncodeError("the writer got the whole sound when it was made: write frames alone")
            if np.shape(audio) != (len(frames) * SAMPLES_PER_FRAME,):
                wanted = f"({len(frames) * SAMPLES_PER_FRAME},), {SAMPLES_PER_FRAME} samples a frame"
                raise EncodeError(f"audio {np.shape(audio)} for {len(frames)} frames: expected {wanted}")
            self._fit_audio()
            self._add_audio(audio)
        try:
            for frame in frames:
                self._ffmpeg.stdin.write(np.ascontiguousarray(frame).data)
                self.frames += 1
        except OSError as error:  # ffmpeg is gone: a broken pipe
            raise self._failure("the encoder stopped", error) from error

    def _add_audio(self, audio: np.ndarray) -> None:
        samples = np.asarray(audio)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            self._clean()
            raise EncodeError(f"audio {samples.shape}: expected (n,) finite samples")
        try:
            self._pcm.write(np.clip(samples, -1, 1).astype("<f4").tobytes())
        except OSError as error:
            raise self._failure("the sound could not be stored", error) from error
        self._samples += len(samples)

    def _fit_audio(self) -> None:
        """Silence for the frames that had no sound; cuts what reaches beyond the frames."""
        wanted = self.frames * SAMPLES_PER_FRAME
        if self._samples < wanted:
            self._add_audio(np.zeros(wanted - self._samples, np.float32))
        elif self._samples > wanted:
            self._pcm.truncate(wanted * 4)
            self._samples = wanted

    def close(self) -> Path:
        """Finishes the file. May be called twice.

        Returns:
            The path of the video.

        Raises:
            EncodeError: if nothing was written or the encoder failed; nothing is left behind.
        """
        if not self._clean.alive:
            return self.path
        if not self.frames:
            self._clean()
            raise EncodeError(f"{self.path}: no frames were written")
        has_sound = self._whole_audio or self._samples > 0
        try:
            if has_sound:
                self._fit_audio()
                self._pcm.flush()
            self._ffmpeg.stdin.close()
            if self._ffmpeg.wait():
                raise self._failure("the encoder failed")
            finished = self._mux(has_sound)
            if self._seal is not None:
                self._seal.seal(finished, sealed := finished.with_name("sealed.mp4"))
                finished = sealed
            os.replace(finished, self.path)
        except OSError as error:  # a full disk shows when buffers are flushed
            raise self._failure("it could not be finished", error) from error
        except BaseException:
            self._clean()
            raise
        self._clean()
        return self.path

    def _mux(self, has_sound: bool) -> Path:
        """Puts the sound beside the video and the index in front of both: players can start at once."""
        finished = self._video.with_name("finished.mp4")
        arguments = ["-i", f"file:{self._video}"]
        if has_sound:
            arguments += ["-f", "f32le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", f"file:{self._sound}"]
            arguments += ["-map", "0:v", "-map", "1:a", "-c:a", "aac", "-b:a", "96k"]
        muxer = Ffmpeg([*arguments, "-c:v", "copy", "-movflags", "+faststart", "-f", "mp4", "-y", f"file:{finished}"])
        try:
            if muxer.wait(MUX_SECONDS):
                raise self._failure("the sound could not be joined", complaint=muxer.complaint())
        except subprocess.TimeoutExpired as error:
            raise self._failure("joining the sound took too long") from error
        finally:
            muxer.stop()
        return finished

    def _failure(self, what: str, error: OSError | None = None, complaint: str = "") -> EncodeError:
        """Discards everything and says why."""
        if self._ffmpeg.process.poll() is None and isinstance(error, BrokenPipeError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._ffmpeg.wait(1.0)  # it is about to end, and its last words matter
        status = self._ffmpeg.process.poll()
        reason = complaint or self._ffmpeg.complaint()
        if not reason and status is not None and status < 0:
            reason = f"ffmpeg was killed by signal {-status}"
        self._clean()
        return EncodeError(f"{self.path}: {what}: {reason or error or f'ffmpeg ended with status {status}'}")

    def discard(self) -> None:
        """Gives the video up: nothing is left behind. Does nothing after :meth:`close`."""
        self._clean()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()


def read_video(source: str | os.PathLike[str] | bytes, fps: int = FPS) -> Iterator[np.ndarray]:
    """The frames of a video, upright, at a constant rate, one at a time.

    Args:
        source: the path or the bytes of any video that ffmpeg reads.
        fps: frames per second to give; others are dropped or repeated.

    Yields:
        (H, W, 3) uint8 RGB; the arrays belong to the caller.

    Raises:
        VideoError: (from the first ``next``) no such file, not a video, no picture in it, or no frames.
    """
    with local_file(source, VideoError) as (arguments, name):
        # PPM frames say their size themselves, after rotation.
        output = ["-map", "0:V:0", "-vf", f"fps={fps},{TO_RGB}", "-c:v", "ppm", "-f", "image2pipe", "pipe:1"]
        ffmpeg = Ffmpeg([*arguments, *output], write=False)
        count = 0
        try:
            while (frame := _read_ppm(ffmpeg.stdout)) is not None:
                yield frame
                count += 1
            status, complaint = ffmpeg.wait(), ffmpeg.complaint()
            if not count and "matches no streams" in complaint:
                raise VideoError(f"{name}: has no picture in it")
            if not count:
                raise VideoError(f"{name}: not a video that ffmpeg can read ({complaint or 'no frames'})")
            if status or complaint:
                logger.warning("%s: damaged; %d frames could be decoded (%s)", name, count, complaint)
        finally:
            ffmpeg.stop()


def _read_ppm(pipe: IO[bytes]) -> np.ndarray | None:
    """The next frame, or None at the end (or in the middle of a cut frame)."""
    header = [pipe.readline() for _ in range(3)]  # P6, width and height, 255
    if header[0] != b"P6\n" or not header[2]:
        return None
    width, height = map(int, header[1].split())
    frame = np.empty((height, width, 3), np.uint8)
    return frame if pipe.readinto(frame.data.cast("B")) == frame.nbytes else None  # type: ignore[attr-defined]
