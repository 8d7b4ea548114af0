"""What each choice in the first stage is worth, on a small scale: the same data, steps and seed, one thing changed.

    python -m semo_sdk.benchmarks.ablations --puppets PUPPETS --out ablations.json

Every arm is a small model of the package's own parts (:mod:`~semo_sdk.benchmarks.ablations_small`: 64 x 64 pixels,
3 layers of width 96), trained for a minute on puppets and measured on groups that no arm has seen. Encoder and decoder
learn apart, as in ``semo-tiny``: together, from nothing, the token stays empty for longer than a minute. Decoders get
the teacher's tokens and are judged by their pictures after 1, 2 and 4 steps; encoders by what a linear probe reads of
the changes of pose and expression, and by how far off they are with the point of the face that each cell shows, with
all patches seen and with half of them hidden. Nobody in the held-out groups is trained on, but for the filmed driver,
who is not measured. Arms are written one by one; those that are there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from semo_sdk.benchmarks.ablations_small import (
    ARMS,
    FRAMES,
    GROUPS,
    IDENTITIES,
    Arm,
    Sample,
    Small,
    SmallConfig,
    draw,
    people_of,
)
from semo_sdk.benchmarks.report import table, write_json
from semo_sdk.constants import POSE_SIZE
from semo_sdk.errors import InputError
from semo_sdk.files import write_text
from semo_sdk.training.data import PuppetData

HELD_OUT = 16  # groups, the last ones by name
STEPS = (1, 2, 4)  # of the flow, in the evaluation
PROBED = 6  # samples of each held-out group that a probe sees
FOLDS = 4  # of the groups: the probe is fitted on the others'
RIDGE = 0.01  # of the number of frames times that of the token's numbers, which are standardised
REGIONS = {"whole": "all", "mouth_eyes_brows": "mouth, eyes, brows"}
PROBES = {"pose": "pose", "jaw": "jaw", "expression": "six leading expressions"}
MINUTES = "minutes of one core"
HIDDEN = {"surface": 0.0, "surface_half_hidden": 0.5}  # share of the patches that the encoder does not see
SURFACES = ("astray on the face, in face heights", "the same, half of the patches hidden")
FILMED = "driver"  # the one person who is in many groups
LEADING = slice(POSE_SIZE, POSE_SIZE + 6)  # coefficients of expression that are more than noise


def train_arm(
    arm: Arm, pool: Sequence[Sample], *, steps: int, rate: float, seed: int, name: str
) -> tuple[Small, float]:
    """A model trained on the batches of ``pool``, again and again, and the seconds of processor time that it took."""
    torch.manual_seed(seed)
    model = Small(arm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    started = time.process_time()
    with tqdm(range(steps), desc=name, mininterval=5) as bar:
        for step in bar:
            sample = pool[step % len(pool)]
            with torch.autocast("cpu", torch.bfloat16):
                losses = model.losses(sample)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix({key: f"{float(value):.3f}" for key, value in losses.items()}, refresh=False)
    return model.eval(), time.process_time() - started


@torch.no_grad()
def evaluate(model: Small, held: Sequence[Sequence[Sample]], seed: int) -> dict[str, Any]:
    """A decoder's PSNR in dB, of all pixels and of mouth, eyes and brows, by steps; what an encoder's tokens tell.

    Args:
        held: samples of each held-out group; pictures are made of the first ones.
    """
    torch.manual_seed(seed)
    if model.arm.part == "decoder":
        return {"psnr": _psnr(model, [sample for sample, *_ in held])}
    latents = [[model.latents(one.target) for one in group] for group in held]
    known = [np.concatenate([_changes(one.motion) for one in group]) for group in held]
    seen = [[model.encoder.encode(x.flatten(0, 1)) for x in group] for group in latents]
    told: dict[str, Any] = {}
    for name, part in (("probe", 0), ("features", 1)):
        values = [
            np.concatenate(
                [_changes(one[part].flatten(1).unflatten(0, x.shape[:2])) for one, x in zip(a, b, strict=True)]
            )
            for a, b in zip(seen, latents, strict=True)
        ]
        share = probe(values, known)
        told[name] = {
            "pose": round(float(share[:POSE_SIZE].mean()), 4),
            "jaw": round(float(share[POSE_SIZE]), 4),
            "expression": round(float(share[LEADING].mean()), 4),
        }
    if model.arm.surface:
        told |= _surface_errors(model, [one for group in held for one in group])
    return told


def _surface_errors(model: Small, samples: Sequence[Sample]) -> dict[str, float]:
    """Mean distance, in face heights, between the point of the face that a cell of skin shows and the encoder's answer.

    ``surface_guess`` is that of the mean of each place of the picture, which needs no encoder.
    """
    errors = {}
    for name, hidden in HIDDEN.items():
        seen, truth = (torch.cat(x) for x in zip(*(model.places(one, hidden) for one in samples), strict=True))
        errors[name] = (seen - truth).norm(dim=-1).nanmean()
        if not hidden:
            errors["surface_guess"] = (truth - truth.nanmean(0)).norm(dim=-1).nanmean()
    return {name: round(float(error), 4) for name, error in errors.items()}


def _psnr(model: Small, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    image = model.config.image
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in ("copy", *map(str, STEPS))}
    for sample in samples:
        pictures = {"copy": sample.reference[:, None].expand_as(sample.target) / 127.5 - 1}
        pictures |= {str(steps): model.make(sample, steps) for steps in STEPS}
        moving = F.interpolate((sample.weight >= 2).float(), size=(image, image))
        for name, made in pictures.items():
            square = ((made - sample.target / 127.5 + 1) / 2).square().mean(2)
            errors[name].append((float(square.mean()), float((square * moving).sum() / moving.sum())))
    psnr = {name: (-10 * np.log10(np.mean(pairs, axis=0))).round(3).tolist() for name, pairs in errors.items()}
    return {region: {name: values[i] for name, values in psnr.items()} for i, region in enumerate(REGIONS)}


def _changes(values: torch.Tensor) -> np.ndarray:
    """(S, F, d) -> (S * F, d) without the mean of each sequence: who is seen, and how he holds his head, is gone."""
    return np.asarray((values - values.mean(1, keepdim=True)).flatten(0, 1).double().numpy())


def probe(tokens: Sequence[np.ndarray], known: Sequence[np.ndarray]) -> np.ndarray:
    """(k,) share of the variance of what is known that ridge regression reads from tokens of groups that it never saw.

    Args:
        tokens: (n, d) of each group. known: (n, k) of each group.
    """
    left, spread = np.zeros(known[0].shape[1]), np.zeros(known[0].shape[1])
    for fold in range(FOLDS):
        fit = [number for number in range(len(tokens)) if number % FOLDS != fold]
        test = [number for number in range(len(tokens)) if number % FOLDS == fold]
        x, y = (np.concatenate([rows[number] for number in fit]) for rows in (tokens, known))
        test_x, test_y = (np.concatenate([rows[number] for number in test]) for rows in (tokens, known))
        mean_x, mean_y, scale = x.mean(0), y.mean(0), x.std(0) + 1e-9
        x, test_x = (x - mean_x) / scale, (test_x - mean_x) / scale
        weight = np.linalg.solve(x.T @ x + RIDGE * x.size * np.eye(x.shape[1]), x.T @ (y - mean_y))
        left += ((test_y - mean_y - test_x @ weight) ** 2).sum(0)
        spread += ((test_y - mean_y) ** 2).sum(0)
    return np.asarray(1 - left / spread)


def run(
    puppets: Path, out: Path, *, names: Sequence[str], steps: int, batches: int, rate: float, seed: int
) -> dict[str, Any]:
    """Trains and measures arms, and writes ``out``, and the weights beside it, after each.

    Args:
        puppets: what ``semo data puppet`` wrote. out: JSON; arms in it with the same settings are kept.
        names: of the arms. steps: of training, each of 64 frames. batches: different ones; they are drawn once and come
            again and again. rate: learning rate at its highest. seed: of all.

    Raises:
        InputError: too few groups.
    """
    from safetensors.torch import save_file

    from semo_sdk.doctor import fingerprint

    data = PuppetData(puppets)
    if len(data) < HELD_OUT + GROUPS:
        raise InputError(f"{puppets} has {len(data)} groups; at least {HELD_OUT + GROUPS} are needed")
    fresh, held = data.part(0, len(data) - HELD_OUT), data.part(len(data) - HELD_OUT, None)
    image = SmallConfig().image
    settings = {"steps": steps, "batches": batches, "frames_a_step": GROUPS * IDENTITIES * FRAMES, "rate": rate}
    settings |= {"seed": seed, "image": image, "groups": len(fresh), "held_out_groups": len(held), "strangers": True}
    result: dict[str, Any] = {"benchmark": "ablations", "settings": settings, "arms": {}, "fingerprint": fingerprint()}
    if out.is_file():
        old = json.loads(out.read_text(encoding="utf-8"))
        result |= {key: value for key, value in old.items() if key not in result}
        if old.get("settings") == settings:
            result["arms"] = old["arms"]
    todo = [name for name in names if name not in result["arms"]]
    pool: list[Sample] = []
    tests: list[list[Sample]] = []
    if todo:
        numbers = tqdm(range(batches), desc="batches", mininterval=5)
        strangers = frozenset(name for number in range(len(held)) for name in people_of(held, number)) - {FILMED}
        pool = [draw(fresh, np.random.default_rng([seed, number]), image, without=strangers) for number in numbers]
        only = frozenset({FILMED})
        tests = [
            [draw(held, np.random.default_rng([seed, number, i]), image, [number], without=only) for i in range(PROBED)]
            for number in range(len(held))
        ]
    for name in todo:
        arm = ARMS[name]
        model, seconds = train_arm(arm, pool, steps=steps, rate=rate, seed=seed, name=name)
        save_file(model.state_dict(), out.with_name(f"{out.stem}_{name}.safetensors"))
        parameters = sum(p.numel() for part in (model.encoder, model.decoder) for p in part.parameters())
        result["arms"][name] = {
            "what": arm.what,
            "seconds": round(seconds, 1),
            "parameters": parameters,
            **evaluate(model, tests, seed),
        }
        write_json(out, result)
        write_text(out.with_suffix(".md"), markdown(result))
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """The table."""
    s = result["settings"]
    parts = [
        f"Small models: {s['image']} x {s['image']} pixels, {s['steps']} steps of {s['frames_a_step']} puppet frames "
        f"({s['batches'] * s['frames_a_step']} different ones); "
        f"measured on {s['held_out_groups']} held-out groups. PSNR after 1 / 2 / 4 steps of the flow; tokens: share of "
        "the changes within a sequence that a linear read-out explains in groups it was not fitted on."
    ]
    decoders = [arm for arm in result["arms"].values() if "psnr" in arm]
    if decoders:
        copied = [f"{decoders[0]['psnr'][region]['copy']:.1f}" for region in REGIONS]
        rows = [["copied reference", *copied, "-"]]
        for arm in decoders:
            cells = [" / ".join(f"{arm['psnr'][region][str(steps)]:.2f}" for steps in STEPS) for region in REGIONS]
            rows.append([arm["what"], *cells, f"{arm['seconds'] / 60:.1f}"])
        parts.append(table(["tokens from the teacher", "PSNR, dB", *list(REGIONS.values())[1:], MINUTES], rows))
    encoders = [arm for arm in result["arms"].values() if "probe" in arm]
    if encoders:
        rows = []
        if guess := next((arm["surface_guess"] for arm in encoders if "surface_guess" in arm), None):
            rows.append(["the mean of each place of the picture", *["-"] * len(PROBES), f"{guess:.4f}", "-", "-"])
        for arm in encoders:
            told = [f"{arm['probe'][key]:.2f}" for key in PROBES]
            places = [f"{arm[key]:.4f}" if key in arm else "-" for key in HIDDEN]
            rows.append([arm["what"], *told, *places, f"{arm['seconds'] / 60:.1f}"])
        head = [*(f"token: {name}" for name in PROBES.values()), *SURFACES, MINUTES]
        parts.append(table(["", *head], rows))
    if "steps" in result:
        from semo_sdk.benchmarks.ablations_steps import markdown as steps_markdown

        parts.append(steps_markdown(result["steps"]))
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semo_sdk.benchmarks.ablations", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--puppets", type=Path, required=True, help="what `semo data puppet` wrote")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write; a table is written beside it")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="which ones, in this order")
    parser.add_argument("--steps", type=int, default=200, help="of training, each of 64 frames")
    parser.add_argument("--batches", type=int, default=120, help="different ones")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at its highest")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    run(
        options.puppets,
        options.out,
        names=options.arms,
        steps=options.steps,
        batches=options.batches,
        rate=options.rate,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
