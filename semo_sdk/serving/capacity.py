"""How much this machine can carry: measured at the start, corrected by every pass since."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence

import numpy as np

from semo_sdk.constants import FPS, IMAGE_SIZE, SAMPLES_PER_FRAME
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import Reference, encode_reference, stack_references
from semo_sdk.pipeline.state import LATENCIES, StreamState
from semo_sdk.pipeline.stream import step_batch
from semo_sdk.serving.speech import Kind

__all__ = ["Capacity"]

log = logging.getLogger(__name__)

WORTH = 0.95  # a larger batch must cost less than this for each item, or it is not used
REPEATS = 3
SMOOTHING = 0.05  # weight of the newest pass
BASE_RETRY_SECONDS = 30.0  # how long a session lasts, before any has ended


class Capacity:
    """Seconds of a pass by (kind, batch size), and what follows for admission.

    Args:
        utilisation: share of the machine's time that live sessions may fill.
        max_sessions: never more, however fast the machine is.
    """

    def __init__(self, utilisation: float = 0.8, max_sessions: int = 64) -> None:
        self.utilisation = utilisation
        self.max_sessions = max_sessions
        self.seconds: dict[tuple[Kind, int], float] = {}
        self.slowdown = 1.0  # passes take so many times as long as when they were measured
        self._lifetime = BASE_RETRY_SECONDS

    def calibrate(self, graphs: Graphs, latencies: Sequence[str], sizes: Sequence[int], *, prune: bool) -> list[int]:
        """Compiles and times every pass that may be asked for, at the whole and at half the frame rate.

        Args:
            graphs: the model.
            latencies: names of the hops that are served, the most important first.
            sizes: batch sizes, ascending.
            prune: stop at the first size that is not worth it; False keeps all.

        Returns:
            The sizes to use.
        """
        picture = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        reference = encode_reference(graphs, picture)
        kinds = [Kind(LATENCIES[latency], every) for every in (1, 2) for latency in latencies]
        main = kinds[0]
        kept: list[int] = []
        for size in sizes:
            stacked = stack_references([reference] * size)
            seconds = self._time(graphs, stacked, size, main)
            if prune and kept and seconds / size > WORTH * self.seconds[main, kept[-1]] / kept[-1]:
                break
            kept.append(size)
            self.seconds[main, size] = seconds
            for kind in kinds[1:]:
                self.seconds[kind, size] = self._time(graphs, stacked, size, kind)
        found = ", ".join(
            f"{kind.hop} frames at {FPS / kind.every:g} a second x {size}: {1000 * t:.0f} ms"
            for (kind, size), t in self.seconds.items()
        )
        log.info("measured passes: %s", found)
        return kept

    @staticmethod
    def _time(graphs: Graphs, stacked: Reference, size: int, kind: Kind) -> float:
        """Seconds of a pass: the fastest of some, after one that compiles."""
        latency = next(name for name, hop in LATENCIES.items() if hop == kind.hop)
        start = StreamState.start(graphs.config, stacked.motion[0], latency=latency, seed=0)
        state = start.push(np.zeros(kind.hop * SAMPLES_PER_FRAME, np.float32))
        taken = []
        for _ in range(1 + REPEATS):
            begun = time.perf_counter()
            step_batch(graphs, stacked, [state] * size, every=kind.every)
            taken.append(time.perf_counter() - begun)
        return min(taken[1:])

    def observe(self, kind: Kind, size: int, seconds: float) -> None:
        """A pass took so long."""
        measured = self.seconds.get((kind, size))
        if measured:
            self.slowdown += SMOOTHING * (seconds / measured - self.slowdown)

    def pass_seconds(self, kind: Kind, size: int | None = None) -> float:
        """How long a pass takes now, 0 if that is not known; by default one of the largest batch."""
        known = [t for (k, s), t in self.seconds.items() if k == kind and size in (None, s)]
        return max(known, default=0.0) * self.slowdown

    def share(self, kind: Kind) -> float:
        """Of the machine's time that one live session of this kind takes, 0 if that is not known."""
        costs = [t / size for (k, size), t in self.seconds.items() if k == kind]
        return min(costs, default=0.0) * self.slowdown * FPS / kind.hop

    def sessions(self, kind: Kind) -> int:
        """How many live sessions of this kind fit on the machine, none of them late."""
        share = self.share(kind)
        return self.max_sessions if share <= 0 else min(max(math.floor(self.utilisation / share), 1), self.max_sessions)

    def fits(self, kinds: Iterable[Kind], new: Kind) -> bool:
        """Whether a session of kind ``new`` fits beside sessions of these kinds. One alone always does."""
        there = list(kinds)
        if not there:
            return True
        load = sum(self.share(kind) for kind in there)
        return len(there) < self.max_sessions and load + self.share(new) <= self.utilisation

    def left(self, seconds: float) -> None:
        """A session ended after so long."""
        self._lifetime += 0.2 * (seconds - self._lifetime)

    def retry_after(self, sessions: int) -> float:
        """Seconds until one of so many sessions has probably ended: 1 to 60."""
        return min(max(self._lifetime / max(sessions, 1), 1.0), 60.0)
