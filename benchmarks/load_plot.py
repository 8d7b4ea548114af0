"""A load test's result as a picture: gaps and first frames against sessions, memory against time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.errors import MissingDependencyError
from semo_sdk.files import replacing

STYLES = {"p50": "o--", "p99": "o-"}


def plot(result: dict[str, Any], path: Path) -> None:
    """Writes the picture.

    Args:
        result: of :func:`semo_sdk.benchmarks.load.run`.
        path: ends in .png or .svg.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingDependencyError("--plot needs matplotlib: pip install 'semo-sdk[train]'") from error
    figure = Figure(figsize=(12, 3.6), layout="constrained", dpi=80)
    gaps, firsts, memory = figure.subplots(1, 3)
    for number, run in enumerate(result["runs"]):
        for axes, name in ((gaps, "gap_ms"), (firsts, "first_frame_ms")):
            levels = [level for level in run["ramp"] if level[name]]
            for percentile, style in STYLES.items():
                axes.plot(
                    [level["sessions"] for level in levels],
                    [level[name][percentile] for level in levels],
                    style,
                    color=f"C{number}",
                    label=f"{run['fps']:g} fps, {percentile}",
                )
        held = run["hold"]
        if held and held["memory"]:
            label = f"{run['fps']:g} fps, {held['sessions']} sessions"
            memory.plot(*zip(*held["memory"]["series"], strict=True), color=f"C{number}", label=label)
    for axes, title, across in (
        (gaps, "between two frames, ms", "live sessions"),
        (firsts, "first sample sent to first frame, ms", "live sessions"),
        (memory, "resident memory of the server, MiB", "seconds"),
    ):
        axes.set(title=title, xlabel=across)
        highest = max((float(y) for line in axes.lines for y in np.asarray(line.get_ydata())), default=1.0)
        axes.set_ylim(0, 1.5 * highest)  # room for the legend
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="x-small", loc="upper right", ncols=len(result["runs"]))
        if axes is not memory:
            axes.margins(x=0.2)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary)
