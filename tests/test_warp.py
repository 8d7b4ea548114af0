"""The warp head: an untrained one leaves the photo alone, maps follow the head, a mouth covers only what it must."""

from __future__ import annotations

import torch

from semo_sdk.models.eyelids import LINES
from semo_sdk.models.graphs import graph_modules
from semo_sdk.models.semo import SemoModel
from semo_sdk.models.vae import PatchVae
from semo_sdk.models.warp import (
    BLINK_LEVER,
    MOUTH_SIZE,
    Moved,
    ReferenceMaps,
    WarpHead,
    enlarge,
    look_up,
    move,
    set_lids,
    tinted,
)
from tests.conftest import TINY


def test_warp_moves_the_image_against_the_offsets() -> None:
    image = torch.rand(1, 3, 256, 256)
    shift = torch.zeros(1, 2, 64, 64)
    torch.testing.assert_close(move(image, shift), image, atol=1e-4, rtol=0)
    shift[:, 0] = 10 / 128  # every pixel is fetched 10 px further right
    torch.testing.assert_close(move(image, shift)[..., :-10], image[..., 10:], atol=1e-3, rtol=0)


def test_enlarging_is_bilinear() -> None:
    field = torch.randn(2, 3, 64, 64)
    for size in (64, 128, 256):
        resized = torch.nn.functional.interpolate(field, size=(size, size), mode="bilinear", align_corners=False)
        torch.testing.assert_close(enlarge(field, size), resized, atol=1e-5, rtol=0)


def test_a_mouth_covers_only_where_the_head_is_sure() -> None:
    image = torch.rand(1, 3, 256, 256) * 2 - 1
    vae = PatchVae()
    still = torch.zeros(1, 2, 64, 64)
    logit = torch.full((1, 1, 128, 128), -8.0)
    logit[:, :, 60:68, 40:90] = 12.0
    mouth = torch.zeros(1, 3, *MOUTH_SIZE)
    mouth[:, 0] = 0.6  # red right of its middle
    mouth[:, 0, :, : MOUTH_SIZE[1] // 2] = -1.0
    place = torch.linspace(-1, 1, 64).expand(1, 2, 64, 64).clone()
    tint = torch.tensor([[-0.25, -0.25, -0.25, 0.0]])
    painted = vae.decode(vae.warp(vae.encode(image), Moved(still, still, None, place, tint, logit, mouth)))
    torch.testing.assert_close(painted[:, :, :116], image[:, :, :116], atol=1e-4, rtol=0)
    left, right = painted[0, :, 124:132, 85:120], painted[0, :, 124:132, 135:170]
    torch.testing.assert_close(left, torch.tensor([-1.0, -0.25, -0.25])[:, None, None].expand_as(left))
    torch.testing.assert_close(right, torch.tensor([0.2, -0.25, -0.25])[:, None, None].expand_as(right))


def test_a_mouth_takes_the_colours_of_the_portrait() -> None:
    mouth = torch.rand(2, 3, *MOUTH_SIZE) * 2 - 1
    same = torch.zeros(2, 4)
    torch.testing.assert_close(tinted(mouth, same), mouth)
    grey = tinted(mouth, torch.tensor([[0.0, 0.0, 0.0, -1.0]]).expand(2, 4))
    torch.testing.assert_close(grey, mouth.mean(1, keepdim=True).expand_as(mouth))
    warm = tinted(mouth, torch.tensor([[0.5, 0.0, -0.5, 0.0]]).expand(2, 4)) + 1
    torch.testing.assert_close(warm, (mouth + 1) * torch.tensor([1.5, 1.0, 0.5])[:, None, None])


def test_maps_are_looked_up_where_the_coarse_warp_comes_from() -> None:
    torch.manual_seed(0)
    config = TINY
    head = WarpHead(config).eval()
    torch.nn.init.normal_(head.out.bias, std=0.05)
    maps = torch.randn(config.map_shape)[None] * 0.02
    inputs = torch.randn(1, config.grid**2, config.encoder.hidden), maps, torch.randn(1, 1, 512), torch.randn(1, 3, 512)
    with torch.no_grad():
        moved = head(*inputs)
        still = head(inputs[0], torch.zeros_like(maps), *inputs[2:])
        assert torch.equal(moved.coarse, still.coarse)
        assert torch.equal(still.offsets, still.coarse)
        pair = torch.cat([inputs[2].expand(-1, 3, -1), inputs[3] - inputs[2]], -1)[0]
        bent = head.bend(pair)
        bent[..., BLINK_LEVER] = 0  # the lids' lever is a reading, and stays one
        levers = head.levers(pair) + bent
        answer = torch.einsum("nl,lchw->nchw", levers, maps[0, :, :2])
        torch.testing.assert_close(moved.offsets - moved.coarse, look_up(answer, moved.coarse), atol=1e-5, rtol=1e-4)


def test_lids_close_by_their_landmarks_alone() -> None:
    maps, lines = torch.randn(1, *TINY.map_shape), torch.randn(1, LINES, *TINY.map_shape[2:])
    made = set_lids(maps, lines)
    assert torch.equal(made[:, BLINK_LEVER, :LINES], lines) and not made[:, BLINK_LEVER, LINES:].any()
    made[:, BLINK_LEVER] = maps[:, BLINK_LEVER]
    assert torch.equal(made, maps)


def test_maps_see_places_whatever_level_their_features_have_drifted_to() -> None:
    torch.manual_seed(0)
    maps = ReferenceMaps(TINY)
    torch.nn.init.normal_(maps.out.weight)
    latents = torch.randn(1, TINY.latent_channels, TINY.latent_size, TINY.latent_size)
    inputs = latents, torch.randn(1, TINY.grid**2, TINY.encoder.hidden)
    with torch.no_grad():
        before = maps(*inputs)
        for name, parameter in maps.blocks.named_parameters():
            if name.endswith("3.bias"):
                parameter.sub_(30.0)  # GELUs of such numbers are all zero
        after = maps(*inputs)
    assert after.std() > 0.5 * before.std()


def test_an_untrained_warp_model_shows_the_portrait() -> None:
    torch.manual_seed(0)
    model = SemoModel(TINY).eval()
    image = torch.randint(0, 255, (1, 256, 256, 3), dtype=torch.uint8)
    with torch.no_grad():
        frames = graph_modules(model)["render"](*graph_modules(model)["reference"](image), torch.randn(1, 4, 512))[0]
    assert (frames[0].int() - image.int()).abs().max() <= 1
