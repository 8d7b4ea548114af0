"""The streaming loop: sound in, frames with their sound out, one pass at a time.

Offline is the same loop over all of the sound, so both give the same frames, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from semo_sdk.backends.device import Tensor, first, to_host
from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES, FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from semo_sdk.pipeline.controls import adjust, changes
from semo_sdk.pipeline.features import encode_audio, extend_window
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.motion import checked, generate_motion
from semo_sdk.pipeline.noise import normal
from semo_sdk.pipeline.reference import Reference
from semo_sdk.pipeline.render import launch_size, render
from semo_sdk.pipeline.state import StreamState
from semo_sdk.provenance.watermark import Watermark

__all__ = [
    "Chunk",
    "Plan",
    "advance",
    "drain",
    "draw",
    "frames_in",
    "plan",
    "plan_batch",
    "speak",
    "step",
    "step_batch",
]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some frames and exactly the sound that belongs to them.

    Attributes:
        drawn: (n, 256, 256, 3) uint8 RGB as the model drew them; every second one of n, where a pass was asked for
            half the frame rate. :attr:`frames` are what is meant to be shown.
        audio: (n * 640,) float32 mono 16 kHz in [-1, 1]; zeros fill up the very last frame of the speech.
        motion: (n, D) float32 motion tokens of the frames.
        made: (n, D) float32, the same before :func:`~semo_sdk.pipeline.controls.adjust`: context of what follows.
        index: number of the first frame, from 0.
        watermark: what marks the frames; None leaves them as they are.
    """

    drawn: np.ndarray
    audio: np.ndarray
    motion: np.ndarray
    made: np.ndarray
    index: int
    watermark: Watermark | None = None

    def __len__(self) -> int:
        return len(self.drawn)

    @cached_property
    def frames(self) -> np.ndarray:
        """(n, 256, 256, 3) uint8 RGB, with the watermark that says that they are AI-generated."""
        return self.drawn if self.watermark is None else self.watermark(self.drawn)

    def frame(self, place: int) -> np.ndarray:
        """(256, 256, 3) uint8 RGB: ``frames[place]``, without the time that marking the others takes."""
        drawn: np.ndarray = self.drawn[place]
        return drawn if self.watermark is None else self.watermark(drawn)

    @property
    def start_time(self) -> float:
        """When the first frame is shown, in seconds."""
        return self.index / FPS

    @property
    def duration(self) -> float:
        """Seconds that the chunk lasts."""
        return len(self.audio) / SAMPLE_RATE

    def __repr__(self) -> str:
        return f"Chunk(start_time={self.start_time:.2f} s, duration={self.duration:.2f} s, frames={self.drawn.shape})"


@dataclass(frozen=True, eq=False)
class Plan:
    """What one pass decided, before anything is drawn.

    Attributes:
        tokens: (16, D) float32 motion tokens for frames ``index`` .. ``index + 15``.
        shown: (16, D) float32, the same after :func:`~semo_sdk.pipeline.controls.adjust`.
        count: how many of them are emitted; the others are redone by the next pass.
        audio: (count * 640,) float32 sound of the emitted frames.
        index: number of the first frame.
        pass_index: number of the pass.
    """

    tokens: np.ndarray
    shown: np.ndarray
    count: int
    audio: np.ndarray
    index: int
    pass_index: int


