"""Can the repository's SyncNet tell lips that fit their sound? On real clips, shifted, shuffled and silent.

    python -m semo_sdk.benchmarks.syncnet --clips grid_s1 --others grid_validation --json syncnet.json

For the last 60 clips by name, which its training leaves out, and for people that it never saw: how often the true
moment is found within one frame among 31 shifts, by how many averaged windows; and distance and confidence of real
lips with their own sound, with another clip's, and with silence. By chance three of 31 shifts are right.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from semo_sdk.benchmarks.command import deliver
from semo_sdk.benchmarks.footage import load_footage, summarise
from semo_sdk.benchmarks.lipsync import HELD_OUT_CLIPS, VIDEO_SUFFIXES, held_out
from semo_sdk.benchmarks.report import table
from semo_sdk.benchmarks.sync import GRID_WEIGHTS, SHIFT, GridSyncNet, summary
from semo_sdk.constants import FPS
from semo_sdk.errors import InputError
from semo_sdk.training.syncnet import WINDOW, found_in_time

WINDOWS = (1, 5, 10, 20, 30, 40)  # averaged ones; one lasts five frames, each further one adds a frame
SOUNDS = {"own": "its own sound", "shuffled": "the next clip's sound", "silent": "silence"}


def run(clips: Path, others: Path | None, *, weights: Path = GRID_WEIGHTS, count: int = 60) -> dict[str, Any]:
    """Validates the network.

    Args:
        clips: folder of videos with sound; ``count`` of the last 60 by name are used.
        others: folder of videos of other people; up to ``count`` are used.
        weights: of the network.

    Returns:
        JSON-ready: for each group ``accuracy`` by number of averaged windows, the mean ``curve`` over the shifts, and
        for each kind of sound distance, confidence and offset; ``chance``, ``weights``, fingerprint.

    Raises:
        InputError: fewer than two clips.
    """
    from semo_sdk.doctor import fingerprint

    meter = GridSyncNet(weights)
    groups = {"held_out_clips": held_out(clips, VIDEO_SUFFIXES, HELD_OUT_CLIPS, count)}
    if others is not None:
        found = sorted(path for path in others.glob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        groups["other_speakers"] = found[:count]
    return {
        "benchmark": "syncnet",
        "weights": {"parameters": sum(p.numel() for p in meter.network.parameters()), **meter.metadata},
        "window_frames": WINDOW,
        "shifts": [-SHIFT, SHIFT],
        "chance": 3 / (2 * SHIFT + 1),
        "groups": {name: _group(meter, paths, name) for name, paths in groups.items()},
        "fingerprint": fingerprint(),
    }


def _group(meter: GridSyncNet, paths: Sequence[Path], name: str) -> dict[str, Any]:
    lips, sounds = [], []
    for path in tqdm(paths, desc=name):
        try:
            clip = load_footage(path, name)
        except InputError:
            continue
        lips.append(meter.lips(clip.frames, clip.face.mesh))
        sounds.append(clip.pcm)
    if len(lips) < 2:
        raise InputError(f"{len(lips)} usable clips among {len(paths)}: at least 2 are needed")
    tables: dict[str, list[np.ndarray]] = {kind: [] for kind in SOUNDS}
    for number, seen in enumerate(lips):
        frames = len(seen) + WINDOW - 1
        other = sounds[(number + 1) % len(sounds)]
        heard = {"own": sounds[number], "shuffled": other, "silent": np.zeros_like(other)}
        for kind, pcm in heard.items():
            tables[kind].append(meter.distances(seen, meter.sound(pcm, frames)))
    names = ("distance", "confidence", "offset_frames")
    own = [one for one in tables["own"] if len(one)]
    return {
        "clips": len(lips),
        "accuracy": {
            str(windows): round(float(np.mean([found_in_time(one, min(windows, len(one))) for one in own])), 4)
            for windows in WINDOWS
        },
        "curve": np.mean([one.mean(0) for one in own], axis=0).round(4).tolist(),
        "sounds": {
            kind: _rounded(summarise([dict(zip(names, summary(one), strict=True)) for one in found if len(one)]))
            for kind, found in tables.items()
        },
    }


def _rounded(value: Any) -> Any:
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, dict) else round(float(value), 4)


def markdown(result: Mapping[str, Any]) -> str:
    """Tables of a result."""
    groups = result["groups"]
    head = ["true moment found within a frame, by the mean of", *groups]
    rows = [
        [
            f"{windows} window{'s' if windows > 1 else ''} ({(windows + WINDOW - 1) / FPS:.2f} s)",
            *(f"{100 * group['accuracy'][str(windows)]:.0f} %" for group in groups.values()),
        ]
        for windows in WINDOWS
    ]
    rows.append(["chance", *(f"{100 * result['chance']:.0f} %" for _ in groups)])
    parts = [table(head, rows)]
    for label, key in (("distance", "distance"), ("confidence", "confidence")):
        lines = [
            [f"{label}, {text}", *(f"{group['sounds'][kind][key]['mean']:.3f}" for group in groups.values())]
            for kind, text in SOUNDS.items()
        ]
        parts.append(table([f"GRID SyncNet, real lips with ({group_sizes(groups)})", *groups], lines))
    return "\n\n".join(parts)


def group_sizes(groups: Mapping[str, Any]) -> str:
    """``60 and 5 clips``."""
    return " and ".join(str(group["clips"]) for group in groups.values()) + " clips"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semo_sdk.benchmarks.syncnet", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clips", type=Path, required=True, help="folder of talking-head videos with sound")
    parser.add_argument("--others", type=Path, help="folder of videos of people that training never saw")
    parser.add_argument("--weights", type=Path, default=GRID_WEIGHTS, help="of the network (safetensors)")
    parser.add_argument("--count", type=int, default=60, help="clips")
    parser.add_argument("--json", type=Path, help="write the result")
    options = parser.parse_args(arguments)
    result = run(options.clips, options.others, weights=options.weights, count=options.count)
    deliver(result, options.json, markdown(result))


if __name__ == "__main__":
    main()
