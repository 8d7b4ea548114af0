"""Runs a batch: here, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semo_sdk.batch.manifest import NOTES, Item, read_manifest
from semo_sdk.batch.renderer import Model, Renderer
from semo_sdk.batch.report import Report, Result
from semo_sdk.errors import ConfigError

if TYPE_CHECKING:
    from semo_sdk.batch.cluster import Workers

__all__ = ["REPORT", "run_batch"]

REPORT = "report.json"

Progress = Callable[[Result], Any]


def run_batch(
    manifest: str | Path,
    out_dir: str | Path,
    *,
    model: Model | None = None,
    defaults: Mapping[str, Any] | None = None,
    workers: Workers | None = None,
    progress: Progress | Literal[True] | None = None,
) -> Report:
    """Makes all videos of a manifest that are not there yet.

    A bad item stops no other. Running it again makes what is missing, what failed, and what was made of other bytes or
    settings. The report is in ``out_dir/report.json`` too, also after an interruption.

    Args:
        manifest: see :func:`~semo_sdk.batch.manifest.read_manifest`.
        out_dir: folder of the videos, made if it is not there. One batch at a time may work in it.
        model: what makes the videos.
        defaults: settings for lines that do not have their own, see :class:`~semo_sdk.batch.manifest.ItemSettings`.
        workers: None works here, one video after the other, on one set of engines; otherwise on a Ray cluster.
        progress: called with each result, or True for a progress bar.

    Returns:
        What became of each item.

    Raises:
        ConfigError: the manifest is wrong, or another batch works in the folder.
        BundleError, EngineError: the model does not open.
        MissingDependencyError: Ray is wanted and not installed.
    """
    items = read_manifest(manifest, defaults)
    out = Path(out_dir).absolute()
    (out / NOTES).mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    results: dict[int, Result] = {}
    with _alone(out), _shown(progress, len(items)) as show:
        try:
            for result in _results(sort_by_photo(items), out, model or Model(), workers):
                results[result.line] = result
                show(result)
        finally:
            waiting = (Result(line=item.line, output=item.output, status="not_run") for item in items)
            report = Report(
                manifest=str(manifest),
                out_dir=str(out_dir),
                seconds=round(time.perf_counter() - start, 3),
                items=[results.get(result.line, result) for result in waiting],
            )
            report.write(out / REPORT)
    return report


def sort_by_photo(items: Sequence[Item]) -> list[Item]:
    """Items of one photo next to each other, in the order in which photos come first."""
    first: dict[tuple[Path, int | None], int] = {}
    for item in items:
        first.setdefault((item.photo, item.face_index), len(first))
    return sorted(items, key=lambda item: first[item.photo, item.face_index])


def _results(items: Sequence[Item], out: Path, model: Model, workers: Workers | None) -> Iterator[Result]:
    if workers is not None:
        from semo_sdk.batch.cluster import cluster_results

        yield from cluster_results(items, out, model, workers)
        return
    with Renderer(out, model) as renderer:
        for item in items:
            yield renderer.run(item)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds the folder's lock: a second batch there would take the first one's unfinished files for remains."""
    try:
        import fcntl
    except ImportError:  # no POSIX
        yield
        return
    with open(out / NOTES / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another batch works in {out}: wait for it, or choose another --out-dir") from None
        yield


@contextlib.contextmanager
def _shown(progress: Progress | Literal[True] | None, total: int) -> Iterator[Progress]:
    """What to call with each result."""
    if progress is not True:
        yield progress or (lambda result: None)
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="video", dynamic_ncols=True) as bar:
        failed = 0

        def show(result: Result) -> None:
            nonlocal failed
            failed += result.status == "failed"
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            bar.update()

        yield show
