"""LiveKit Agents: a local portrait as the agent's avatar. Needs the extra ``livekit``.

>>> avatar = AvatarSession("portrait.jpg")                      # in the entrypoint of an agent
>>> await avatar.start(session, room=ctx.room)                 # before session.start(...)
>>> await session.start(agent=..., room=ctx.room, room_options=RoomOptions(audio_output=False))

Nothing leaves the machine but the finished tracks: the model runs in the agent's own process, and the agent's
participant publishes ``avatar_video`` and ``avatar_audio``. For an avatar worker of its own, give a
:class:`SemoVideoGenerator` to LiveKit's ``AvatarRunner`` with a ``DataStreamAudioReceiver``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import numpy as np

from semo_sdk.constants import FPS, IMAGE_SIZE
from semo_sdk.errors import AudioError, ConfigError, MissingDependencyError, SessionClosedError
from semo_sdk.serving.avatar import Avatar, AvatarFrame, ReplyDone
from semo_sdk.serving.engine import Engine

try:
    from livekit import rtc
    from livekit.agents.voice import avatar as base
    from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, AvatarRunner, QueueAudioOutput
except ImportError as error:
    raise MissingDependencyError("LiveKit Agents is not installed: pip install 'semo-sdk[livekit]'") from error

if TYPE_CHECKING:
    from livekit.agents import AgentSession

    from semo_sdk.serving.avatar import Source

__all__ = ["AvatarSession", "SemoVideoGenerator"]

log = logging.getLogger(__name__)

VOICE_RATE = 24_000  # Hz, LiveKit's own default for an agent's voice


class SemoVideoGenerator(base.VideoGenerator):
    """A portrait for LiveKit's ``AvatarRunner``.

    While the agent speaks, each picture is followed by exactly its samples, untouched; an ``AudioSegmentEnd`` comes
    after the last of a reply. In between there are pictures only. The runner's synchroniser paces it.

    Args:
        portrait, latency, seed, expressiveness, engine: as for :class:`semo_sdk.serving.avatar.Avatar`.
        sample_rate: of the voice in Hz, a multiple of 25. All audio must come at it.

    Raises:
        ConfigError: an impossible rate, or an engine without its animator.
    """

    def __init__(
        self,
        portrait: Source,
        *,
        latency: str = "low",
        sample_rate: int = VOICE_RATE,
        seed: int = 0,
        expressiveness: float | None = None,
        engine: Engine | None = None,
    ) -> None:
        if sample_rate <= 0 or sample_rate % FPS:
            raise ConfigError(f"the voice's sample rate must be a multiple of {FPS} Hz, got {sample_rate}")
        self.options = AvatarOptions(
            video_width=IMAGE_SIZE,
            video_height=IMAGE_SIZE,
            video_fps=FPS,
            audio_sample_rate=sample_rate,
            audio_channels=1,
        )
        self.avatar = Avatar(portrait, latency=latency, seed=seed, expressiveness=expressiveness, engine=engine)

    async def start(self) -> None:
        """Opens the model: seconds. It happens at the first use otherwise. Errors as :meth:`Avatar.start`."""
        await self.avatar.start()

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """More of a reply, as fast as it comes, or its end. Waits while a minute of speech waits already.

        Raises:
            AudioError: another sample rate than that of the options.
            SessionClosedError: closed.
        """
        if isinstance(frame, AudioSegmentEnd):
            self.avatar.end()
            return
        if frame.sample_rate != self.options.audio_sample_rate:
            raise AudioError(
                f"audio at {frame.sample_rate} Hz for an avatar at {self.options.audio_sample_rate} Hz: "
                "make both the same with sample_rate="
            )
        pcm = np.frombuffer(frame.data, np.int16)
        await self.avatar.push(
            pcm if frame.num_channels == 1 else pcm.reshape(-1, frame.num_channels), frame.sample_rate
        )

    def clear_buffer(self) -> None:
        """Barge-in: drops all speech and all frames at once; no ``AudioSegmentEnd`` comes for it."""
        self.avatar.interrupt()

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Pictures for ever, 25 of them a second; errors as :meth:`Avatar.next`. Ends when it is closed."""
        avatar = self.avatar
        while True:
            try:
                item, epoch = await avatar.next(), avatar.epoch
            except SessionClosedError:
                return
            if isinstance(item, ReplyDone):
                yield AudioSegmentEnd()
            if not isinstance(item, AvatarFrame):
                continue
            yield rtc.VideoFrame(IMAGE_SIZE, IMAGE_SIZE, rtc.VideoBufferType.RGB24, item.image.tobytes())
            if item.audio is not None and len(item.audio) and epoch == avatar.epoch:
                yield rtc.AudioFrame(item.audio.tobytes(), item.sample_rate, 1, len(item.audio))

    async def aclose(self) -> None:
        """Ends it and frees what is its own; calling it twice is fine."""
        await self.avatar.aclose()


class AvatarSession(base.AvatarSession[str]):
    """The agent's face: a local portrait in the agent's room.

    Args:
        portrait, latency, sample_rate, seed, expressiveness, engine: as for :class:`SemoVideoGenerator`.

    Raises:
        ConfigError: as there.
    """

    def __init__(
        self,
        portrait: Source,
        *,
        latency: str = "low",
        sample_rate: int = VOICE_RATE,
        seed: int = 0,
        expressiveness: float | None = None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__()
        self.generator = SemoVideoGenerator(
            portrait,
            latency=latency,
            sample_rate=sample_rate,
            seed=seed,
            expressiveness=expressiveness,
            engine=engine,
        )
        self._runner: AvatarRunner | None = None

    @property
    def avatar_identity(self) -> str:
        """The agent's own, as its participant publishes the avatar's tracks; empty before it is in the room."""
        room = self._room
        return room.local_participant.identity if room is not None and room.isconnected() else ""

    @property
    def provider(self) -> str:
        """``"semo"``."""
        return "semo"

    async def start(self, agent_session: AgentSession, room: rtc.Room) -> None:
        """Opens the model and takes the agent's voice; call it before ``agent_session.start``.

        Raises:
            RuntimeError: started already.
            SemoError: as :meth:`semo_sdk.serving.avatar.Avatar.start`; nothing was changed.
        """
        if self._runner is not None:
            raise RuntimeError("this avatar has started already; make another one")
        await self.generator.start()
        options = self.generator.options
        voice = QueueAudioOutput(sample_rate=options.audio_sample_rate, wait_playback_start=True)
        self._runner = AvatarRunner(room, audio_recv=voice, video_gen=self.generator, options=options)
        await super().start(agent_session, room)
        await self._runner.start()
        agent_session.output.replace_audio_tail(voice)

    async def aclose(self) -> None:
        """Stops the tracks and frees the model; calling it twice is fine. The agent stays in the room."""
        room = getattr(self, "_room", None)
        self._room = None  # or the base class would remove the participant from the room: here it is the agent itself
        if room is not None:
            room.off("connection_state_changed", self._on_connection_state_changed)
        await super().aclose()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.aclose()
        await self.generator.aclose()
