"""Sample sheets of the first stage: what a number cannot show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semo_sdk.models.semo import SemoModel
from semo_sdk.training.data import Batch, PuppetBatch, Source, on
from semo_sdk.training.teacher import taught_targets


@torch.no_grad()
def play(model: SemoModel, batch: Batch, driver: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
    """The first sequence of a batch, moved by what the encoder reads in a driver's frames, or as the teacher says.

    Args:
        model: in evaluation mode. batch: sequences of ``temporal_window`` frames.
        driver: (F, 256, 256, 3) uint8 RGB; None takes the teacher's tokens, for which the batch must be of puppets.

    Returns:
        (F, 256, 256, 3) uint8 RGB: the warped reference, None of a model without a warp, and the result.
    """
    window, device = len(batch.target[0]), batch.reference.device
    reference = batch.reference[:1]
    with torch.autocast(device.type, torch.bfloat16):
        latents = model.to_latents(reference)
        reference_motion, appearance, maps = model.look(reference, latents)
        reference_motion = reference_motion[:, None]
        if driver is not None:
            motion = model.read_motion(driver)[None]
        else:
            assert isinstance(batch, PuppetBatch)
            motion = taught_targets(batch.motion[:1], reference_motion)
        warped = None
        if model.decoder.warp is not None:
            moved = model.decoder.warp(appearance, maps, reference_motion, motion)
            warped = model.to_frames(model.vae.warp(latents.expand(window, -1, -1, -1), moved).float())
        cache = torch.stack([torch.stack(pair, 1) for pair in model.decoder.encode_reference(model.whiten(latents))], 1)
        result = model.render(
            torch.randn(1, window, *latents.shape[1:], device=device) if model.config.needs_noise else None,
            latents,
            reference_motion,
            cache if model.config.decoder.cache_reference else None,
            appearance,
            maps,
            motion,
            steps=model.config.decoder.steps,
        )
    return warped, model.to_frames(result[0].float())


def write_sheet(model: SemoModel, data: Source, path: Path, *, taught: bool, rows: int = 6, seed: int = 0) -> None:
    """PNG with a row for each sample: reference, driver, warped reference, result, truth.

    The driver is another identity that makes the same motion; of real videos, where there is none, the truth itself.

    ``taught``: motion is the teacher's token of the driver's frames instead of the encoder's.
    """
    from PIL import Image

    training = model.training
    model.eval()
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        batch = data.batch(rng, groups=1, identities=2, frames=model.config.decoder.temporal_window)
        batch = on(batch, model.encoder.tokens.device)
        known = isinstance(batch, PuppetBatch)
        driver = batch.target[int(known)]
        warped, result = play(model, batch, None if taught and known else driver)
        cells = [batch.reference[0], driver[0], *([] if warped is None else [warped[0]]), result[0], batch.target[0, 0]]
        lines.append(torch.cat(cells, dim=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(lines, dim=0).cpu().numpy()).save(path)
    model.train(training)
