"""Benchmark results as JSON, and the README's tables made from them.

    python -m semo_sdk.benchmarks.report README.md benchmarks/results/*.json

replaces what stands between ``<!-- latency -->`` and ``<!-- end latency -->`` in the README; ``lipsync`` and
``quality`` too.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
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
    """The README's text with the tables of these results between their markers.

    Raises:
        ValueError: a result's markers are not in the text.
    """
    from semo_sdk.benchmarks import latency, lipsync, load, quality_tables

    writers = {
        "latency": latency.markdown,
        "lipsync": lipsync.markdown,
        "load": load.markdown,
        "quality": quality_tables.readme,
    }
    for result in results:
        name = result["benchmark"]
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        body = f"{begin}\n{writers[name](dict(result))}\n{end}"
        readme, count = re.subn(rf"{begin}\n.*?{end}", body.replace("\\", r"\\"), readme, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the README has {count} places marked <!-- {name} -->, one is needed")
    return readme


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: README, then result files."""
    readme, *results = [Path(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    loaded = [json.loads(path.read_text(encoding="utf-8")) for path in results]
    readme.write_text(update_readme(readme.read_text(encoding="utf-8"), loaded), encoding="utf-8")


if __name__ == "__main__":
    main()
