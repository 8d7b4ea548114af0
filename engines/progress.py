"""TensorRT's progress as a bar, and the way to stop it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


def monitor(module: Any, bar: Any) -> Any:
    """An ``IProgressMonitor`` that moves a tqdm bar.

    Phases nest and their names repeat; the bar counts the steps of all of them, and its total grows as they begin. No
    exception may leave a callback of C++: whatever is raised meanwhile (Ctrl-C, a signal) is kept in ``stopped_by``,
    TensorRT stops at its next step, and the caller raises it.

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
            self.stopped_by: BaseException | None = None
            self._left: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._left[phase_name] = num_steps
            self._move(total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self._left.get(phase_name, 0) > 0:
                self._left[phase_name] -= 1
                self._move(done=1)
            return self.stopped_by is None

        def phase_finish(self, phase_name: str) -> None:
            self._move(done=self._left.pop(phase_name, 0))

        def _move(self, total: int = 0, done: int = 0) -> None:
            try:
                self.bar.total = (self.bar.total or 0) + total
                self.bar.update(done)
            except BaseException as error:
                self.stopped_by = error

    return Monitor
