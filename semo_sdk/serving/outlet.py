"""Outlet: the frames of one live session that were made but not handed out, with the way back."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from semo_sdk.constants import FPS, SAMPLES_PER_FRAME
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import advance
from semo_sdk.serving.speech import Frame, Piece, SpeechDone, Utterance

__all__ = ["Outlet"]


class Outlet:
    """A queue of chunks that is read frame by frame and can be undone up to the last frame read."""

    def __init__(self) -> None:
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
        return None if head is None else (head.chunk.index + head.sent, head.utterance)

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
        sound = chunk.audio[sent * SAMPLES_PER_FRAME : (sent + 1) * SAMPLES_PER_FRAME]
        frame = Frame(chunk.frames[sent], sound, chunk.index + sent, utterance is not None)
        piece.sent += 1
        if utterance is not None:
            utterance.played += min(SAMPLES_PER_FRAME, piece.samples - sent * SAMPLES_PER_FRAME)
        if piece.left:
            return frame, None
        self._queue.popleft()
        if utterance is None or not piece.ends:
            return frame, None
        return frame, SpeechDone(utterance.number, (frame.index + 1) / FPS, utterance.seconds)

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
            cut = piece.sent + keep
            chunk, state = piece.chunk, piece.before
            if cut:
                sound = chunk.audio[: cut * SAMPLES_PER_FRAME]
                state = advance(state, chunk.motion[:cut], sound, taken=0)
                if keep:
                    piece.chunk = replace(chunk, frames=chunk.frames[:cut], audio=sound, motion=chunk.motion[:cut])
                    kept.append(piece)
            break
        self._queue = kept
        return state
