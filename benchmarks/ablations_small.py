"""The small models of the ablations: the package's own encoder, decoder and flow, on pictures of 64 x 64 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semo_sdk.config import DecoderConfig, EncoderConfig, SemoConfig
from semo_sdk.models import flow
from semo_sdk.models.layers import patchify
from semo_sdk.models.motion_decoder import MotionDecoder, make_prior
from semo_sdk.models.motion_encoder import MotionEncoder
from semo_sdk.models.vae import make_vae
from semo_sdk.models.warp import Moved
from semo_sdk.training.autoencoder import FIELD_WEIGHT, REGION_WEIGHT
from semo_sdk.training.data import PuppetData, offsets_from, source_points
from semo_sdk.training.losses import field_loss, region_weight, token_loss
from semo_sdk.training.teacher import teach

FRAMES = 4  # of a sequence: the Temporal Align Module's window
IDENTITIES = 4  # of a group
GROUPS = 4  # of a step
SURFACE = 16  # cells on a side of the picture, in the target of which point of the face each one shows


class SmallConfig(SemoConfig):
    """A model for small pictures; everything else is as in the package."""

    image: int = 64

    @property
    def latent_size(self) -> int:
        return self.image // 8


@dataclass(frozen=True)
class Arm:
    """One model.

    Attributes:
        what: what is changed, for the table.
        part: ``"decoder"`` learns from the teacher's tokens, as the shipped model does; ``"encoder"`` learns them.
        model, decoder: settings that differ from the base's.
        mask: largest masking ratio of the encoder.
        surface: whether the encoder learns too which point of the mean face each patch shows.
        at_prior: share of samples at t = 1.
    """

    what: str
    part: str = "decoder"
    model: Mapping[str, Any] = field(default_factory=dict)
    decoder: Mapping[str, Any] = field(default_factory=dict)
    mask: float = 0.9
    surface: bool = True
    at_prior: float = 0.7

    def config(self) -> SmallConfig:
        settings = {"hidden": 96, "layers": 3, "heads": 3}
        decoder = {"temporal_window": FRAMES, "prior": "reference", "prior_noise": 0.0, **settings, **self.decoder}
        return SmallConfig(
            name="ablation",
            vae="patch",
            encoder=EncoderConfig(mask_max=self.mask, **settings),
            decoder=DecoderConfig.model_validate(decoder),
            **{"patch": 2, "motion_width": 512, **self.model},
        )


ARMS = {
    "base": Arm("decoder: prior reference, 4 x 4 patches, token of 512"),
    "noise": Arm("prior noise", decoder={"prior": "noise", "prior_noise": 1.0}, at_prior=0.0),
    "warp": Arm("prior warp (its field is taught)", decoder={"prior": "warp", "warp_layers": 2}),
    "patch4": Arm("2 x 2 patches", model={"patch": 4}),
    "token32": Arm("token of 32", model={"motion_width": 32}),
    "patch1": Arm("8 x 8 patches", model={"patch": 1}),
    "masked": Arm("encoder: masked, dense target", part="encoder"),
    "unmasked": Arm("no masking", part="encoder", mask=0.0),
    "token_only": Arm("no dense target", part="encoder", surface=False),
}


@dataclass(frozen=True)
class Sample:
    """S sequences of F frames: pictures (uint8 RGB), and what is known of them.

    ``reference`` (S, 3, H, W), ``target`` (S, F, 3, H, W), ``still`` (S, 30) and ``motion`` (S, F, 30) pose and
    expression of both (NaN where unknown), ``weight`` (S, F, 64, 64) regions, ``field`` (S, F, 2, 64, 64) warp,
    ``surface`` (S, F, 16, 16, 4) as in :class:`~semo_sdk.training.data.Stills`.
    """

    reference: Tensor
    target: Tensor
    still: Tensor
    motion: Tensor
    weight: Tensor
    field: Tensor
    surface: Tensor


def draw(
    data: PuppetData,
    rng: np.random.Generator,
    image: int,
    groups: Sequence[int] | None = None,
    *,
    without: frozenset[str] = frozenset(),
) -> Sample:
    """Sequences of random groups (or of the given ones), four identities each, references from anywhere in them.

    Args:
        without: names of people who must not be seen, as :func:`people_of` gives them.
    """
    parts = []
    for number in rng.integers(len(data), size=GROUPS) if groups is None else groups:
        arrays = data.open(int(number))
        length = arrays["triangles"].shape[1]
        known = np.array([place for place, name in enumerate(people_of(data, int(number))) if name not in without])
        people = rng.choice(known, IDENTITIES, replace=len(known) < IDENTITIES)
        stride = int(rng.integers(1, 1 + (length - 1) // (FRAMES - 1)))
        times = int(rng.integers(length - (FRAMES - 1) * stride)) + stride * np.arange(FRAMES)
        still = np.where(rng.random(IDENTITIES) < 0.5, 0, rng.integers(1, length + 1, IDENTITIES))
        corners = arrays["triangles"][people[:, None], times], arrays["barycentric"][people[:, None], times]
        own, weight = arrays["points"][people, still], arrays["weight"][people[:, None], times]
        parts.append(
            (
                _pictures(arrays["frames"][people, still], image),
                _pictures(arrays["frames"][people[:, None], 1 + times], image),
                arrays["motion"][people, still],
                arrays["motion"][people[:, None], 1 + times],
                weight,
                offsets_from(source_points(own[:, None], *corners)),
                _surface(data.canonical, *corners, weight == 3),
            )
        )
    return Sample(*(torch.from_numpy(np.concatenate(x)) for x in zip(*parts, strict=True)))


def people_of(data: PuppetData, number: int) -> list[str]:
    """Who plays in a group; a mirrored portrait is the same person."""
    identities = data.meta(number)["identities"]
    assert isinstance(identities, list)
    return [str(name).removesuffix(":mirror") for name in identities]


def _pictures(frames: np.ndarray, image: int) -> np.ndarray:
    """(..., 256, 256, 3) uint8 -> (..., 3, image, image) uint8, averaged over areas."""
    import cv2

    flat = frames.reshape(-1, *frames.shape[-3:])
    small = np.stack([cv2.resize(frame, (image, image), interpolation=cv2.INTER_AREA) for frame in flat])
    return np.ascontiguousarray(np.moveaxis(small, -1, -3)).reshape(*frames.shape[:-3], 3, image, image)


def _surface(canonical: np.ndarray, triangles: np.ndarray, barycentric: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(S, F, 16, 16, 4): the point of the mean face that every fourth cell shows (NaN off the skin), and whether the
    cell is inside an open mouth."""
    step = inside.shape[-1] // SURFACE
    cells = slice(step // 2, None, step)

    def thinned(values: np.ndarray) -> np.ndarray:
        shaped = values.reshape(*inside.shape, -1)[:, :, cells, cells]
        return shaped.reshape(*inside.shape[:2], SURFACE**2, -1)

    corners, mouth = thinned(triangles), inside[:, :, cells, cells]
    skin = np.all(corners < len(canonical), axis=-1).reshape(mouth.shape) & ~mouth
    face = np.where((corners < len(canonical)).all(-1, keepdims=True), corners, 0)
    places = source_points(np.broadcast_to(canonical, (len(face), 1, *canonical.shape)), face, thinned(barycentric))
    return np.concatenate([np.where(skin[..., None], 2 * places, np.nan), mouth[..., None]], -1).astype(np.float32)


class Small(nn.Module):
    """The model of one arm and its losses."""

    def __init__(self, arm: Arm) -> None:
        super().__init__()
        self.arm, self.config = arm, arm.config()
        self.vae = make_vae(self.config.vae)
        self.encoder, self.decoder = MotionEncoder(self.config), MotionDecoder(self.config)
        self.place = nn.Linear(self.config.encoder.hidden, 4 * (SURFACE // self.config.grid) ** 2)

    def latents(self, pictures: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 -> (..., C, h, w), not whitened."""
        pixels = pictures.flatten(0, -4).float() / 127.5 - 1
        return self.vae.encode(pixels).float().unflatten(0, pictures.shape[:-3])

    def whiten(self, latents: Tensor) -> Tensor:
        return latents / self.vae.latent_std[:, None, None]

    def taught(self, motion: Tensor) -> Tensor:
        return teach(motion, self.config.motion_width)

    def losses(self, sample: Sample) -> dict[str, Tensor]:
        """What the arm learns from."""
        return self.encoder_losses(sample) if self.arm.part == "encoder" else self.decoder_losses(sample)

    def encoder_losses(self, sample: Sample) -> dict[str, Tensor]:
        """The teacher's tokens from pixels, and what each patch shows (see ``training.autoencoder``)."""
        ratio = float(torch.rand(())) * self.arm.mask
        tokens, patches, kept = self.encoder.encode(self.latents(sample.target).flatten(0, 1), ratio)
        assert tokens is not None
        losses = {"token": token_loss(tokens.float(), sample.motion.flatten(0, 1))}
        if self.arm.surface:
            seen, truth = self.place(patches).float(), self.truth(sample, kept)
            known = ~truth.isnan()
            losses["surface"] = F.smooth_l1_loss(seen[known], truth[known], beta=0.1)
        return losses

    def truth(self, sample: Sample, kept: Tensor | None) -> Tensor:
        """(frames, patches, 4 * cells of a patch): what the kept patches show, cell by cell; NaN off the skin."""
        truth = patchify(sample.surface.flatten(0, 1).movedim(-1, 1), SURFACE // self.config.grid)
        return truth if kept is None else truth.gather(1, kept.unsqueeze(-1).expand(-1, -1, truth.shape[-1]))

    @torch.no_grad()
    def places(self, sample: Sample, hidden: float) -> tuple[Tensor, Tensor]:
        """Where on the face the encoder thinks that it looks, and where it does.

        Args:
            hidden: share of the patches that it does not see.

        Returns:
            Two times (frames, patches that it sees, cells of a patch, 3) in face heights; the second NaN off the skin.
        """
        _, patches, kept = self.encoder.encode(self.latents(sample.target).flatten(0, 1), hidden)
        both = self.place(patches).float(), self.truth(sample, kept)
        seen, truth = (x.unflatten(-1, (4, -1))[:, :, :3].movedim(2, -1) / 2 for x in both)
        return seen, truth

    def decoder_losses(self, sample: Sample) -> dict[str, Tensor]:
        """The flow, and the warp's field where there is a warp."""
        reference, target = self.latents(sample.reference), self.latents(sample.target)
        own, motion = self.taught(sample.still)[:, None], self.taught(sample.motion)
        losses: dict[str, Tensor] = {}
        moved = self.moved(reference, own, motion)
        if moved is not None:
            truth = F.adaptive_avg_pool2d(sample.field.flatten(0, 1), moved.offsets.shape[-1])
            weight = F.adaptive_max_pool2d(sample.weight.flatten(0, 1).float(), moved.offsets.shape[-1])
            losses["field"] = field_loss(moved.offsets, truth, weight, FIELD_WEIGHT)
        with torch.no_grad():
            prior = self.prior(reference, moved, target.shape[1])
        goal = self.whiten(target)
        t, certain = torch.rand(2, len(goal))
        t = torch.where(certain < self.arm.at_prior, 1.0, t)
        x_t = flow.interpolate(goal, prior, t[:, None, None, None, None])
        cache = self.decoder.encode_reference(self.whiten(reference))
        predicted = self.decoder(x_t, t, own, motion, cache=cache).float()
        cells = region_weight(sample.weight, REGION_WEIGHT).flatten(0, 1).unsqueeze(1)
        cells = F.adaptive_max_pool2d(cells, goal.shape[-1]).unflatten(0, goal.shape[:2])
        error = (predicted - flow.velocity(goal, prior)).square() * cells
        losses["flow"] = error.sum() / (cells.sum() * goal.shape[2])
        return losses

    def moved(self, reference: Tensor, own: Tensor, motion: Tensor) -> Moved | None:
        """The warp, where the arm has one."""
        head = self.decoder.warp
        if head is None:
            return None
        seen = self.encoder.encode(reference)[1]
        return head(seen, head.maps(self.whiten(reference), seen), own, motion)

    def prior(self, reference: Tensor, moved: Moved | None, frames: int) -> Tensor:
        shape = (len(reference), frames, *reference.shape[1:])
        noise = torch.randn(shape) if self.config.needs_noise else None
        return make_prior(self.config, self.vae, reference, noise, moved, frames).float()

    @torch.no_grad()
    def make(self, sample: Sample, steps: int) -> Tensor:
        """(S, F, 3, H, W) pictures in [-1, 1] from references and the known motion."""
        reference = self.latents(sample.reference)
        own, motion = self.taught(sample.still)[:, None], self.taught(sample.motion)
        prior = self.prior(reference, self.moved(reference, own, motion), motion.shape[1])
        cache = self.decoder.encode_reference(self.whiten(reference))
        made = prior + self.decoder.displacement(prior, own, motion, steps=steps, cache=cache)
        made = made * self.vae.latent_std[:, None, None]
        return self.vae.decode(made.flatten(0, 1)).unflatten(0, made.shape[:2]).clamp(-1, 1)
