"""An engine whose time passes when the test says so."""

from __future__ import annotations

from typing import Any

import numpy as np

from semo_sdk.constants import FPS
from semo_sdk.pipeline.reference import encode_reference
from semo_sdk.serving.capacity import Capacity
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.session import LiveSession
from semo_sdk.serving.speech import Event, Frame, Observer
from tests.serving_tools import tapped


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Notes(Observer):
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.firsts: list[float] = []

    def batch(self, items: int, seconds: float, video_seconds: float) -> None:
        self.sizes.append(items)

    def first_frame(self, seconds: float) -> None:
        self.firsts.append(seconds)


class World:
    """An engine without a thread, whose time passes when the test says so."""

    def __init__(self, sizes: tuple[int, ...] = (1, 2, 4), capacity: Capacity | None = None) -> None:
        self.graphs, self.taps = tapped()
        self.clock, self.notes = Clock(), Notes()
        self.engine = Engine(
            self.graphs,
            sizes=sizes,
            latencies=("low", "balanced", "quality"),
            capacity=capacity or Capacity(),
            clock=self.clock,
            observer=self.notes,
        )
        picture = np.random.default_rng(3).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        self.reference = encode_reference(self.graphs, picture)

    def open(self, **settings: Any) -> LiveSession:
        return self.engine.open(self.reference, **settings)

    def work(self) -> None:
        while self.engine.step():
            pass

    def play(self, seconds: float, *sessions: LiveSession) -> list[list[Frame | Event]]:
        """Time passes; every 40 ms one frame of each session is taken, with the events before it."""
        taken: list[list[Frame | Event]] = [[] for _ in sessions]
        for _ in range(round(seconds * FPS)):
            self.work()
            for session, items in zip(sessions, taken, strict=True):
                while not session.closed and (item := session.take()) is not None:
                    items.append(item)
                    if isinstance(item, Frame):
                        break
            self.clock.now += 1 / FPS
        return taken


def frames(items: list[Frame | Event]) -> list[Frame]:
    return [item for item in items if isinstance(item, Frame)]


def events(items: list[Frame | Event], kind: type[Any] = object) -> list[Any]:
    return [item for item in items if not isinstance(item, Frame) and isinstance(item, kind)]


def pixels(items: list[Frame | Event]) -> np.ndarray:
    return np.stack([frame.image for frame in frames(items)])


def sound(items: list[Frame | Event], *, speaking: bool = True) -> np.ndarray:
    return np.concatenate([frame.audio for frame in frames(items) if frame.speaking or not speaking])
