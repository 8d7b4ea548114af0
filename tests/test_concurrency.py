"""Sessions and concurrency: other threads, asyncio, interruption in the middle of a pass."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import pytest

from semo_sdk.backends import fake_engines
from semo_sdk.config import SemoConfig
from semo_sdk.errors import SessionClosedError
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import encode_reference
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import Chunk
from semo_sdk.session import Session
from tests.conftest import Open, assert_same, random_speech, spoken
from tests.serving_tools import LIMIT


class Gate:
    """An engine that stops in the middle of a launch until it is let go."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.spec = engine, engine.spec
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.entered.set()
        assert self.go.wait(LIMIT)
        outputs: dict[str, np.ndarray] = self.engine(feeds)
        return outputs

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def gated(tiny_config: SemoConfig, face_image: np.ndarray) -> tuple[Session, Session, Gate]:
    """A session that waits in its render graph, one that does not, and the gate."""
    engines: dict[str, Any] = dict(fake_engines(tiny_config))
    gate = engines["render"] = Gate(engines["render"])
    free = Graphs(fake_engines(tiny_config), tiny_config)
    reference = encode_reference(free, face_image)
    state = StreamState.start(tiny_config, reference.motion[0], latency="low", seed=0)
    return Session(Graphs(engines, tiny_config), reference, state), Session(free, reference, state), gate


def test_interrupt_in_the_middle_of_a_pass_throws_its_frames_away(gated: tuple[Session, Session, Gate]) -> None:
    session, undisturbed, gate = gated
    got: list[list[Chunk]] = []
    pusher = threading.Thread(target=lambda: got.append(session.push(random_speech(3 * 2_560 + 10))))
    pusher.start()
    assert gate.entered.wait(LIMIT)
    assert session.interrupt() == 3 * 2_560 + 10  # at once, and the pass in the making counts as dropped
    gate.go.set()
    pusher.join(LIMIT)
    assert got == [[]] and session.state.frame_index == 0
    pcm = random_speech(4_000, seed=4)
    assert_same(spoken(session, [pcm]), spoken(undisturbed, [pcm]))


def test_close_in_the_middle_of_a_pass_ends_it(gated: tuple[Session, Session, Gate]) -> None:
    session, _, gate = gated
    errors: list[BaseException] = []

    def push() -> None:
        try:
            session.push(random_speech(2_560))
        except SessionClosedError as error:
            errors.append(error)

    pusher = threading.Thread(target=push)
    pusher.start()
    assert gate.entered.wait(LIMIT)
    session.close()
    gate.go.set()
    pusher.join(LIMIT)
    assert len(errors) == 1


def test_sessions_in_threads_are_as_if_alone_and_launch_one_at_a_time(
    tiny_config: SemoConfig, face_image: np.ndarray
) -> None:
    busy = threading.Lock()

    class Exclusive:
        def __init__(self, engine: Any) -> None:
            self.engine, self.spec = engine, engine.spec

        def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            assert busy.acquire(blocking=False), "two launches at once"
            try:
                outputs: dict[str, np.ndarray] = self.engine(feeds)
                return outputs
            finally:
                busy.release()

        def close(self) -> None:
            self.engine.close()

    graphs = Graphs({name: Exclusive(engine) for name, engine in fake_engines(tiny_config).items()}, tiny_config)
    reference = encode_reference(graphs, face_image)

    def speak(seed: int) -> list[Chunk]:
        state = StreamState.start(tiny_config, reference.motion[0], latency="low", seed=seed)
        return spoken(Session(graphs, reference, state), np.split(random_speech(8_000, seed=seed), 8))

    alone = [speak(seed) for seed in range(4)]
    got: dict[int, list[Chunk]] = {}
    threads = [threading.Thread(target=lambda s=seed: got.update({s: speak(s)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    for seed in range(4):
        assert_same(got[seed], alone[seed])


def test_threads_that_push_at_once_get_each_frame_once(open_session: Open) -> None:
    session = open_session("low")
    chunks: list[Chunk] = []
    threads = [threading.Thread(target=lambda: chunks.extend(session.push(random_speech(7_680)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(chunk.index for chunk in chunks) == list(range(0, 36, 4))
    # All pushed the same speech, of three passes: whatever their order, it is spoken three times.
    chunks.sort(key=lambda chunk: chunk.index)
    assert_same(chunks, spoken(open_session("low"), [np.tile(random_speech(7_680), 3)]))


async def in_pieces(pcm: np.ndarray, size: int) -> AsyncIterator[np.ndarray]:
    for start in range(0, len(pcm), size):
        await asyncio.sleep(0)
        yield pcm[start : start + size]


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_async_iteration_gives_the_same_frames(open_session: Open, rate: int) -> None:
    pcm = random_speech(2 * rate)

    async def collect() -> list[Chunk]:
        with open_session() as session:
            return [chunk async for chunk in session.stream(in_pieces(pcm, 1_234), rate)]

    assert_same(asyncio.run(collect()), spoken(open_session(), [pcm], rate))


def test_the_event_loop_is_free_while_a_pass_runs(gated: tuple[Session, Session, Gate]) -> None:
    session, undisturbed, gate = gated
    pcm, later = random_speech(2_560), random_speech(3_000, seed=5)

    async def speech() -> AsyncIterator[np.ndarray]:
        yield pcm
        yield later

    async def collect() -> list[Chunk]:
        async def listener() -> None:
            while not gate.entered.is_set():
                await asyncio.sleep(0.001)
            assert session.interrupt() == len(pcm)  # the loop runs, though the pass does not move
            gate.go.set()

        task = asyncio.create_task(listener())
        chunks = [chunk async for chunk in session.stream(speech())]
        await task
        return chunks

    assert_same(asyncio.run(collect()), spoken(undisturbed, [later]))  # what was interrupted never happened


def test_a_cancelled_stream_has_not_moved_past_its_last_chunk(gated: tuple[Session, Session, Gate]) -> None:
    session, _, gate = gated

    async def cancel() -> None:
        async def consume() -> None:
            async for _ in session.stream(in_pieces(random_speech(5_000), 5_000)):
                pass

        task = asyncio.create_task(consume())
        while not gate.entered.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        gate.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert session.state.frame_index == 0 and len(session.state.pending) == 5_000
