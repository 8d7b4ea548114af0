"""LiveKit Agents, the real package: its runner, its synchroniser, its native tracks, its agent session.

Only the server is missing: the room hands tracks to a listener in the same process.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import numpy as np
import pytest

pytest.importorskip("livekit.agents")

from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarRunner, QueueAudioOutput

from semo_sdk.animator import Animator
from semo_sdk.errors import AudioError, CapacityError, ConfigError, ImageError, SessionClosedError
from semo_sdk.media.image import Portrait
from semo_sdk.serving.avatar import Avatar
from semo_sdk.serving.capacity import Capacity
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.livekit import AvatarSession, SemoVideoGenerator
from semo_sdk.testing import check_video_generator, checks, kit, livekit_port, port
from tests.agents_tools import RATE, quick, run, until, virtual_engine, voice
from tests.serving_tools import LIMIT
from tests.virtual_time import run_virtually, virtual_clock


class Publication:
    def __init__(self, kind: Any) -> None:
        self.kind = kind

    async def wait_for_subscription(self) -> None:
        return None


class Participant:
    """Publishes to a listener that reads the native tracks, as a browser would."""

    identity = "the-agent"

    def __init__(self, room: Room) -> None:
        self.room = room
        self.track_publications: dict[str, Any] = {}
        self.names: list[str] = []
        self.pictures: list[np.ndarray] = []
        self.sound: list[np.ndarray] = []
        self._streams: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def publish_track(self, track: Any, options: Any) -> Publication:
        self.names.append(track.name)
        if isinstance(track, rtc.LocalVideoTrack):
            stream: Any = rtc.VideoStream(track, format=rtc.VideoBufferType.RGB24)
        else:
            stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1)
        self._streams.append(stream)
        self._tasks.append(asyncio.create_task(self._watch(stream)))
        publication = Publication(track.kind)
        self.room.emit("local_track_published", publication, track)
        return publication

    async def _watch(self, stream: Any) -> None:
        async for event in stream:
            if isinstance(stream, rtc.VideoStream):
                self.pictures.append(np.frombuffer(event.frame.data, np.uint8))
            else:
                self.sound.append(np.frombuffer(event.frame.data, np.int16))

    def __getattr__(self, name: str) -> Any:
        """As the room's."""
        return AsyncMock() if name.startswith(("set_", "send_")) else MagicMock()

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        for stream in self._streams:
            await stream.aclose()

    @property
    def heard(self) -> np.ndarray:
        """Everything but silence: a busy machine makes pauses."""
        pcm = np.concatenate([np.zeros(0, np.int16), *self.sound])
        return pcm[pcm != 0]


