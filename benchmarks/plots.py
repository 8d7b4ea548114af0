"""Curves of results: frames a second and share of the peak by batch size, frame gap by number of sessions.

python -m semo_sdk.benchmarks.plots docs/performance.png benchmarks/results/speed/*.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semo_sdk.errors import InputError, MissingDependencyError
from semo_sdk.files import replacing


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws throughput and session results.

    Args:
        results: of ``semo bench throughput`` and ``semo bench sessions``; others are passed over.
        path: the PNG to write.

    Raises:
        InputError: nothing to draw.
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(f"plots need matplotlib ({error}): pip install 'semo-sdk[train]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    batches = [result for result in results if result.get("benchmark") == "throughput"]
    crowds = [result for result in results if result.get("benchmark") == "sessions"]
    if not batches and not crowds:
        raise InputError("no results of semo bench throughput or semo bench sessions were given")
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for result in batches:
        sizes = [row["batch"] for row in result["batches"]]
        left.plot(sizes, [row["fps"] for row in result["batches"]], marker="o", label=_name(result))
        shares = [row["stages"]["render"]["share_of_peak"] for row in result["batches"]]
        if None not in shares:
            middle.plot(sizes, [100 * share for share in shares], marker="o", label=_name(result))
    for result in crowds:
        counts = [row["sessions"] for row in result["tries"]]
        right.plot(counts, [row["gap_ms"]["p99"] for row in result["tries"]], marker="o", label=_name(result))
    right.axhline(40, color="grey", linestyle="--", linewidth=1)
    titles = ("frames/s", "render graph, % of matrix peak", "p99 frame gap, ms")
    for axes, title, x in zip(
        (left, middle, right), titles, ("sessions in a launch",) * 2 + ("sessions",), strict=True
    ):
        axes.set(title=title, xlabel=x, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines and any(not line.get_label().startswith("_") for line in axes.lines):
            axes.legend(fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
    pyplot.close(figure)


def _name(result: Mapping[str, Any]) -> str:
    name = f"{result['bundle']} {result['backend']} {result['precision']}"
    if "latency" in result:
        name += f" {result['latency']}"
    return name + (" (random weights)" if result["weights"] == "random weights" else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: PNG, then result files."""
    path, *results = [Path(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    plot([json.loads(file.read_text(encoding="utf-8")) for file in results], path)


if __name__ == "__main__":
    main()
