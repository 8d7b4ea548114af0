"""Launcher: one batch of passes on the graphs, filled up to a fixed size; a failure hits only who is to blame."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from semo_sdk.errors import EngineError, SemoError
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import stack_references
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import Chunk, step_batch
from semo_sdk.serving.capacity import Capacity
from semo_sdk.serving.speech import Observer, Work

__all__ = ["Launcher", "Outcome"]

log = logging.getLogger(__name__)

Outcome = tuple[Chunk, StreamState] | SemoError


class Launcher:
    """Runs batches.

    Attributes:
        sizes: batch sizes, ascending; every batch is filled up to one of them with copies of its last item.
        failures: passes that failed since the last one that worked.

    Args:
        graphs: the model.
        sizes: see above.
        capacity: learns how long passes take.
        observer: gets the measurements.
    """

    def __init__(self, graphs: Graphs, sizes: Sequence[int], capacity: Capacity, observer: Observer) -> None:
        self.sizes = tuple(sizes)
        self.failures = 0
        self._graphs, self._capacity, self._observer = graphs, capacity, observer

    def run(self, works: Sequence[Work]) -> list[Outcome]:
        """One launch for all of the same kind, at most ``sizes[-1]`` of them; if it fails, one for each.

        Returns:
            For each its chunk and the state after it, or its error.
        """
        try:
            done: list[Outcome] = list(self._launch(works))
            self.failures = 0
            return done
        except Exception as error:
            if len(works) == 1:
                self.failures += 1
                log.warning("a pass failed: %s", error, exc_info=not isinstance(error, SemoError))
                if isinstance(error, SemoError):
                    return [error]
                return [EngineError(f"the engine failed ({type(error).__name__})")]  # its words are not for clients
        return [outcome for work in works for outcome in self.run([work])]

    def _launch(self, works: Sequence[Work]) -> list[tuple[Chunk, StreamState]]:
        count = len(works)
        size = next(size for size in self.sizes if size >= count)
        filled = [*works, *[works[-1]] * (size - count)]
        start = time.perf_counter()
        references = stack_references([work.reference for work in filled])
        states, kind = [work.state for work in filled], works[0].kind
        made = step_batch(self._graphs, references, states, every=kind.every)[:count]
        seconds = time.perf_counter() - start
        self._capacity.observe(kind, size, seconds)
        self._observer.batch(count, seconds, sum(chunk.duration for chunk, _ in made))
        return made
