"""First stage: motion encoder and motion decoder together (paper, section 3.3, equation 1).

To the paper's flow loss two teachers are added that the puppet knows exactly: the dense warp field (for the warp prior)
and pose and expression of each frame (a linear read-out of the token; it keeps the token from staying empty while the
decoder is still poor, and fades out).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.config import SemoConfig, Strict, preset
from semo_sdk.models import flow
from semo_sdk.models.checkpoint import save_checkpoint
from semo_sdk.models.layers import patchify
from semo_sdk.models.motion_decoder import make_prior
from semo_sdk.models.semo import SemoModel
from semo_sdk.models.whisper import load_whisper
from semo_sdk.training.data import Batch, PuppetData, Stills, prefetch
from semo_sdk.training.loop import LoopConfig, Trainer
from semo_sdk.training.sheets import write_sheet

REGION_WEIGHT = (0.1, 1.0, 4.0, 8.0)  # background, face, mouth and eyes, inside of the mouth
FIELD_WEIGHT = (0.3, 1.0, 4.0, 1.0)
MOTION_SIZE = 30  # pose (6) and expression (24) that the puppet knows of each frame
PROBE_WEIGHT = (2.0,) * 6 + (4.0,) * 6 + (1.0,) * 6 + (0.3,) * 12  # the trailing components are mostly noise
SURFACE_SIZE = 4  # place on the mean face (3), and whether the cell is inside an open mouth


class TrainConfig(Strict):
    """Everything that the first stage depends on besides its data."""

    model: SemoConfig = preset("semo-tiny")
    loop: LoopConfig = LoopConfig(steps=5000, learning_rate=1e-3, warmup=150)
    stills: int = 32  # frames a step of the first phase
    pairs: int = 8  # pairs of sequences a step of the later phases
    warp_from: float = 0.25  # share of the run in which the encoder learns alone, from unrelated frames: cheapest
    flow_from: float = 0.55  # share of the run after which the decoder's flow is trained beside its warp
    freeze_encoder_from: float = 0.6  # from here on tokens no longer change: the second stage can start
    validation_groups: int = 4  # the last ones by name
    min_face: float = 0.46  # height of the face in the crop: a mouth of few pixels teaches little
    at_prior: float = 0.7  # share of samples at t = 1, the step that must move the face; the others are uniform
    field_weight: float = 1.0
    probe_weight: float = 0.5
    probe_floor: float = 0.1  # of probe_weight, reached at the end of training
    jitter: float = 0.15  # random brightness, contrast and tint of each identity


class Stage1(nn.Module):
    """Losses of the first stage."""

    def __init__(self, model: SemoModel, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.probe = nn.Linear(model.config.motion_dim, MOTION_SIZE)
        cells = model.config.decoder.warp_size // model.config.grid
        self.surface = nn.Linear(model.config.encoder.hidden, SURFACE_SIZE * cells**2)
        self.progress = 0.0

    def forward(self, batch: Batch | Stills) -> dict[str, Tensor]:
        if isinstance(batch, Stills):
            return self._stills(batch)
        m, c = self.model, self.config
        sequences, frames = batch.target.shape[:2]
        latents = self._latents(torch.cat([batch.reference[:, None], batch.target], 1))
        frozen = self.progress >= c.freeze_encoder_from
        ratio = 0.0 if frozen else self._ratio()
        with torch.set_grad_enabled(not frozen):
            tokens = m.encoder(latents.flatten(0, 1), ratio).unflatten(0, (sequences, frames + 1))
        reference_motion, motion = tokens[:, :1], tokens[batch.driver, 1:]
        reference, target = m.whiten(latents[:, 0]), m.whiten(latents[:, 1:])

        losses: dict[str, Tensor] = {}
        offsets = None
        if m.decoder.warp is not None:
            offsets = m.decoder.warp(latents[:, 0], reference_motion, motion).float()
            losses["field"] = field_loss(offsets.unflatten(0, (sequences, frames)), batch.field, batch.weight)
            offsets = offsets.detach()
        if self.progress >= c.flow_from:
            losses["flow"] = self._flow(batch, reference, target, reference_motion, motion, offsets)
        losses["probe"] = self._probe_error(tokens, batch)
        fade = 1 - (1 - c.probe_floor) * self.progress
        weights = {"flow": 1.0, "field": c.field_weight, "probe": c.probe_weight * fade}
        total = sum((weights[name] * value for name, value in losses.items()), torch.zeros(()))
        return {"loss": total, **losses}

    def _stills(self, batch: Stills) -> dict[str, Tensor]:
        """The encoder alone: pose and expression from the token, and the place on the face from each patch.

        The second is what makes a small transformer learn faces in minutes: thousands of answers a frame, not one.
        """
        m = self.model
        tokens, patches, kept = m.encoder.encode(self._latents(batch.images[:, None])[:, 0], self._ratio())
        probe = self._probe_error(tokens, batch)
        cells = batch.surface.shape[1] // m.config.grid
        surface = patchify(batch.surface.movedim(-1, 1), cells)
        if kept is not None:
            surface = surface.gather(1, kept.unsqueeze(-1).expand(-1, -1, surface.shape[-1]))
        known = ~surface.isnan()
        place = F.smooth_l1_loss(self.surface(patches).float()[known], surface[known], beta=0.1)
        return {"loss": probe + place, "probe": probe, "surface": place}

    def _ratio(self) -> float:
        """Masking ratio of a step: one for all its frames, so that they stay rectangular; milder at the start."""
        limit = self.model.config.encoder.mask_max * min(1.0, 0.5 + self.progress)
        return float(torch.rand(())) * limit

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        """(S, n, 256, 256, 3) uint8 RGB -> latents (S, n, C, h, w), each sequence in random colours."""
        tint, lift = self._jitter(*images.shape[:2])
        pixels = images.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.model.vae.encode(pixels * tint + lift).unflatten(0, images.shape[:2])

    def _probe_error(self, tokens: Tensor, batch: Batch | Stills) -> Tensor:
        known = ~batch.motion.isnan()
        weight = torch.tensor(PROBE_WEIGHT).expand_as(batch.motion)[known]
        error = F.smooth_l1_loss(self.probe(tokens).float()[known], batch.motion[known], beta=0.5, reduction="none")
        return (error * weight).sum() / weight.sum()

    def _flow(
        self,
        batch: Batch,
        reference: Tensor,
        target: Tensor,
        reference_motion: Tensor,
        motion: Tensor,
        offsets: Tensor | None,
    ) -> Tensor:
        """Flow loss (equation 1) of the paths from the prior to the targets, all whitened."""
        m, c = self.model, self.config
        sequences, frames = target.shape[:2]
        with torch.no_grad():
            noise = torch.randn_like(target) if m.config.needs_noise else None
            prior = make_prior(m.config, m.vae, m.unwhiten(reference), noise, offsets, frames).to(target.dtype)
        t = torch.where(torch.rand(sequences) < c.at_prior, torch.ones(()), torch.rand(sequences))
        x_t = flow.interpolate(target, prior, t[:, None, None, None, None])
        cached = m.config.decoder.cache_reference
        cache = m.decoder.encode_reference(reference) if cached else None
        joint = None if cached else reference
        predicted = m.decoder(x_t, t, reference_motion, motion, cache=cache, reference=joint).float()
        return self._flow_loss(predicted, flow.velocity(target, prior), batch.weight)

    def _flow_loss(self, predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Squared error of the velocity, weighted by region."""
        size = predicted.shape[-1]
        cells = region_weight(weight, REGION_WEIGHT).flatten(0, 1).unsqueeze(1)
        cells = F.adaptive_max_pool2d(cells, size).unflatten(0, weight.shape[:2])
        error = (predicted - target).square()
        return (error * cells).sum() / (cells.sum() * predicted.shape[2])

    def _jitter(self, sequences: int, frames: int) -> tuple[Tensor, Tensor]:
        """Contrast-and-tint factor and lift, one for all frames of a sequence: (S * n, 3, 1, 1) each."""
        j = self.config.jitter
        tint = (
            1 + j * (2 * torch.rand(sequences, 1, 1, 1, 1) - 1) + 0.5 * j * (2 * torch.rand(sequences, 1, 3, 1, 1) - 1)
        )
        lift = j * (2 * torch.rand(sequences, 1, 1, 1, 1) - 1)
        return (x.expand(-1, frames, -1, -1, -1).flatten(0, 1) for x in (tint, lift))  # type: ignore[return-value]


