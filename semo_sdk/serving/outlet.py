"""Outlet: the frames of one live session that were made but not handed out, with the way back."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from semo_sdk.constants import FPS, SAMPLES_PER_FRAME
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import advance
from semo_sdk.serving.speech import Frame, Piece, SpeechDone, Utterance

__all__ = ["Outlet"]


class Outlet:
    """A queue of chunks that is read frame by frame and can be undone up to the last frame read.

    Args:
        every: 2 if the chunks hold every second frame; a frame read then lasts twice as long.
    """

    def __init__(self, every: int = 1) -> None:
        self._every, self._samples = every, every * SAMPLES_PER_FRAME
        self._queue: deque[Piece] = deque()

    def __len__(self) -> int:
        """Frames."""
        return sum(piece.left for piece in self._queue)

    def add(self, piece: Piece) -> None:
        """The chunk that follows the last one."""
        self._queue.append(piece)

    @property
    def next(self) -> tuple[int, Utterance | None] | None:
        """Number and utterance of the next frame, None if there is none."""
        head = self._queue[0] if self._queue else None
        return None if head is None else (head.chunk.index + head.sent * self._every, head.utterance)

    @property
    def utterances(self) -> list[Utterance]:
        """Those that have frames here."""
        return [piece.utterance for piece in self._queue if piece.utterance is not None]

    def idle_tail(self) -> int:
        """Frames at the end in which nothing is spoken."""
        tail = 0
        for piece in reversed(self._queue):
            if piece.utterance is not None:
                break
            tail += piece.left
        return tail

    def mark_end(self, utterance: Utterance) -> bool:
        """The utterance ends with its last frame here; False if it has none."""
        mine = [piece for piece in self._queue if piece.utterance is utterance]
        if mine:
            mine[-1].ends = True
        return bool(mine)

    def pop(self) -> tuple[Frame, SpeechDone | None]:
        """The next frame, and what ended with it."""
        piece = self._queue[0]
        chunk, utterance, sent = piece.chunk, piece.utterance, piece.sent
        sound = chunk.audio[sent * self._samples : (sent + 1) * self._samples]
        spoken = 0 if utterance is None else min(self._samples, piece.samples - sent * self._samples)
        frame = Frame(chunk.frame(sent), sound, chunk.index + sent * self._every, utterance is not None, spoken)
        piece.sent += 1
        if utterance is not None:
            utterance.played += spoken
        if piece.left:
            return frame, None
        self._queue.popleft()
        if utterance is None or not piece.ends:
            return frame, None
        return frame, SpeechDone(utterance.number, (frame.index + self._every) / FPS, utterance.seconds)

    def rewind(self, state: StreamState, keep: int) -> StreamState:
        """Forgets all frames but the first ``keep``.

        Args:
            state: after the last frame here.
            keep: frames.

        Returns:
            The state after the last frame that is left.
        """
        kept: deque[Piece] = deque()
        for piece in self._queue:
            if keep >= piece.left:
                keep -= piece.left
                kept.append(piece)
                continue
            cut, chunk = piece.sent + keep, piece.chunk
            state = self._after(piece, cut)
            if keep:
                drawn, tokens = chunk.drawn[:cut], cut * self._every
                sound = chunk.audio[: cut * self._samples]
                piece.chunk = replace(
                    chunk, drawn=drawn, audio=sound, motion=chunk.motion[:tokens], made=chunk.made[:tokens]
                )
                kept.append(piece)
            break
        self._queue = kept
        return state

    def taken(self, state: StreamState) -> tuple[StreamState, np.ndarray]:
        """Where the reader is; nothing is forgotten.

        Args:
            state: after the last frame here.

        Returns:
            The state after the last frame read, and the (n,) float32 speech of the frames that were not.
        """
        if self._queue:
            state = self._after(self._queue[0], self._queue[0].sent)
        speech = [
            piece.chunk.audio[piece.sent * self._samples : piece.samples] for piece in self._queue if piece.utterance
        ]
        return state, np.concatenate([np.zeros(0, np.float32), *speech])

    def _after(self, piece: Piece, cut: int) -> StreamState:
        """The state after the first ``cut`` frames of a piece."""
        if not cut:
            return piece.before
        chunk = piece.chunk
        return advance(piece.before, chunk.made[: cut * self._every], chunk.audio[: cut * self._samples], taken=0)