def frames_in(samples: int) -> int:
    """Frames that ``samples`` samples at 16 kHz last: 640 each, a part counts as a whole."""
    return -(-samples // SAMPLES_PER_FRAME)


def plan(graphs: Graphs, reference: Reference, state: StreamState) -> tuple[Plan, StreamState]:
    """Sound -> motion tokens, one pass.

    Takes the next hop of pending sound. If less is pending the speech ends there: silence is assumed after it, and
    only the frames that hold sound are emitted.

    Returns:
        The plan, and the state after its emitted frames.

    Raises:
        ValueError: nothing is pending.
        EngineError: the engine failed.
    """
    return plan_batch(graphs, reference, [state])[0]


def plan_batch(graphs: Graphs, reference: Reference, states: Sequence[StreamState]) -> list[tuple[Plan, StreamState]]:
    """:func:`plan` for several speakers in one launch of each graph.

    Args:
        graphs: the model.
        reference: of the B speakers, see :func:`semo_sdk.pipeline.reference.stack_references`.
        states: B of them; their hops may differ.

    Returns:
        For each speaker what :func:`plan` returns.

    Raises:
        ValueError: nothing is pending in one of them.
        EngineError: the engine failed.
    """
    sounds, hops, tokens = _listen(graphs, reference, states)
    shown = _shown(tokens, reference, states)
    return _plans(checked(graphs, tokens), to_host(shown), sounds, hops, states)


Sounds = list[np.ndarray]


def _listen(graphs: Graphs, reference: Reference, states: Sequence[StreamState]) -> tuple[Sounds, Sounds, Tensor]:
    """Speech of the next pass, the same filled up to a whole hop, and (B, 16, D) tokens where the engine has them."""
    if not all(len(state.pending) for state in states):
        raise ValueError("nothing is pending: push sound before a pass")
    sounds = [state.pending[: state.hop * SAMPLES_PER_FRAME] for state in states]
    hops = [_filled(pcm, state.hop * SAMPLES_PER_FRAME) for pcm, state in zip(sounds, states, strict=True)]
    windows = [extend_window(state.heard, hop) for hop, state in zip(hops, states, strict=True)]
    shape = (1, CHUNK_FRAMES, states[0].context.shape[1])
    noise = [normal(shape, seed=state.seed, pass_index=state.pass_index, stream="motion") for state in states]
    tokens = generate_motion(
        graphs,
        noise=np.concatenate(noise),
        context=np.stack([state.context for state in states]),
        reference_motion=reference.arrays["reference_motion"],
        features=encode_audio(graphs, np.stack(windows)),
        available=np.array([state.hop for state in states], np.int64),
        guidance=np.array([state.guidance for state in states], np.float32),
    )
    return sounds, hops, tokens


def _shown(tokens: Tensor, reference: Reference, states: Sequence[StreamState]) -> Tensor:
    """(B, 16, D) tokens after the controls; where these change nothing the tokens stay on their device."""
    if not any(changes(state.head_motion, state.blink, state.frame_index, state.seed) for state in states):
        return tokens
    made = to_host(tokens)
    return np.stack(
        [
            adjust(
                made[row],
                reference,
                row,
                head_motion=state.head_motion,
                blink=state.blink,
                index=state.frame_index,
                seed=state.seed,
            )
            for row, state in enumerate(states)
        ]
    )


def _plans(
    tokens: np.ndarray, shown: np.ndarray, sounds: Sounds, hops: Sounds, states: Sequence[StreamState]
) -> list[tuple[Plan, StreamState]]:
    plans = []
    for made, seen, pcm, hop, state in zip(tokens, shown, sounds, hops, states, strict=True):
        count = frames_in(len(pcm))
        ready = Plan(made, seen, count, hop[: count * SAMPLES_PER_FRAME], state.frame_index, state.pass_index)
        plans.append((ready, advance(state, made[:count], ready.audio, taken=len(pcm))))
    return plans


def advance(state: StreamState, tokens: np.ndarray, audio: np.ndarray, *, taken: int) -> StreamState:
    """The state after some frames.

    Args:
        state: before them.
        tokens: (n, D) float32, theirs.
        audio: (n * 640,) float32, theirs.
        taken: how many pending samples they used up.
    """
    return replace(
        state,
        context=np.concatenate([state.context, tokens])[-CONTEXT_FRAMES:],
        heard=extend_window(state.heard, audio),
        pending=state.pending[taken:],
        frame_index=state.frame_index + len(tokens),
        pass_index=state.pass_index + 1,
    )


def step(graphs: Graphs, reference: Reference, state: StreamState) -> tuple[Chunk, StreamState]:
    """Sound -> frames, one pass: :func:`plan`, then the frames.

    Returns:
        The chunk, and the state after it.

    Raises:
        ValueError: nothing is pending.
        EngineError: the engine failed.
    """
    return step_batch(graphs, reference, [state])[0]


def step_batch(
    graphs: Graphs, reference: Reference, states: Sequence[StreamState], *, every: int = 1
) -> list[tuple[Chunk, StreamState]]:
    """:func:`step` for several speakers in one launch of each graph.

    Args:
        graphs: the model.
        reference: of the B speakers, see :func:`semo_sdk.pipeline.reference.stack_references`.
        states: B of them, all with the same hop.
        every: 1 draws all frames; 2 draws every second one, the first included. Motion and sound stay whole.

    Returns:
        For each speaker what :func:`step` returns.

    Raises:
        ValueError: nothing is pending in one of them, or their hops differ.
        EngineError: the engine failed.
    """
    hop = states[0].hop
    if any(state.hop != hop for state in states):
        raise ValueError(f"one launch draws one hop, got {sorted({state.hop for state in states})}")
    sounds, hops, tokens = _listen(graphs, reference, states)
    shown = _shown(tokens, reference, states)
    # Models whose temporal window is longer than the hop also see the tokens that the next pass will redo.
    wanted = -(-hop // every)
    drawn = max(wanted, launch_size(graphs.config, wanted))
    frames = render(
        graphs,
        reference,
        first(shown, drawn) if every == 1 else np.ascontiguousarray(to_host(shown)[:, ::every][:, :drawn]),
        seed=[state.seed for state in states],
        pass_index=[state.pass_index for state in states],
    )
    # All three graphs are launched; only now anything is waited for.
    plans = _plans(checked(graphs, tokens), to_host(shown), sounds, hops, states)
    watermark = graphs.provenance.watermark if graphs.provenance else None
    return [
        (
            Chunk(
                pictures[: -(-made.count // every)],
                made.audio,
                made.shown[: made.count],
                made.tokens[: made.count],
                made.index,
                watermark,
            ),
            after,
        )
        for pictures, (made, after) in zip(to_host(frames), plans, strict=True)
    ]


def _filled(pcm: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([pcm, np.zeros(length - len(pcm), np.float32)])


def drain(graphs: Graphs, reference: Reference, state: StreamState) -> Iterator[Chunk]:
    """All pending sound as chunks, the last one short: the offline loop."""
    while len(state.pending):
        chunk, state = step(graphs, reference, state)
        yield chunk


def speak(graphs: Graphs, reference: Reference, state: StreamState) -> np.ndarray:
    """(n, D) float32 motion tokens for all pending sound: what :func:`drain` would draw, without drawing it."""
    tokens = [np.zeros((0, state.context.shape[1]), np.float32)]
    while len(state.pending):
        made, state = plan(graphs, reference, state)
        tokens.append(made.shown[: made.count])
    return np.concatenate(tokens)


def draw(graphs: Graphs, reference: Reference, tokens: np.ndarray, sound: np.ndarray | None) -> Iterator[Chunk]:
    """Given motion as chunks of up to 16 frames.

    Args:
        graphs: the model.
        reference: of one portrait.
        tokens: (n, D) float32.
        sound: (n * 640,) float32 that goes with them; None gives silence.
    """
    watermark = graphs.provenance.watermark if graphs.provenance else None
    for number, start in enumerate(range(0, len(tokens), CHUNK_FRAMES)):
        part = tokens[start : start + CHUNK_FRAMES]
        frames = to_host(render(graphs, reference, part[None], seed=0, pass_index=number))[0]
        samples = slice(start * SAMPLES_PER_FRAME, (start + len(part)) * SAMPLES_PER_FRAME)
        audio = np.zeros(len(part) * SAMPLES_PER_FRAME, np.float32) if sound is None else sound[samples]
        yield Chunk(frames, audio, part, part, start, watermark)
