"""LiveKit's ``VideoGenerator`` under test, read as ``AvatarRunner`` and its synchroniser read it."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING

import numpy as np

from semo_sdk.errors import MissingDependencyError
from semo_sdk.testing.port import PUSH_SECONDS, Port

try:
    from livekit import rtc
    from livekit.agents.voice.avatar import AudioSegmentEnd
except ImportError as error:
    raise MissingDependencyError("LiveKit Agents is not installed: pip install 'semo-sdk[livekit]'") from error

if TYPE_CHECKING:
    from livekit.agents.voice.avatar import AvatarOptions, VideoGenerator

__all__ = ["LiveKitPort"]

QUEUE_SECONDS = 0.1  # of sound and of pictures that wait in the synchroniser


class LiveKitPort(Port):
    """See :class:`semo_sdk.testing.port.Port`."""

    def __init__(self, generator: VideoGenerator, options: AvatarOptions, patience: float) -> None:
        super().__init__(
            fps=options.video_fps,
            rate=options.audio_sample_rate,
            size=(options.video_width, options.video_height),
            patience=patience,
        )
        self._generator = generator
        self._channels = options.audio_channels
        self._inbox: asyncio.Queue[rtc.AudioFrame | AudioSegmentEnd] = asyncio.Queue()

    async def open(self) -> None:
        self.spawn(self._feed())
        self.spawn(self._read())

    async def speak(self, pcm: np.ndarray) -> None:
        size = int(PUSH_SECONDS * self.rate)
        for start in range(0, len(pcm), size):
            piece = pcm[start : start + size]
            data = np.repeat(piece, self._channels).tobytes()
            self._inbox.put_nowait(rtc.AudioFrame(data, self.rate, self._channels, len(piece)))

    async def end(self) -> None:
        self._inbox.put_nowait(AudioSegmentEnd())

    async def interrupt(self) -> None:
        while not self._inbox.empty():
            self._inbox.get_nowait()
        cleared = self._generator.clear_buffer()
        if inspect.isawaitable(cleared):
            await cleared

    async def close(self) -> None:
        aclose = getattr(self._generator, "aclose", None)
        if aclose is not None:
            await aclose()
        await self.stop_tasks()

    async def _feed(self) -> None:
        while True:
            await self._generator.push_audio(await self._inbox.get())

    async def _read(self) -> None:
        heard = shown = 0.0  # until when the sound and the pictures that were taken last
        async for item in self._generator:
            if isinstance(item, AudioSegmentEnd):
                self.ended()
            elif isinstance(item, rtc.AudioFrame):
                self.sound(bytes(item.data), item.sample_rate, item.num_channels)
                heard = await _queue(heard, item.duration)
            else:
                self.picture((item.width, item.height), bytes(item.data))
                shown = await _queue(shown, 1 / self.fps)


async def _queue(until: float, seconds: float) -> float:
    """Waits until a queue that lasts ``until`` has room for so much more; until when it lasts then."""
    until = max(until, time.monotonic()) + seconds
    await asyncio.sleep(max(until - time.monotonic() - QUEUE_SECONDS, 0))
    return until
