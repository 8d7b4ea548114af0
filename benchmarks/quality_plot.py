"""Curves of a quality report as a picture: ten minutes of speech, speech and then silence, what the controls do.

    python -m semo_sdk.benchmarks.quality_plot docs/quality.png benchmarks/results/quality.json

The page that ``semo bench quality --out`` writes has the same curves, beside videos.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks.endurance import SETTLE, WINDOW
from semo_sdk.constants import FPS
from semo_sdk.errors import InputError, MissingDependencyError
from semo_sdk.files import replacing

LONG = {  # of a window's numbers: name in the picture
    "sharpness_ratio": "sharpness, first 10 s = 1",
    "identity_cosine": "identity cosine to the portrait",
    "head_offset": "head's place, from the first 10 s, eye distances",
}


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Writes the picture.

    Args:
        result: of ``semo bench quality``.
        path: ends in .png or .svg.

    Raises:
        InputError: it is another benchmark's result.
        MissingDependencyError: matplotlib is not installed.
    """
    if result.get("benchmark") != "quality":
        raise InputError("this is no result of semo bench quality")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"plots need matplotlib ({error}): pip install 'semo-sdk[train]'") from error
    figure = Figure(figsize=(13, 3.6), layout="constrained", dpi=90)
    long, quiet, controls = figure.subplots(1, 3)
    _long(long, result["long_run"]["windows"])
    silent_from = result["silence"]["silence_from_second"]
    series = [np.nan if value is None else value for value in result["silence"]["series"]]
    quiet.plot(np.arange(len(series)) / FPS, series, linewidth=0.8)
    quiet.axvspan(silent_from + SETTLE, len(series) / FPS, color="grey", alpha=0.15, label="measured as silence")
    quiet.axvline(silent_from, color="grey", linestyle="--", linewidth=1, label="the speech ends")
    quiet.set(title="opening of the mouth, eye distances", xlabel="seconds")
    for name, one in result["controls"].items():
        values = np.array(one["values"])
        controls.plot(one["strengths"], values / values.max(), marker="o", label=f"{name}: {one['effect']}")
    controls.set(title="what the controls do, most = 1", xlabel="strength")
    for axes in (long, quiet, controls):
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), high + 0.35 * (high - min(0.0, low)))  # room for the legend
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png")


def _long(axes: Any, windows: Sequence[Mapping[str, Any]]) -> None:
    middles = np.array([window["start"] for window in windows]) + WINDOW / 2
    for name, label in LONG.items():
        values = np.array([window.get(name, np.nan) for window in windows], float)
        if name == "sharpness_ratio":
            values = values / values[0]
        axes.plot(middles / 60, values, linewidth=1, marker=".", markersize=3, label=label)
    axes.axhline(0.9, color="grey", linestyle="--", linewidth=1)
    axes.set(title="speech without a pause", xlabel="minutes")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: picture, then the result file."""
    path, result = [Path(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    plot(json.loads(result.read_text(encoding="utf-8")), path)


if __name__ == "__main__":
    main()
