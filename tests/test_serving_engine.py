"""The session engine on fake engines and a clock that the test turns: scheduling, isolation, interruption, limits."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from semo_sdk.constants import CONTEXT_FRAMES, FPS, SAMPLES_PER_FRAME
from semo_sdk.errors import AudioError, CapacityError, ConfigError, EngineError, SessionClosedError
from semo_sdk.pipeline.reference import Reference, encode_reference
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import drain
from semo_sdk.serving.capacity import Capacity
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.session import LiveSession
from semo_sdk.serving.speech import Event, Frame, Interrupted, Observer, SpeechDone, StateChanged
from tests.conftest import random_speech
from tests.serving_tools import LIGHT, tapped


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Notes(Observer):
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.firsts: list[float] = []

    def batch(self, items: int, seconds: float, video_seconds: float) -> None:
        self.sizes.append(items)

    def first_frame(self, seconds: float) -> None:
        self.firsts.append(seconds)


class World:
    """An engine without a thread, whose time passes when the test says so."""

    def __init__(self, sizes: tuple[int, ...] = (1, 2, 4), capacity: Capacity | None = None) -> None:
        self.graphs, self.taps = tapped()
        self.clock, self.notes = Clock(), Notes()
        self.engine = Engine(
            self.graphs,
            sizes=sizes,
            latencies=("low", "balanced", "quality"),
            capacity=capacity or Capacity(),
            clock=self.clock,
            observer=self.notes,
        )
        picture = np.random.default_rng(3).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        self.reference = encode_reference(self.graphs, picture)

    def open(self, **settings: Any) -> LiveSession:
        return self.engine.open(self.reference, **settings)

    def work(self) -> None:
        while self.engine.step():
            pass

    def play(self, seconds: float, *sessions: LiveSession) -> list[list[Frame | Event]]:
        """Time passes; every 40 ms one frame of each session is taken, with the events before it."""
        taken: list[list[Frame | Event]] = [[] for _ in sessions]
        for _ in range(round(seconds * FPS)):
            self.work()
            for session, items in zip(sessions, taken, strict=True):
                while not session.closed and (item := session.take()) is not None:
                    items.append(item)
                    if isinstance(item, Frame):
                        break
            self.clock.now += 1 / FPS
        return taken


@pytest.fixture
def world() -> World:
    return World()


def frames(items: list[Frame | Event]) -> list[Frame]:
    return [item for item in items if isinstance(item, Frame)]


def events(items: list[Frame | Event], kind: type[Any] = object) -> list[Any]:
    return [item for item in items if not isinstance(item, Frame) and isinstance(item, kind)]


def pixels(items: list[Frame | Event]) -> np.ndarray:
    return np.stack([frame.image for frame in frames(items)])


def sound(items: list[Frame | Event], *, speaking: bool = True) -> np.ndarray:
    return np.concatenate([frame.audio for frame in frames(items) if frame.speaking or not speaking])


def test_without_speech_there_is_idle_motion_at_25_frames_a_second(world: World) -> None:
    session = world.open()
    (items,) = world.play(3, session)
    assert [frame.index for frame in frames(items)] == list(range(75))
    assert events(items) == [StateChanged("idle", 0.0)]
    assert not sound(items, speaking=False).any()
    assert len(np.unique(pixels(items).reshape(75, -1), axis=0)) == 75  # it moves


def test_idle_is_silence_through_the_generator(world: World) -> None:
    (items,) = world.play(1, world.open(seed=5))
    begin = StreamState.start(LIGHT, world.reference.motion[0], latency="low", seed=5, guidance=None)
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
    states = [StreamState.start(LIGHT, world.reference.motion[0], latency="low", seed=0, guidance=None)]
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
    assert tap.entered.wait(20)
    session.interrupt()
    assert isinstance(session.take(), Interrupted)
    tap.gate.set()
    runner.join(20)
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
            assert woken.wait(20)
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
    begin = StreamState.start(LIGHT, world.reference.motion[0], latency="quality", seed=2, guidance=None)
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
    capacity.seconds = {(4, 1): 0.04, (4, 2): 0.06, (16, 1): 0.1}
    assert capacity.share(4) == pytest.approx(0.03 * 25 / 4) and capacity.sessions(4) == 4
    world = World(capacity=capacity)
    sessions = [world.open() for _ in range(4)]
    with pytest.raises(CapacityError, match="4 live sessions") as refused:
        world.open()
    assert 1 <= refused.value.retry_after <= 60
    sessions[0].close()
    world.open()
    for _ in range(200):
        capacity.observe(4, 1, 0.08)  # the machine got slower
    assert capacity.sessions(4) == 2


def test_the_machine_is_measured_and_useless_batches_are_left_out(world: World) -> None:
    world.engine.calibrate()
    assert world.engine.sizes[0] == 1 and world.engine.capacity.sessions(4) >= 1
    assert {hop for hop, _ in world.engine.capacity.seconds} == {4, 8, 16}
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
    other: Reference = encode_reference(world.graphs, picture)
    together = World()
    pair = [together.engine.open(ref, seed=1) for ref in (world.reference, other)]
    mine, theirs = together.play(1, *pair)
    alone = World()
    np.testing.assert_array_equal(pixels(theirs), pixels(alone.play(1, alone.engine.open(other, seed=1))[0]))
    assert not np.array_equal(pixels(mine), pixels(theirs))
