"""How well a first stage moves puppets that it has not seen, by region of the face: the warp alone, and with the flow.

    python -m semo_sdk.benchmarks.puppet_frames --checkpoint model.safetensors --puppets PUPPETS --json frames.json

On the groups that the recipe holds out, whose true frames are known. Their portraits also appear in other groups:
people that no training saw are measured by ``semo bench quality``. Motion is what the teacher knows of the target
(*as taught*), or what the encoder reads in the target's frames (*as read*), which is what reenactment has.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semo_sdk.benchmarks.command import deliver
from semo_sdk.benchmarks.pixels import psnr, sharpness
from semo_sdk.benchmarks.report import table
from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.errors import InputError

if TYPE_CHECKING:
    from semo_sdk.training.data import PuppetData

LEAST = 24  # cells of 4 x 4 pixels that a region must have in a frame to be measured there
REGIONS = {"face": (1, 2, 3), "features": (2, 3), "mouth": (3,)}  # numbers in a group's weight.npy
COLUMNS = {
    "whole": "whole frames",
    "face": "face",
    "features": "mouth, eyes, brows",
    "mouth": "inside of the mouth",
    "sharpness": "Laplacian variance, made / true",
}
ROWS = {
    "copy": "copied reference",
    "warp, as taught": "warp, motion as taught",
    "flow, as taught": "warp and flow, motion as taught",
    "warp, as read": "warp, motion read from the target frames",
    "flow, as read": "warp and flow, motion read from the target frames",
}


def scores(made: np.ndarray, real: np.ndarray, weight: np.ndarray) -> dict[str, list[float]]:
    """PSNR in dB of whole frames and of each region, and how sharp the frames are beside the true ones.

    Args:
        made, real: (n, 256, 256, 3) uint8 RGB. weight: (n, S, S) uint8 regions of the true frames.

    Returns:
        A number for each frame; fewer where a region is too small to be measured.
    """
    rows: dict[str, list[float]] = {"whole": psnr(made, real).tolist()}
    scale = IMAGE_SIZE // weight.shape[-1]
    for name, numbers in REGIONS.items():
        rows[name] = []
        for one, other, cells in zip(made, real, np.isin(weight, numbers), strict=True):
            if cells.sum() >= LEAST:
                inside = cells.repeat(scale, 0).repeat(scale, 1)
                rows[name] += psnr(one[inside][None, None], other[inside][None, None]).tolist()
    rows["sharpness"] = [sharpness(one) / max(sharpness(other), 1e-6) for one, other in zip(made, real, strict=True)]
    return rows


def measure(checkpoint: Path, held: PuppetData, *, draws: int = 4, seed: int = 0) -> dict[str, Any]:
    """Mean scores of :data:`ROWS` that the model has.

    Args:
        checkpoint: a model that tells motion and warp apart as ``semo-tiny`` does. held: groups to measure on.
        draws: sequences of each group, of another person each. seed: chooses them.

    Raises:
        CheckpointError: see :func:`~semo_sdk.models.checkpoint.load_checkpoint`.
    """
    from tqdm import tqdm

    from semo_sdk.models.checkpoint import load_checkpoint
    from semo_sdk.training.sheets import play

    model, _ = load_checkpoint(checkpoint)
    window = model.config.decoder.temporal_window
    found: dict[str, dict[str, list[float]]] = {}
    rng = np.random.default_rng(seed)
    for number in tqdm(range(draws * len(held)), unit="sequence"):
        group = number % len(held)
        batch = held.part(group, group + 1).batch(rng, groups=1, identities=1, frames=window)
        target = batch.target[0]
        made = {"copy": batch.reference.expand(window, -1, -1, -1)}
        for way, driver in (("as taught", None), ("as read", target)):
            warped, result = play(model, batch, driver)
            made |= {f"flow, {way}": result} if warped is None else {f"warp, {way}": warped, f"flow, {way}": result}
        for row, frames in made.items():
            for column, values in scores(frames.numpy(), target.numpy(), batch.weight[0].numpy()).items():
                found.setdefault(row, {}).setdefault(column, []).extend(values)
    return {
        "benchmark": "puppet_frames",
        "groups": [group.name for group in held.groups],
        "frames": draws * len(held) * window,
        "rows": {
            row: {column: round(float(np.mean(values)), 3) for column, values in columns.items() if values}
            for row, columns in found.items()
        },
    }


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    head = [f"{len(result['groups'])} groups, {result['frames']} frames; PSNR in dB", *COLUMNS.values()]
    rows = [
        [label, *(f"{result['rows'][row][column]:.2f}" if column in result["rows"][row] else "-" for column in COLUMNS)]
        for row, label in ROWS.items()
        if row in result["rows"]
    ]
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    from semo_sdk.doctor import fingerprint
    from semo_sdk.training.autoencoder import TrainConfig
    from semo_sdk.training.data import PuppetData
    from semo_sdk.training.settings import parse_settings, recipe
    from semo_sdk.training.sources import open_data

    parser = argparse.ArgumentParser(prog="python -m semo_sdk.benchmarks.puppet_frames", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--checkpoint", type=Path, required=True, help="of either stage, or a bundle's weights")
    parser.add_argument("--puppets", type=Path, required=True, help="what `semo data puppet` wrote")
    parser.add_argument("--config", default="semo-tiny", help="recipe that says which groups were held out")
    parser.add_argument("--json", type=Path, help="write the result")
    options = parser.parse_args(arguments)
    config = parse_settings(TrainConfig, recipe(options.config, "autoencoder"))
    held = open_data(config, options.puppets)[1]
    if not isinstance(held, PuppetData):
        raise InputError(f"{options.puppets} holds real videos, whose motion nobody knows: give it rendered puppets")
    result = measure(options.checkpoint, held) | {"fingerprint": fingerprint()}
    deliver(result, options.json, markdown(result))


if __name__ == "__main__":
    main()
