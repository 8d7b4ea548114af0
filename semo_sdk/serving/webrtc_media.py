"""Sound and pictures between a live session and WebRTC: tracks that keep step, and a gate for the microphone."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, VideoFrame

from semo_sdk.constants import FPS, SAMPLE_RATE, exact_div
from semo_sdk.serving.speech import Frame

__all__ = ["Gate", "Lane", "Tripler", "microphone_samples", "pictures_and_sound"]

OPUS_RATE = 48_000
PACKET_SAMPLES = 960  # 20 ms at 48 kHz: whole packets leave the encoder at once, anything else waits for the next
VIDEO_CLOCK = 90_000
LANE_FRAMES = 50  # that may wait for the encoder
HALF_TAPS = 16  # of the interpolation filter, at 16 kHz: 1 ms


class Lane(MediaStreamTrack):
    """A track whose frames are put in from outside and leave when they are due.

    Receivers align sound and picture by *when* packets left (the sender reports say which timestamp left when), so both
    lanes of a session must send what belongs together at the same moment.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._frames: asyncio.Queue[tuple[AudioFrame | VideoFrame, float]] = asyncio.Queue(LANE_FRAMES)

    def put(self, frame: AudioFrame | VideoFrame, due: float) -> None:
        """A frame that shall leave at ``due`` (``time.monotonic()``); an encoder that is far behind loses old ones."""
        if self._frames.full():
            self._frames.get_nowait()
        self._frames.put_nowait((frame, due))

    async def recv(self) -> AudioFrame | VideoFrame:
        """The next frame, when it is due."""
        if self.readyState != "live":
            raise MediaStreamError
        frame, due = await self._frames.get()
        await asyncio.sleep(max(due - time.monotonic(), 0))
        return frame


class Tripler:
    """16 kHz to 48 kHz as a stream, by a windowed sinc; 1 ms late."""

    def __init__(self) -> None:
        ratio = exact_div(OPUS_RATE, SAMPLE_RATE)
        reach = HALF_TAPS * ratio
        taps = np.sinc(np.arange(-reach, reach + 1) / ratio) * np.hanning(2 * reach + 3)[1:-1]
        self._taps, self._ratio = taps, ratio
        self._history = np.zeros(2 * HALF_TAPS)

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """(n,) float32 in [-1, 1] at 16 kHz to (3 n,) int16 at 48 kHz."""
        samples = np.concatenate([self._history, pcm.astype(np.float64)])
        self._history = samples[len(pcm) :]
        spread = np.zeros(len(samples) * self._ratio)
        spread[:: self._ratio] = samples
        out = np.convolve(spread, self._taps, "valid")[: len(pcm) * self._ratio]
        return np.clip(np.rint(out * 32767), -32768, 32767).astype(np.int16)


def pictures_and_sound(frame: Frame, tripler: Tripler) -> tuple[VideoFrame, list[AudioFrame]]:
    """A frame of a session for the two lanes: its picture, and its sound in packets of 20 ms, on one clock."""
    picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame.image), format="rgb24")
    picture.pts = frame.index * exact_div(VIDEO_CLOCK, FPS)
    picture.time_base = Fraction(1, VIDEO_CLOCK)
    pcm = tripler.push(frame.audio)
    start = frame.index * exact_div(OPUS_RATE, FPS)
    packets = []
    for begin in range(0, len(pcm), PACKET_SAMPLES):
        packet = AudioFrame.from_ndarray(pcm[None, begin : begin + PACKET_SAMPLES], format="s16", layout="mono")
        packet.sample_rate = OPUS_RATE
        packet.pts, packet.time_base = start + begin, Fraction(1, OPUS_RATE)
        packets.append(packet)
    return picture, packets


def microphone_samples(frame: AudioFrame) -> np.ndarray:
    """(n,) float32 mono in [-1, 1] of a decoded packet, at ``frame.sample_rate``."""
    pcm = frame.to_ndarray().reshape(-1, len(frame.layout.channels))
    return (pcm.astype(np.float32) / 32768).mean(axis=1)


class Gate:
    """Tells speech from the room: what a microphone hears between words of nobody must not move the mouth.

    Sound is speech while it is well above the noise (the quietest of the last seconds). What came shortly before its
    first sound is let through too, and short pauses do not end it.
    """

    QUIET = 10 ** (-50 / 20)  # below is never speech
    OPEN, SHUT = 10 ** (12 / 20), 10 ** (6 / 20)  # above the noise, in amplitude
    BEFORE_SECONDS, PAUSE_SECONDS = 0.2, 0.7
    RISE = 10 ** (3 / 20)  # how fast the noise may grow, a second

    def __init__(self) -> None:
        self.open = False
        self._noise = self.QUIET
        self._before: list[np.ndarray] = []
        self._pause = 0.0

    def push(self, pcm: np.ndarray, rate: int) -> tuple[np.ndarray, bool]:
        """One packet of a microphone.

        Args:
            pcm: (n,) float32 in [-1, 1], some 20 ms.
            rate: in Hz.

        Returns:
            (m,) float32: what of it, and of what came before, is speech; and whether it ends here.
        """
        seconds = len(pcm) / rate
        level = float(np.sqrt(np.mean(np.square(pcm)))) if len(pcm) else 0.0
        self._noise = max(min(self._noise * self.RISE**seconds, level), self.QUIET / self.OPEN)
        if not self.open:
            self._before.append(pcm)
            while sum(map(len, self._before[1:])) > self.BEFORE_SECONDS * rate:
                self._before.pop(0)
            if level < max(self._noise * self.OPEN, self.QUIET):
                return np.zeros(0, np.float32), False
            self.open, self._pause = True, 0.0
            voice, self._before = np.concatenate(self._before), []
            return voice, False
        self._pause = 0.0 if level > max(self._noise * self.SHUT, self.QUIET / 2) else self._pause + seconds
        self.open = self._pause < self.PAUSE_SECONDS
        return pcm, not self.open
