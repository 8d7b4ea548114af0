"""Pipecat, the real package: real pipelines, and a real output transport; their clock is virtual."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pipecat")

from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    MetricsFrame,
    OutputAudioRawFrame,
    OutputImageRawFrame,
    StartFrame,
    TextFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.metrics.metrics import TTFBMetricsData
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.tests.utils import SleepFrame, run_test
from pipecat.transports import base_output
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

from semo_sdk.animator import Animator
from semo_sdk.media.image import Portrait
from semo_sdk.serving import pipecat as adapter
from semo_sdk.serving.pipecat import SemoVideoService
from semo_sdk.testing import check_video_service, checks, kit, port
from tests.agents_tools import RATE, quick, run, virtual_engine, voice
from tests.virtual_time import now, run_virtually, virtual_clock


class Screen(BaseOutputTransport):
    """A transport whose loudspeaker takes as long as the sound lasts."""

    def __init__(self, **params: Any) -> None:
        super().__init__(
            TransportParams(
                audio_out_enabled=True,
                audio_out_sample_rate=RATE,
                video_out_enabled=True,
                video_out_width=256,
                video_out_height=256,
                video_out_framerate=25,
                audio_out_end_silence_secs=0,
                **params,
            )
        )
        self.pictures: list[tuple[float, bytes]] = []
        self.sound: list[tuple[float, np.ndarray]] = []

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self.sound.append((now(), np.frombuffer(frame.audio, np.int16)))
        await asyncio.sleep(len(frame.audio) / 2 / RATE * 0.9)
        return True

    async def write_video_frame(self, frame: OutputImageRawFrame) -> bool:
        self.pictures.append((now(), frame.image))
        return True

    @property
    def heard(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int16), *(pcm for _, pcm in self.sound)])


@pytest.fixture(autouse=True)
def _virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_clock(monkeypatch, adapter, base_output, checks, kit, port)


@pytest.fixture
def animator(portrait: Portrait) -> Animator:
    return quick(portrait)[0]


def made(animator: Animator, **settings: Any) -> SemoVideoService:
    """A service whose engine has no thread: it works while the others sleep."""
    return SemoVideoService(portrait=animator, engine=virtual_engine(animator), **settings)


def said(pcm: np.ndarray, context: str = "a", **settings: Any) -> list[Frame]:
    """A reply as a text-to-speech service sends it."""
    pieces = [
        TTSAudioRawFrame(piece.tobytes(), RATE, 1, context_id=context)
        for piece in np.split(pcm, range(480, len(pcm), 480))
    ]
    for piece in pieces:
        for name, value in settings.items():
            setattr(piece, name, value)
    return [TTSStartedFrame(context_id=context), *pieces, TTSStoppedFrame(context_id=context)]


def through(service: SemoVideoService, frames: Sequence[Frame], **settings: Any) -> tuple[list[Frame], list[Frame]]:
    """What comes out of a pipeline, downstream and upstream."""
    engine = service.avatar._engine
    workers = [] if engine is None else [engine.step]
    down, up = run_virtually(run_test(service, frames_to_send=frames, start_timeout=60, **settings), *workers)
    return list(down), list(up)


def sound(frames: Iterable[Frame]) -> np.ndarray:
    pieces = [np.frombuffer(frame.audio, np.int16) for frame in frames if isinstance(frame, TTSAudioRawFrame)]
    return np.concatenate([np.zeros(0, np.int16), *pieces])


def places(frames: Sequence[Frame], kind: type[Frame]) -> list[int]:
    return [number for number, frame in enumerate(frames) if isinstance(frame, kind)]


def contexts_of(frames: Sequence[Any], kind: type[Frame]) -> list[str]:
    return [frames[number].context_id for number in places(frames, kind)]


def test_it_conforms(animator: Animator) -> None:
    engine = virtual_engine(animator)
    work = check_video_service(lambda: SemoVideoService(portrait=animator, engine=engine), size=(256, 256))
    run_virtually(work, engine.step).raise_for_failures()


def test_each_picture_goes_out_with_exactly_its_samples(animator: Animator) -> None:
    """In real time, with an engine of its own and its thread."""
    pcm = voice(0.99)
    service = SemoVideoService(portrait=animator)
    down, _ = run(run_test(service, frames_to_send=said(pcm), start_timeout=60))
    np.testing.assert_array_equal(sound(down), pcm)
    for number in places(down, TTSAudioRawFrame):
        frame, picture = down[number], down[number - 1]
        assert isinstance(frame, TTSAudioRawFrame) and frame.context_id == "a" and frame.sample_rate == RATE
        assert isinstance(picture, OutputImageRawFrame) and picture.size == (256, 256) and picture.format == "RGB"
        assert len(picture.image) == 256 * 256 * 3 and not picture.sync_with_audio
    assert places(down, TTSStoppedFrame)[0] > places(down, TTSAudioRawFrame)[-1]


@pytest.mark.parametrize("live", [True, False])
def test_a_transport_plays_it_in_sync(animator: Animator, live: bool) -> None:
    service = made(animator, sync_with_audio=not live)
    assert service.avatar._engine is not None

    async def play() -> tuple[Screen, list[str]]:
        screen, marks = Screen(video_out_is_live=live), list[str]()
        worker = PipelineWorker(Pipeline([service, screen]), cancel_on_idle_timeout=False, enable_rtvi=False)
        worker.set_reached_upstream_filter((BotStartedSpeakingFrame, BotStoppedSpeakingFrame))

        @worker.event_handler("on_frame_reached_upstream")
        async def reached(_: Any, frame: Frame) -> None:
            marks.append(type(frame).__name__)

        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        running = asyncio.create_task(runner.run())
        while len(screen.pictures) < 15:  # idle before
            await asyncio.sleep(0.05)
        for frame in said(voice(1.2)):
            await worker.queue_frame(frame)
        await worker.queue_frame(EndFrame())
        await running
        return screen, marks

    screen, marks = run_virtually(play(), service.avatar._engine.step)
    pcm = voice(1.2)
    np.testing.assert_array_equal(screen.heard[: len(pcm)], pcm)
    assert not screen.heard[len(pcm) :].any() and marks == ["BotStartedSpeakingFrame", "BotStoppedSpeakingFrame"]
    begun, ended = screen.sound[0][0], screen.sound[-1][0]
    assert ended - begun > 1.0  # not faster than it sounds
    shown = len({image for at, image in screen.pictures if begun <= at <= ended})
    assert shown >= (0.6 if live else 0.4) * 25 * (ended - begun)  # not live: it looks 25 times a second


def test_the_order_of_frames_stays(animator: Animator) -> None:
    timed, text, after = TextFrame("timed"), TextFrame("between"), TextFrame("after")
    timed.pts = 5
    first, second = said(voice(0.6), "a"), said(voice(0.4, 1), "b")
    frames = [*first[:-1], text, timed, first[-1], *second, after]
    down, _ = through(made(animator), frames)
    sounds = places(down, TTSAudioRawFrame)
    contexts = contexts_of(down, TTSAudioRawFrame)
    last_of_a, first_of_b = sounds[contexts.index("b") - 1], sounds[contexts.index("b")]
    order = [down.index(frame) for frame in (timed, text, first[-1], second[0], second[-1], after)]
    assert order == sorted(order)
    assert order[0] < sounds[-1] and last_of_a < order[1] and order[3] < first_of_b and sounds[-1] < order[4]


def test_an_interruption_drops_what_was_not_shown(animator: Animator) -> None:
    text = TextFrame("behind the speech")
    frames = [*said(voice(5), "a"), text, SleepFrame(0.6), InterruptionFrame(), SleepFrame(0.4)]
    pcm = voice(0.5, 1)
    down, _ = through(made(animator), [*frames, *said(pcm, "b")])
    (cut,) = places(down, InterruptionFrame)
    assert len(sound(down[:cut])) / RATE < 0.7
    np.testing.assert_array_equal(sound(down[cut:]), pcm)
    assert contexts_of(down, TTSStoppedFrame) == ["b"]
    assert text not in down and len(places(down[cut:], OutputImageRawFrame)) >= 15


def test_what_must_not_be_interrupted_is_not(animator: Animator) -> None:
    pcm = voice(0.8)
    frames = [*said(pcm, interruptible=False), SleepFrame(0.3), InterruptionFrame(), SleepFrame(0.1)]
    down, _ = through(made(animator), frames)
    np.testing.assert_array_equal(sound(down), pcm)
    assert not any(down[number].interruptible for number in places(down, TTSAudioRawFrame))
    kept = TextFrame("kept")
    kept.interruptible = False
    down, _ = through(made(animator), [*said(voice(2)), kept, SleepFrame(0.3), InterruptionFrame()])
    assert kept in down


def test_the_time_to_the_first_frame_is_measured(animator: Animator) -> None:
    service = made(animator)
    frames = [*said(voice(0.5)), SleepFrame(1.2), *said(voice(0.5), "b")]
    down, up = through(service, frames, pipeline_params=PipelineParams(enable_metrics=True))
    data = [part for frame in down + up if isinstance(frame, MetricsFrame) for part in frame.data]
    times = [part.value for part in data if isinstance(part, TTFBMetricsData) and part.value > 0]
    assert len(times) == 2 and all(0 < seconds < 5 for seconds in times)
    assert {part.processor for part in data} == {service.name} and service.can_generate_metrics()


def test_when_the_engine_fails_the_voice_goes_on(portrait: Portrait) -> None:
    animator, taps = quick(portrait)
    engine, pcm = virtual_engine(animator), voice(1.2)
    service = SemoVideoService(portrait=animator, engine=engine)

    async def play() -> tuple[Sequence[Frame], Sequence[Frame]]:
        asyncio.get_running_loop().call_later(0.5, lambda: setattr(taps["render"], "broken", True))
        return await run_test(service, frames_to_send=said(pcm), start_timeout=60)

    down, up = run_virtually(play(), engine.step)
    np.testing.assert_array_equal(sound(down), pcm)
    errors = [frame.error for frame in up if isinstance(frame, ErrorFrame)]
    assert len(errors) == 1 and "stands still" in errors[0]


def test_without_a_face_there_is_an_error_and_the_voice() -> None:
    service, pcm = SemoVideoService(portrait=np.zeros((300, 300, 3), np.uint8)), voice(0.3)
    down, _ = through(service, [*said(pcm), SleepFrame(0.1)])
    np.testing.assert_array_equal(sound(down), pcm)
    assert not service.is_usable and not places(down, OutputImageRawFrame)


def test_several_channels_and_rates_and_bad_audio(animator: Animator) -> None:
    stereo = np.stack([voice(0.4), voice(0.4)], 1)
    frames = [
        TTSAudioRawFrame(stereo.tobytes(), RATE, 2, context_id="a"),
        TTSAudioRawFrame(voice(0.4, rate=16_000).tobytes(), 16_000, 1, context_id="b"),
        TTSAudioRawFrame(voice(0.2).tobytes(), 11_111, 1, context_id="c"),
    ]
    down, up = through(made(animator), frames)
    pieces = [down[number] for number in places(down, TTSAudioRawFrame)]
    mono = [p.audio for p in pieces if isinstance(p, TTSAudioRawFrame) and p.context_id == "a"]
    np.testing.assert_array_equal(np.frombuffer(b"".join(mono), np.int16), stereo[:, 0])
    assert {(p.context_id, p.sample_rate) for p in pieces if isinstance(p, TTSAudioRawFrame)} == {
        ("a", RATE),
        ("b", 16_000),
    }
    assert [frame.error for frame in up if isinstance(frame, ErrorFrame) and "11111" in frame.error]


def test_without_the_package_the_extra_is_named() -> None:
    code = "import sys; sys.modules['pipecat'] = None\nimport semo_sdk.serving.pipecat"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingDependencyError" in done.stderr and "semo-sdk[pipecat]" in done.stderr
