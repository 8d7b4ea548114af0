"""Avatar: a portrait for agents: replies of any sample rate in, frames with exactly their own sound out, for asyncio.

The one core of the LiveKit and the Pipecat adapter. The model hears 16 kHz; what comes out beside a frame are the
agent's own samples at its own rate, untouched: not a sample is lost, added or moved, and the voice keeps its quality.
If the engine fails the voice goes on over the last picture: an agent that stands still is better than a silent one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from semo_sdk.animator import Animator
from semo_sdk.constants import FPS
from semo_sdk.errors import AudioError, CapacityError, ConfigError, SemoError, SessionClosedError
from semo_sdk.media.audio import check_rate, to_mono
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.reply import AvatarFrame, Item, Mark, Replies, ReplyDone
from semo_sdk.serving.session import LiveSession
from semo_sdk.serving.speech import Frame, SpeechDone

if TYPE_CHECKING:
    from PIL.Image import Image

    from semo_sdk.media.image import Portrait

    Source = str | os.PathLike[str] | bytes | Image | np.ndarray | Portrait | Animator

__all__ = ["Avatar", "AvatarFrame", "Mark", "ReplyDone"]

log = logging.getLogger(__name__)

PIECE_SECONDS = 0.2  # of a reply that are converted before others get a turn
REPEATS = 3  # passes that are timed
ROOM_SECONDS = 0.05  # how often a reply that is too long asks for room


class Avatar:
    """A portrait that says what an agent says.

    >>> async with Avatar("portrait.jpg") as avatar:
    ...     await avatar.push(pcm, 24_000)         # as it comes from text-to-speech, at any speed
    ...     avatar.end()                            # of the reply
    ...     item = await avatar.next()              # 25 times a second: an AvatarFrame, a Mark or a ReplyDone

    Everything belongs to one event loop; passes run in the engine's thread.

    Args:
        portrait: a photo, as for :class:`semo_sdk.Animator`, or an animator, which stays open afterwards.
        latency: ``"low"``, ``"balanced"`` or ``"quality"``: 160, 320 or 640 ms of speech before the first frame.
        seed, expressiveness: as for :meth:`semo_sdk.Animator.session`.
        engine: an engine that runs, for several avatars in one process: they share it, and it refuses more than the
            machine can carry. It must have been made of the animator's graphs. None makes one of its own.

    Attributes:
        error: why the picture stands still; None while all is well.

    Raises:
        ConfigError: an engine without the animator that it was made for.
    """

    def __init__(
        self,
        portrait: Source,
        *,
        latency: str = "low",
        seed: int = 0,
        expressiveness: float | None = None,
        engine: Engine | None = None,
    ) -> None:
        if engine is not None and not (isinstance(portrait, Animator) and portrait.graphs is engine.graphs):
            raise ConfigError("an engine goes with an Animator on the same graphs: Engine(animator.graphs)")
        self.error: SemoError | None = None
        self._portrait, self._latency, self._seed, self._expressiveness = portrait, latency, seed, expressiveness
        self._engine, self._own_engine = engine, engine is None
        self._animator = portrait if isinstance(portrait, Animator) else None
        self._session: LiveSession | None = None
        self._starting = asyncio.Lock()
        self._changed = asyncio.Event()
        self._replies = Replies()
        self._epoch = 0
        self._image: np.ndarray | None = None  # the last one
        self._closed = False

    async def start(self) -> None:
        """Opens the model: seconds, less if the animator was warmed up. It happens at the first use otherwise.

        Raises:
            ImageError, BundleError, BackendUnavailableError, ConfigError: as :class:`semo_sdk.Animator`.
            CapacityError: the shared engine is full.
            EngineError: the engine failed.
            SessionClosedError: closed.
        """
        async with self._starting:
            if self._session is None:
                self._check_open()
                self._session = await asyncio.to_thread(self._open)
                loop = asyncio.get_running_loop()
                self._session.on_output(lambda: _call_soon(loop, self._changed.set))

    def _open(self) -> LiveSession:
        if self._animator is None:
            assert not isinstance(self._portrait, Animator)
            self._animator = Animator(self._portrait)
        if self._engine is None:
            self._engine = _measured(self._animator, self._latency)
            self._engine.start()
        self._image = self._animator.portrait.crop
        return self._engine.open(
            self._animator.reference, latency=self._latency, seed=self._seed, expressiveness=self._expressiveness
        )

    @property
    def epoch(self) -> int:
        """Counts interruptions: what was taken in an earlier one must not be shown any more."""
        return self._epoch

    @property
    def labels(self) -> list[object]:
        """Of the replies that are not done, the current one first."""
        return self._replies.labels

    @property
    def open_label(self) -> object:
        """Of the reply that still takes speech; None if there is none."""
        return None if self._replies.open is None else self._replies.open.label

    @property
    def seconds(self) -> float:
        """Of speech that was not handed out yet."""
        return self._replies.seconds

    async def push(self, pcm: np.ndarray, sample_rate: int, label: object = None) -> None:
        """More of a reply; the first after an end begins the next one.

        Waits while a minute of speech waits already. If it is interrupted meanwhile, the rest is dropped.

        Args:
            pcm: (n,) or (n, channels) int16; several channels are averaged. Any n, 0 included.
            sample_rate: in Hz, a multiple of 25; the same for all of a reply.
            label: comes with the reply's frames; that of its first push counts.

        Raises:
            AudioError: another type or shape, or an unusable rate; nothing was taken.
            SessionClosedError: closed.
            SemoError: as :meth:`start`.
        """
        rate = check_rate(sample_rate)
        if pcm.dtype != np.int16 or rate % FPS:
            raise AudioError(f"{pcm.dtype} samples at {rate} Hz: expected int16 at a rate that is a multiple of {FPS}")
        samples = pcm if pcm.ndim == 1 else np.rint(to_mono(pcm) * 32768).clip(-32768, 32767).astype(np.int16)
        self._replies.check(rate)
        epoch = self._epoch
        await self.start()
        size = max(int(PIECE_SECONDS * rate), 1)
        for begin in range(0, max(len(samples), 1), size):
            while epoch == self._epoch and not self._give(samples[begin : begin + size], rate, label):
                await asyncio.sleep(ROOM_SECONDS)
            await asyncio.sleep(0)

    def _give(self, pcm: np.ndarray, rate: int, label: object) -> bool:
        """Takes a piece; False if there is no room now."""
        self._check_open()
        if not self._tell(lambda session: session.push(pcm, rate)):
            return False
        self._replies.add(pcm, rate, label)
        self._changed.set()
        return True

    def end(self) -> bool:
        """The reply ends here; a :class:`ReplyDone` comes after its last frame.

        Returns:
            False if no reply is left: nothing will come.

        Raises:
            SessionClosedError: closed.
        """
        self._check_open()
        if self._replies.open is not None:
            self._replies.open.ended = True
            self._tell(lambda session: session.end())
            self._changed.set()
        return bool(self._replies)

    def mark(self, value: object) -> bool:
        """Puts something in line: a :class:`Mark` with it comes out once all speech before it was handed out.

        Returns:
            False if no speech is left before it: nothing will come.
        """
        self._changed.set()
        return self._replies.mark(value)

    def interrupt(self) -> list[object]:
        """Barge-in: drops all speech and all frames that were not taken, at once; no :class:`ReplyDone` comes for it.

        Returns:
            What was marked and not handed out.

        Raises:
            SessionClosedError: closed.
        """
        self._check_open()
        self._epoch += 1
        self._tell(lambda session: session.interrupt())
        return self._replies.drop()

    async def drained(self) -> None:
        """Waits until no reply is left; somebody must go on calling :meth:`next`."""
        await self._replies.quiet.wait()

    async def next(self) -> Item:
        """What comes next; waits for it. Ask for 25 frames a second: the caller keeps the time.

        Raises:
            SessionClosedError: closed, also while it waits.
            SemoError: as :meth:`start`.
        """
        await self.start()
        while True:
            self._check_open()
            self._changed.clear()
            item = self._take()
            if item is not None:
                return item
            try:
                await asyncio.wait_for(self._changed.wait(), 1 / FPS if self.error else None)
            except TimeoutError:
                assert self._image is not None
                return AvatarFrame(self._image)

    def _take(self) -> Item | None:
        reply = self._replies.current
        mark = None if reply is None else reply.reached()
        if mark is not None:
            return mark
        while self._session is not None and self.error is None:
            try:
                item = self._session.take()
            except SemoError as error:
                self._fail(error)
                break
            if item is None:
                return None
            if isinstance(item, Frame):
                self._image = item.image
                if reply is None or not item.speaking:
                    return AvatarFrame(item.image)
                return AvatarFrame(item.image, reply.take(item.samples), reply.rate, reply.label)
            # the end of a reply that was interrupted meanwhile is of no interest
            if isinstance(item, SpeechDone) and reply is not None and item.utterance == reply.number:
                return self._replies.done()
        return self._stand_still()

    def _stand_still(self) -> Item | None:
        """Without an engine: the voice over the last picture; None while nothing is said."""
        reply = self._replies.current
        if reply is None or self._image is None:
            return None
        pcm = reply.take_frame()
        if len(pcm):
            return AvatarFrame(self._image, pcm, reply.rate, reply.label)
        return self._replies.done() if reply.ended else None

    def _tell(self, what: Callable[[LiveSession], None]) -> bool:
        """Tells the session, if it still works; False if it has no room."""
        if self._session is not None and self.error is None:
            try:
                what(self._session)
            except CapacityError:
                return False
            except SemoError as error:
                self._fail(error)
        return True

    def _fail(self, error: SemoError) -> None:
        self.error = error
        log.error("the avatar stands still from now on, its voice goes on: %s", error)

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError("this avatar is closed")

    async def aclose(self) -> None:
        """Ends the session and, if it is its own, the engine; calling it twice is fine. Whoever waits gets an error."""
        self._closed = True
        self._changed.set()
        async with self._starting:
            session, self._session = self._session, None
        self._replies.drop()
        await asyncio.to_thread(self._close, session)

    def _close(self, session: LiveSession | None) -> None:
        if session is not None:
            session.close()
        if self._own_engine and self._engine is not None:
            self._engine.close()
        if self._animator is not None and self._animator is not self._portrait:
            self._animator.close()

    async def __aenter__(self) -> Avatar:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _measured(animator: Animator, latency: str) -> Engine:
    """An engine for one avatar, which knows how long a pass takes."""
    engine = Engine(animator.graphs, sizes=(1,), latencies=(latency,))
    seconds = []
    for _ in range(1 + REPEATS):  # the first one compiles
        begun = time.perf_counter()
        animator.warm_up(latency)
        seconds.append(time.perf_counter() - begun)
    engine.capacity.seconds[engine.kind, 1] = min(seconds[1:])
    return engine


def _call_soon(loop: asyncio.AbstractEventLoop, what: Callable[[], object]) -> None:
    """From any thread; a loop that is closed meanwhile needs nothing any more."""
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:
        log.debug("the event loop is closed")
