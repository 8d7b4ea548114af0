"""Video out and in: exact frame counts and sound lengths, true colours, and never half a file."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from semo_sdk.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from semo_sdk.errors import EncodeError, VideoError
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import crop_square, load_image
from semo_sdk.media.video import VideoWriter, read_video

SIZE = (96, 64)


def moving(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frames with a bright square whose place tells the frame's number."""
    width, height = size
    frames = np.full((count, height, width, 3), (40, 90, 160), np.uint8)
    for number, frame in enumerate(frames):
        left = 4 * (number % 20)
        frame[16:32, left : left + 16] = (230, 200, 60)
    return frames


def tone(frames: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(frames * SAMPLES_PER_FRAME) / SAMPLE_RATE)).astype(np.float32)


def describe(path: Path) -> str:
    """What ffmpeg says about a file, with the number of decoded frames."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path), "-map", "0:v", "-f", "null", "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def only(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("count", [1, 2, 17, 40])
def test_frame_count_and_sound_length_are_exact(tmp_path: Path, count: int) -> None:
    path = tmp_path / "out.mp4"
    frames, audio = moving(count), tone(count)
    with VideoWriter(path, SIZE) as writer:
        for start in range(0, count, 16):
            part = frames[start : start + 16]
            writer.write(part, audio[start * SAMPLES_PER_FRAME : (start + len(part)) * SAMPLES_PER_FRAME])
    assert only(tmp_path) == ["out.mp4"]
    assert sum(1 for _ in read_video(path)) == count
    assert len(load_audio(path)) == count * SAMPLES_PER_FRAME
    log = describe(path)
    assert re.search(r"Video: h264 .*yuv420p\(tv, bt709.* 25 fps", log) and re.search(
        r"Audio: aac .*16000 Hz, mono", log
    )
    assert "start: 0.000000" in log and int(re.findall(r"frame=\s*(\d+)", log)[-1]) == count
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index comes first: +faststart"


def test_pictures_and_sound_survive_and_stay_together(tmp_path: Path, portrait_path: Path) -> None:
    photo = crop_square(load_image(portrait_path), (60.0, 60.0, 300.0))
    frames = np.stack([np.roll(photo, 2 * shift, 1) for shift in range(30)])
    audio = tone(30) * (np.arange(30 * SAMPLES_PER_FRAME) >= 12 * SAMPLES_PER_FRAME)  # begins with frame 12
    path = tmp_path / "out.mp4"
    with VideoWriter(path, (256, 256)) as writer:
        writer.write(frames, audio)
    for frame, back in zip(frames, read_video(path), strict=True):
        error = back.astype(np.float64) - frame
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 33
        assert np.abs(error.mean((0, 1))).max() < 1.5, "colours shift when matrix or range are mixed up"
    heard = load_audio(path)
    begin = int(np.argmax(np.abs(heard) > 0.2))
    assert abs(begin - 12 * SAMPLES_PER_FRAME) < SAMPLES_PER_FRAME // 4


@pytest.mark.parametrize("samples", [0, 1_000, 10 * SAMPLES_PER_FRAME, 20_000])
def test_sound_known_beforehand_is_cut_or_filled(tmp_path: Path, samples: int) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, SIZE, audio=np.resize(tone(10), samples)) as writer:
        writer.write(moving(10))
    assert len(load_audio(path)) == 10 * SAMPLES_PER_FRAME
    assert sum(1 for _ in read_video(path)) == 10


def test_frames_without_sound_are_silent(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, SIZE) as writer:
        writer.write(moving(10))
        writer.write(moving(10), tone(10))
        writer.write(moving(5))
    heard = load_audio(path)
    assert len(heard) == 25 * SAMPLES_PER_FRAME
    loud = [float(np.abs(part).mean()) > 0.1 for part in np.split(heard, 25)]
    assert loud[1:9] == [False] * 8 and loud[11:19] == [True] * 8 and loud[21:] == [False] * 4


def test_no_sound_at_all_gives_no_track_and_odd_sizes_lose_a_line(tmp_path: Path) -> None:
    path = tmp_path / "OUT.MP4"
    with VideoWriter(path, (95, 63)) as writer:
        for frame in moving(3, (95, 63)):
            writer.write(frame)
    assert "Audio" not in describe(path)
    assert [frame.shape for frame in read_video(path)] == [(62, 94, 3)] * 3


def test_an_old_file_is_replaced_only_by_a_finished_one(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    with VideoWriter(path, SIZE) as writer:
        writer.write(moving(3))
        assert path.read_bytes() == b"old"
        assert writer.close() == path and writer.close() == path
        assert path.stat().st_size > 500
        with pytest.raises(EncodeError, match="closed"):
            writer.write(moving(1))
    other = tmp_path / "other.mp4"
    other.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), VideoWriter(other, SIZE) as writer:
        writer.write(moving(3))
        raise KeyboardInterrupt
    assert other.read_bytes() == b"old" and only(tmp_path) == ["other.mp4", "out.mp4"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with VideoWriter(tmp_path / "out.mp4", SIZE) as writer:
        writer.write(moving(1))
    assert (tmp_path / "out.mp4").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("moment", ["before", "between", "at the end"])
def test_a_killed_encoder_is_an_error_and_leaves_nothing(tmp_path: Path, moment: str) -> None:
    with (
        pytest.raises(EncodeError, match="killed by signal 9") as caught,
        VideoWriter(tmp_path / "out.mp4", SIZE) as writer,
    ):
        if moment != "before":
            writer.write(moving(5), tone(5))
        writer._ffmpeg.process.kill()
        if moment != "at the end":
            for _ in range(100):
                writer.write(moving(20), tone(20))
    assert "out.mp4" in str(caught.value) and only(tmp_path) == []


def test_a_frozen_consumer_cannot_deadlock_the_writer(tmp_path: Path) -> None:
    """More than any pipe holds, written while ffmpeg sleeps; then it is killed from another thread."""
    writer = VideoWriter(tmp_path / "out.mp4", (640, 480))
    writer._ffmpeg.process.send_signal(signal.SIGSTOP)
    threading.Timer(0.3, writer._ffmpeg.process.kill).start()
    with pytest.raises(EncodeError):
        writer.write(moving(60, (640, 480)))
    assert only(tmp_path) == []


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk; it needs its own process."""
    code = f"""
import resource, numpy as np
from semo_sdk.errors import EncodeError
from semo_sdk.media.video import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
noise = np.random.default_rng(0).integers(0, 256, (20, 64, 96, 3), dtype=np.uint8)
try:
    with VideoWriter({str(tmp_path / "out.mp4")!r}, (96, 64)) as writer:
        for _ in range(10):
            writer.write(noise, np.zeros(20 * 640) if SOUND else None)
except EncodeError as error:
    print("EncodeError", error)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    for sound in ("True", "False"):
        command = [sys.executable, "-c", code.replace("SOUND", sound)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.stdout.startswith("EncodeError"), result.stderr
        assert only(tmp_path) == []


def test_a_failing_ffmpeg_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\necho 'Unknown encoder libx264' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    folder = tmp_path / "videos"
    folder.mkdir()
    with pytest.raises(EncodeError, match="Unknown encoder libx264"), VideoWriter(folder / "out.mp4", SIZE) as writer:
        for _ in range(50):
            writer.write(moving(20))
    assert only(folder) == []


def test_a_forgotten_writer_cleans_up(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "out.mp4", SIZE)
    writer.write(moving(2))
    process = writer._ffmpeg.process
    del writer
    gc.collect()
    assert only(tmp_path) == [] and process.poll() is not None


def test_bad_targets(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    for path, message in (
        (tmp_path / "missing" / "out.mp4", "does not exist"),
        (tmp_path / "out.avi", "must end in .mp4"),
        (tmp_path / "folder.mp4", "is a folder"),
    ):
        with pytest.raises(EncodeError, match=message):
            VideoWriter(path, SIZE)
    with pytest.raises(EncodeError, match="at least 2 x 2"):
        VideoWriter(tmp_path / "out.mp4", (1, 64))
    if os.path.isdir("/proc"):
        with pytest.raises(EncodeError, match="cannot write into /proc"):
            VideoWriter("/proc/out.mp4", SIZE)
    with pytest.raises(EncodeError, match="no frames"), VideoWriter(tmp_path / "out.mp4", SIZE):
        pass
    assert only(tmp_path) == ["folder.mp4"]


def test_bad_frames_and_sound(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", SIZE) as writer:
        for frames in (
            moving(2).astype(np.float32),
            moving(2)[:, :, :-1],
            moving(2)[..., :2],
            np.zeros((3,), np.uint8),
        ):
            with pytest.raises(EncodeError, match="expected"):
                writer.write(frames)
        with pytest.raises(EncodeError, match=r"expected \(1280,\)"):
            writer.write(moving(2), tone(2)[:-1])
        writer.write(moving(2)[:, :, ::-1], tone(2))  # any memory order
    assert sum(1 for _ in read_video(tmp_path / "out.mp4")) == 2
    with pytest.raises(EncodeError, match="finite"), VideoWriter(tmp_path / "nan.mp4", SIZE) as writer:
        writer.write(moving(1), np.full(SAMPLES_PER_FRAME, np.nan))
    with (
        pytest.raises(EncodeError, match="whole sound"),
        VideoWriter(tmp_path / "b.mp4", SIZE, audio=tone(1)) as writer,
    ):
        writer.write(moving(1), tone(1))
    assert only(tmp_path) == ["out.mp4"]


def ffmpeg(*arguments: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


@pytest.mark.parametrize(("rate", "seconds"), [("50", 2), ("30", 3), ("30000/1001", 2), ("12", 2), ("25", 1)])
def test_other_frame_rates_become_25(tmp_path: Path, rate: str, seconds: int) -> None:
    path = tmp_path / "in.mp4"
    ffmpeg("-f", "lavfi", "-i", f"testsrc=size=96x64:rate={rate}:duration={seconds}", "-pix_fmt", "yuv420p", str(path))
    frames = list(read_video(path))
    assert abs(len(frames) - FPS * seconds) <= 1
    assert all(frame.shape == (64, 96, 3) and frame.dtype == np.uint8 for frame in frames)


def test_phone_videos_stand_upright(tmp_path: Path) -> None:
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=96x64:rate=25:duration=0.2", "-pix_fmt", "yuv420p", str(plain))
    ffmpeg("-display_rotation", "90", "-i", str(plain), "-c", "copy", str(turned))
    assert next(iter(read_video(turned))).shape == (96, 64, 3)
    assert next(iter(read_video(plain.read_bytes()))).shape == (64, 96, 3)


def test_frames_are_the_callers_and_stopping_early_stops_ffmpeg(tmp_path: Path) -> None:
    path = tmp_path / "in.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=96x64:rate=25:duration=20", "-pix_fmt", "yuv420p", str(path))
    frames = read_video(path)
    first = next(frames)
    kept = first.copy()
    first[:] = 0
    assert not np.array_equal(next(frames), first) and kept.any()
    frames.close()  # type: ignore[attr-defined]


def test_bad_videos(tmp_path: Path, speech_path: Path) -> None:
    text = tmp_path / "video.mp4"
    text.write_text("no video\n" * 200)
    cut = tmp_path / "cut.mp4"
    with VideoWriter(cut, SIZE) as writer:
        writer.write(moving(20), tone(20))
    cut.write_bytes(cut.read_bytes()[:600])
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for path, message in (
        (text, "not a video"),
        (cut, "not a video"),
        (empty, "empty file"),
        (speech_path, "no picture"),
        (tmp_path / "missing.mp4", "no such file"),
        (tmp_path, "folder"),
    ):
        with pytest.raises(VideoError, match=message) as caught:
            next(read_video(path))
        assert str(path) in str(caught.value)


def test_a_video_cut_in_the_middle_gives_its_beginning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cut.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (50, 64, 96, 3), dtype=np.uint8)
    with VideoWriter(path, SIZE) as writer:
        writer.write(noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 5 < sum(1 for _ in read_video(path)) < 50
    assert "damaged" in caplog.text
