"""Live sessions: any split gives the same frames, interruption, saved state, sessions side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from semo_sdk.config import SemoConfig
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.errors import AudioError, InputError, SessionClosedError
from semo_sdk.media.audio import load_audio
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import Reference
from semo_sdk.pipeline.state import LATENCIES, StreamState
from semo_sdk.pipeline.stream import Chunk, drain
from semo_sdk.session import Session
from tests.conftest import Open, assert_same, random_speech, splits, spoken


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("rate", [16_000, 8_000, 24_000, 44_100, 48_000])
def test_any_split_gives_the_frames_of_the_whole(
    graphs: Graphs, reference: Reference, begin: Any, open_session: Open, latency: str, rate: int
) -> None:
    pcm = random_speech(rate, seed=rate)
    offline = list(drain(graphs, reference, begin(latency).push(load_audio(pcm, rate))))
    for seed, largest in enumerate([rate // 50, rate // 3]):  # pieces of up to 20 ms, and of several chunks
        pieces = [pcm[part] for part in splits(len(pcm), seed=seed, largest=largest)]
        assert_same(spoken(open_session(latency), pieces, rate), offline)


def test_single_samples_give_the_frames_of_the_whole(
    graphs: Graphs, reference: Reference, begin: Any, open_session: Open
) -> None:
    pcm = random_speech(3_333)
    offline = drain(graphs, reference, begin("low").push(pcm))
    assert_same(spoken(open_session("low"), pcm[:, None]), offline)


@pytest.mark.parametrize("kind", ["int16", "float64", "stereo"])
def test_every_kind_of_samples_is_the_same_speech(open_session: Open, kind: str) -> None:
    integers = (random_speech(9_000) * 32768).astype(np.int16)
    as_floats = integers.astype(np.float32) / 32768
    kinds: dict[str, np.ndarray] = {
        "int16": integers,
        "float64": as_floats.astype(np.float64),
        "stereo": np.stack([integers, integers], axis=1),
    }
    given = kinds[kind]
    assert_same(spoken(open_session(), [given]), spoken(open_session(), [as_floats]))


def test_a_chunk_comes_as_soon_as_its_sound_is_there(open_session: Open) -> None:
    for latency, hop in LATENCIES.items():
        with open_session(latency) as session:
            assert session.push(np.zeros(hop * SAMPLES_PER_FRAME - 1, np.float32)) == []
            (chunk,) = session.push(np.zeros(1, np.float32))
            assert len(chunk) == hop and chunk.start_time == 0 and chunk.duration == hop / 25
            assert session.flush() == []


def test_picture_and_sound_stay_paired_over_many_utterances(open_session: Open) -> None:
    with open_session("low") as session:
        frames = 0
        for number in range(5):
            pcm = random_speech(1_000 * number + 777, seed=number)
            chunks = spoken(session, [pcm])
            sound = np.concatenate([chunk.audio for chunk in chunks])
            assert np.array_equal(sound[: len(pcm)], pcm) and not sound[len(pcm) :].any()
            for chunk in chunks:
                assert chunk.index == frames and len(chunk.audio) == len(chunk) * SAMPLES_PER_FRAME
                frames += len(chunk)
        assert session.state.frame_index == frames


def test_interrupt_forgets_pending_speech_and_keeps_the_pose(
    graphs: Graphs, reference: Reference, open_session: Open
) -> None:
    interrupted, undisturbed = open_session(), open_session()
    first, second = random_speech(8 * 640, seed=1), random_speech(9_000, seed=2)
    assert_same(interrupted.push(first), undisturbed.push(first))
    before = interrupted.state
    assert interrupted.push(random_speech(2_000)) == []
    assert interrupted.interrupt() == 2_000
    assert interrupted.interrupt() == 0
    assert interrupted.flush() == []
    assert interrupted.state.context is before.context and interrupted.state.frame_index == 8
    # From here on it is as if the dropped speech had never been.
    assert_same(spoken(interrupted, [second]), spoken(undisturbed, [second]))


def test_interrupt_also_drops_what_the_resampler_holds_back(open_session: Open) -> None:
    session, fresh = open_session(), open_session()
    session.push(random_speech(4_800), 48_000)
    assert session.interrupt() == 1_600  # 4 800 samples at 48 kHz
    pcm = random_speech(30_000, seed=3)
    assert_same(spoken(session, [pcm], 48_000), spoken(fresh, [pcm], 48_000))


def test_a_closed_session_refuses_and_says_what_to_do(open_session: Open) -> None:
    with open_session() as session:
        session.push(random_speech(100))
    session.close()
    assert session.closed and "closed" in repr(session)
    for use in (lambda: session.push(random_speech(10)), session.flush, session.interrupt):
        with pytest.raises(SessionClosedError, match="animator.session"):
            use()


@pytest.mark.parametrize(
    "bad",
    [
        (np.array([0.0, np.nan], np.float32), 16_000),
        (np.zeros((4, 4, 4), np.float32), 16_000),
        (np.zeros(10, np.complex64), 16_000),
        (np.zeros(10, np.float32), 0),
        (np.zeros(10, np.float32), 48_000.5),
    ],
)
def test_unusable_sound_leaves_the_session_as_it_was(open_session: Open, bad: tuple[np.ndarray, Any]) -> None:
    session, undisturbed = open_session(), open_session()
    pcm = random_speech(12_000)
    chunks = session.push(pcm[:5_000], 48_000)
    with pytest.raises(AudioError):
        session.push(*bad)
    chunks += spoken(session, [pcm[5_000:]], 48_000)
    assert_same(chunks, spoken(undisturbed, [pcm], 48_000))


def test_the_rate_may_change_between_pushes(open_session: Open) -> None:
    session, expected = open_session(), open_session()
    pcm = random_speech(48_000)
    chunks = session.push(pcm[:9_600], 48_000) + session.push(pcm[9_600:20_000], 16_000) + session.flush()
    both = np.concatenate([load_audio(pcm[:9_600], 48_000), pcm[9_600:20_000]])
    assert_same(chunks, spoken(expected, [both]))


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
def test_a_saved_session_goes_on_with_the_same_frames(
    graphs: Graphs, reference: Reference, open_session: Open, rate: int
) -> None:
    pcm = random_speech(30_000)
    session, undisturbed = open_session(), open_session()
    chunks = session.push(pcm[:11_111], rate)
    resumed = Session(graphs, reference, StreamState.from_bytes(session.state.to_bytes()))
    chunks += resumed.push(pcm[11_111:20_000], rate)
    again = Session(graphs, reference, resumed.state)
    assert_same(chunks + spoken(again, [pcm[20_000:]], rate), spoken(undisturbed, [pcm], rate))


def test_sessions_side_by_side_are_as_if_alone(open_session: Open) -> None:
    speeches = {seed: random_speech(9_000 + 1_000 * seed, seed=seed) for seed in range(3)}
    alone = {seed: spoken(open_session(seed=seed), [pcm]) for seed, pcm in speeches.items()}
    together = {seed: open_session(seed=seed) for seed in speeches}
    got: dict[int, list[Chunk]] = {seed: [] for seed in speeches}
    for start in range(0, 12_000, 500):
        for seed, session in together.items():
            got[seed] += session.push(speeches[seed][start : start + 500])
    for seed, session in together.items():
        assert_same(got[seed] + session.flush(), alone[seed])


def test_repr_says_where_the_session_is(open_session: Open) -> None:
    session = open_session("low", seed=3)
    session.push(random_speech(5_000))
    assert repr(session) == "Session(latency='low', seed=3, time=0.16 s, pending=0.152 s)"


def test_resuming_with_a_state_of_another_width_is_refused(begin: Callable[..., StreamState]) -> None:
    state = StreamState.from_bytes(begin().to_bytes())
    other = SemoConfig(name="other", motion_width=256)
    with pytest.raises(InputError, match="another model"):
        state.check(other)
