"""What a load test's result says: how flat memory was, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from semo_sdk.benchmarks.report import table

MAX_POINTS = 300  # of memory in the result


def flatness(series: Sequence[tuple[float, float]], warm_up: float) -> dict[str, Any] | None:
    """How flat memory was.

    Args:
        series: (seconds, MiB).
        warm_up: seconds that do not count.

    Returns:
        ``deviation_percent``: the farthest from the median, after the warm-up; and the series, thinned out.
    """
    warm = np.array([mib for seconds, mib in series if seconds >= warm_up])
    if not len(warm):
        return None
    median = float(np.median(warm))
    thin = series[:: -(-len(series) // MAX_POINTS)]
    return {
        "median_mib": round(median, 1),
        "deviation_percent": round(100 * float(np.abs(warm - median).max()) / median, 2),
        "warm_up_s": warm_up,
        "series": [[round(seconds, 1), round(mib, 1)] for seconds, mib in thin],
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables: what each number of sessions cost, and the hold."""
    ramp = [
        [
            f"{run['fps']:g}",
            level["sessions"],
            *(_triple(level[name]) for name in ("gap_ms", "first_frame_ms")),
        ]
        for run in result["runs"]
        for level in run["ramp"]
    ]
    rows = [_held(run) for run in result["runs"] if run["hold"]]
    head = ["frames a second", "sessions", "gap p50 / p99 / max, ms", "first frame p50 / p99 / max, ms"]
    text = table(head, ramp)
    if rows:
        columns = ["held", "sessions", *head[2:], "samples lost, doubled, altered", "memory"]
        text += "\n\n" + table(columns, rows)
    cpu = result["fingerprint"]["cpu"]
    reasons = "; ".join(f"at {run['fps']:g}: {run['stopped']}" for run in result["runs"])
    freezes = sum(len(run["freezes"]) for run in result["runs"])
    where = f"`{result['bundle']}`, latency `{result['latency']}`, {cpu['usable_cores']} cores"
    return f"{text}\n\n{where}. The ramp ended {reasons}. No frame for two seconds: {freezes} times."


def _triple(values: dict[str, float] | None) -> str:
    return " / ".join(f"{values[name]:.0f}" for name in ("p50", "p99", "max")) if values else "none"


def _held(run: dict[str, Any]) -> list[object]:
    held, checked = run["hold"], run["checked"]
    memory = held["memory"]
    return [
        f"{held['seconds'] / 60:.1f} min at {run['fps']:g}",
        held["sessions"],
        _triple(held["gap_ms"]),
        _triple(held["first_frame_ms"]),
        f"{checked['lost']}, {checked['doubled']}, {checked['altered']} of {checked['samples']:,}",
        f"{memory['median_mib']:.0f} MiB ±{memory['deviation_percent']:.1f} %" if memory else "unknown",
    ]
