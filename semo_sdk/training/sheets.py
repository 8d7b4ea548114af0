"""Sample sheets of the first stage: what a number cannot show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from semo_sdk.models.semo import SemoModel
from semo_sdk.training.data import PuppetBatch, Source, on
from semo_sdk.training.teacher import taught_targets


@torch.no_grad()
def write_sheet(model: SemoModel, data: Source, path: Path, *, taught: bool, rows: int = 6, seed: int = 0) -> None:
    """PNG with a row for each sample: reference, driver, warped reference, result, truth.

    The driver is another identity that makes the same motion; of real videos, where there is none, the truth itself.

    ``taught``: motion is the teacher's token of the driver's frames instead of the encoder's.
    """
    from PIL import Image

    training = model.training
    model.eval()
    rng = np.random.default_rng(seed)
    device = model.encoder.tokens.device
    window = model.config.decoder.temporal_window
    lines = []
    for _ in range(rows):
        batch = on(data.batch(rng, groups=1, identities=2, frames=window), device)
        driver, reference, truth = (
            batch.target[int(isinstance(batch, PuppetBatch))],
            batch.reference[:1],
            batch.target[0],
        )
        with torch.autocast(device.type, torch.bfloat16):
            latents = model.to_latents(reference)
            reference_motion, appearance, maps = model.look(reference, latents)
            reference_motion = reference_motion[:, None]
            if taught and isinstance(batch, PuppetBatch):
                motion = taught_targets(batch.motion[:1], reference_motion)
            else:
                motion = model.read_motion(driver)[None]
            cells = [reference[0], driver[0]]
            if model.decoder.warp is not None:
                moved = model.decoder.warp(appearance, maps, reference_motion, motion)
                cells.append(model.to_frames(model.vae.warp(latents.expand(window, -1, -1, -1), moved).float())[0])
            cache = torch.stack(
                [torch.stack(pair, 1) for pair in model.decoder.encode_reference(model.whiten(latents))], 1
            )
            noise = torch.randn(1, window, *latents.shape[1:], device=device) if model.config.needs_noise else None
            result = model.render(
                noise,
                latents,
                reference_motion,
                cache if model.config.decoder.cache_reference else None,
                appearance,
                maps,
                motion,
                steps=model.config.decoder.steps,
            )
        cells += [model.to_frames(result[0].float())[0], truth[0]]
        lines.append(torch.cat(cells, dim=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(lines, dim=0).cpu().numpy()).save(path)
    model.train(training)