class Room(rtc.EventEmitter[str]):
    """A room without a server."""

    name = "room"

    def __init__(self) -> None:
        super().__init__()
        self.local_participant = Participant(self)
        self.remote_participants: dict[str, Any] = {}

    def isconnected(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        """What an agent registers and a test does not need."""
        return MagicMock()


@pytest.fixture
def animator(portrait: Portrait) -> Animator:
    return quick(portrait)[0]


def frames(pcm: np.ndarray, rate: int = RATE) -> list[rtc.AudioFrame]:
    return [rtc.AudioFrame(piece.tobytes(), rate, 1, len(piece)) for piece in np.split(pcm, range(480, len(pcm), 480))]


async def stream(pcm: np.ndarray) -> AsyncIterator[rtc.AudioFrame]:
    for frame in frames(pcm):
        yield frame


def test_it_conforms(animator: Animator, monkeypatch: pytest.MonkeyPatch) -> None:
    """In virtual time."""
    virtual_clock(monkeypatch, checks, kit, livekit_port, port)
    engine = virtual_engine(animator)
    work = check_video_generator(lambda: SemoVideoGenerator(animator, engine=engine))
    run_virtually(work, engine.step).raise_for_failures()


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100, 48_000])
def test_the_voice_comes_out_bit_for_bit_after_its_picture(animator: Animator, rate: int) -> None:
    async def play() -> None:
        generator = SemoVideoGenerator(animator, sample_rate=rate)
        said = voice(0.83, rate=rate)
        for frame in frames(said, rate):
            await generator.push_audio(frame)
        await generator.push_audio(AudioSegmentEnd())
        came: list[np.ndarray] = []
        before: Any = None
        async for item in generator:
            if isinstance(item, rtc.AudioFrame):
                assert isinstance(before, rtc.VideoFrame) and item.sample_rate == rate
                came.append(np.frombuffer(item.data, np.int16))
            if isinstance(item, AudioSegmentEnd):
                break
            before = item
        np.testing.assert_array_equal(np.concatenate(came), said)
        assert {len(piece) for piece in came[:-1]} == {rate // 25}
        await generator.aclose()

    run(play())


def test_the_runner_shows_and_reports_everything(animator: Animator) -> None:
    """Through ``AvatarRunner``, ``AVSynchronizer`` and native tracks to whoever watches."""

    async def play() -> None:
        room: Any = Room()
        generator = SemoVideoGenerator(animator)
        queue = QueueAudioOutput(sample_rate=RATE, wait_playback_start=True)
        started: list[Any] = []
        queue.on("playback_started", started.append)
        runner = AvatarRunner(room, audio_recv=queue, video_gen=generator, options=generator.options)
        await runner.start()
        said = voice(1.0)
        for frame in frames(said):
            await queue.capture_frame(frame)
        queue.flush()
        done = await queue.wait_for_playout()
        assert done.playback_position == pytest.approx(1.0) and not done.interrupted and len(started) == 1
        listener = room.local_participant
        assert listener.names == ["avatar_audio", "avatar_video"]
        await until(lambda: len(listener.heard) >= len(said) - RATE // 20 and len(listener.pictures) >= 25)
        assert len(listener.heard) <= len(said) + RATE // 20
        assert {len(p) for p in listener.pictures} == {256 * 256 * 3}

        heard = len(listener.heard)
        for frame in frames(voice(30.0)):
            await queue.capture_frame(frame)
        await until(lambda: len(listener.heard) > heard + RATE // 2)
        queue.clear_buffer()
        queue.flush()
        done = await queue.wait_for_playout()
        assert done.interrupted and 0.4 < done.playback_position < 30.0
        shown = len(listener.pictures)
        for frame in frames(said):
            await queue.capture_frame(frame)
        queue.flush()
        done = await queue.wait_for_playout()
        # the runner counts a frame that was on its way into the synchroniser when it was interrupted
        assert not done.interrupted and done.playback_position == pytest.approx(1.0, abs=0.05)
        await until(lambda: len(listener.pictures) > shown + 20)
        await runner.aclose()
        await generator.aclose()
        await listener.leave()

    run(play())


def test_an_agent_says_things_with_the_avatar_and_is_interrupted(animator: Animator) -> None:
    async def play() -> None:
        room: Any = Room()
        metrics: list[Any] = []
        session: AgentSession[None] = AgentSession()
        avatar = AvatarSession(animator)
        assert avatar.provider == "semo" and avatar.avatar_identity == ""
        avatar.on("metrics_collected", metrics.append)
        await avatar.start(session, room)
        assert avatar.avatar_identity == "the-agent"
        with pytest.raises(RuntimeError, match="already"):
            await avatar.start(session, room)
        await session.start(Agent(instructions="say things"))
        await avatar.wait_for_join(timeout=LIMIT)
        assert [m.metadata.model_provider for m in metrics] == ["semo"] and metrics[0].avatar_joined_time
        said = voice(0.9)
        await asyncio.wait_for(session.say("hello", audio=stream(said)), LIMIT)
        listener = room.local_participant
        await until(lambda: len(listener.heard) >= len(said) - RATE // 10)
        heard = len(listener.heard)
        assert heard <= len(said) + RATE // 10
        handle = session.say("a long story", audio=stream(voice(30)))
        await until(lambda: len(listener.heard) > heard + RATE // 2)
        await asyncio.wait_for(session.interrupt(), LIMIT)
        await asyncio.wait_for(handle, LIMIT)
        assert handle.interrupted
        await asyncio.wait_for(session.say("sorry", audio=stream(said)), LIMIT)
        await session.aclose()
        await avatar.aclose()
        await avatar.aclose()
        await room.local_participant.leave()
        assert not any(task.get_name().startswith("semo") for task in asyncio.all_tasks())

    run(play())


def test_when_the_engine_fails_the_voice_goes_on(portrait: Portrait, caplog: pytest.LogCaptureFixture) -> None:
    animator, taps = quick(portrait)

    async def play() -> None:
        generator = SemoVideoGenerator(animator)
        said = voice(1.5)
        for frame in frames(said):
            await generator.push_audio(frame)
        await generator.push_audio(AudioSegmentEnd())
        came = []
        async for item in generator:
            if isinstance(item, rtc.AudioFrame):
                came.append(np.frombuffer(item.data, np.int16))
                taps["render"].broken = len(came) > 5
            if isinstance(item, AudioSegmentEnd):
                break
        np.testing.assert_array_equal(np.concatenate(came), said)
        assert "broken" in str(generator.avatar.error)
        generator.clear_buffer()
        await generator.push_audio(frames(said)[0])
        kinds = [type(item) for _, item in zip(range(3), [item async for item in _first(generator, 3)], strict=True)]
        assert kinds == [rtc.VideoFrame, rtc.AudioFrame, rtc.VideoFrame]
        await generator.aclose()

    run(play())
    assert "stands still" in caplog.text


async def _first(generator: SemoVideoGenerator, count: int) -> AsyncIterator[Any]:
    async for item in generator:
        yield item
        count -= 1
        if not count:
            return


def test_a_minute_may_wait_and_an_interruption_frees_who_waits(animator: Animator) -> None:
    async def play() -> None:
        generator = SemoVideoGenerator(animator)
        pushing = asyncio.create_task(generator.push_audio(rtc.AudioFrame(voice(90).tobytes(), RATE, 1, 90 * RATE)))
        await until(lambda: generator.avatar.seconds > 59)
        await asyncio.sleep(0.2)
        assert not pushing.done() and generator.avatar.seconds < 61
        generator.clear_buffer()
        await asyncio.wait_for(pushing, LIMIT)
        assert generator.avatar.labels == []
        await generator.aclose()

    run(play())


def test_bad_settings_and_bad_audio_are_refused(animator: Animator) -> None:
    with pytest.raises(ConfigError, match="multiple of 25"):
        SemoVideoGenerator(animator, sample_rate=11_111)
    with pytest.raises(ConfigError, match="same graphs"):
        SemoVideoGenerator("portrait.jpg", engine=Engine(animator.graphs))

    async def play() -> None:
        generator = SemoVideoGenerator(animator)
        with pytest.raises(AudioError, match="48000 Hz"):
            await generator.push_audio(frames(voice(0.02), 48_000)[0])
        async with Avatar(animator) as avatar:
            with pytest.raises(AudioError, match="int16"):
                await avatar.push(np.zeros(5, np.float32), RATE)
            await avatar.push(voice(0.1), RATE)
            with pytest.raises(AudioError, match="end it first"):
                await avatar.push(voice(0.1), 16_000)
            waiting = asyncio.create_task(avatar.drained())
            await avatar.aclose()
            await waiting
            with pytest.raises(SessionClosedError):
                await avatar.next()
        await generator.aclose()
        with pytest.raises(SessionClosedError):
            await generator.push_audio(frames(voice(0.02))[0])
        assert [item async for item in generator] == []
        with pytest.raises(ImageError):
            await SemoVideoGenerator(np.zeros((300, 300, 3), np.uint8)).start()

    run(play())


def test_avatars_of_one_process_share_an_engine_and_its_limits(animator: Animator) -> None:
    async def play() -> None:
        engine = Engine(animator.graphs, sizes=(1, 2), capacity=Capacity(max_sessions=2))
        engine.start()
        both = [SemoVideoGenerator(animator, engine=engine) for _ in range(2)]
        for generator in both:
            await generator.start()
        with pytest.raises(CapacityError):
            await SemoVideoGenerator(animator, engine=engine).start()
        await both[0].aclose()
        third = SemoVideoGenerator(animator, engine=engine)
        await third.start()
        assert engine.sessions == 2 and engine.healthy
        for generator in (both[1], third):
            await generator.aclose()
        engine.close()

    run(play())


def test_without_the_package_the_extra_is_named() -> None:
    code = "import sys; sys.modules['livekit'] = None\nimport semo_sdk.serving.livekit"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingDependencyError" in done.stderr and "semo-sdk[livekit]" in done.stderr
