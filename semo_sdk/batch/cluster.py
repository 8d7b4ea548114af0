"""A batch on a Ray cluster: one actor for each worker, one item at a time for each actor.

Why not Ray Data: its unit of work is a block of rows in a task of an actor pool, which it retries without end when
actors die, so one photo that kills its worker (out of memory, a crash in native code) would hold the whole batch. Here
the driver hands out single items, counts what each death cost whom, and gives up on an item after a few workers. There
is no stage to stream between either: an item is read from and written to a shared folder, and what travels is a result
of some hundred bytes.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semo_sdk.batch.manifest import Item
from semo_sdk.batch.renderer import Model, Renderer
from semo_sdk.batch.report import Result
from semo_sdk.errors import ConfigError, EngineError, MissingDependencyError, SemoError

__all__ = ["Workers", "cluster_results"]

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0  # without any result before the log says what is waited for


@dataclass(frozen=True)
class Workers:
    """What of a Ray cluster a batch uses.

    Attributes:
        count: workers; None: as many as the cluster has room for now.
        cpus: of each; on a CPU also its threads.
        gpus: of each; may be a part of one.
        retries: how many more workers may try an item whose worker died.
        address: of the cluster; None: ``RAY_ADDRESS``, or the one that runs here, or a new one on this machine.
    """

    count: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 2
    address: str | None = None


class Worker:
    """What an actor runs. It opens nothing before its first item, so that a model that does not open is told apart from
    a worker that died."""

    def __init__(self, out_dir: Path, model: Model) -> None:
        self._renderer = Renderer(out_dir, model)

    def run(self, item: Item) -> Result:
        """See :meth:`Renderer.run`."""
        return self._renderer.run(item)


def cluster_results(items: Sequence[Item], out_dir: Path, model: Model, workers: Workers) -> Iterator[Result]:
    """What became of each item, as they end.

    Photos, speech and ``out_dir`` must have the same paths on all nodes: a shared folder.

    Args:
        items: in the order in which they are handed out.
        out_dir: absolute.
        model: opened by each worker; its bundle is a path on all nodes, or an embedded one.
        workers: how many, and where.

    Raises:
        ConfigError: impossible numbers, or no such cluster.
        MissingDependencyError: Ray is not installed.
        SemoError: the model does not open on a worker.
    """
    if (workers.count is not None and workers.count < 1) or workers.retries < 0 or workers.cpus < 0 or workers.gpus < 0:
        raise ConfigError(f"impossible workers: {workers}")
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("Ray is not installed: pip install 'semo-sdk[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=workers.address, logging_level=logging.WARNING)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"no Ray cluster at {workers.address!r}: {error}") from error
    try:
        yield from _hand_out(items, out_dir, _with_threads(model, workers), workers)
    finally:
        if ours:
            ray.shutdown()


def _with_threads(model: Model, workers: Workers) -> Model:
    return model if model.threads or workers.cpus < 1 else replace(model, threads=int(workers.cpus))


def _hand_out(items: Sequence[Item], out_dir: Path, model: Model, workers: Workers) -> Iterator[Result]:
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    actor = ray.remote(Worker).options(num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=0, max_task_retries=0)
    waiting, attempts = deque(items), Counter[int]()
    running: dict[Any, tuple[Any, Item]] = {}  # result to come -> its worker and item

    def give(worker: Any) -> None:
        if waiting:
            item = waiting.popleft()
            attempts[item.line] += 1
            running[worker.run.remote(item)] = (worker, item)
        else:
            ray.kill(worker)

    told = time.monotonic()
    try:
        for _ in range(min(workers.count or _room(workers), len(items))):
            give(actor.remote(out_dir, model))
        while running:
            done, _ = ray.wait(list(running), timeout=1.0)
            if not done and time.monotonic() - told > PATIENCE_SECONDS:
                told = time.monotonic()
                log.warning("%d items run or wait for a worker; is the cluster large enough?", len(running))
            for future in done:
                worker, item = running.pop(future)
                told = time.monotonic()
                try:
                    result = ray.get(future).model_copy(update={"attempts": attempts[item.line]})
                except RayActorError as error:
                    log.warning("line %d, %s: its worker died: %s", item.line, item.output, error)
                    if attempts[item.line] <= workers.retries:
                        waiting.appendleft(item)
                    else:
                        died = EngineError(f"its worker died {attempts[item.line]} times; the last: {_reason(error)}")
                        yield Result.failed(item, died, attempts=attempts[item.line])
                    if waiting:
                        give(actor.remote(out_dir, model))
                    continue
                except RayTaskError as error:
                    raise error.cause if isinstance(error.cause, SemoError) else EngineError(str(error)) from error
                give(worker)
                yield result
    finally:
        for worker, _ in running.values():
            ray.kill(worker)


def _room(workers: Workers) -> int:
    """Workers that fit into the cluster as it is."""
    import ray

    there = ray.cluster_resources()
    fits = [there.get("CPU", 0) // workers.cpus] if workers.cpus else []
    fits += [there.get("GPU", 0) // workers.gpus] if workers.gpus else []
    return max(int(min(fits, default=1)), 1)


def _reason(error: Exception) -> str:
    """The first line of what Ray says about a death."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
