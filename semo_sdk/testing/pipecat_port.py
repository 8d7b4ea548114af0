"""A Pipecat video service under test, in a real pipeline whose end stands for the output transport."""

from __future__ import annotations

import asyncio

import numpy as np

from semo_sdk.errors import MissingDependencyError
from semo_sdk.testing.port import PUSH_SECONDS, Failure, Port

try:
    from pipecat.frames.frames import (
        Frame,
        InterruptionFrame,
        OutputAudioRawFrame,
        OutputImageRawFrame,
        OutputTransportReadyFrame,
        SpeechOutputAudioRawFrame,
        StartFrame,
        TTSAudioRawFrame,
        TTSStartedFrame,
        TTSStoppedFrame,
    )
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineWorker
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
    from pipecat.workers.runner import WorkerRunner
except ImportError as error:
    raise MissingDependencyError("Pipecat is not installed: pip install 'semo-sdk[pipecat]'") from error

__all__ = ["PipecatPort"]


class _Sink(FrameProcessor):
    """Takes what a transport would."""

    def __init__(self, port: PipecatPort) -> None:
        super().__init__()
        self._port = port

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, OutputImageRawFrame):
            self._port.picture(frame.size, frame.image)
        elif isinstance(frame, OutputAudioRawFrame):
            # a stream of sound that goes on for ever is silent in between
            if not isinstance(frame, SpeechOutputAudioRawFrame) or any(frame.audio):
                self._port.sound(frame.audio, frame.sample_rate, frame.num_channels)
        elif isinstance(frame, TTSStoppedFrame):
            self._port.ended()
        await self.push_frame(frame, direction)
        if isinstance(frame, StartFrame):
            self._port.started.set()
            await self.push_frame(OutputTransportReadyFrame(), FrameDirection.UPSTREAM)


class PipecatPort(Port):
    """See :class:`semo_sdk.testing.port.Port`."""

    ends_need_speech = False  # a TTSStoppedFrame that stops nothing may pass

    def __init__(
        self, service: FrameProcessor, *, fps: float, rate: int, size: tuple[int, int] | None, patience: float
    ) -> None:
        super().__init__(fps=fps, rate=rate, size=size, patience=patience)
        self.started = asyncio.Event()
        self._service = service
        self._worker: PipelineWorker | None = None
        self._reply = 0
        self._speaking = False

    async def open(self) -> None:
        pipeline = Pipeline([self._service, _Sink(self)])
        self._worker = PipelineWorker(pipeline, cancel_on_idle_timeout=False, enable_rtvi=False)
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self._worker)
        self.spawn(runner.run())
        await self.wait(self.started.is_set, "the start of the pipeline", max(self.patience, 60))

    async def speak(self, pcm: np.ndarray) -> None:
        if not self._speaking:
            self._speaking, self._reply = True, self._reply + 1
            await self._send(TTSStartedFrame(context_id=self._context))
        size = int(PUSH_SECONDS * self.rate)
        for start in range(0, len(pcm), size):
            data = pcm[start : start + size].tobytes()
            await self._send(TTSAudioRawFrame(data, self.rate, 1, context_id=self._context))

    async def end(self) -> None:
        self._speaking = False
        await self._send(TTSStoppedFrame(context_id=self._context))

    async def interrupt(self) -> None:
        self._speaking = False
        await self._send(InterruptionFrame())

    async def close(self) -> None:
        if self._worker is not None:
            await self._worker.cancel()
            await asyncio.wait(self._tasks)
        await self.stop_tasks()

    @property
    def _context(self) -> str:
        return f"reply-{self._reply}"

    async def _send(self, frame: Frame) -> None:
        if self._worker is None:
            raise Failure("the pipeline does not run")
        await self._worker.queue_frame(frame)