def region_weight(weight: Tensor, table: tuple[float, ...]) -> Tensor:
    """Region numbers (..., S, S) uint8 -> their weights, float32."""
    return torch.tensor(table)[weight.long()]


def field_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute error of the warp in cells of 1/16 image side, weighted by region; (G, F, 2, S, S) each."""
    cells = region_weight(weight, FIELD_WEIGHT).unsqueeze(2)
    error = F.smooth_l1_loss(predicted * 8, target * 8, beta=0.02, reduction="none")
    return (error * cells).sum() / (2 * cells.sum())


def train(
    config: TrainConfig, data: str | Path, out: str | Path, *, resume: bool = False, whisper: str | Path = "tiny.en"
) -> Path:
    """Trains the first stage and returns the checkpoint's path (``out/autoencoder.safetensors``, averaged weights).

    Args:
        config: model and recipe. data: folder of rendered groups (``semo data puppet``).
        out: folder of the run: checkpoint, state to resume, log, loss plot, sample sheets.
        resume: go on with the run in ``out``; batches continue as if it had never stopped.
        whisper: file or name of Whisper's weights, frozen, stored in the checkpoint for the second stage.

    Raises:
        InputError: no data. CheckpointError: see :class:`~semo_sdk.training.loop.Trainer`.
    """
    out = Path(out)
    torch.manual_seed(config.loop.seed)
    everything = PuppetData(data, min_face=config.min_face)
    cut = max(1, len(everything) - config.validation_groups)
    fresh, held = everything.part(0, cut), everything.part(min(cut, len(everything) - 1), None)
    model = SemoModel(config.model)
    load_whisper(model.whisper, whisper)
    stage = Stage1(model, config)
    modules = {"encoder": model.encoder, "decoder": model.decoder, "probe": stage.probe, "surface": stage.surface}
    trainer = Trainer(config.loop, modules, out, resume=resume)
    (out / "config.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")
    path = out / "autoencoder.safetensors"

    def make(step: int) -> Batch | Stills:
        rng = np.random.default_rng([config.loop.seed, step])
        progress = step / config.loop.steps
        if progress < config.warp_from:
            return fresh.stills(rng, config.stills)
        # the Temporal Align Module needs neighbours; the warp learns more from unrelated frames
        frames = 1 if progress < config.flow_from else 2
        return fresh.batch(rng, groups=config.pairs // frames, identities=2, frames=frames)

    def losses(batch: Batch | Stills) -> dict[str, Tensor]:
        frozen = stage.progress >= config.freeze_encoder_from
        stage.progress = trainer.step / config.loop.steps
        if not frozen and stage.progress >= config.freeze_encoder_from:
            trainer.settle("encoder.")
        with torch.autocast("cpu", torch.bfloat16):
            return stage(batch)

    def on_save() -> None:
        with trainer.averaged(), torch.no_grad():
            save_checkpoint(path, model, {"stage": "autoencoder", "step": str(trainer.step)})
            write_sheet(model, held, out / "samples" / f"step_{trainer.step:06d}.png")

    trainer.run(prefetch(make, trainer.step, config.loop.steps), losses, on_save)
    return path
