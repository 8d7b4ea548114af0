"""The conformance kit: a sound avatar passes, and each check has broken ones that fail it. In virtual time."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("livekit.agents")
pytest.importorskip("pipecat")

from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator
from pipecat.frames.frames import (
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    OutputTransportReadyFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from semo_sdk.errors import ConfigError
from semo_sdk.testing import (
    CHECKS,
    Check,
    ConformanceError,
    Report,
    check_video_generator,
    check_video_service,
    checks,
    kit,
    livekit_port,
    port,
)
from tests.agents_tools import RATE
from tests.virtual_time import now, run_virtually, virtual_clock

FRAME = RATE // 25 * 2  # bytes of sound in one
PICTURE = bytes(64 * 64 * 3)


@pytest.fixture(autouse=True)
def _virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_clock(monkeypatch, checks, kit, livekit_port, port)


class Still:
    """The smallest avatar that is right: a picture, and the sound of a frame. ``defect`` spoils one thing."""

    def __init__(self, defect: str = "") -> None:
        self.defect = defect
        self.replies: deque[bytearray] = deque()
        self.ended: set[int] = set()  # ids of the replies that are complete
        self.done = 0
        self.cleared = False

    def push(self, pcm: bytes) -> None:
        if not self.replies or id(self.replies[-1]) in self.ended:
            self.replies.append(bytearray())
        self.replies[-1].extend(pcm)

    def end(self) -> None:
        if self.defect == "answers stray ends" and not self.replies:
            self.push(b"")
        if self.replies:
            self.ended.add(id(self.replies[-1]))

    def clear(self) -> None:
        self.cleared = True
        if self.defect == "deaf":
            return
        if self.defect == "ends what was cleared":
            for reply in self.replies:
                reply.clear()
            return
        self.replies.clear()
        self.ended.clear()
        if self.defect == "leftovers":
            self.replies.append(bytearray(5 * FRAME))

    async def outputs(self) -> AsyncIterator[bytes | str | None]:
        """None: a picture; bytes: sound; "end"."""
        while True:
            await asyncio.sleep(0.08 if self.defect == "slow" else 0)
            reply = self.replies[0] if self.replies else None
            frozen = self.defect == "freezes" and self.cleared
            if frozen or (self.defect == "no idle" and reply is None):
                await asyncio.sleep(0.04)
            else:
                yield None
            if reply is None and self.defect == "sound in idle":
                yield bytes(FRAME)
            if reply is None or not self.replies or self.replies[0] is not reply:
                continue
            async for item in self.speak(reply):
                yield item

    async def speak(self, reply: bytearray) -> AsyncIterator[bytes | str | None]:
        size = len(reply) if self.defect == "sound ahead" else FRAME
        complete = id(reply) in self.ended
        if len(reply) >= size or complete:
            pcm = bytes(reply[:size])
            del reply[:size]
            if self.defect == "noise":
                pcm = np.random.default_rng(0).integers(-9000, 9000, len(pcm) // 2).astype(np.int16).tobytes()
            if self.defect == "crashes":
                raise ValueError("out of memory")
            if pcm and self.defect != "mute":
                yield pcm
        if complete and not reply:
            self.replies.popleft()
            self.done += 1
            tired = self.defect == "tires" and self.done > 2
            for _ in range(0 if self.defect == "endless" or tired else 2 if self.defect == "ends twice" else 1):
                yield "end"


class Generator(VideoGenerator):
    """For LiveKit."""

    def __init__(self, defect: str = "") -> None:
        self.still = Still(defect)
        width = 32 if defect == "small" else 64
        self.options = AvatarOptions(width, 64, 25, RATE, 1)

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        if isinstance(frame, AudioSegmentEnd):
            self.still.end()
        else:
            self.still.push(bytes(frame.data))

    async def clear_buffer(self) -> None:
        self.still.clear()

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        async for item in self.still.outputs():
            if item is None:
                yield rtc.VideoFrame(64, 64, rtc.VideoBufferType.RGB24, PICTURE)
            elif isinstance(item, bytes):
                yield rtc.AudioFrame(item, RATE, 1, len(item) // 2)
            else:
                yield AudioSegmentEnd()

    async def aclose(self) -> None:
        if self.still.defect == "hangs":
            await asyncio.sleep(3600)


class Service(FrameProcessor):
    """For Pipecat."""

    def __init__(self, defect: str = "") -> None:
        super().__init__()
        self.still = Still(defect)
        self.stops: deque[Frame] = deque()
        self.task: Any = None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self.still.push(frame.audio)
        elif isinstance(frame, TTSStoppedFrame) and self.still.defect != "ends early":
            self.stops.append(frame)
            self.still.end()
        else:
            if isinstance(frame, InterruptionFrame):
                self.still.clear()
            if isinstance(frame, TTSStoppedFrame):
                self.still.end()
            if isinstance(frame, OutputTransportReadyFrame):
                self.task = self.create_task(self.play())
            await self.push_frame(frame, direction)

    async def play(self) -> None:
        due = now()
        async for item in self.still.outputs():
            if item is None:
                due += 0.04
                await asyncio.sleep(max(due - now(), 0))
                await self.push_frame(OutputImageRawFrame(PICTURE, (64, 64), "RGB"))
            elif isinstance(item, bytes):
                await self.push_frame(TTSAudioRawFrame(item, RATE, 1))
            elif self.still.defect != "ends early":
                await self.push_frame(self.stops.popleft())

    async def cleanup(self) -> None:
        await super().cleanup()
        if self.task is not None:
            await self.cancel_task(self.task)


DEFECTS = {
    "no idle": ("idle", "first picture did not come"),
    "sound in idle": ("idle", "though nothing was said"),
    "slow": ("idle", "pictures a second"),
    "small": ("idle", "promised"),
    "mute": ("pairing", "0.000 s of sound"),
    "sound ahead": ("pairing", "ms apart"),
    "noise": ("pairing", "not what was said"),
    "crashes": ("pairing", "out of memory"),
    "endless": ("segment_end", "did not come"),
    "ends twice": ("segment_end", "ends of three replies"),
    "deaf": ("barge_in", "after the interruption"),
    "ends what was cleared": ("barge_in", "an end came"),
    "answers stray ends": ("barge_in", "an end came"),
    "freezes": ("barge_in", "pictures in 0.8 s"),
    "leftovers": ("reset", "s of sound came"),
    "tires": ("long_run", "did not come"),
    "hangs": ("close", "did not end"),
}
IN_A_PIPELINE = {
    "no idle": ("idle", "first picture did not come"),
    "slow": ("idle", "pictures a second"),
    "mute": ("pairing", "0.000 s of sound"),
    "ends early": ("segment_end", "s of sound between the ends"),
    "deaf": ("barge_in", "after the interruption"),
    "leftovers": ("reset", "s of sound came"),
}


def test_a_sound_avatar_passes_every_check() -> None:
    async def both() -> tuple[Report, Report]:
        return await asyncio.gather(
            check_video_generator(Generator, long_run=2), check_video_service(Service, long_run=2, size=(64, 64))
        )

    generator, service = run_virtually(both())
    for report in (generator, service):
        report.raise_for_failures()
        assert [check.name for check in report.checks] == list(CHECKS) and report.ok and not report.failures
    assert generator.subject == "Generator" and generator.framework.startswith("livekit-agents 1.")
    assert service.subject == "Service" and service.framework.startswith("pipecat-ai 1.")


@pytest.mark.parametrize(
    ("make", "defects"), [(Generator, DEFECTS), (Service, IN_A_PIPELINE)], ids=["livekit", "pipecat"]
)
def test_every_check_can_fail(make: Any, defects: dict[str, tuple[str, str]]) -> None:
    verify = check_video_generator if make is Generator else check_video_service

    async def all_of_them() -> list[Report]:
        made = [
            verify(functools.partial(make, defect), checks=[check], long_run=2, patience=3)
            for defect, (check, _) in defects.items()
        ]
        return await asyncio.gather(*made)

    for (defect, (name, complaint)), report in zip(defects.items(), run_virtually(all_of_them()), strict=True):
        assert report.failures == (name,), f"{defect}: {report}"
        assert complaint in report.checks[0].detail, f"{defect}: {report}"


def test_there_is_a_defect_for_every_check() -> None:
    assert {check for check, _ in DEFECTS.values()} == set(CHECKS)


def test_a_report_can_be_read_by_people_tests_and_programs() -> None:
    report = Report("Mine", "livekit-agents 1.8.9", (Check("idle", True, "fine", 1.0), Check("reset", False, "bad", 2)))
    assert str(report).splitlines()[0] == "Mine (livekit-agents 1.8.9): DOES NOT CONFORM"
    assert json.loads(report.to_json())["ok"] is False and report.failures == ("reset",)
    with pytest.raises(ConformanceError, match="FAIL reset"):
        report.raise_for_failures()


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ConfigError, match="no check 'idel'"):
        run_virtually(check_video_generator(Generator, checks=["idel"]))

    class Silent(Generator):
        def __init__(self) -> None:
            self.still = Still()

    with pytest.raises(ConfigError, match="AvatarOptions"):
        run_virtually(check_video_generator(Silent))
