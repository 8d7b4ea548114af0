"""Clips become files; videos become motion, and motion becomes clips again."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from semo_sdk.animator import Animator
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.errors import (
    EncodeError,
    MotionError,
    NoFaceError,
    VideoError,
)
from semo_sdk.media.image import find_portrait, load_image
from semo_sdk.media.video import VideoWriter, read_video
from semo_sdk.motion import Motion
from semo_sdk.pipeline.graphs import Graphs
from tests.conftest import random_speech


@pytest.fixture(scope="module")
def driving(portrait_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 20 frames in which a photo moves, with sound."""
    photo = load_image(portrait_path)
    path = tmp_path_factory.mktemp("driving") / "driving.mp4"
    frames = np.stack([np.roll(photo, shift, axis=1) for shift in range(20)])
    with VideoWriter(path, (photo.shape[1], photo.shape[0]), audio=random_speech(20 * 640)) as writer:
        writer.write(frames)
    return path


def probe(path: Path) -> str:
    """What ffmpeg says about a file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def tokens(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((frames, 512)).astype(np.float32)


def test_a_saved_clip_is_an_mp4_with_every_frame_and_sound(animator: Animator, tmp_path: Path) -> None:
    clip = animator.from_audio(random_speech(25_000))
    calls: list[tuple[int, int]] = []
    path = clip.save(tmp_path / "out.mp4", progress=lambda done, total: calls.append((done, total)))
    assert path == tmp_path / "out.mp4" and calls == [(16, 40), (32, 40), (40, 40)]
    said = probe(path)
    assert "h264" in said and "256x256" in said and "25 fps" in said and "aac" in said
    assert len(list(read_video(path))) == 40
    assert re.search(r"Duration: 00:00:01\.6", said)
    assert [item.name for item in tmp_path.iterdir()] == ["out.mp4"]


def test_pasted_back_the_video_has_the_photo_s_size(animator: Animator, tmp_path: Path) -> None:
    path = animator.from_audio(random_speech(3 * 640)).save(tmp_path / "out.mp4", paste_back=True)
    height, width = animator.portrait.photo.shape[:2]
    frames = list(read_video(path))
    assert len(frames) == 3 and frames[0].shape == (height, width, 3)


def test_a_huge_photo_is_pasted_at_a_size_that_players_can_show(
    graphs: Graphs, portrait_path: Path, tmp_path: Path
) -> None:
    from PIL import Image

    with Image.open(portrait_path) as image:
        photo = np.asarray(image.convert("RGB").resize((2400, 2400)))
    clip = Animator.from_graphs(find_portrait(photo), graphs).from_audio(random_speech(640))
    path = clip.save(tmp_path / "out.mp4", paste_back=True)
    assert next(read_video(path)).shape == (1920, 1920, 3)


def test_a_failure_while_saving_leaves_nothing_behind(animator: Animator, tmp_path: Path) -> None:
    clip = animator.from_audio(random_speech(25_000))
    with pytest.raises(KeyboardInterrupt):

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        clip.save(tmp_path / "out.mp4", progress=stop)
    with pytest.raises(EncodeError):
        clip.save(tmp_path / "missing" / "out.mp4")
    assert list(tmp_path.iterdir()) == []


def test_the_progress_bar_counts_frames(animator: Animator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    animator.from_audio(random_speech(25_000)).save(tmp_path / "out.mp4", progress=True)
    assert "40/40" in capsys.readouterr().err


def test_reenact_moves_the_portrait_as_the_video_does(animator: Animator, driving: Path) -> None:
    clip = animator.reenact(driving)
    assert len(clip) == 20 and clip.audio is not None and len(clip.audio) == 20 * SAMPLES_PER_FRAME
    assert abs(clip.audio).max() > 0.1  # the video's own sound
    own = animator.reference.motion[0]
    assert np.array_equal(clip.motion.tokens[:1], own)  # starts as the photo is
    driver = animator.encode_motion(driving).tokens
    np.testing.assert_allclose(clip.motion.tokens, own + driver - driver[0], atol=1e-6)
    assert np.array_equal(animator.reenact(driving, relative=False).motion.tokens, driver)
    assert clip.frames.shape == (20, 256, 256, 3)


def test_a_driving_video_may_be_frames_and_is_then_silent(animator: Animator, driving: Path) -> None:
    frames = list(read_video(driving))
    clip = animator.reenact(iter(frames))
    assert clip.audio is None and np.array_equal(clip.motion.tokens, animator.reenact(driving).motion.tokens)
    assert repr(clip).endswith("silent)")
    assert np.array_equal(animator.reenact(driving.read_bytes()).motion.tokens, clip.motion.tokens)


def test_a_face_may_appear_a_little_late(animator: Animator, driving: Path) -> None:
    frames = list(read_video(driving))
    blank = np.full_like(frames[0], 128)
    assert len(animator.encode_motion([blank, blank, *frames])) == 22
    with pytest.raises(NoFaceError, match="first 2 seconds"):
        animator.encode_motion([blank] * 60 + frames)


@pytest.mark.parametrize("bad", [[], [np.zeros((64, 64), np.uint8)], [np.zeros((64, 64, 3), np.float32)], b"no video"])
def test_an_unusable_driving_video_is_refused(animator: Animator, bad: object) -> None:
    with pytest.raises(VideoError):
        animator.reenact(bad)  # type: ignore[arg-type]


def test_motion_can_be_saved_and_rendered_later(animator: Animator, tmp_path: Path) -> None:
    spoken = animator.from_audio(random_speech(20_000))
    path = spoken.motion.save(tmp_path / "hello.npz")
    assert [item.name for item in tmp_path.iterdir()] == ["hello.npz"]
    loaded = Motion.load(path)
    assert loaded.model == animator.config.name and np.array_equal(loaded.tokens, spoken.motion.tokens)
    again = animator.render_motion(loaded, spoken.audio)
    assert np.array_equal(again.frames, spoken.frames)  # this model draws each frame from its own token
    assert [len(chunk) for chunk in again] == [16, 16]
    assert spoken.audio is not None
    assert np.array_equal(np.concatenate([chunk.audio for chunk in again]), spoken.audio)
    assert again.motion is loaded


def test_rendered_motion_without_sound_is_silent(animator: Animator, tmp_path: Path) -> None:
    clip = animator.render_motion(tokens(5))
    assert clip.audio is None and not np.concatenate([chunk.audio for chunk in clip]).any()
    assert "Audio" not in probe(clip.save(tmp_path / "silent.mp4"))


@pytest.mark.parametrize("samples", [1_000, 10_000])
def test_sound_is_fitted_to_the_motion(animator: Animator, samples: int) -> None:
    pcm = random_speech(samples)
    clip = animator.render_motion(tokens(5), pcm)
    assert clip.audio is not None and len(clip.audio) == 3_200
    kept = min(samples, 3_200)
    assert np.array_equal(clip.audio[:kept], pcm[:kept]) and not clip.audio[kept:].any()


def test_motion_of_another_model_is_refused(animator: Animator) -> None:
    with pytest.raises(MotionError, match="'other'"):
        animator.render_motion(Motion(tokens(3), "other"))
    with pytest.raises(MotionError, match="width 64"):
        animator.render_motion(tokens(3)[:, :64])
