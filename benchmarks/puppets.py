"""What rendered puppets cover: how far heads turn and move, how large and where faces are, how often eyes blink.

    python -m semo_sdk.benchmarks.puppets --puppets PUPPETS --json puppets.json

Read from what the puppet knows exactly (``motion.npy``), not from pictures. Groups with *sway* have procedural head
motion and blinks; the others move as the driver was filmed, and he himself is one of the people in them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks.command import deliver
from semo_sdk.benchmarks.report import table
from semo_sdk.constants import FPS, IMAGE_SIZE, POSE_SIZE
from semo_sdk.training.data import PuppetData
from semo_sdk.training.puppet_dataset import pose_of

ENDS = (0, 1, 50, 99, 100)  # percentiles
TURNS = (10, 15, 20, 25)  # degrees
CLOSED = 0.5  # closure from which an eye counts as closed
ROWS = {
    "yaw": "yaw, degrees",
    "pitch": "pitch, degrees",
    "roll": "roll, degrees",
    "crop": "side of the crop, face heights",
    "x": "middle of the face from the left, share of the crop",
    "y": "middle of the face from the top, share of the crop",
    "yaw_in_a_second": "yaw, range within a group, degrees",
}


def cover(puppets: Path) -> dict[str, Any]:
    """Ranges of everything that moves.

    Args:
        puppets: what ``semo data puppet`` wrote.

    Returns:
        ``groups``, ``people`` (portraits; mirrored ones are the same people) and ``frames``; ``frames_of`` ``sway``,
        ``film`` and ``references``: percentiles of :data:`ROWS`; ``turned``, the share of frames beyond :data:`TURNS`;
        ``eyes``: the share of frames with closed ones, and blinks a minute.

    Raises:
        InputError: no rendered groups there.
    """
    data = PuppetData(puppets)
    people: set[str] = set()
    parts: dict[str, list[np.ndarray]] = {"sway": [], "film": [], "references": []}
    closures: dict[str, list[np.ndarray]] = {"sway": [], "film": []}
    frames = 0
    for number in range(len(data)):
        motion, meta = np.load(data.groups[number] / "motion.npy"), data.meta(number)
        names = meta["identities"]
        assert isinstance(names, list)
        people |= {str(name).removesuffix(":mirror") for name in names}
        frames += motion.shape[0] * (motion.shape[1] - 1)
        kind = "sway" if meta["sway"] else "film"
        parts[kind].append(motion[0, 1:])
        parts["references"].append(motion[:, 0])
        closures[kind].append(motion[0, 1:, POSE_SIZE:] @ data.eyes)
    eyes = {kind: _eyes(rows) for kind, rows in closures.items() if rows}
    yaw = np.concatenate([_ranges(rows)["yaw"] for kind in ("sway", "film") if (rows := parts[kind])])
    return {
        "benchmark": "puppets",
        "groups": len(data),
        "people": len(people - {"driver"}),
        "frames": frames,
        "frames_of": {kind: _summary(_ranges(rows)) for kind, rows in parts.items() if rows},
        "turned": {str(degrees): round(float((np.abs(yaw) > degrees).mean()), 4) for degrees in TURNS},
        "eyes": eyes,
    }


def _ranges(rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    poses = pose_of(np.concatenate(rows)[:, :POSE_SIZE].astype(np.float64))
    yaw, pitch, roll = np.degrees(poses[:, :3]).T
    spans = [np.ptp(np.degrees(pose_of(one[:, :POSE_SIZE].astype(np.float64))[:, 0])) for one in rows]
    return {
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "crop": IMAGE_SIZE / poses[:, 3],
        "x": poses[:, 4] / IMAGE_SIZE,
        "y": poses[:, 5] / IMAGE_SIZE,
        "yaw_in_a_second": np.array(spans),
    }


def _summary(ranges: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: np.percentile(values, ENDS).round(3).tolist() for name, values in ranges.items()}


def _eyes(rows: Sequence[np.ndarray]) -> dict[str, float]:
    """Of closures (frames,) of each group: the share of closed frames, and how often eyes fall shut."""
    shut = [closure > CLOSED for closure in rows]
    begins = sum(int((one[1:] & ~one[:-1]).sum()) for one in shut)
    minutes = sum(len(one) - 1 for one in shut) / FPS / 60
    return {
        "closed": round(float(np.concatenate(shut).mean()), 4),
        "blinks_per_minute": round(begins / minutes, 2) if minutes else 0.0,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table and what stands beside it."""
    kinds = {"sway": "frames with added motion", "film": "frames as filmed", "references": "references"}
    shown = {kind: title for kind, title in kinds.items() if kind in result["frames_of"]}
    rows = []
    for name, label in ROWS.items():
        cells = []
        for kind in shown:
            least, low, middle, high, most = result["frames_of"][kind][name]
            still = kind == "references" and name == "yaw_in_a_second"
            cells.append("-" if still else f"{least:.2f} / {low:.2f} / {middle:.2f} / {high:.2f} / {most:.2f}")
        rows.append([label, *cells])
    turned = ", ".join(f"{100 * share:.1f} % beyond {degrees}" for degrees, share in result["turned"].items())
    eyes = "; ".join(
        f"{kinds[kind]}: eyes closed in {100 * one['closed']:.1f} %, {one['blinks_per_minute']:.0f} blinks a minute"
        for kind, one in result["eyes"].items()
    )
    head = ["least / 1 % / median / 99 % / most", *shown.values()]
    text = (
        f"{result['groups']} groups, {result['people']} portraits, {result['frames']} frames. Yaw: {turned} degrees. "
    )
    return f"{text}{eyes[0].upper()}{eyes[1:]}.\n\n{table(head, rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    from semo_sdk.doctor import fingerprint

    parser = argparse.ArgumentParser(prog="python -m semo_sdk.benchmarks.puppets", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--puppets", type=Path, required=True, help="what `semo data puppet` wrote")
    parser.add_argument("--json", type=Path, help="write the result")
    options = parser.parse_args(arguments)
    result = {**cover(options.puppets), "fingerprint": fingerprint()}
    deliver(result, options.json, markdown(result))


if __name__ == "__main__":
    main()
