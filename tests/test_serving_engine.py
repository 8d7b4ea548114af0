"""The session engine on fake engines and a clock that the test turns: batches, isolation, limits, capacity."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from semo_sdk.constants import FPS
from semo_sdk.errors import AudioError, CapacityError, ConfigError, EngineError, SessionClosedError
from semo_sdk.pipeline.reference import encode_reference
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import drain
from semo_sdk.serving.capacity import Capacity
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.speech import Event, Frame, Kind
from tests.conftest import random_speech
from tests.serving_tools import LIGHT, LIMIT
from tests.serving_world import World, events, frames, pixels, sound


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("sizes", [(1,), (4,), (1, 2, 4)])
def test_a_session_is_the_same_alone_and_in_a_crowd(sizes: tuple[int, ...]) -> None:
    def run(crowd: int) -> list[Frame | Event]:
        world = World(sizes)
        session = world.open(seed=7)
        others = [world.open(seed=n, latency=["low", "balanced"][n % 2]) for n in range(crowd)]
        for n, other in enumerate(others):
            other.push(random_speech(7_000 + 1_000 * n, seed=n))
            other.end()
        session.push(random_speech(30_000))
        session.end()
        taken = world.play(3, session, *others)
        assert not crowd or max(world.notes.sizes) == min(sizes[-1], 4)
        return taken[0]

    alone, crowded = run(0), run(5)
    np.testing.assert_array_equal(pixels(alone), pixels(crowded))
    np.testing.assert_array_equal(sound(alone), sound(crowded))
    assert events(alone) == events(crowded)


def test_nobody_waits_for_a_session_that_is_not_read_or_floods_or_dies(world: World) -> None:
    good, unread, flooding, dying = (world.open(seed=n) for n in range(4))
    good.push(random_speech(40_000))
    unread.push(random_speech(40_000))
    for n in range(400):
        try:
            flooding.push(random_speech(2_000))
            flooding.end()
            flooding.interrupt() if n % 3 == 0 else None
        except CapacityError:
            break
    (items, _) = world.play(1, good, dying)
    dying.close()
    items += world.play(2, good)[0]
    assert len(frames(items)) == 75  # on time
    np.testing.assert_array_equal(
        sound(items)[:40_000][: len(sound(items))], random_speech(40_000)[: len(sound(items))]
    )
    passes = world.engine.graphs.stats["render"].launches
    assert passes < 75 // 4 * 4  # the others did not make the engine work more than their share
    with pytest.raises(SessionClosedError):
        dying.take()
    assert world.engine.sessions == 3


def test_a_flood_is_refused_and_what_was_taken_stays(world: World) -> None:
    session = world.open()
    with pytest.raises(CapacityError, match="slowly") as refused:
        for _ in range(100):
            session.push(random_speech(16_000))
    assert refused.value.retry_after > 0
    assert len(session.state.pending) <= 60 * 16_000
    session.interrupt()
    with pytest.raises(CapacityError, match="utterances"):
        for _ in range(100):
            session.push(random_speech(10))
            session.end()
    with pytest.raises(AudioError):
        session.push(np.array([np.nan], np.float32))


def test_a_session_cannot_take_more_passes_than_its_share(world: World) -> None:
    greedy = world.open()
    for _ in range(250):  # ten seconds in which it interrupts itself before every frame
        greedy.push(random_speech(700))
        greedy.end()
        world.work()
        greedy.interrupt()
        world.clock.now += 1 / FPS
    assert world.graphs.stats["render"].launches <= (10 + 1) * FPS / 4 / 0.6 + 1


def test_one_poisoned_session_fails_alone(world: World) -> None:
    sessions = [world.open(seed=n) for n in range(4)]
    world.play(0.4, *sessions)
    bad = sessions[2].state
    world.taps["motion"].poison = float(bad.context[-1, 0])
    taken = world.play(1, *sessions)
    assert [len(frames(items)) == 25 for items in taken] == [True, True, False, True]
    with pytest.raises(EngineError, match="poisoned"):
        sessions[2].take()
    assert sessions[2].closed and world.engine.sessions == 3


def test_a_broken_engine_fails_sessions_with_the_reason_and_says_so(world: World) -> None:
    world.engine.start()
    try:
        assert world.engine.healthy
        world.taps["render"].broken = True
        for _ in range(3):
            session = world.open()
            woken = threading.Event()
            session.on_output(woken.set)
            assert woken.wait(LIMIT)
            with pytest.raises(EngineError, match="broken"):
                session.take()
        assert not world.engine.healthy
        world.taps["render"].broken = False
        session = world.open()
        while session.take() is None:
            pass
        assert world.engine.healthy
    finally:
        world.engine.close()
    with pytest.raises(EngineError, match="shutting down"):
        world.open()


def test_a_saved_session_goes_on_with_the_same_frames(world: World) -> None:
    pcm = random_speech(30_000)
    session, other = world.open(seed=3), World()
    session.push(pcm)
    session.end()
    (items,) = world.play(0.6, session)
    saved = StreamState.from_bytes(session.state.to_bytes())
    (rest,) = world.play(1.5, session)
    resumed = other.open(state=saved)
    resumed.end()
    (again,) = other.play(2, resumed)
    start = saved.frame_index
    mine = [frame for frame in frames(items + rest) if frame.speaking and frame.index >= start]
    theirs = [frame for frame in frames(again) if frame.speaking]
    assert len(mine) == len(theirs) > 10
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.audio, b.audio)
        assert a.index == b.index


def test_recordings_are_the_offline_frames_and_yield_to_live_sessions(world: World) -> None:
    pcm = random_speech(40_000)
    begin = StreamState.start(LIGHT, world.reference.motion[0], latency="quality", seed=2)
    expected = list(drain(world.graphs, world.reference, begin.push(pcm)))
    world.engine.start()
    try:
        recordings = [world.engine.record(world.reference, pcm, seed=2) for _ in range(3)]
        for recording in recordings:
            for mine, theirs in zip(recording.chunks(), expected, strict=True):
                np.testing.assert_array_equal(mine.frames, theirs.frames)
                np.testing.assert_array_equal(mine.audio, theirs.audio)
        cancelled = world.engine.record(world.reference, pcm)
        cancelled.close()
        with pytest.raises(SessionClosedError):
            list(cancelled.chunks())
    finally:
        world.engine.close()


def test_admission_follows_what_was_measured() -> None:
    capacity = Capacity(utilisation=0.8)
    low, quality = Kind(4), Kind(16)
    capacity.seconds = {(low, 1): 0.04, (low, 2): 0.06, (quality, 1): 0.1}
    assert capacity.share(low) == pytest.approx(0.03 * 25 / 4) and capacity.sessions(low) == 4
    world = World(capacity=capacity)
    sessions = [world.open() for _ in range(4)]
    with pytest.raises(CapacityError, match="4 live sessions") as refused:
        world.open()
    assert 1 <= refused.value.retry_after <= 60
    sessions[0].close()
    world.open()
    for _ in range(200):
        capacity.observe(low, 1, 0.08)  # the machine got slower
    assert capacity.sessions(low) == 2


def test_the_machine_is_measured_and_useless_batches_are_left_out(world: World) -> None:
    world.engine.calibrate()
    assert world.engine.sizes[0] == 1 and world.engine.capacity.sessions(Kind(4)) >= 1
    kinds = {kind for kind, _ in world.engine.capacity.seconds}
    assert kinds == {Kind(hop, every) for hop in (4, 8, 16) for every in (1, 2)}
    world = World(sizes=(2, 4))
    world.engine.calibrate(prune=False)
    assert world.engine.sizes == (2, 4)


def test_impossible_settings_are_refused(world: World) -> None:
    for sizes in ((), (2, 1), (0,), (16,)):
        with pytest.raises(ConfigError, match="batch sizes"):
            Engine(world.graphs, sizes=sizes)
    with pytest.raises(ConfigError, match="not served"):
        Engine(world.graphs, latencies=("low",)).open(world.reference, latency="quality")
    with pytest.raises(ConfigError):
        world.open(seed=-1)


def test_references_of_different_portraits_do_not_mix(world: World) -> None:
    picture = np.random.default_rng(4).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    other = encode_reference(world.graphs, picture)
    together = World()
    pair = [together.engine.open(ref, seed=1) for ref in (world.reference, other)]
    mine, theirs = together.play(1, *pair)
    alone = World()
    np.testing.assert_array_equal(pixels(theirs), pixels(alone.play(1, alone.engine.open(other, seed=1))[0]))
    assert not np.array_equal(pixels(mine), pixels(theirs))
