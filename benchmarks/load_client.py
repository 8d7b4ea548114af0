"""One client of a load test: it speaks to a live session in real time and checks everything that comes back."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semo_sdk.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from semo_sdk.errors import CapacityError
from semo_sdk.serving.client import ServerError, raise_problem
from semo_sdk.serving.protocol import unpack_frame

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

log = logging.getLogger(__name__)

PIECE_SECONDS = 0.02  # of speech in one message
FREEZE_SECONDS = 2.0  # without a frame: the connection's state is noted, and again after as long
MAX_NOTES = 10  # of freezes of one client
DONE_SECONDS = 60.0  # an utterance that is not done so long after its end is given up
WATCH_SECONDS = 0.5


@dataclass
class Trace:
    """What one client saw. Times are of ``time.perf_counter()``.

    Attributes:
        gaps: (time, seconds since the frame before) of every frame.
        firsts: (time, seconds from the first sample sent to the first frame that speaks) of every utterance.
        utterances: that came back to their end.
        samples: of them, sent.
        lost, doubled, altered: samples of them that did not come back, came too often, or came back different.
        frames_lost: by their numbers.
        freezes: notes, see :meth:`Speaker.watch`.
        failures: why a session ended before its time.
    """

    gaps: list[tuple[float, float]] = field(default_factory=list)
    firsts: list[tuple[float, float]] = field(default_factory=list)
    utterances: int = 0
    samples: int = 0
    lost: int = 0
    doubled: int = 0
    altered: int = 0
    frames_lost: int = 0
    freezes: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def check(self, sent: np.ndarray, heard: np.ndarray) -> None:
        """Compares an utterance, (n,) int16 without zeros, with what came back, where zeros fill up frames."""
        heard = heard[heard != 0]
        self.utterances += 1
        self.samples += len(sent)
        self.lost += max(len(sent) - len(heard), 0)
        self.doubled += max(len(heard) - len(sent), 0)
        common = min(len(sent), len(heard))
        self.altered += int(np.count_nonzero(sent[:common] != heard[:common]))


def without_zeros(pcm: np.ndarray) -> np.ndarray:
    """(n,) float32 in [-1, 1] as int16 in which the smallest step stands for zero."""
    samples = np.clip(np.rint(pcm * 32767), -32767, 32767).astype("<i2")
    samples[samples == 0] = 1
    return samples


class Speaker:
    """A client.

    Args:
        url: of the server, http or https.
        key: API key, None if it needs none.
        start: fields of ``session.start``.
        speech: (n,) int16 at 16 kHz without zeros; utterances are parts of it.
        seed: which parts, and how long it waits between them.
    """

    def __init__(self, url: str, key: str | None, start: dict[str, Any], speech: np.ndarray, seed: int) -> None:
        self.trace = Trace()
        self._url = "ws" + url.rstrip("/").removeprefix("http") + "/v1/live"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._start, self._speech = start, speech
        self._random = np.random.default_rng(seed)
        self._every = round(FPS / start.get("fps", FPS))
        self._socket: ClientConnection | None = None
        self._last: tuple[int, float] | None = None  # number and time of the last frame
        self._began: float | None = None  # an utterance whose first frame has not come
        self._heard: list[np.ndarray] = []
        self._done = asyncio.Event()

    async def open(self) -> None:
        """Connects.

        Raises:
            CapacityError: the server is full, or this key has all of its sessions.
            ServerError: it refused for another reason.
        """
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus

        try:
            self._socket = await connect(
                self._url, additional_headers=self._headers, max_size=2**22, compression=None, proxy=None
            )
        except InvalidStatus as refused:
            answer = refused.response
            raise_problem(answer.status_code, bytes(answer.body or b""), answer.headers.get("Retry-After"))
        await self._socket.send(json.dumps({"type": "session.start", **self._start}))
        first = json.loads(await self._socket.recv())
        if first["type"] != "session.started":
            await self._socket.close()
            error = first.get("error", {"message": first["type"], "code": "no_session"})
            if "retry_after" in error:
                raise CapacityError(error["message"], float(error["retry_after"]))
            raise ServerError(error["message"], error["code"])

    async def run(self, stop: asyncio.Event) -> None:
        """Speaks and listens until told to stop (the utterance that is running is finished), or the session fails."""
        from websockets.exceptions import ConnectionClosed

        assert self._socket is not None, "open() comes first"
        tasks = [asyncio.create_task(work) for work in (self._talk(stop), self._listen(), self.watch())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except ConnectionClosed as closed:
            self.trace.failures.append(f"closed: {closed.rcvd.reason if closed.rcvd else 'connection lost'}")
        except TimeoutError:
            self.trace.failures.append(f"an utterance was not done {DONE_SECONDS:g} s after its end")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._socket.close()

    async def _talk(self, stop: asyncio.Event) -> None:
        assert self._socket is not None
        piece = round(PIECE_SECONDS * SAMPLE_RATE)
        await asyncio.sleep(self._random.uniform(0.5, 1.5))
        while not stop.is_set():
            sent = self._utterance()
            self._done.clear()
            self._heard.clear()
            begun = self._began = time.perf_counter()
            for number, start in enumerate(range(0, len(sent), piece)):
                await asyncio.sleep(max(begun + number * PIECE_SECONDS - time.perf_counter(), 0))
                await self._socket.send(sent[start : start + piece].tobytes())
            await self._socket.send('{"type": "speech.end"}')
            await asyncio.wait_for(self._done.wait(), DONE_SECONDS)
            self.trace.check(sent, np.concatenate([np.zeros(0, np.int16), *self._heard]))
            await asyncio.sleep(self._random.uniform(0.3, 1.5))

    def _utterance(self) -> np.ndarray:
        """Two to five seconds of the speech."""
        length = min(int(self._random.uniform(2, 5) * SAMPLE_RATE), len(self._speech))
        start = int(self._random.integers(0, len(self._speech) - length + 1))
        return self._speech[start : start + length]

    async def _listen(self) -> None:
        assert self._socket is not None
        while True:
            message = await self._socket.recv()
            if isinstance(message, bytes):
                self._frame(message, time.perf_counter())
                continue
            event = json.loads(message)
            if event["type"] == "speech.done":
                self._done.set()
            elif event["type"] == "error":
                self.trace.failures.append(event["error"]["message"])

    def _frame(self, message: bytes, now: float) -> None:
        index, speaking, audio, _ = unpack_frame(message)
        if self._last is not None:
            self.trace.gaps.append((now, now - self._last[1]))
            self.trace.frames_lost += abs(index - self._last[0] - self._every) // self._every
        if len(audio) != self._every * SAMPLES_PER_FRAME:
            self.trace.failures.append(f"frame {index} has {len(audio)} samples")
        self._last = (index, now)
        if speaking:
            self._heard.append(audio)
            if self._began is not None:
                self.trace.firsts.append((now, now - self._began))
                self._began = None

    async def watch(self) -> None:
        """Notes, while no frame comes, what the connection's TCP timers say, and whether we ourselves stood still."""
        assert self._socket is not None
        noted, tick = 0.0, time.perf_counter()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now, before = time.perf_counter(), tick
            tick = now
            stood = now - before - WATCH_SECONDS
            silent = now - self._last[1] if self._last else 0.0
            if max(silent, stood) < FREEZE_SECONDS or now - noted < FREEZE_SECONDS:
                continue
            noted = now
            if len(self.trace.freezes) >= MAX_NOTES:
                continue
            port = self._socket.local_address[1]
            state = await asyncio.to_thread(connection_state, port)
            note = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds_without_a_frame": round(silent, 3),
                "seconds_that_the_client_stood_still": round(stood, 3),
                "sockets": state,
                "segments_sent_again": retransmitted(),
            }
            self.trace.freezes.append(note)
            log.warning("no frame for %.1f s: %s", silent, json.dumps(note))


def connection_state(port: int) -> list[str]:
    """What the kernel says (``ss -tnmi``) about both ends of a connection with this local port; addresses left out."""
    command = ["ss", "-tnmi", f"( sport = :{port} or dport = :{port} )"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"ss: {error}"]
    return list(_without_addresses(found.stdout.splitlines()[1:]))


def _without_addresses(lines: list[str]) -> Iterator[str]:
    """State and queues of each socket with its details behind them."""
    for head, details in zip(lines[::2], lines[1::2], strict=False):
        yield " ".join([*head.split()[:3], *details.split()])


def retransmitted() -> int | None:
    """TCP segments that this machine has sent again since it started, None where that is not known."""
    try:
        lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Tcp:")]
        return int(dict(zip(lines[0], lines[1], strict=True))["RetransSegs"])
    except (OSError, KeyError, IndexError, ValueError):
        return None
