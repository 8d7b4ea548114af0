"""Journal: what a live session was told since it was last saved, so that it can be told again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from semo_sdk.serving.client_live import Live, LiveEvent

__all__ = ["Journal"]

END, INTERRUPT = "end", "interrupt"


@dataclass(frozen=True, eq=False)
class Pushed:
    """(n,) int16 samples of an utterance."""

    utterance: int
    samples: np.ndarray


Entry = Pushed | str


@dataclass
class Point:
    """Where the session is, as far as a save that was asked for will know."""

    entries: int = 0
    begun: int = 0
    open: bool = False  # the last utterance that was begun has no end
    cut: int = 0  # utterances below this number were interrupted, or ended before that


@dataclass
class Journal:
    """Utterances are numbered over all connections; the server numbers those of a connection.

    Args:
        rate: of the samples, in Hz.
    """

    rate: int
    listening: bool = False
    _entries: list[Entry] = field(default_factory=list)
    _now: Point = field(default_factory=Point)
    _saved: Point = field(default_factory=Point)  # what the last confirmed save knows
    _waiting: bool = False  # whether speech waits in it
    _marks: dict[int, Point] = field(default_factory=dict)  # of saves that were asked for, by tag
    _closed: int = 0  # utterances below this number are done or were interrupted
    _groups: list[list[int]] = field(default_factory=list)  # our numbers of this connection's utterances
    _pushed: dict[int, int] = field(default_factory=dict)  # samples by utterance

    def push(self, samples: np.ndarray) -> None:
        """(n,) int16 more."""
        if not len(samples):
            return
        if not self._now.open:
            self._groups.append([self._now.begun])
            self._now.begun += 1
            self._now.open = True
        number = self._now.begun - 1
        self._pushed[number] = self._pushed.get(number, 0) + len(samples)
        self._entries.append(Pushed(number, samples))

    def end(self) -> None:
        """The utterance ends."""
        self._now.open = False
        self._entries.append(END)

    def interrupt(self) -> None:
        """All speech is dropped."""
        self._now.open, self._now.cut = False, self._now.begun
        self._entries.append(INTERRUPT)

    def mark(self, tag: int) -> None:
        """A save was asked for, after everything so far."""
        self._marks[tag] = replace(self._now, entries=len(self._entries))

    def saved(self, tag: int, waiting: float) -> None:
        """It was confirmed: what was told before need not be told again."""
        point = self._marks.pop(tag, None)
        if point is None:
            return
        del self._entries[: point.entries]
        self._marks = {
            other: replace(later, entries=later.entries - point.entries)
            for other, later in self._marks.items()
            if later.entries >= point.entries
        }
        self._saved, self._waiting = point, waiting > 0

    def translate(self, event: LiveEvent) -> Iterator[LiveEvent]:
        """An event with the number of its utterance over all connections; nothing if it was told already."""
        if event.type not in ("speech.done", "speech.interrupted"):
            yield event
            return
        group = self._groups[event.data["utterance"]]
        if event.type == "speech.interrupted":
            group = group[:1]
        for number in group:
            if number < self._closed:
                continue
            data = {**event.data, "utterance": number}
            if event.type == "speech.done":
                data["played"] = self._pushed.get(number, 0) / self.rate
            self._close(number)
            yield LiveEvent(event.type, data)

    def retell(self, live: Live, position: float) -> list[LiveEvent]:
        """Tells a connection that begins at the last confirmed save everything since.

        Args:
            live: the new connection.
            position: of that save, in seconds.

        Returns:
            Ends of utterances that were spoken to their end before the save but never told.
        """
        self._groups, self._marks = [], {}
        missed: list[int] = []
        if self.listening:
            live.listen()
        unclosed = list(range(max(self._closed, self._saved.cut), self._saved.begun))
        carried: list[int] = []  # spoken so far as it was there, and not ended
        speaking = self._waiting
        if self._waiting:
            self._groups.append(unclosed)
            if not self._saved.open:
                live.end()
                speaking = False
        else:
            ended = unclosed[:-1] if self._saved.open else unclosed
            missed, carried = ended, unclosed[len(ended) :]
        for entry in self._entries:
            if isinstance(entry, Pushed):
                if not speaking:
                    self._groups.append(carried or [entry.utterance])
                    speaking, carried = True, []
                live.push(entry.samples)
            elif entry == INTERRUPT:
                live.interrupt()
                speaking, carried = False, []
            elif speaking:
                live.end()
                speaking = False
            else:
                missed, carried = missed + carried, []
        told = []
        for number in missed:
            if number >= self._closed:
                data = {"utterance": number, "position": position, "played": self._pushed.get(number, 0) / self.rate}
                self._close(number)
                told.append(LiveEvent("speech.done", data))
        return told

    def _close(self, number: int) -> None:
        self._closed = number + 1
        self._pushed = {other: samples for other, samples in self._pushed.items() if other > number}
