"""Live sessions on fake engines and a clock that the test turns: idle, speech, its end, interruption, listening."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from semo_sdk.constants import CONTEXT_FRAMES, FPS, SAMPLES_PER_FRAME
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import drain
from semo_sdk.serving.speech import Event, Frame, Interrupted, SpeechDone, StateChanged
from tests.conftest import random_speech
from tests.serving_tools import LIGHT, LIMIT
from tests.serving_world import World, events, frames, pixels, sound


@pytest.fixture
def world() -> World:
    return World()


def test_without_speech_there_is_idle_motion_at_25_frames_a_second(world: World) -> None:
    session = world.open()
    (items,) = world.play(3, session)
    assert [frame.index for frame in frames(items)] == list(range(75))
    assert events(items) == [StateChanged("idle", 0.0)]
    assert not sound(items, speaking=False).any()
    assert len(np.unique(pixels(items).reshape(75, -1), axis=0)) == 75  # it moves


def test_where_a_session_begins_does_not_move_while_frames_wait(world: World) -> None:
    session = world.open()
    world.work()  # frames are made before anybody has asked where they begin
    assert session.state.time > session.begins == 0.0
    world.play(1, session)
    saved = session.save()
    resumed = world.open(state=saved)
    world.work()
    (items,) = world.play(1, resumed)
    assert resumed.begins == saved.time == frames(items)[0].index / FPS > 0


def test_idle_is_silence_through_the_generator(world: World) -> None:
    (items,) = world.play(1, world.open(seed=5))
    begin = StreamState.start(LIGHT, world.reference.motion[0], latency="low", seed=5)
    expected = drain(world.graphs, world.reference, begin.push(np.zeros(25 * 640, np.float32)))
    np.testing.assert_array_equal(pixels(items), np.concatenate([chunk.frames for chunk in expected])[:25])


@pytest.mark.parametrize("latency", ["low", "balanced", "quality"])
@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_every_sample_comes_out_once_with_its_frame(world: World, latency: str, rate: int) -> None:
    session = world.open(latency=latency)
    world.play(0.4, session)
    pcm = random_speech(2 * rate)
    pieces = np.array_split(pcm, 100)  # 20 ms each, arriving at the speed of speech
    items: list[Frame | Event] = []
    for number, piece in enumerate(pieces):
        session.push(piece, rate)
        if number % 2:
            items += world.play(1 / FPS, session)[0]
    session.end()
    items += world.play(2, session)[0]
    spoken = sound(items)
    if rate == 16_000:
        np.testing.assert_array_equal(spoken[: len(pcm)], pcm)
        assert not spoken[len(pcm) :].any()
    assert len(spoken) == 50 * SAMPLES_PER_FRAME
    indices = [frame.index for frame in frames(items)]
    assert indices == list(range(indices[0], indices[0] + len(indices)))
    (done,) = events(items, SpeechDone)
    last = [frame for frame in frames(items) if frame.speaking][-1]
    assert done == SpeechDone(0, (last.index + 1) / FPS, 2.0)
    assert [event.state for event in events(items, StateChanged)][-2:] == ["speaking", "idle"]


def test_speech_faster_than_real_time_waits_for_its_turn(world: World) -> None:
    session = world.open()
    session.push(random_speech(16_000 * 20))
    world.work()
    made = session.state.frame_index
    assert made <= 16  # not all 500 frames: an interruption would throw them away
    session.end()
    (items,) = world.play(22, session)
    assert len(sound(items)) == 16_000 * 20 and len(events(items, SpeechDone)) == 1


def test_speech_cuts_idle_motion_short(world: World) -> None:
    session = world.open(latency="quality")
    world.play(0.2, session)
    world.work()
    session.push(random_speech(20_000))
    session.end()
    (items,) = world.play(2, session)
    first = next(n for n, frame in enumerate(frames(items)) if frame.speaking)
    assert first <= 4  # though 16 idle frames had been made
    assert world.notes.firsts[0] <= 4 / FPS
    indices = [frame.index for frame in frames(items)]
    assert indices == list(range(indices[0], indices[0] + len(indices)))


def test_interrupt_drops_everything_and_goes_on_from_the_last_frame_seen(world: World) -> None:
    session = world.open()
    session.push(random_speech(16_000 * 5))
    session.end()
    session.push(random_speech(8_000))  # another utterance behind it
    (items,) = world.play(1.2, session)
    world.work()
    seen = frames(items)[-1].index + 1
    session.interrupt()
    assert session.take() == Interrupted(0, seen / FPS, sum(f.speaking for f in frames(items)) / FPS)
    assert session.take() is None  # the frames are gone at once
    before = len(world.taps["motion"].contexts)
    (later,) = world.play(1, session)
    assert frames(later)[0].index == seen and not sound(later, speaking=False).any()
    assert events(later) == [StateChanged("idle", seen / FPS)]
    # The generator's context is that of the frames that were seen, so nothing jumps.
    again = world.open()
    again.push(random_speech(16_000 * 5))
    states = [StreamState.start(LIGHT, world.reference.motion[0], latency="low", seed=0)]
    chunks = list(drain(world.graphs, world.reference, states[0].push(random_speech(16_000 * 5))))
    motion = np.concatenate([chunk.motion for chunk in chunks])
    speech_frames = [frame for frame in frames(items) if frame.speaking]
    assert len(speech_frames) >= CONTEXT_FRAMES and len(speech_frames) == len(frames(items))
    np.testing.assert_array_equal(world.taps["motion"].contexts[before][0], motion[seen - CONTEXT_FRAMES : seen])


def test_interrupt_in_the_middle_of_a_pass_returns_at_once(world: World) -> None:
    session = world.open()
    session.push(random_speech(10_000))
    tap = world.taps["render"]
    tap.gate = threading.Event()
    runner = threading.Thread(target=world.work)
    runner.start()
    assert tap.entered.wait(LIMIT)
    session.interrupt()
    assert isinstance(session.take(), Interrupted)
    tap.gate.set()
    runner.join(LIMIT)
    (items,) = world.play(0.4, session)
    assert not any(frame.speaking for frame in frames(items)) and frames(items)[0].index == 0


def test_an_interrupt_with_nothing_to_say_is_nothing(world: World) -> None:
    session = world.open()
    (items,) = world.play(0.4, session)
    session.interrupt()
    (later,) = world.play(0.4, session)
    assert not events(later) and frames(later)[0].index == frames(items)[-1].index + 1


def test_listening_is_told_apart_from_idle(world: World) -> None:
    session = world.open()
    world.play(0.2, session)
    session.listen(True)
    session.push(random_speech(3_000))
    session.end()
    session.listen(True)
    (items,) = world.play(1, session)
    assert [event.state for event in events(items, StateChanged)] == ["listening", "speaking", "listening"]


def test_speech_without_an_end_is_spoken_after_a_while(world: World) -> None:
    session = world.open()
    session.push(random_speech(1_000))
    (items,) = world.play(2, session)
    assert len(sound(items)) == 2 * SAMPLES_PER_FRAME and not events(items, SpeechDone)
    session.end()
    (done,) = events(world.play(0.2, session)[0], SpeechDone)
    assert done.played == 1_000 / 16_000
