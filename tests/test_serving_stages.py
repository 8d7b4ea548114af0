"""Stages of the engine that raise, die or hang: who was on them is told why, nobody else notices, all calls return."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semo_sdk.constants import FPS
from semo_sdk.errors import CapacityError, EngineError, SessionClosedError
from semo_sdk.media.image import Portrait
from semo_sdk.serving import engine as engine_module
from semo_sdk.serving.client import LiveFrame, ServerError
from semo_sdk.serving.speech import Frame
from tests.conftest import random_speech
from tests.serving_tools import LIMIT, Running, serving, wait_for, wav
from tests.serving_world import World, frames

SPEECH = wav(random_speech(16_000))

MARK = 4032  # a sample that the poisoned engine chokes on


class Choking:
    """An audio engine that raises when it hears the mark."""

    def __init__(self, engine: Any, error: type[Exception]) -> None:
        self.engine, self.error = engine, error

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if (feeds["pcm"] == np.float32(MARK / 32768)).any():
            raise self.error("private words")
        outputs: Mapping[str, np.ndarray] = self.engine(feeds)
        return outputs


@pytest.mark.parametrize("error", [EngineError, ZeroDivisionError, MemoryError])
def test_an_engine_that_raises_in_the_middle_of_a_stream_ends_that_stream_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    monkeypatch.setattr(running.taps["audio"], "engine", Choking(running.taps["audio"].engine, error))
    heard: dict[int, np.ndarray] = {}
    failed: list[ServerError] = []
    speeches = {n: np.round(random_speech(16_000, seed=n) * 16_000).astype(np.int16) * 2 + 1 for n in range(3)}
    speeches[2][9_000] = MARK

    def talk(number: int) -> None:
        with running.client() as client, client.live(seed=number) as live:
            live.push(speeches[number])
            live.end()
            spoken = heard[number] = np.zeros(0, np.int16)
            try:
                for item in live:
                    if isinstance(item, LiveFrame):
                        spoken = np.concatenate([spoken, item.audio]) if item.speaking else spoken
                    elif item.type == "speech.done":
                        break
            except ServerError as refused:
                failed.append(refused)
            heard[number] = spoken

    threads = [threading.Thread(target=talk, args=(number,)) for number in speeches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    for number in (0, 1):
        np.testing.assert_array_equal(heard[number][:16_000], speeches[number])
    (refused,) = failed
    assert refused.code == "engine_failed" and len(heard[2]) < 9_000 + 640
    assert error is EngineError or "private" not in str(refused)


def test_an_engine_that_breaks_for_everybody_is_tried_again_until_it_works(
    tmp_path: Path, portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "REVIVE_SECONDS", 0.1)
    with serving(tmp_path, portrait) as running, running.client() as client:
        lives = [client.live(seed=seed) for seed in range(3)]
        running.taps["render"].broken = True
        for live in lives:
            with pytest.raises(ServerError, match="broken") as told:
                for _ in live:
                    pass
            assert told.value.code == "engine_failed"
            live.close()
        wait_for(lambda: not running.service.engine.healthy)
        for refused in (client.live, lambda: client.request("GET", "/ready")):
            with pytest.raises(CapacityError, match="not ready"):
                refused()
        running.taps["render"].broken = False
        wait_for(lambda: running.service.engine.healthy)
        with client.live() as live:
            assert any(isinstance(item, LiveFrame) for item, _ in zip(live, range(5), strict=False))


def test_a_defect_in_the_engines_thread_fails_who_waits_and_nobody_after(
    tmp_path: Path, portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "REVIVE_SECONDS", 0.1)
    with serving(tmp_path, portrait) as running, running.client() as client:
        with client.live() as live, pytest.raises(ServerError, match="internal error"):
            with monkeypatch.context() as patch:
                patch.setattr(running.service.engine, "_choose", lambda now: 1 / 0)
                for _ in live:
                    pass
        wait_for(lambda: running.service.engine.healthy)
        video = client.create_video(SPEECH, portrait_id="default")
        assert client.wait(video["id"], poll_seconds=0.02)["status"] == "completed"


STAGES = ("audio", "motion", "render")


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_hangs_calls_return_at_once(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CLOSE_SECONDS", 0.3)
    world = World()
    world.engine.start()
    session, other = world.open(), world.open(seed=1)
    recording = world.engine.record(world.reference, random_speech(16_000))
    tap = world.taps[stage]
    gate = tap.gate = threading.Event()
    session.push(random_speech(10_000))
    wait_for(lambda: tap.waiting)
    calls: list[Callable[[], object]] = [
        lambda: session.push(random_speech(100)),
        session.end,
        session.save,
        session.interrupt,
        session.take,
        lambda: session.state,
        session.close,
        recording.close,
        lambda: world.open(seed=2),
        world.engine.close,
    ]
    for call in calls:
        call()
        assert tap.waiting, "it waited for the pass"
    with pytest.raises(EngineError, match="shutting down"):
        other.take()
    with pytest.raises(SessionClosedError):
        next(recording.chunks())
    gate.set()  # the pass ends after all: its frames go nowhere
    thread = world.engine._thread
    assert thread is not None
    thread.join(LIMIT)
    assert not thread.is_alive()


@pytest.mark.parametrize("stage", STAGES)
def test_while_a_pass_hangs_new_work_is_refused(
    tmp_path: Path, portrait: Portrait, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    with serving(tmp_path, portrait) as running, running.client() as client, client.live() as live:
        gate = running.taps[stage].gate = threading.Event()
        monkeypatch.setattr(engine_module, "HANG_SECONDS", 0.3)
        wait_for(lambda: not running.service.engine.healthy)
        with pytest.raises(CapacityError, match="not ready"):
            client.request("GET", "/ready")
        monkeypatch.setattr(engine_module, "HANG_SECONDS", 30.0)
        running.taps[stage].gate = None
        gate.set()
        wait_for(lambda: running.service.engine.healthy)
        assert any(isinstance(item, LiveFrame) for item, _ in zip(live, range(30), strict=False))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_dies_in_the_middle_of_speech_ends_the_session_with_its_reason(stage: str) -> None:
    world = World()
    session, later = world.open(), world.open(seed=1)
    session.push(random_speech(32_000))
    world.play(0.5, session, later)
    world.taps[stage].broken = True
    session.push(random_speech(100))
    (items, _) = world.play(1, session, later)
    assert len(frames(items)) < 25
    for one in (session, later):
        with pytest.raises(EngineError, match="broken"):
            one.take()
    world.taps[stage].broken = False
    assert len(frames(world.play(1, world.open())[0])) == 25


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_idle_motion_and_speech_have_no_gaps_however_slow_the_passes(share: float) -> None:
    world = World(sizes=(1,))
    world.engine.capacity.seconds = {(world.engine.kind, 1): share * 4 / FPS}
    step, ticks = world.engine.step, 0

    def slow_step() -> bool:
        worked = step()
        world.clock.now += share * 4 / FPS if worked else 0
        return worked

    session = world.open()
    slow_step()
    due, missing = world.clock.now, []
    while ticks < 350:
        slow_step()
        while due <= world.clock.now:  # the caller comes every 40 ms, also while a pass runs
            item = session.take()
            while item is not None and not isinstance(item, Frame):
                item = session.take()
            missing += [] if item else [ticks]
            if ticks in (100, 200):
                session.push(random_speech(20_000))
                session.end()
            if ticks == 215:
                session.interrupt()
            ticks += 1
            due += 1 / FPS
        world.clock.now = max(world.clock.now, min(due, world.clock.now + 0.01))
    # Only an interruption, which drops all frames, must wait: for the pass that is running, and for its own.
    assert len(missing) <= 2 * share * 4 + 1 and all(215 < tick < 225 for tick in missing)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.slow
def test_a_hundred_clients_that_come_and_fail_leave_nothing(running: Running) -> None:
    def there() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    def come_and_go(times: int) -> None:
        with running.client() as client:
            for number in range(times):
                live = client.live(seed=number)
                live.push(random_speech(2_000))
                live._socket.socket.close() if number % 2 else live.close()
                with pytest.raises(ServerError):
                    client.live(portrait_id="none")
        wait_for(lambda: running.service.engine.sessions == 0 and not running.service._sessions)

    come_and_go(5)  # pools and caches fill
    wait_for(lambda: not running.service.videos.waiting)
    before = there()
    come_and_go(50)
    wait_for(lambda: there() <= (before[0] + 2, before[1] + 4))
    assert running.service._decoding == 0
