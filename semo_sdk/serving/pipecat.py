"""Pipecat: a local portrait in a pipeline, between text-to-speech and the output. Needs the extra ``pipecat``.

>>> avatar = SemoVideoService(portrait="portrait.jpg")
>>> pipeline = Pipeline([transport.input(), stt, user, llm, tts, avatar, transport.output(), assistant])

The transport shows what comes: ``TransportParams(audio_out_enabled=True, video_out_enabled=True,
video_out_is_live=True, video_out_width=256, video_out_height=256, video_out_framerate=25)``.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semo_sdk.constants import FPS, IMAGE_SIZE
from semo_sdk.errors import MissingDependencyError, SemoError, SessionClosedError
from semo_sdk.serving.avatar import Avatar, AvatarFrame, Mark
from semo_sdk.serving.engine import Engine

try:
    from pipecat.frames.frames import (
        CancelFrame,
        EndFrame,
        Frame,
        InterruptionFrame,
        OutputImageRawFrame,
        OutputTransportReadyFrame,
        SystemFrame,
        TTSAudioRawFrame,
        TTSStoppedFrame,
    )
    from pipecat.processors.frame_processor import FrameDirection
    from pipecat.services.ai_service import AIService
    from pipecat.services.settings import ServiceSettings
except ImportError as error:
    raise MissingDependencyError("Pipecat is not installed: pip install 'semo-sdk[pipecat]'") from error

if TYPE_CHECKING:
    from semo_sdk.serving.avatar import Source

__all__ = ["SemoVideoService", "SemoVideoSettings"]

LATE_SECONDS = 0.2  # frames that come later than this do not try to catch up
FAREWELL_SECONDS = 5.0  # beyond the length of what is still to be said


@dataclass
class SemoVideoSettings(ServiceSettings):
    """Nothing can be changed while the pipeline runs."""


@dataclass(frozen=True)
class _Label:
    """What the frames of a reply inherit from its text-to-speech frames."""

    context_id: str | None
    destination: str | None
    interruptible: bool


class SemoVideoService(AIService):
    """Speaks what text-to-speech says: each picture goes out with exactly its samples, 25 times a second.

    It takes ``TTSAudioRawFrame`` and gives, paced in real time, an ``OutputImageRawFrame`` and the same samples as
    ``TTSAudioRawFrame``, with rate, context and destination as they came; while nothing is said, pictures only.
    The order stays as it was: frames that came behind speech (``TTSStoppedFrame``, text, ``EndFrame``) wait until it
    was shown, but not those with a time of their own (``pts``). An ``InterruptionFrame`` drops what was not shown,
    unless it came with ``interruptible=False``. Metrics: the time from a reply's first samples to its first frame
    (TTFB). Pictures start when the transport is ready, or with the first speech; speech that comes while the model
    opens waits for it.

    If the engine fails an ``ErrorFrame`` goes upstream, and the voice goes on over the last picture.

    Args:
        portrait, latency, seed, expressiveness, engine: as for :class:`semo_sdk.serving.avatar.Avatar`.
        sync_with_audio: ties each picture to the sound before it in the transport's queue; for transports with
            ``video_out_is_live=False``.
        settings: Pipecat's.
        **kwargs: for ``AIService``.

    Raises:
        ConfigError: an engine without its animator.
    """

    Settings = SemoVideoSettings
    _settings: SemoVideoSettings

    def __init__(
        self,
        *,
        portrait: Source,
        latency: str = "low",
        seed: int = 0,
        expressiveness: float | None = None,
        engine: Engine | None = None,
        sync_with_audio: bool = False,
        settings: SemoVideoSettings | None = None,
        **kwargs: Any,
    ) -> None:
        store = SemoVideoSettings(model="semo")
        if settings is not None:
            store.apply_update(settings)
        super().__init__(settings=store, **kwargs)
        self.avatar = Avatar(portrait, latency=latency, seed=seed, expressiveness=expressiveness, engine=engine)
        self._sync = sync_with_audio
        self._pair = asyncio.Lock()  # a picture and its samples go out together, or an interruption comes first
        self._opening: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def can_generate_metrics(self) -> bool:
        """Yes: the time to a reply's first frame."""
        return True

    async def setup(self, setup: Any) -> None:
        """Begins to open the model, which may take longer than a pipeline waits; an error goes upstream."""
        await super().setup(setup)
        self._opening = self.create_task(self._open(), "open")

    async def _open(self) -> None:
        try:
            await self.avatar.start()
        except SessionClosedError:
            return
        except SemoError as error:
            await self.push_error(f"the avatar cannot start: {error}", exception=error, force_treat_as_permanent=True)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """See the class."""
        await super().process_frame(frame, direction)
        if isinstance(frame, InterruptionFrame):
            await self._interrupt(frame, direction)
        elif direction is FrameDirection.UPSTREAM or isinstance(frame, SystemFrame | EndFrame) or self._ended:
            if isinstance(frame, OutputTransportReadyFrame):
                self._show()
            await self.push_frame(frame, direction)
        elif isinstance(frame, TTSAudioRawFrame) and await self._opened():
            await self._hear(frame)
        else:  # without an avatar nothing waits, and the voice speaks all the same
            if isinstance(frame, TTSStoppedFrame):
                self.avatar.end()
            if frame.pts or not self.avatar.mark(frame):
                await self.push_frame(frame, direction)

    async def _opened(self) -> bool:
        """Waits for the model; False if there is none."""
        if self._opening is not None:
            await asyncio.shield(self._opening)
        return self.is_usable

    async def _hear(self, frame: TTSAudioRawFrame) -> None:
        label = _Label(frame.context_id, frame.transport_destination, frame.interruptible)
        if self.avatar.open_label not in (None, label):
            self.avatar.end()
        if not self.avatar.labels:
            await self.start_ttfb_metrics()
        self._show()
        pcm = np.frombuffer(frame.audio, np.int16)
        try:
            await self.avatar.push(
                pcm if frame.num_channels == 1 else pcm.reshape(-1, frame.num_channels), frame.sample_rate, label
            )
        except SemoError as error:
            await self.push_error(f"speech that the avatar cannot use: {error}", exception=error)

    async def _interrupt(self, frame: InterruptionFrame, direction: FrameDirection) -> None:
        async with self._pair:
            labels = self.avatar.labels
            if not self._ended and all(label.interruptible for label in labels if isinstance(label, _Label)):
                for mark in self.avatar.interrupt():
                    if isinstance(mark, Frame) and not mark.interruptible:
                        await self.push_frame(mark)
            await self.push_frame(frame, direction)

    def _show(self) -> None:
        if self._task is None and not self._ended and self.is_usable:
            self._task = self.create_task(self._play(), "semo")

    async def _play(self) -> None:
        """Frames for ever, each at its time."""
        due, failed = time.monotonic(), False
        if not await self._opened():
            return
        while True:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            try:
                item, epoch = await self.avatar.next(), self.avatar.epoch
            except SessionClosedError:
                return
            if self.avatar.error is not None and not failed:
                failed = True
                await self.push_error(f"the avatar stands still: {self.avatar.error}", exception=self.avatar.error)
            async with self._pair:
                if epoch != self.avatar.epoch:
                    continue
                if isinstance(item, AvatarFrame):
                    due = max(due, time.monotonic() - LATE_SECONDS) + 1 / FPS
                    await self._put(item)
                elif isinstance(item, Mark) and isinstance(item.value, Frame):
                    await self.push_frame(item.value)

    async def _put(self, item: AvatarFrame) -> None:
        label = item.label if isinstance(item.label, _Label) else _Label(None, None, True)
        picture = OutputImageRawFrame(image=item.image.tobytes(), size=(IMAGE_SIZE, IMAGE_SIZE), format="RGB")
        picture.sync_with_audio, picture.interruptible = self._sync, label.interruptible
        await self.push_frame(picture)
        if item.audio is not None and len(item.audio):
            await self.stop_ttfb_metrics()
            sound = TTSAudioRawFrame(item.audio.tobytes(), item.sample_rate, 1, context_id=label.context_id)
            sound.transport_destination, sound.interruptible = label.destination, label.interruptible
            await self.push_frame(sound)

    async def stop(self, frame: EndFrame) -> None:
        """Says what is still to be said, then ends."""
        await super().stop(frame)
        if not self._ended and self.avatar.end():
            try:
                await asyncio.wait_for(self.avatar.drained(), self.avatar.seconds + FAREWELL_SECONDS)
            except TimeoutError:
                await self.push_error("the avatar did not finish what it had to say")
        await self._finish()

    async def cancel(self, frame: CancelFrame) -> None:
        """Ends at once."""
        await super().cancel(frame)
        await self._finish()

    async def cleanup(self) -> None:
        """Frees the model."""
        await super().cleanup()
        await self._finish()

    async def _finish(self) -> None:
        self._ended = True
        opening, task = self._opening, self._task
        self._opening = self._task = None
        for running in (opening, task):
            if running is not None:
                await self.cancel_task(running)
        await self.avatar.aclose()
