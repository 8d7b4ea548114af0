"""A WebRTC client without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, VideoFrame

from semo_sdk.serving.webrtc_media import microphone_samples
from tests.serving_tools import LIMIT


class Microphone(MediaStreamTrack):
    """Speaks what it is given in real time, then is silent.

    Args:
        pcm: (n,) float32 mono.
        rate: in Hz.
        channels: 1 or 2.
    """

    kind = "audio"

    def __init__(self, pcm: np.ndarray, rate: int = 48_000, channels: int = 1) -> None:
        super().__init__()
        self._pcm, self._rate, self._channels = pcm, rate, channels
        self._sent, self._begun = 0, time.monotonic()

    async def recv(self) -> AudioFrame:
        size = self._rate // 50
        await asyncio.sleep(max(self._begun + self._sent / self._rate - time.monotonic(), 0))
        piece = self._pcm[self._sent : self._sent + size]
        piece = np.pad(piece, (0, size - len(piece)))
        pcm = np.repeat((piece * 32767).astype(np.int16), self._channels)
        frame = AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono" if self._channels == 1 else "stereo")
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._sent, Fraction(1, self._rate)
        self._sent += size
        return frame


class Caller:
    """One connection, and everything that came over it."""

    def __init__(self, pc: RTCPeerConnection, channel: RTCDataChannel) -> None:
        self.pc, self.channel = pc, channel
        self.name = ""
        self.events: list[dict[str, Any]] = []
        self.pictures: list[tuple[float, np.ndarray]] = []  # when it came, (256, 256, 3)
        self.sound: list[tuple[float, np.ndarray]] = []  # when it came, (n,) at 48 kHz
        self.closed = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        channel.on("message", lambda message: self.events.append(json.loads(message)))
        channel.on("close", self.closed.set)
        pc.on("track", lambda track: self.tasks.append(asyncio.create_task(self._take(track))))
        pc.on("connectionstatechange", self._on_state)

    def _on_state(self) -> None:
        if self.pc.connectionState in ("closed", "failed"):
            self.closed.set()

    async def _take(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if isinstance(frame, VideoFrame):
                    self.pictures.append((time.monotonic(), frame.to_ndarray(format="rgb24")))
                elif isinstance(frame, AudioFrame):
                    self.sound.append((time.monotonic(), microphone_samples(frame)))

    def say(self, kind: str, **fields: Any) -> None:
        self.channel.send(json.dumps({"type": kind, **fields}))

    def push(self, pcm: np.ndarray) -> None:
        """(n,) float32, as PCM16 over the data channel."""
        samples = np.clip(np.rint(pcm * 32768), -32768, 32767).astype("<i2")
        for begin in range(0, len(samples), 8_000):
            self.channel.send(samples[begin : begin + 8_000].tobytes())

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    async def until(self, condition: Callable[[], Any], seconds: float = LIMIT) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, [event["type"] for event in self.events]
            await asyncio.sleep(0.01)
        return found

    async def event(self, kind: str) -> dict[str, Any]:
        """The first event of a kind."""
        found: dict[str, Any] = (await self.until(lambda: self.of(kind)))[0]
        return found


@contextlib.asynccontextmanager
async def call(
    url: str,
    *,
    key: str | None = None,
    microphone: MediaStreamTrack | None = None,
    codec: str | None = None,
    connect: bool = True,
    **options: Any,
) -> AsyncIterator[Caller]:
    """Calls a server; hangs up at the end.

    Args:
        url: of the server.
        key: API key.
        microphone: a track, or none.
        codec: ``"VP8"`` or ``"H264"``; None offers both.
        connect: wait until the session has started.
        options: of the session.
    """
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    caller = Caller(pc, pc.createDataChannel("semo"))
    try:
        pc.addTransceiver(microphone or "audio", "sendrecv" if microphone else "recvonly")
        video = pc.addTransceiver("video", "recvonly")
        if codec:
            offered = RTCRtpSender.getCapabilities("video").codecs
            video.setCodecPreferences([one for one in offered if one.name in (codec, "rtx")])
        await pc.setLocalDescription(await pc.createOffer())
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=LIMIT) as http:
            answer = await http.post("/v1/webrtc/offer", json={"sdp": pc.localDescription.sdp, **options})
        assert answer.status_code == 201, answer.text
        caller.name = answer.json()["id"]
        await pc.setRemoteDescription(RTCSessionDescription(answer.json()["sdp"], "answer"))
        if connect:
            await caller.event("session.started")
        yield caller
    finally:
        await pc.close()
        for task in caller.tasks:
            task.cancel()
