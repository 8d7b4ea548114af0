"""The training loop: schedule, clipping, average, masking; noise and dropout that make a generator fit for live use."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semo_sdk.config import DecoderConfig, EncoderConfig, GeneratorConfig, SemoConfig
from semo_sdk.models.motion_encoder import MotionEncoder
from semo_sdk.models.motion_generator import MotionGenerator
from semo_sdk.training.autoencoder import Stage1, TrainConfig
from semo_sdk.training.generator import Stage2
from semo_sdk.training.generator import TrainConfig as GeneratorTraining
from semo_sdk.training.loop import LoopConfig, Trainer
from semo_sdk.training.motion_data import MotionBatch
from tests.conftest import SMALL_AUDIO

MODEL = SemoConfig(
    name="small",
    vae="patch",
    encoder=EncoderConfig(hidden=32, layers=1, heads=2),
    decoder=DecoderConfig(hidden=32, layers=1, heads=2, temporal_window=4, prior="reference", prior_noise=0.0),
    generator=GeneratorConfig(hidden=32, layers=1, heads=2),
    audio=SMALL_AUDIO,
)


def trainer(out: Path, **settings: object) -> tuple[Trainer, nn.Linear]:
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    return Trainer(LoopConfig(**settings), {"network": network}, out, resume=False), network


def test_the_rate_warms_up_and_falls_as_a_cosine(tmp_path: Path) -> None:
    one, _ = trainer(tmp_path, steps=100, warmup=10, learning_rate=2.0, final_rate=0.1)
    rates = []
    for one.step in range(101):
        rates.append(one.learning_rate())
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    for step in (10, 40, 77, 100):
        done = (step - 10) / 90
        assert rates[step] == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi * done)) / 2)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_long_gradients_are_clipped_and_broken_ones_skipped(tmp_path: Path) -> None:
    one, network = trainer(tmp_path, steps=10, warmup=1, clip=0.5)
    norm = one.update(1e6 * network(torch.ones(1, 4)).sum())
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert norm > 1e5 and torch.cat([g.flatten() for g in gradients]).norm() == pytest.approx(0.5, rel=1e-3)
    before = [p.detach().clone() for p in network.parameters()]
    one.update(network(torch.full((1, 4), torch.nan)).sum())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    one.update(network(torch.ones(1, 4)).sum())
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_the_average_follows_the_weights_and_is_lent_for_a_while(tmp_path: Path) -> None:
    one, network = trainer(tmp_path, steps=10, warmup=1, ema=0.9, learning_rate=0.1)
    expected = network.weight.detach().clone()
    for step in range(8):
        one.update(network(torch.randn(3, 4)).square().sum())
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(one.ema["network.weight"], expected)
    own = network.weight.detach().clone()
    with one.averaged():
        torch.testing.assert_close(network.weight.detach(), expected)
    assert torch.equal(network.weight, own) and not torch.equal(own, expected)


def test_masking_ratios_reach_from_none_to_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's section 3.1: uniform between 0 and ``mask_max``, one for all frames of a step."""
    from semo_sdk.models.semo import SemoModel
    from semo_sdk.training.data import Batch

    stage = Stage1(SemoModel(MODEL), TrainConfig(model=MODEL, taught=False))
    stage.progress = 1.0
    seen: list[float] = []
    forward = MotionEncoder.forward

    def note(encoder: MotionEncoder, latents: Tensor, mask_ratio: float = 0.0) -> Tensor:
        seen.append(mask_ratio)
        return forward(encoder, latents, mask_ratio)

    monkeypatch.setattr(MotionEncoder, "forward", note)
    latents = torch.randn(1, 2, 192, 32, 32)
    batch = Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    torch.manual_seed(0)
    for _ in range(60):
        assert stage._tokens(batch, latents).shape == (1, 2, MODEL.motion_dim)
    assert min(seen) < 0.1 and max(seen) > 0.8 and max(seen) <= MODEL.encoder.mask_max == 0.9
    assert np.mean(seen) == pytest.approx(0.45, abs=0.1)


class Spy(MotionGenerator):
    """Keeps what it is asked."""

    asked: dict[str, Tensor]

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor, reference: Tensor, features: Tensor,
                heard: Tensor) -> Tensor:  # fmt: skip
        self.asked = {"t": t, "context": context, "heard": heard}
        return super().forward(x_t, t, context, reference, features, heard)


def samples(size: int) -> MotionBatch:
    """Motion that stands still; from 4 to 16 frames of each sample have been heard."""
    rng = torch.Generator().manual_seed(0)
    width = 2 * MODEL.audio.width
    return MotionBatch(
        target=torch.zeros(size, 16, MODEL.motion_dim),
        valid=torch.ones(size, 16, dtype=torch.bool),
        context=torch.zeros(size, 8, MODEL.motion_dim),
        reference=torch.zeros(size, 1, MODEL.motion_dim),
        features=torch.randn(size, 24, width, generator=rng),
        available=torch.randint(4, 17, (size,), generator=rng),
    )


def test_the_generator_learns_from_noisy_context_and_sometimes_without_speech() -> None:
    torch.manual_seed(0)
    generator, size = Spy(MODEL), 400
    config = GeneratorTraining(generator=MODEL.generator, context_noise=0.25, drop_speech=0.1, at_noise=0.25)
    stage = Stage2(generator, config)
    batch = samples(size)
    assert torch.isfinite(stage(batch)["loss"])
    noise = generator.asked["context"].std((1, 2))  # of each sample: its own share of the largest deviation
    assert noise.max() < 0.3 and noise.min() < 0.03 and noise.mean() == pytest.approx(0.125, abs=0.02)
    heard = generator.asked["heard"]
    deaf = ~heard.any(1)
    assert float(deaf.float().mean()) == pytest.approx(0.1, abs=0.05)
    counts = heard[~deaf].sum(1)
    assert len(counts.unique()) > 5  # what a short hop has not heard yet is hidden
    assert float((generator.asked["t"] == 1).float().mean()) == pytest.approx(0.25, abs=0.07)

    quiet = config.model_copy(update={"context_noise": 0.0, "drop_speech": 0.0, "at_noise": 0.0})
    stage = Stage2(generator, quiet)
    stage(batch)
    assert not generator.asked["context"].any() and generator.asked["heard"].any(1).all()


def test_frames_that_do_not_exist_teach_nothing() -> None:
    stage = Stage2(MotionGenerator(MODEL), GeneratorTraining(generator=MODEL.generator))  # says zero at first
    for valid, wrong in ((False, False), (True, True)):
        batch = samples(4)
        batch.valid[:, 10:] = valid
        batch.target[:, 10:] = 3.0
        assert bool(stage(batch)["loss"] > 0) == wrong
