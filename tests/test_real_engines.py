"""What the streaming loop promises, on real engines: a tiny exported model with random weights."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from semo_sdk.animator import Animator
from semo_sdk.media.image import Portrait
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import Chunk
from tests.conftest import assert_same, random_speech, splits, spoken

PCM = random_speech(14_000, seed=6)  # 22 frames: with "balanced", two whole passes and a short one


@pytest.fixture(scope="module", params=["openvino", "torch", "onnxruntime"])
def real(request: pytest.FixtureRequest, tiny_bundle: Path, portrait: Portrait) -> Iterator[Animator]:
    pytest.importorskip(request.param)
    with Animator(portrait, bundle=tiny_bundle, backend=request.param, threads=1) as animator:
        yield animator


@pytest.fixture(scope="module")
def offline(real: Animator) -> list[Chunk]:
    return list(real.from_audio(PCM, latency="balanced", seed=1))


def joined(chunks: list[Chunk], name: str) -> np.ndarray:
    return np.concatenate([getattr(chunk, name) for chunk in chunks])


@pytest.mark.parametrize("largest", [900, 9_000])
def test_any_split_gives_the_frames_of_the_whole(real: Animator, offline: list[Chunk], largest: int) -> None:
    pieces = [PCM[part] for part in splits(len(PCM), seed=largest, largest=largest)]
    with real.session("balanced", seed=1) as session:
        assert_same(spoken(session, pieces), offline)


def test_the_model_hears_and_moves(real: Animator, offline: list[Chunk]) -> None:
    assert joined(offline, "frames").std(axis=0).mean() > 0.1
    other = real.from_audio(random_speech(14_000, seed=7), latency="balanced", seed=1)
    assert not np.array_equal(other.motion.tokens, joined(offline, "motion"))


def test_another_seed_is_another_motion(real: Animator, offline: list[Chunk]) -> None:
    motion = joined(offline, "motion")
    same, other = (real.from_audio(PCM, latency="balanced", seed=seed).motion.tokens for seed in (1, 2))
    assert np.array_equal(same, motion) and not np.array_equal(other, motion)


def test_the_future_does_not_change_the_past(real: Animator, offline: list[Chunk]) -> None:
    changed = PCM.copy()
    changed[8 * 640 :] = 0
    chunks = list(real.from_audio(changed, latency="balanced", seed=1))
    assert_same(chunks[:1], offline[:1])
    assert not np.array_equal(joined(chunks, "motion")[8:], joined(offline, "motion")[8:])


def test_a_saved_session_goes_on_with_the_same_frames(real: Animator, offline: list[Chunk]) -> None:
    session = real.session("balanced", seed=1)
    chunks = session.push(PCM[:7_000])
    resumed = real.resume(StreamState.from_bytes(session.state.to_bytes()))
    assert_same(chunks + spoken(resumed, [PCM[7_000:]]), offline)


def test_sessions_in_threads_are_as_if_alone(real: Animator, offline: list[Chunk]) -> None:
    got: dict[int, list[Chunk]] = {}

    def speak(number: int) -> None:
        with real.session("balanced", seed=1) as session:
            got[number] = spoken(session, np.array_split(PCM, 3 + number))

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for chunks in got.values():
        assert_same(chunks, offline)


def test_reenacting_frames_and_rendering_their_motion_agree(real: Animator, offline: list[Chunk]) -> None:
    clip = real.reenact([real.portrait.photo] * 5)
    still = np.repeat(real.reference.motion[0], 5, axis=0)
    np.testing.assert_allclose(clip.motion.tokens, still, atol=0.05)
    assert clip.frames.shape == (5, 256, 256, 3)


def test_auto_says_what_it_chose_and_why(
    tiny_bundle: Path, portrait: Portrait, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "semo_sdk"), Animator(portrait, bundle=tiny_bundle) as animator:
        assert animator.backend in ("openvino", "onnxruntime", "torch")
    assert animator.backend in caplog.text and "auto" in caplog.text
