"""Ablations: every arm is a model that can be trained, and their table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from semo_sdk.benchmarks import ablations, ablations_steps
from semo_sdk.benchmarks.ablations_small import ARMS, FRAMES, SURFACE, Sample, Small, SmallConfig, people_of
from semo_sdk.training.data import PuppetData


def sample(image: int) -> Sample:
    """Two sequences of noise."""
    generator = torch.Generator().manual_seed(0)
    frames = (2, FRAMES)
    surface = torch.rand(*frames, SURFACE, SURFACE, 4, generator=generator)
    surface[:, :, :3] = torch.nan
    return Sample(
        torch.randint(0, 256, (2, 3, image, image), generator=generator).byte(),
        torch.randint(0, 256, (*frames, 3, image, image), generator=generator).byte(),
        torch.full((2, 30), torch.nan),
        torch.randn(*frames, 30, generator=generator),
        torch.randint(0, 4, (*frames, 64, 64), generator=generator).byte(),
        torch.randn(*frames, 2, 64, 64, generator=generator) * 0.01,
        surface,
    )


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_learns(name: str) -> None:
    torch.manual_seed(0)
    model, batch = Small(ARMS[name]), sample(SmallConfig().image)
    losses = model.losses(batch)
    decoder = ARMS[name].part == "decoder"
    assert ("field" in losses) == (name == "warp") and ("flow" in losses) == decoder
    assert ("surface" in losses) == (not decoder and name != "token_only")
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    if decoder:
        assert model.make(batch, 1).shape == batch.target.shape


def test_places_on_the_face_are_measured_where_patches_are_seen() -> None:
    torch.manual_seed(0)
    model, batch = Small(ARMS["masked"]), sample(SmallConfig().image)
    for hidden, patches in ((0.0, 16), (0.5, 8)):
        seen, truth = model.places(batch, hidden)
        assert seen.shape == truth.shape == (2 * FRAMES, patches, 16, 3) and torch.isfinite(seen).all()
    whole = model.places(batch, 0.0)[1]
    known = batch.surface[..., :3].flatten(0, 1).flatten(1, 2)
    assert whole.isnan().sum() == known.isnan().sum()
    torch.testing.assert_close(whole.nansum() * 2, known.nansum())
    errors = ablations._surface_errors(model, [batch])
    assert set(errors) == {"surface", "surface_half_hidden", "surface_guess"} and min(errors.values()) > 0


def test_people_are_the_same_when_mirrored(tmp_path: Path) -> None:
    group = tmp_path / "group_00000"
    group.mkdir()
    (group / "meta.json").write_text(json.dumps({"identities": ["a.jpg", "b.jpg:mirror", "driver"]}))
    data = PuppetData.__new__(PuppetData)
    data.groups = [group]
    assert people_of(data, 0) == ["a.jpg", "b.jpg", "driver"]


def test_tables() -> None:
    psnr = {"copy": 15.0, "1": 16.0, "2": 16.5, "4": 16.25}
    arm = {
        "what": "base",
        "seconds": 90.0,
        "psnr": {"whole": psnr, "mouth_eyes_brows": psnr},
    }
    encoder = {"what": "masked", "seconds": 30.0, "probe": {"pose": 0.5, "jaw": 0.25, "expression": 0.125}}
    encoder |= {"surface": 0.03125, "surface_half_hidden": 0.0625, "surface_guess": 0.125}
    settings = {"image": 64, "steps": 240, "batches": 9, "frames_a_step": 32, "held_out_groups": 16}
    steps = {
        "model": {"name": "m", "fingerprint": "f" * 64, "guidance": 2.0, "decoder_steps": 1, "generator_steps": 4},
        "clips": 8,
        "decoder": [{"steps": 1, "psnr": 30.0, "ssim": 0.9, "sharpness": 0.8, "frames": 64}],
        "generator": [{"steps": 1, "correlation": 0.8, "range": 0.7, "clips": 10}],
        "guidance": [{"guidance": 1.5, "correlation": 0.8, "range": 0.7, "spoken": 0.75, "clips": 10}],
    }
    text = ablations.markdown({"settings": settings, "arms": {"base": arm, "masked": encoder}, "steps": steps})
    assert "| base | 16.00 / 16.50 / 16.25 |" in text and "| copied reference | 15.0 |" in text
    assert "| masked | 0.50 | 0.25 | 0.12 | 0.0312 | 0.0625 | 0.5 |" in text and "| - | 0.1250 | - | - |" in text
    assert "| 1 | 30.00 | 0.9000 | 0.80 |" in text and ablations_steps.markdown(steps) in text


def test_a_probe_reads_what_is_there_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    known = [generator.standard_normal((40, 3)) for _ in range(8)]
    tokens = [np.concatenate([one[:, :2] * 5, generator.standard_normal((40, 30))], 1) for one in known]
    share = ablations.probe(tokens, known)
    assert share[:2].min() > 0.85 and abs(share[2]) < 0.2
