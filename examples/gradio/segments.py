"""Frames become pieces of video that a browser plays while the next ones are made."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from semo_sdk.clip import Clip
from semo_sdk.constants import CHUNK_FRAMES, FPS, IMAGE_SIZE, SAMPLE_RATE
from semo_sdk.errors import EncodeError

__all__ = ["concatenated", "seconds_of", "segments"]

SEGMENT_FRAMES = 3 * CHUNK_FRAMES  # 1.92 s: players stumble over pieces of less than a second
PRIMING = 1024 / SAMPLE_RATE  # seconds of silence that AAC begins with
FFMPEG = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-nostats", "-v", "error", "-y"]


def segments(clip: Clip, folder: Path) -> Iterator[Path]:
    """Makes a clip's frames, and encodes them on the way.

    One encoder makes all pieces, so sound and picture run on without a seam from one to the next.

    Args:
        clip: with sound.
        folder: an empty one, where the pieces go.

    Yields:
        An MPEG-TS file (H.264, AAC) of about two seconds, as soon as it is complete.

    Raises:
        EncodeError: ffmpeg failed.
        EngineError: the engine failed.
    """
    assert clip.audio is not None
    sound, listing = folder / "sound.f32", folder / "list.csv"
    sound.write_bytes(np.clip(clip.audio, -1, 1).astype("<f4").tobytes())
    picture = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{IMAGE_SIZE}x{IMAGE_SIZE}",
        "-r",
        str(FPS),
        "-i",
        "pipe:0",
    ]
    speech = ["-f", "f32le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", f"file:{sound}"]
    codec = ["-c:v", "libx264", "-preset", "veryfast", "-tune", "zerolatency", "-crf", "18", "-pix_fmt", "yuv420p"]
    codec += ["-g", str(SEGMENT_FRAMES), "-sc_threshold", "0", "-c:a", "aac", "-b:a", "96k"]
    pieces = ["-f", "segment", "-segment_time", str(SEGMENT_FRAMES / FPS), "-segment_format", "mpegts"]
    pieces += ["-segment_list", str(listing), "-segment_list_type", "csv", str(folder / "%05d.ts")]
    listed = 0

    def complete() -> Iterator[Path]:
        nonlocal listed
        lines = listing.read_text(encoding="utf-8").splitlines(keepends=True) if listing.exists() else []
        for line in lines[listed:]:
            if line.endswith("\n"):
                listed += 1
                name, start, end = line.split(",")
                length = round(1000 * (float(end) - float(start)))
                yield (folder / name).rename(folder / f"{listed:05d}-{length}.ts")

    with _running([*picture, *speech, *codec, *pieces]) as ffmpeg:
        assert ffmpeg.stdin is not None
        for chunk in clip:
            ffmpeg.stdin.write(chunk.frames.tobytes())
            yield from complete()
    yield from complete()


def seconds_of(piece: Path) -> float:
    """How long a piece lasts; its name says so in milliseconds."""
    return int(piece.stem.rpartition("-")[2]) / 1000


def concatenated(pieces: Sequence[Path], target: Path) -> Path:
    """The pieces as one MP4, without encoding anything again.

    Raises:
        EncodeError: ffmpeg failed.
    """
    joined = "concat:" + "|".join(str(piece) for piece in pieces)
    copied = ["-c", "copy", "-output_ts_offset", str(-PRIMING), "-avoid_negative_ts", "disabled"]
    with _running(["-i", joined, *copied, "-movflags", "+faststart", str(target)]):
        pass
    return target


@contextlib.contextmanager
def _running(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """ffmpeg, until its input ends; killed if that is left early."""
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen([*FFMPEG, *arguments], stdin=subprocess.PIPE, stderr=complaints)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # its own words say more
                yield process
                process.stdin.close()
            failed = process.wait()
        finally:
            process.kill()
            process.wait()
        complaints.seek(0)
        if failed:
            raise EncodeError(f"ffmpeg failed: {complaints.read(1000).decode(errors='replace').strip()}")
