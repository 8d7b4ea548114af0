"""First stage: motion encoder and motion decoder together (paper, section 3.3, equation 1).

To the paper's flow loss two teachers are added, both exactly known to the puppet: the dense warp field (for the warp
prior), and pose and expression of each frame as a motion token (see :mod:`semo_sdk.training.teacher`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.config import SemoConfig, Strict, preset
from semo_sdk.models import flow
from semo_sdk.models.checkpoint import load_checkpoint, save_checkpoint
from semo_sdk.models.face_mesh import FaceReader
from semo_sdk.models.layers import patchify
from semo_sdk.models.motion_decoder import make_prior
from semo_sdk.models.semo import SemoModel
from semo_sdk.models.warp import SHY, Moved, sample, tinted
from semo_sdk.models.whisper import load_whisper
from semo_sdk.training.data import Batch, PuppetBatch, PuppetData, Stills, on, read_ahead
from semo_sdk.training.loop import LoopConfig, Trainer, best_device
from semo_sdk.training.losses import cells_in_image, field_loss, mouth_places, region_weight, texture_loss, token_loss
from semo_sdk.training.pretrained import load_vae
from semo_sdk.training.sheets import write_sheet
from semo_sdk.training.sources import check, learn_teacher, open_data
from semo_sdk.training.teacher import taught_targets

REGION_WEIGHT = (0.5, 1.0, 4.0, 8.0)  # background, face, mouth and eyes, inside of the mouth
FIELD_WEIGHT = (0.3, 1.0, 12.0, 0.5)  # between the lips a mouth is laid over the warp
COARSE_WEIGHT = (0.3, 1.0, 1.0, 1.0)
PAINT_WEIGHT = (0.02, 0.2, 2.0, 4.0)
SURFACE_SIZE = 4  # place on the mean face (3), and whether the cell is inside an open mouth


class TrainConfig(Strict):
    """Everything that the first stage depends on besides its data."""

    model: SemoConfig = preset("semo-tiny")
    loop: LoopConfig = LoopConfig(steps=5000, learning_rate=1e-3, warmup=100)
    stills: int = 32  # unrelated frames a step, for the encoder
    pairs: int = 8  # pairs of frames a step, for the decoder
    targets: int = 2  # frames of each reference that the warp learns from together
    validation_groups: int = 4  # the last ones by name
    min_face: float = 0.46  # height of the face in the crop: a mouth of few pixels teaches little
    warp_from: float = 0.3  # share of the run in which the encoder learns alone
    flow_from: float = 0.7  # share after which the decoder's flow is trained; encoder and warp stay as they are then
    stills_later: int = 8  # stills beside the pairs
    taught: bool = True  # target tokens come from the teacher; otherwise from the encoder alone, as in the paper
    huber: float = 0.0  # the flow's error counts linearly above this (whitened); 0 = squared error, as in the paper
    texture: float = 0.0  # weight of how much fine detail each 8 x 8 patch has after the flow; vae="patch" only
    at_prior: float = 0.7  # share of samples at t = 1, the step that must move the face; the others are uniform
    field_weight: float = 1.0
    encoder_weight: float = 1.0
    jitter: float = 0.15  # random brightness, contrast and tint of each identity


class Stage1(nn.Module):
    """Losses of the first stage."""

    def __init__(self, model: SemoModel, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        cells = model.config.warp_size // model.config.grid
        self.surface = nn.Linear(model.config.encoder.hidden, SURFACE_SIZE * cells**2)
        self.progress = 0.0

    @property
    def flow_alone(self) -> bool:
        """Whether a warp is there by now, and the flow that starts from it is what learns."""
        return self.model.decoder.warp is not None and self.progress >= self.config.flow_from

    def forward(self, step: Step) -> dict[str, Tensor]:
        c = self.config
        weights = {"token": c.encoder_weight, "surface": c.encoder_weight, "flow": 1.0}
        losses = {} if step.stills is None else self._stills(step.stills)
        losses |= {} if step.pairs is None else self._pairs(step.pairs)
        total = torch.stack([weights.get(name, c.field_weight) * loss for name, loss in losses.items()]).sum()
        return {"loss": total, **losses}

    def _stills(self, batch: Stills) -> dict[str, Tensor]:
        """The encoder alone: its token against the teacher's, and the place on the face from each patch.

        The second is what makes a small transformer learn faces in minutes: thousands of answers a frame, not one.
        """
        m = self.model
        latents = self._latents(batch.images[:, None])[:, 0]
        # one masking ratio a step, so that the frames stay rectangular; milder at the start
        ratio = float(torch.rand(())) * m.config.encoder.mask_max * min(1.0, 0.5 + self.progress)
        tokens, patches, kept = m.encoder.encode(latents, ratio)
        cells = batch.surface.shape[1] // m.config.grid
        surface = patchify(batch.surface.movedim(-1, 1), cells)
        if kept is not None:
            surface = surface.gather(1, kept.unsqueeze(-1).expand(-1, -1, surface.shape[-1]))
        known = ~surface.isnan()
        place = F.smooth_l1_loss(self.surface(patches).float()[known], surface[known], beta=0.1)
        return (
            {"surface": place}
            if tokens is None
            else {"token": token_loss(tokens.float(), batch.motion), "surface": place}
        )

    def _pairs(self, batch: Batch) -> dict[str, Tensor]:
        m, c = self.model, self.config
        latents = self._latents(torch.cat([batch.reference[:, None], batch.target], 1))
        appearance = None
        # an encoder with taught tokens learns from stills alone: the decoder takes its features as they are
        with torch.set_grad_enabled(not self.flow_alone and (m.reader is not None or not c.taught)):
            if m.reader is not None or m.decoder.warp is not None or c.taught:
                seen, appearance, _ = m.encoder.encode(latents[:, 0])
            if c.taught:
                assert isinstance(batch, PuppetBatch)
                reference_motion = seen if m.reader is None else m.reader.tokens(batch.seen)
                assert reference_motion is not None
                reference_motion = reference_motion[:, None]
                motion = taught_targets(batch.motion, reference_motion)
            else:
                tokens = self._tokens(batch, latents)
                reference_motion, motion = tokens[:, :1], tokens[batch.driver, 1:]
        reference, target = m.whiten(latents[:, 0]), m.whiten(latents[:, 1:])
        losses: dict[str, Tensor] = {}
        moved = None
        if m.decoder.warp is not None and appearance is not None:
            with torch.set_grad_enabled(not self.flow_alone):
                points = None if m.reader is None else self._landmarks(m.reader, batch)
                appearance, maps = m.appearance(latents[:, 0], appearance, points)
                moved = m.decoder.warp(appearance, cast(Tensor, maps), reference_motion, motion)
                if not self.flow_alone:
                    assert isinstance(batch, PuppetBatch)
                    losses |= self._warp(batch, moved, latents[:, 1:])
        if self.progress >= c.flow_from:
            losses["flow"] = self._flow(batch, reference, target, reference_motion, motion, moved)
        return losses

    def _tokens(self, batch: Batch, latents: Tensor) -> Tensor:
        """The model's own motion tokens (S, 1 + F, T * D) of references and targets, masked as in the paper."""
        m = self.model
        if m.reader is not None:
            frames = torch.cat([batch.reference[:, None], batch.target], 1)
            return m.reader(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        # one masking ratio a step, so that the frames stay rectangular
        ratio = float(torch.rand(())) * m.config.encoder.mask_max
        return m.encoder(latents.flatten(0, 1), ratio).unflatten(0, latents.shape[:2])

    def _warp(self, batch: PuppetBatch, moved: Moved, latents: Tensor) -> dict[str, Tensor]:
        """Losses of the warp head: both fields, and the mouth between open lips, all known to the puppet."""
        weight = batch.weight.flatten(0, 1)
        opening = batch.opening.flatten(0, 1).unsqueeze(1)
        cells = F.interpolate(region_weight(weight, PAINT_WEIGHT).unsqueeze(1), size=opening.shape[-2:])
        wrong = F.binary_cross_entropy_with_logits(moved.opacity - SHY, opening, reduction="none")
        with torch.no_grad():
            image = self.model.vae.decode(latents.flatten(0, 1))
            near, mouth = F.max_pool2d(opening, 2), batch.mouth.flatten(0, 1)
            goal = mouth_places(mouth, near.shape[-1])
            cells_of = cells_in_image(mouth)
            truth, shown = sample(image, cells_of), sample(opening, cells_of)
        off = ((tinted(moved.mouth, moved.tint) - truth).abs() * shown).sum() / (3 * shown.sum() + shown.shape[-1])
        astray = ((moved.place - goal).abs().clamp(max=2.0) * near).sum() / (2 * near.sum() + near.shape[-1])
        return {
            "coarse": field_loss(moved.coarse, batch.coarse.flatten(0, 1), weight, COARSE_WEIGHT),
            "field": field_loss(moved.field(moved.offsets.shape[-1]), batch.field.flatten(0, 1), weight, FIELD_WEIGHT),
            "opacity": (wrong * cells).sum() / cells.sum(),
            "mouth": 0.5 * off,
            "place": 0.2 * astray,
        }

    @torch.no_grad()
    def _landmarks(self, reader: FaceReader, batch: Batch) -> Tensor:
        """(S, 478, 3) of the references: known for puppets, looked for in videos."""
        return batch.seen if isinstance(batch, PuppetBatch) else reader.landmarks(batch.reference)

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        """(S, n, 256, 256, 3) uint8 RGB -> latents (S, n, C, h, w), each sequence in random colours."""
        tint, lift = self._jitter(images.shape[0], images.shape[1], images.device)
        pixels = images.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.model.vae.encode(pixels * tint + lift).unflatten(0, images.shape[:2])

    def _flow(
        self,
        batch: Batch,
        reference: Tensor,
        target: Tensor,
        reference_motion: Tensor,
        motion: Tensor,
        moved: Moved | None,
    ) -> Tensor:
        """Flow loss (equation 1) of the paths from the prior to the targets, all whitened."""
        m, c = self.model, self.config
        sequences, frames = target.shape[:2]
        with torch.no_grad():
            noise = torch.randn_like(target) if m.config.needs_noise else None
            prior = make_prior(m.config, m.vae, m.unwhiten(reference), noise, moved, frames).to(target.dtype)
        t, certain = torch.rand(2, sequences, device=target.device)
        t = torch.where(certain < c.at_prior, 1.0, t)
        x_t = flow.interpolate(target, prior, t[:, None, None, None, None])
        cached = m.config.decoder.cache_reference
        cache = m.decoder.encode_reference(reference) if cached else None
        joint = None if cached else reference
        predicted = m.decoder(x_t, t, reference_motion, motion, cache=cache, reference=joint).float()
        loss = self._flow_loss(predicted, flow.velocity(target, prior), batch)
        if c.texture:
            made = m.unwhiten(x_t + t[:, None, None, None, None] * predicted)
            loss = loss + c.texture * texture_loss(made, m.unwhiten(target))
        return loss

    def _flow_loss(self, predicted: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """Error of the velocity, weighted by region where regions are known.

        Squared errors make the decoder blur whatever its warp may have misplaced; linear ones do so less, and a texture
        loss beside them says that blur is wrong.
        """
        if self.config.huber:
            error = F.smooth_l1_loss(predicted, target, beta=self.config.huber, reduction="none")
        else:
            error = (predicted - target).square()
        if not isinstance(batch, PuppetBatch):
            return error.mean()
        cells = region_weight(batch.weight, REGION_WEIGHT).flatten(0, 1).unsqueeze(1)
        cells = F.adaptive_max_pool2d(cells, predicted.shape[-1]).unflatten(0, batch.weight.shape[:2])
        return (error * cells).sum() / (cells.sum() * predicted.shape[2])

    def _jitter(self, sequences: int, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Contrast-and-tint factor and lift, one for all frames of a sequence: (S * n, 3, 1, 1) each."""
        j = self.config.jitter
        grey, lift = j * (2 * torch.rand(2, sequences, 1, 1, 1, 1, device=device) - 1)
        tint = 1 + grey + 0.5 * j * (2 * torch.rand(sequences, 1, 3, 1, 1, device=device) - 1)
        return (x.expand(-1, frames, -1, -1, -1).flatten(0, 1) for x in (tint, lift))  # type: ignore[return-value]


@dataclass
class Step:
    """What one optimiser step sees."""

    stills: Stills | None
    pairs: Batch | None

    def to(self, device: torch.device) -> Step:
        """The same on a device."""
        stills = None if self.stills is None else on(self.stills, device)
        return Step(stills, None if self.pairs is None else on(self.pairs, device))


def train(
    config: TrainConfig,
    data: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    whisper: str | Path = "tiny.en",
    vae: str | Path | None = None,
    init: str | Path | None = None,
) -> Path:
    """Trains the first stage and returns the checkpoint's path (``out/autoencoder.safetensors``, averaged weights).

    Args:
        config: model and recipe. data: folder of rendered groups (``semo data puppet``) or of prepared videos
            (``semo data videos``). Videos teach neither motion nor warp: they need ``taught=False``, and a model with
            the warp prior, of which they train the flow alone, needs ``init`` too. The other models' encoder and flow
            learn together from the first step, as in the paper.
        out: folder of the run: checkpoint, state to resume, log, loss plot, sample sheets.
        resume: go on with the run in ``out``; batches continue as if it had never stopped.
        whisper: file or name of Whisper's weights, frozen, stored in the checkpoint for the second stage.
        vae: weights of the image autoencoder, see :func:`~semo_sdk.training.pretrained.load_vae`; ``init`` has its own.
        init: checkpoint of the same model whose motion encoder and decoder to start from.

    Raises:
        InputError: no data. ConfigError: settings that this data cannot satisfy, or an autoencoder without weights.
        CheckpointError: see :class:`~semo_sdk.training.loop.Trainer`.
    """
    out = Path(out)
    torch.manual_seed(config.loop.seed)
    fresh, held = open_data(config, data)
    model = SemoModel(config.model)
    if init is not None:
        start = load_checkpoint(init)[0]
        for part in ("vae", "encoder", "decoder", *(["reader"] if model.reader is not None else [])):
            getattr(model, part).load_state_dict(getattr(start, part).state_dict())
    if vae is not None or init is None:
        load_vae(model.vae, vae)
    if isinstance(fresh, PuppetData) and isinstance(held, PuppetData):
        learn_teacher(model, config, fresh, held, Path(data) / "landmarks.npz", started=init is not None)
    check(config, model, fresh, started=init is not None)
    if model.reader is not None:
        model.reader.requires_grad_(False)
    if config.taught and model.decoder.warp is not None:
        # what the teacher wrote can be read exactly; steps of the optimiser are as large as these weights, and wash a
        # reading out before a map has learned to use it
        model.decoder.warp.levers.requires_grad_(False)
        model.decoder.warp.pose_levers.requires_grad_(False)
    load_whisper(model.whisper, whisper)
    device = best_device()
    stage = Stage1(model, config).to(device)
    path = out / "autoencoder.safetensors"
    modules = {"encoder": model.encoder, "decoder": model.decoder, "surface": stage.surface}
    two_parts = model.decoder.warp is not None and fresh.knows_motion
    trainer = Trainer(config.loop, modules, out, resume=resume, restart=config.flow_from if two_parts else 1.0)
    trainer.keep_config(config)
    rank = trainer.processes.rank

    def progress(step: int) -> float:
        return step / config.loop.steps if fresh.knows_motion else 1.0

    def make(step: int) -> Step:
        rng = np.random.default_rng([config.loop.seed, step, rank])
        flowing = progress(step) >= config.flow_from
        if progress(step) < config.warp_from and not flowing:
            return Step(fresh.stills(rng, config.stills), None)
        # the warp learns most from unrelated frames; the Temporal Align Module needs neighbours
        groups = max(1, config.pairs // config.targets)
        pairs = fresh.batch(rng, groups=groups, identities=2, frames=config.targets, neighbours=flowing)
        alone = flowing and model.decoder.warp is not None
        return Step(None if alone else fresh.stills(rng, config.stills_later), pairs)

    def losses(step: Step) -> dict[str, Tensor]:
        stage.progress = progress(trainer.step)
        if stage.flow_alone:
            trainer.freeze("encoder", "decoder.warp", "surface")
        with torch.autocast(device.type, torch.bfloat16):
            return stage(step.to(device))

    def on_save() -> None:
        with trainer.averaged(), torch.no_grad():
            save_checkpoint(path, model, {"stage": "autoencoder", "step": str(trainer.step)})
            sheet = out / "samples" / f"step_{trainer.step:06d}.png"
            write_sheet(model, held, sheet, taught=config.taught)
            trainer.show("samples", sheet)

    trainer.run(read_ahead(make, trainer.step, config.loop.steps), losses, on_save)
    return path
