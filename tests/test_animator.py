"""Animator: photo and speech in, frames out, on fake engines with real media."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semo_sdk.animator import Animator
from semo_sdk.backends import fake_engines
from semo_sdk.config import SemoConfig
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.errors import (
    AudioError,
    BundleError,
    ConfigError,
    EngineError,
    ImageError,
    InputError,
    NoFaceError,
)
from semo_sdk.media.image import Portrait
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.state import LATENCIES, StreamState
from tests.conftest import random_speech


def test_a_clip_is_lazy_and_the_same_every_time(animator: Animator) -> None:
    pcm = random_speech(15_000)
    clip = animator.from_audio(pcm)
    assert "render" not in animator.graphs.stats
    assert len(clip) == 24 and clip.duration == 0.96
    first, second = (np.concatenate([chunk.frames for chunk in clip]) for _ in range(2))
    assert np.array_equal(first, second) and np.array_equal(first, clip.frames)
    assert clip.frames is clip.frames
    assert clip.audio is not None and len(clip.audio) == 24 * SAMPLES_PER_FRAME
    assert np.array_equal(clip.audio[:15_000], pcm)
    assert repr(clip) == "Clip(24 frames, 0.96 s, with sound)"


def test_motion_of_a_clip_costs_no_drawing_and_is_what_is_drawn(animator: Animator) -> None:
    clip = animator.from_audio(random_speech(15_000), latency="low")
    motion = clip.motion
    assert "render" not in animator.graphs.stats and len(motion) == len(clip)
    assert np.array_equal(motion.tokens, np.concatenate([chunk.motion for chunk in clip]))


@pytest.mark.parametrize("latency", LATENCIES)
def test_a_live_session_gives_the_frames_of_the_clip(animator: Animator, latency: str) -> None:
    pcm = random_speech(15_000)
    clip = animator.from_audio(pcm, latency=latency, seed=5)
    with animator.session(latency=latency, seed=5) as session:
        chunks = [chunk for piece in np.array_split(pcm, 11) for chunk in session.push(piece)] + session.flush()
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), clip.frames)
    streamed = list(animator.stream(pcm, latency=latency, seed=5))
    assert [chunk.index for chunk in streamed] == [chunk.index for chunk in chunks]
    assert np.array_equal(np.concatenate([chunk.frames for chunk in streamed]), clip.frames)


def test_a_session_can_move_to_another_animator(animator: Animator, portrait: Portrait) -> None:
    pcm = random_speech(20_000)
    session = animator.session("balanced", seed=3)
    chunks = session.push(pcm[:9_999])
    saved = session.state.to_bytes()
    elsewhere = Animator.from_graphs(portrait, Graphs(fake_engines(animator.config), animator.config))
    resumed = elsewhere.resume(StreamState.from_bytes(saved))
    chunks += resumed.push(pcm[9_999:]) + resumed.flush()
    whole = animator.from_audio(pcm, latency="balanced", seed=3)
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), whole.frames)


def test_the_first_session_warms_up_and_the_next_does_not(animator: Animator) -> None:
    animator.session("low")
    assert animator.graphs.stats["render"].launches == 1
    animator.session("low", seed=1)
    assert animator.graphs.stats["render"].launches == 1
    animator.session("quality")
    assert animator.graphs.stats["render"].launches == 2


def test_expressiveness_reaches_the_generator_and_is_checked(animator: Animator) -> None:
    pcm = random_speech(3_000)
    calm, strong = (animator.from_audio(pcm, expressiveness=value).motion.tokens for value in (1.0, 3.0))
    assert not np.array_equal(calm, strong)
    assert np.array_equal(calm, animator.from_audio(pcm).motion.tokens)  # the model's own is 1
    impossible: dict[str, Any]
    for impossible in ({"expressiveness": 11.0}, {"seed": -1}, {"latency": "slow"}):
        with pytest.raises(ConfigError):
            animator.from_audio(pcm, **impossible)
        with pytest.raises(ConfigError):
            animator.session(**impossible)


def test_speech_may_be_a_file_its_bytes_or_an_array(animator: Animator, speech_path: Path) -> None:
    one, two = (animator.from_audio(source).motion.tokens for source in (speech_path, speech_path.read_bytes()))
    assert np.array_equal(one, two) and len(one) == 125
    assert len(animator.from_audio(np.zeros((4_800, 2), np.int16), sample_rate=48_000)) == 3
    for bad in (np.zeros(0, np.float32), np.array([np.nan]), b"not sound", "missing.wav"):
        with pytest.raises(AudioError):
            animator.from_audio(bad)


def test_another_portrait_shares_the_engines(animator: Animator, portrait_path: Path) -> None:
    other = animator.with_portrait(portrait_path.with_name("portrait2.jpg"))
    assert other.graphs is animator.graphs and other.portrait is not animator.portrait
    pcm = random_speech(5_000)
    alone = other.from_audio(pcm).frames
    mine, theirs = animator.stream(pcm), other.stream(pcm)
    next(mine)
    assert np.array_equal(next(theirs).frames, alone)
    other.close()
    assert len(animator.from_audio(pcm).frames) == 8  # still open


def test_closed_engines_say_so(portrait: Portrait, tiny_config: SemoConfig) -> None:
    graphs = Graphs(fake_engines(tiny_config), tiny_config)
    animator = Animator.from_graphs(portrait, graphs)
    clip = animator.from_audio(random_speech(1_000))
    graphs.close()
    with pytest.raises(EngineError, match="closed"):
        list(clip)


def test_repr_names_what_runs(animator: Animator) -> None:
    assert repr(animator) == "Animator(photo=400x400, model='tiny-random', backend='fake', precision='fp32')"
    assert (animator.backend, animator.precision) == ("fake", "fp32")


def test_bad_input_fails_in_the_constructor(portrait_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        Animator(portrait_path, bundle=tmp_path / "missing")


def test_unusable_photos_are_refused(animator: Animator, tmp_path: Path) -> None:
    with pytest.raises(NoFaceError):
        animator.with_portrait(np.full((300, 300, 3), 90, np.uint8))
    (tmp_path / "photo.jpg").write_bytes(b"not a photo")
    for bad in (tmp_path / "photo.jpg", tmp_path / "missing.jpg", b"", np.zeros((3, 300, 300), np.uint8)):
        with pytest.raises(ImageError):
            animator.with_portrait(bad)
    assert issubclass(ImageError, InputError)


def test_frames_that_are_not_taken_are_not_made(animator: Animator) -> None:
    stream: Iterator[object] = animator.stream(random_speech(160_000))
    next(stream)
    assert animator.graphs.stats["render"].launches == 1
