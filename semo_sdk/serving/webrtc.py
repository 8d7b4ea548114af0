"""WebRTC: a live session whose frames and sound travel as tracks, its events over a data channel.

The client makes one offer with a microphone (optional), one video and one data channel, and gets the answer; nothing
else is exchanged over HTTP (no trickle). The session is that of ``WS /v1/live``: :mod:`semo_sdk.serving.live`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from typing import Any

from aiortc import RTCConfiguration, RTCDataChannel, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioFrame

from semo_sdk.errors import SemoError
from semo_sdk.serving.live import Connection, Ending, Gone, Heard, opened
from semo_sdk.serving.problems import ApiError
from semo_sdk.serving.protocol import Offer
from semo_sdk.serving.service import Service
from semo_sdk.serving.settings import Settings
from semo_sdk.serving.speech import Frame
from semo_sdk.serving.webrtc_media import Gate, Lane, Tripler, microphone_samples, pictures_and_sound
from semo_sdk.serving.webrtc_offer import checked_offer

__all__ = ["Peers"]

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0  # STUN and TURN servers are asked in this time
CLOSE_SECONDS = 5.0
CONNECT_SECONDS = 15.0  # from the answer to an open data channel
WATCH_SECONDS = 0.5
FAREWELL_SECONDS = 1.0
MESSAGES = 256  # that may wait to be read
PACKET_SECONDS = 0.02
MAX_LEAD_SECONDS = 5.0  # of microphone sound that came faster than time passes
UNSENT_BYTES = 262_144  # of events
LABEL = "semo"


class Peer:
    """One peer connection as a :class:`~semo_sdk.serving.live.Wire`.

    Args:
        settings: limits, STUN and TURN servers.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        servers = [RTCIceServer(**server.model_dump()) for server in settings.ice_servers]
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=servers))  # None would mean a public STUN server
        self._picture, self._sound, self._tripler = Lane("video"), Lane("audio"), Tripler()
        self._channel: RTCDataChannel | None = None
        self._inbox: asyncio.Queue[str | bytes | Heard] = asyncio.Queue(MESSAGES)
        self._open, self._gone = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._pc.on("track", self._on_track)
        self._pc.on("datachannel", self._on_channel)
        self._pc.on("connectionstatechange", self._on_state)

    async def answer(self, sdp: str) -> str:
        """The answer to an offer of :func:`checked_offer`.

        Raises:
            ApiError: it makes no sense.
        """
        self._pc.addTransceiver(self._picture, "sendonly")  # a client's video is never decoded
        self._pc.addTransceiver(self._sound, "sendrecv")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
                await self._pc.setLocalDescription(await self._pc.createAnswer())
        except Exception as error:  # its parser raises all kinds of errors on damaged offers
            log.info("an offer was refused: %s", type(error).__name__)
            raise ApiError(400, "invalid_offer", "the SDP of the offer cannot be used", param="sdp") from error
        self._tasks.append(asyncio.create_task(self._watch()))
        answer: str = self._pc.localDescription.sdp
        return answer

    async def connected(self) -> None:
        """Returns when the data channel is open.

        Raises:
            Gone: it does not open.
        """
        try:
            await asyncio.wait_for(self._unless_gone(self._open.wait()), CONNECT_SECONDS)
        except TimeoutError:
            raise Gone from None

    async def receive(self) -> str | bytes | Heard:
        """See :class:`~semo_sdk.serving.live.Wire`."""
        message: str | bytes | Heard = await self._unless_gone(self._inbox.get())
        return message

    async def send_event(self, event: dict[str, Any]) -> None:
        """See :class:`~semo_sdk.serving.live.Wire`."""
        channel = self._channel
        if channel is None or channel.readyState != "open":
            raise Gone
        if channel.bufferedAmount > UNSENT_BYTES:
            raise TimeoutError
        channel.send(json.dumps(event))

    async def send_frame(self, frame: Frame) -> None:
        """See :class:`~semo_sdk.serving.live.Wire`."""
        picture, packets = pictures_and_sound(frame, self._tripler)
        now = time.monotonic()
        self._picture.put(picture, now)
        for number, packet in enumerate(packets):
            self._sound.put(packet, now + number * PACKET_SECONDS)

    async def farewell(self, ending: Ending) -> None:
        """Says why it ends, if anybody listens."""
        with contextlib.suppress(Gone, TimeoutError):
            await self.send_event(ending.event)
            end = time.monotonic() + FAREWELL_SECONDS
            while self._channel is not None and self._channel.bufferedAmount and time.monotonic() < end:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.05)  # the last packet is on its way

    async def close(self) -> None:
        """Ends the connection and everything that belongs to it."""
        self._gone.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await asyncio.wait_for(self._pc.close(), CLOSE_SECONDS)
        except Exception as error:  # of a connection that was never whole
            log.warning("a peer connection did not close: %s", type(error).__name__)

    # Inside

    async def _unless_gone(self, wanted: Any) -> Any:
        """What ``wanted`` gives; Gone if the client leaves first."""
        tasks = [asyncio.ensure_future(wanted), asyncio.ensure_future(self._gone.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._gone.is_set():
                raise Gone
            return tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()

    def _on_state(self) -> None:
        if self._pc.connectionState in ("failed", "closed"):
            self._gone.set()

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._tasks.append(asyncio.create_task(self._hear(track)))

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._channel is not None or channel.label != LABEL:
            self._gone.set()  # not our protocol
            return
        self._channel = channel
        channel.on("message", self._put)
        channel.on("close", self._gone.set)
        self._open.set()

    def _put(self, message: str | bytes | Heard) -> None:
        try:
            self._inbox.put_nowait(message)
        except asyncio.QueueFull:
            self._gone.set()  # whoever floods is not waited for

    async def _hear(self, track: MediaStreamTrack) -> None:
        """The microphone: what is speech goes the way of all messages."""
        gate, begun, heard = Gate(), time.monotonic(), 0.0
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, AudioFrame)
                pcm = microphone_samples(frame)
                heard += len(pcm) / frame.sample_rate
                if heard > time.monotonic() - begun + MAX_LEAD_SECONDS:
                    self._gone.set()
                    return
                voice, ends = gate.push(pcm, frame.sample_rate)
                if len(voice) or ends:
                    self._put(Heard(voice, frame.sample_rate, ends))

    async def _watch(self) -> None:
        """Gives up a client from which no packet comes: even a silent one reports what it received."""
        packets, since = 0, time.monotonic()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            report = await self._pc.getStats()
            now = sum(stats.packetsReceived for stats in report.values() if stats.type == "transport")
            if now != packets or not self._open.is_set():
                packets, since = now, time.monotonic()
            elif time.monotonic() - since > self._settings.stall_seconds:
                self._gone.set()
                return


class Peers:
    """All peer connections of a server.

    Args:
        service: admission, keys, limits, engine.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tasks: dict[str, tuple[str, asyncio.Task[None]]] = {}

    async def answer(self, offer: Offer, owner: str) -> tuple[str, str]:
        """Begins a session; it runs until the client leaves.

        Returns:
            Its name, and the SDP of the answer.

        Raises:
            SemoError: an offer that makes no sense, no such portrait, or no room.
        """
        self._service.check_ready()
        sdp = checked_offer(offer.sdp, keep_candidates=bool(self._service.settings.ice_servers))
        name = f"webrtc_{secrets.token_hex(12)}"
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._serve(sdp, offer, owner, answered))
        self._tasks[name] = owner, task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))
        return name, await answered

    def hang_up(self, name: str, owner: str) -> None:
        """Ends a session of this owner.

        Raises:
            ApiError: there is none, or it is not theirs.
        """
        theirs, task = self._tasks.get(name, (None, None))
        if task is None or theirs != owner:
            raise ApiError(404, "session_not_found", "no such session; it may have ended", param="session_id")
        task.cancel()

    async def close(self) -> None:
        """Ends all."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, sdp: str, offer: Offer, owner: str, answered: asyncio.Future[str]) -> None:
        def refuse(error: BaseException) -> None:
            if not answered.done():
                answered.set_exception(error)

        try:
            async with opened(self._service, owner, offer) as session:
                peer = Peer(self._service.settings)
                try:
                    answer = await peer.answer(sdp)
                    if answered.cancelled():
                        return
                    answered.set_result(answer)
                    await peer.connected()
                    await peer.farewell(await Connection(peer, session, offer, self._service, owner).run())
                except SemoError as error:
                    refuse(error)  # at once: closing takes time
                finally:
                    await peer.close()
        except Gone:
            return
        except SemoError as error:
            refuse(error)
        except asyncio.CancelledError:
            answered.cancel()
            raise
        except Exception as error:
            log.exception("a WebRTC session failed")
            refuse(error)
