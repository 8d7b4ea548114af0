"""Second stage: the motion generator on tokens of a frozen first stage (paper, section 3.3, equation 2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from semo_sdk.config import GeneratorConfig, Strict, preset
from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES
from semo_sdk.errors import InputError
from semo_sdk.models import flow
from semo_sdk.models.checkpoint import load_checkpoint, save_checkpoint
from semo_sdk.models.motion_generator import MotionGenerator, align_features
from semo_sdk.models.whisper import fingerprint
from semo_sdk.training.data import on, read_ahead
from semo_sdk.training.loop import LoopConfig, Trainer, best_device
from semo_sdk.training.motion_data import MotionBatch, MotionData
from semo_sdk.training.teacher import POSE_SIZE, read


class TrainConfig(Strict):
    """Everything that the second stage depends on besides its data and the first stage's checkpoint."""

    generator: GeneratorConfig = preset("semo-tiny").generator
    loop: LoopConfig = LoopConfig(steps=3000, learning_rate=8e-4, save_every=500)
    batch: int = 64
    at_noise: float = 0.25  # share of samples at t = 1, the first of few steps; the others are uniform
    drop_speech: float = 0.1  # of the samples, for guidance
    context_noise: float = 0.25  # at most, in deviations: generated context is never as clean as encoded one


class Stage2(nn.Module):
    """Loss of the second stage."""

    def __init__(self, generator: MotionGenerator, config: TrainConfig) -> None:
        super().__init__()
        self.generator, self.config = generator, config

    def forward(self, batch: MotionBatch) -> dict[str, Tensor]:
        g, c = self.generator, self.config
        size = len(batch.target)
        target, reference = g.standardise(batch.target), g.standardise(batch.reference)
        context = g.standardise(batch.context)
        device = target.device
        context = context + c.context_noise * torch.rand(size, 1, 1, device=device) * torch.randn_like(context)
        features, heard = align_features(batch.features, batch.available)
        heard = heard & (torch.rand(size, 1, device=device) >= c.drop_speech)
        t, certain = torch.rand(2, size, device=device)
        t = torch.where(certain < c.at_noise, 1.0, t.clamp(min=0.05))
        x_t = flow.interpolate(target, torch.randn_like(target), t[:, None, None])
        error = (g(x_t, t, context, reference, features, heard).float() - target) * batch.valid[..., None]
        # the velocity's error is the motion's over t; half that weight keeps small t from ruling
        scale = (1 / t.clamp(min=0.2))[:, None, None]
        frames = batch.valid.sum().clamp(min=1)
        return {"loss": (error.square() * scale).sum() / (frames * target.shape[-1])}


@torch.no_grad()
def rollout_correlation(generator: MotionGenerator, data: MotionData, *, steps: int) -> dict[str, float]:
    """Free-running generation for held-out clips against their real motion.

    Returns:
        ``matched``: mean correlation over clips of the leading two expression coefficients (jaw and lips; of the
        leading two principal components of the tokens where motion is not taught); ``mismatched``: the same against
        the next clip's speech, the floor; ``spoken``: as ``matched``, for synthetic speech, where the data has some.
    """
    truths, results = [], []
    device = generator.mean.device
    for row in data.held_out:
        frames = torch.from_numpy(data.frames(row, None)).to(device)
        context = frames[:1].expand(CONTEXT_FRAMES, -1)
        made: list[Tensor] = []
        for end, features in data.passes(row):
            aligned, heard = align_features(torch.from_numpy(features)[None], torch.tensor([CHUNK_FRAMES]))
            noise = torch.randn(1, CHUNK_FRAMES, frames.shape[1], generator=torch.Generator().manual_seed(end))
            speech = noise.to(device), context[None], frames[None, :1], aligned.to(device), heard.to(device)
            motion = generator.sample(*speech, torch.ones(1, device=device), steps=steps)[0]
            made.append(motion)
            context = torch.cat([context, motion])[-CONTEXT_FRAMES:]
        results.append(torch.cat(made).cpu())
        truths.append(frames[: len(results[-1])].cpu())
    if data.taught:
        leading = [(read(x)[:, POSE_SIZE : POSE_SIZE + 2] for x in xs) for xs in (truths, results)]
    else:
        axes = torch.linalg.svd(torch.cat(truths) - torch.cat(truths).mean(0), full_matrices=False).Vh[:2].T
        leading = [(x @ axes for x in xs) for xs in (truths, results)]
    real, made = (list(xs) for xs in leading)
    filmed = [i for i, row in enumerate(data.held_out) if not row.spoken]
    scores = {
        "matched": [_correlation(real[i], made[i]) for i in filmed],
        "mismatched": [_correlation(real[i], made[j]) for i, j in zip(filmed, [*filmed[1:], filmed[0]], strict=True)],
        "spoken": [_correlation(real[i], made[i]) for i, row in enumerate(data.held_out) if row.spoken],
    }
    return {name: float(np.mean(values)) for name, values in scores.items() if values}


def _correlation(a: Tensor, b: Tensor) -> float:
    """Mean Pearson correlation of the columns of (T, 2) and (L, 2), over the rows both have."""
    length = min(len(a), len(b))
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a[:length].T, b[:length].T, strict=True)]))


def train(
    config: TrainConfig, checkpoint: str | Path, data: str | Path, out: str | Path, *, resume: bool = False
) -> Path:
    """Trains the second stage and returns the whole model's checkpoint (``out/semo.safetensors``, averaged weights).

    Args:
        config: the recipe. checkpoint: of the first stage. data: folder from ``semo data motion``, made with it.
        out: folder of the run. resume: go on with the run in ``out``. With taught tokens the generator does not
            depend on the first stage, so both may be trained side by side: resuming a finished run with the final
            checkpoint of the first stage writes the whole model.

    Raises:
        InputError: no data, or speech features of other Whisper weights.
        CheckpointError: no first stage, or see :class:`~semo_sdk.training.loop.Trainer`.
    """
    out = Path(out)
    torch.manual_seed(config.loop.seed)
    model, metadata = load_checkpoint(checkpoint)
    motion_data = MotionData(data)
    if motion_data.speech != fingerprint(model.whisper):
        raise InputError(
            f"the speech features in {data} were made with other Whisper weights than {checkpoint} has; "
            "make them again with: semo data motion"
        )
    model.config = model.config.model_copy(update={"generator": config.generator})
    model.generator = MotionGenerator(model.config)
    mean, std = motion_data.statistics()
    model.generator.mean.copy_(torch.from_numpy(mean))
    model.generator.std.copy_(torch.from_numpy(std))
    device = best_device()
    stage = Stage2(model.generator, config).to(device)
    trainer = Trainer(config.loop, {"generator": model.generator}, out, resume=resume)
    trainer.keep_config(config)
    rank = trainer.processes.rank
    path = out / "semo.safetensors"

    def make(step: int) -> MotionBatch:
        return motion_data.batch(np.random.default_rng([config.loop.seed, step, rank]), config.batch)

    def losses(batch: MotionBatch) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            return stage(on(batch, device))

    def on_save() -> None:
        with trainer.averaged():
            scores = rollout_correlation(model.generator, motion_data, steps=config.generator.steps)
            trainer.note(scores)
            save_checkpoint(path, model, {**metadata, "stage": "generator", "step": str(trainer.step)})

    if (
        trainer.step >= config.loop.steps and trainer.processes.first
    ):  # trained already: joins the generator to this first stage
        on_save()
    trainer.run(read_ahead(make, trainer.step, config.loop.steps), losses, on_save)
    return path
