"""Benchmark results as JSON, and the tables of README and docs made from them.

    python -m semo_sdk.benchmarks.report README.md benchmarks/results/*.json
    python -m semo_sdk.benchmarks.report docs/performance.md benchmarks/results/{latency,speed/*}.json

replaces what stands between markers such as ``<!-- latency -->`` and ``<!-- end latency -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.files import write_text


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p95, p99 and number of measurements, rounded to three digits after the point."""
    array = np.asarray(values, dtype=float)
    points = np.percentile(array, (50, 95, 99))
    return {
        "mean": round(float(array.mean()), 3),
        **{name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), points, strict=True)},
        "count": len(array),
    }


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=2) + "\n")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def update_readme(readme: str, results: Sequence[Mapping[str, Any]]) -> str:
    """A page's text with the tables of these results between their markers.

    A page shows what it has markers for. Where it has several results of one benchmark, their tables follow each other.

    Raises:
        ValueError: the page has no marker for a result, or one of them twice.
    """
    from semo_sdk.benchmarks import fleet, latency, lipsync, load, quality_tables, sessions, throughput, watermark

    # marker -> benchmark that fills it, and how
    one: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
        "latency": ("latency", latency.markdown),
        "first frames": ("latency", latency.first_frames_markdown),
        "lipsync": ("lipsync", lipsync.markdown),
        "load": ("load", load.markdown),
        "quality": ("quality", quality_tables.readme),
        "quality details": ("quality", quality_tables.details),
        "throughput": ("throughput", throughput.markdown),
        "sessions": ("sessions", sessions.markdown),
        "watermark": ("watermark", watermark.markdown),
    }
    shown = set()
    for marker in (*one, "fleet"):
        benchmark = one[marker][0] if marker in one else "sessions"
        mine = [dict(result) for result in results if result["benchmark"] == benchmark]
        if not mine:
            continue
        begin, end = f"<!-- {marker} -->", f"<!-- end {marker} -->"
        tables = [one[marker][1](result) for result in mine] if marker in one else [fleet.markdown(mine)]
        body = f"{begin}\n" + "\n\n".join(tables) + f"\n{end}"
        readme, count = re.subn(rf"{begin}\n.*?{end}", body.replace("\\", r"\\"), readme, flags=re.DOTALL)
        if count > 1:
            raise ValueError(f"the page has {count} places marked {begin}, one is enough")
        if count:
            shown.add(benchmark)
    for result in results:
        if result["benchmark"] not in shown:
            raise ValueError(f"the page has 0 places marked <!-- {result['benchmark']} -->, one is needed")
    return readme


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: a page, then result files."""
    page, *results = [Path(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    loaded = [json.loads(path.read_text(encoding="utf-8")) for path in results]
    page.write_text(update_readme(page.read_text(encoding="utf-8"), loaded), encoding="utf-8")


if __name__ == "__main__":
    main()
