"""TensorRT's progress as a bar, and the way to stop it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


def monitor(module: Any, bar: Any) -> Any:
    """An ``IProgressMonitor`` that moves a tqdm bar.

    Phases nest and their names repeat; the bar counts the steps of all of them, and its total grows as they begin. An
    interrupt (Ctrl-C) in between makes TensorRT stop: ``interrupted`` is true then.

    Args:
        module: the TensorRT module.
        bar: a tqdm bar.
    """
    return _monitor_class(module)(bar)


@lru_cache(maxsize=8)
def _monitor_class(module: Any) -> Any:
    class Monitor(module.IProgressMonitor):
        def __init__(self, bar: Any) -> None:
            module.IProgressMonitor.__init__(self)
            self.bar = bar
            self.interrupted = False
            self._left: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._left[phase_name] = num_steps
            self._add(total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self._left.get(phase_name, 0) > 0:
                self._left[phase_name] -= 1
                self._add(done=1)
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._add(done=self._left.pop(phase_name, 0))

        def _add(self, total: int = 0, done: int = 0) -> None:
            # No exception may leave a callback of C++: an interrupt is remembered and told when TensorRT asks.
            try:
                self.bar.total = (self.bar.total or 0) + total
                self.bar.update(done)
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor
