"""What a training run on a box comes to: one checkpoint of averaged weights, and losses on what nobody trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HELD_OUT_BATCHES = 16
FIRST, SECOND = Path("autoencoder") / "autoencoder.safetensors", Path("generator") / "semo.safetensors"


def write_whole(runs: Path, out: Path) -> dict[str, str]:
    """The latest averaged weights of both stages as one checkpoint in float16.

    A weight that float16 cannot hold stays as it is. Of one stage alone, its own checkpoint is taken.

    Returns:
        The checkpoint's metadata: ``stage``, ``step``, and of both stages ``first_stage_step`` too.

    Raises:
        CheckpointError: nothing has been saved yet.
    """
    from safetensors.torch import save_file

    from semo_sdk.errors import CheckpointError
    from semo_sdk.files import replacing
    from semo_sdk.models.checkpoint import load_checkpoint

    there = [path for path in (runs / FIRST, runs / SECOND) if path.is_file()]
    if not there:
        raise CheckpointError(f"{runs} has no weights yet: neither stage has come to its first save")
    model, about = load_checkpoint(there[0])
    if len(there) == 2:
        second, later = load_checkpoint(there[1])
        model.generator = second.generator
        model.config = model.config.model_copy(update={"generator": second.config.generator})
        about = {**later, "first_stage_step": about["step"]}
    state = {}
    for name, value in model.state_dict().items():
        half = value.half() if value.is_floating_point() else value
        fits = not half.is_floating_point() or bool(half.isfinite().all()) or not bool(value.isfinite().all())
        state[name] = (half if fits else value).contiguous().clone()
    metadata = {**about, "config": model.config.model_dump_json()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        save_file(state, temporary, metadata)
    return {k: v for k, v in metadata.items() if k != "config"}


def write_evaluation(folder: Path) -> None:
    """Losses on held-out puppets, and the generator's last scores, in ``runs/evaluation.json``."""
    from semo_sdk.files import write_text

    runs, found = folder / "runs", {}
    if (runs / FIRST).is_file():
        found["first stage"] = held_out_losses(runs / FIRST, folder / "data" / "puppets")
    scores = runs / SECOND.parent / "validation.jsonl"
    if scores.is_file():
        found["generator"] = json.loads(scores.read_text(encoding="utf-8").splitlines()[-1])
    write_text(runs / "evaluation.json", json.dumps(found, indent=1))


def held_out_losses(checkpoint: Path, puppets: Path) -> dict[str, Any]:
    """Mean losses of the first stage on its held-out groups, at t = 1 and otherwise as in training; always the same
    batches. ``step`` says of which step."""
    import numpy as np
    import torch

    from semo_sdk.models.checkpoint import load_checkpoint
    from semo_sdk.training.autoencoder import Stage1, Step, TrainConfig
    from semo_sdk.training.data import PuppetData
    from semo_sdk.training.loop import best_device
    from semo_sdk.training.sources import learn_teacher, open_data

    model, about = load_checkpoint(checkpoint)
    text = (checkpoint.parent / "config.json").read_text(encoding="utf-8")
    config = TrainConfig.model_validate_json(text).model_copy(update={"at_prior": 1.0, "jitter": 0.0})
    fresh, held = open_data(config, puppets)
    if isinstance(fresh, PuppetData) and isinstance(held, PuppetData):
        learn_teacher(model, config, fresh, held, puppets / "landmarks.npz", started=True)
    device = best_device()
    stage = Stage1(model, config).to(device).eval()
    flow_from = min(config.flow_from, 1.0)
    phases = (flow_from - 1e-6, 1.0) if model.decoder.warp is not None else (1.0,)  # the warp's losses, then the flow's
    sums: dict[str, float] = {}
    for number in range(HELD_OUT_BATCHES):
        rng = np.random.default_rng([1, number])
        pairs = held.batch(rng, groups=1, identities=2, frames=config.targets)
        for stage.progress in phases:
            torch.manual_seed(number)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                losses = stage(Step(None, pairs).to(device))
            for name, value in losses.items():
                if name != "loss":
                    sums[name] = sums.get(name, 0.0) + float(value)
    return {"step": int(about["step"]), **{name: value / HELD_OUT_BATCHES for name, value in sums.items()}}
