"""The networks: shapes, what may depend on what, and the paper's sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from semo_sdk.backends.base import graph_specs
from semo_sdk.config import PRESETS, AudioConfig, DecoderConfig, EncoderConfig, GeneratorConfig, SemoConfig
from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES, FEATURE_FRAMES, MEL_HOP, MEL_WINDOW, WINDOW_SAMPLES
from semo_sdk.errors import CheckpointError
from semo_sdk.models import flow
from semo_sdk.models.checkpoint import load_checkpoint, save_checkpoint
from semo_sdk.models.graphs import graph_modules
from semo_sdk.models.motion_encoder import drop_patches
from semo_sdk.models.motion_generator import align_features
from semo_sdk.models.semo import SemoModel
from semo_sdk.models.vae import PatchVae, TinyVae
from semo_sdk.models.whisper import LogMel, WhisperEncoder, load_whisper, mel_filterbank


def small(**changes: object) -> SemoConfig:
    decoder = DecoderConfig(
        hidden=32, layers=2, heads=2, temporal_window=4, prior="warp", prior_noise=0.0, warp_layers=1,
        refine_channels=8, steps=2,
    )  # fmt: skip
    values: dict[str, object] = {
        "name": "small",
        "vae": "patch",
        "encoder": EncoderConfig(hidden=32, layers=1, heads=2),
        "decoder": decoder,
        "generator": GeneratorConfig(hidden=32, layers=2, heads=2, steps=2),
        "audio": AudioConfig(width=32, heads=2, layers=1),
    }
    return SemoConfig(**{**values, **changes})


def lively(config: SemoConfig) -> SemoModel:
    """A model whose zero-initialised layers are random too, so that nothing is trivially equal."""
    torch.manual_seed(0)
    model = SemoModel(config).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def model() -> SemoModel:
    return lively(small())


# --- rectified flow -----------------------------------------------------------------------------------------------


def test_velocity_sign_on_a_known_field() -> None:
    data, noise = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 2.0])
    arrived = flow.sample(lambda x, t: flow.velocity(data, noise), noise, steps=3)
    torch.testing.assert_close(arrived, data)
    half = flow.interpolate(data, noise, torch.tensor(0.5))
    torch.testing.assert_close(flow.step(noise, data - noise, 1.0, 0.5), half)


def test_sampling_converges_where_the_velocity_bends() -> None:
    # data N(2, 0.5^2): the exact flow from the prior's point e ends at 2 + 0.5 e
    def field(x: torch.Tensor, t: float) -> torch.Tensor:
        variance = (1 - t) ** 2 * 0.25 + t**2
        mean_data = 2 + (1 - t) * 0.25 / variance * (x - (1 - t) * 2)
        mean_noise = t / variance * (x - (1 - t) * 2)
        return mean_data - mean_noise

    e = torch.tensor([-1.5, 0.0, 1.0])
    torch.testing.assert_close(flow.sample(field, e, steps=400), 2 + 0.5 * e, atol=0.01, rtol=0)


# --- autoencoders -------------------------------------------------------------------------------------------------


def test_patch_vae_is_lossless_and_orthonormal() -> None:
    image = torch.rand(2, 3, 256, 256) * 2 - 1
    vae = PatchVae()
    latents = vae.encode(image)
    assert latents.shape == (2, 192, 32, 32)
    torch.testing.assert_close(vae.decode(latents), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.square().sum(), image.square().sum(), rtol=1e-4, atol=0)


def test_float32_constants_survive_half_precision() -> None:
    image = torch.rand(1, 3, 256, 256)
    vae = PatchVae().half()
    assert vae.basis.dtype == torch.float32
    torch.testing.assert_close(vae.decode(vae.encode(image)), image, atol=1e-5, rtol=0)


def test_tiny_vae_shapes() -> None:
    vae = TinyVae().eval()
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 64, 64))
        assert latents.shape == (1, 32, 8, 8)
        assert vae.decode(latents).shape == (1, 3, 64, 64)


# --- motion encoder -----------------------------------------------------------------------------------------------


def test_masking_keeps_some_patches_in_their_order() -> None:
    x = torch.arange(256.0).reshape(1, 256, 1).repeat(4, 1, 1)
    kept = drop_patches(x, 0.75)[0][..., 0]
    assert kept.shape == (4, 64)
    assert (kept.diff(dim=1) > 0).all()
    assert len({tuple(row.tolist()) for row in kept}) == 4


@pytest.mark.parametrize(("tokens", "width"), [(1, 32), (1, 512), (1, 1024), (2, 256), (4, 128), (8, 64)])
def test_number_and_width_of_motion_tokens_are_configuration(tokens: int, width: int) -> None:
    config = small(motion_tokens=tokens, motion_width=width)
    model = lively(config)
    with torch.no_grad():
        reference = graph_modules(model)["reference"](torch.zeros(1, 256, 256, 3, dtype=torch.uint8))
        motion = reference[1]
        assert motion.shape == (1, 1, tokens * width)
        frames = graph_modules(model)["render"](*reference, motion.expand(-1, 4, -1))[0]
        assert frames.shape == (1, 4, 256, 256, 3)
        context = motion.expand(-1, CONTEXT_FRAMES, -1)
        features = torch.zeros(1, FEATURE_FRAMES, 2 * config.audio.width)
        noise = torch.zeros(1, CHUNK_FRAMES, config.motion_dim)
        inputs = (noise, context, motion, features, torch.tensor([16]), torch.ones(1))
        assert graph_modules(model)["motion"](*inputs)[0].shape == (1, CHUNK_FRAMES, tokens * width)


# --- motion decoder -----------------------------------------------------------------------------------------------


def test_windows_of_frames_render_alike_alone_and_together(model: SemoModel) -> None:
    graphs = graph_modules(model)
    image = torch.randint(0, 255, (1, 256, 256, 3), dtype=torch.uint8)
    with torch.no_grad():
        reference = graphs["reference"](image)
        motion = torch.randn(1, 8, 512)
        together = graphs["render"](*reference, motion)[0]
        parts = [graphs["render"](*reference, part)[0] for part in motion.split(4, dim=1)]
    assert (together.int() - torch.cat(parts, 1).int()).abs().max() <= 1
    assert not torch.equal(together[:, :4], together[:, 4:])


def test_cached_reference_is_what_the_reference_graph_gives_once(model: SemoModel) -> None:
    """Its keys and values do not depend on the target: the cache is exact, not an approximation."""
    image = torch.randint(0, 255, (2, 256, 256, 3), dtype=torch.uint8)
    with torch.no_grad():
        both = graph_modules(model)["reference"](image)[2]
        one = graph_modules(model)["reference"](image[1:])[2]
    torch.testing.assert_close(both[1:], one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prior", ["noise", "reference"])
@pytest.mark.parametrize("cache", [True, False])
def test_every_prior_renders_with_and_without_cache(prior: str, cache: bool) -> None:
    decoder = DecoderConfig(
        hidden=32, layers=1, heads=2, prior=prior, prior_noise=1.0 if prior == "noise" else 0.3, steps=2,
        cache_reference=cache,
    )  # fmt: skip
    model = lively(small(decoder=decoder))
    graphs, spec = graph_modules(model), graph_specs(model.config)["render"]
    with torch.no_grad():
        reference = graphs["reference"](torch.zeros(1, 256, 256, 3, dtype=torch.uint8))
        inputs = [torch.randn(1, 2, 192, 32, 32), *reference, torch.randn(1, 2, 512)]
        assert len(inputs) == len(spec.inputs)
        assert graphs["render"](*inputs)[0].shape == (1, 2, 256, 256, 3)


# --- motion generator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("available", [1, 4, 8, 16])
def test_features_are_put_under_their_frames(available: int) -> None:
    features = torch.arange(FEATURE_FRAMES).float().reshape(1, FEATURE_FRAMES, 1)
    aligned, heard = align_features(features, torch.tensor([available]))
    frames = torch.arange(-CONTEXT_FRAMES, CHUNK_FRAMES)  # relative to the first target frame
    assert heard[0].tolist() == [int(f) < available for f in frames]
    owner = available - FEATURE_FRAMES + torch.arange(FEATURE_FRAMES)  # frame of each trailing feature
    for place, frame in enumerate(frames):
        if heard[0, place]:
            assert owner[int(aligned[0, place, 0])] == frame


def test_frames_not_heard_have_no_influence(model: SemoModel) -> None:
    g = model.generator
    motion = torch.randn(1, CHUNK_FRAMES, 512)
    inputs = (motion, torch.ones(1), torch.randn(1, CONTEXT_FRAMES, 512), torch.randn(1, 1, 512))
    features = torch.randn(1, FEATURE_FRAMES, 64)
    heard = torch.arange(FEATURE_FRAMES)[None] < 12
    other = features.clone()
    other[:, 12:] += 5
    with torch.no_grad():
        torch.testing.assert_close(g(*inputs, features, heard), g(*inputs, other, heard))
        assert not torch.allclose(g(*inputs, features, heard), g(*inputs, features + 1, heard))


def test_guidance_of_one_is_the_plain_prediction(model: SemoModel) -> None:
    motion = graph_modules(model)["motion"]
    noise, context = torch.randn(1, CHUNK_FRAMES, 512), torch.randn(1, CONTEXT_FRAMES, 512)
    fixed = (noise, context, torch.randn(1, 1, 512), torch.randn(1, FEATURE_FRAMES, 64), torch.tensor([16]))
    with torch.no_grad():
        plain, silent, strong = (motion(*fixed, torch.tensor([w]))[0] for w in (1.0, 0.0, 2.0))
        deaf = motion(*fixed[:3], torch.randn(1, FEATURE_FRAMES, 64), fixed[4], torch.zeros(1))[0]
    torch.testing.assert_close(silent, deaf)  # without guidance the speech does not matter
    assert not torch.allclose(plain, silent)
    assert not torch.allclose(plain, strong)


# --- speech -------------------------------------------------------------------------------------------------------


def test_log_mel_is_a_power_spectrogram_without_look_ahead() -> None:
    pcm = torch.randn(1, WINDOW_SAMPLES) * 0.1
    mel = LogMel(-10.0)
    result = mel(pcm)
    window = torch.hann_window(MEL_WINDOW)
    power = torch.stft(pcm, MEL_WINDOW, MEL_HOP, window=window, center=False, return_complex=True).abs().square()
    expected = ((mel_filterbank() @ power).clamp(min=1e-10).log10().clamp(min=-10.0) + 4) / 4
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-3)
    later = pcm.clone()
    later[:, -MEL_HOP:] = 0
    torch.testing.assert_close(mel(later)[..., :-1], result[..., :-1])


def test_filterbank_covers_the_spectrum_on_the_mel_scale() -> None:
    bank = mel_filterbank()
    assert bank.shape == (80, 201)
    peaks = bank.argmax(1)
    assert (peaks.diff() >= 0).all()
    assert peaks[-1] > 190
    # Slaney: linear below 1 kHz, logarithmic above, each filter of unit area (201 bins of 40 Hz)
    torch.testing.assert_close((bank * 40).sum(1)[50:], torch.ones(30), atol=0.06, rtol=0)


def test_whisper_weights_from_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = small().audio
    torch.manual_seed(1)
    source = WhisperEncoder(config)
    state = {f"encoder.{k}": v.contiguous() for k, v in source.state_dict().items()}
    state["encoder.positional_embedding"] = torch.randn(1500, config.width)  # as published: 30 s of positions
    save_file(state, tmp_path / "whisper.safetensors")
    target = WhisperEncoder(config)
    load_whisper(target, tmp_path / "whisper.safetensors")
    torch.testing.assert_close(target.conv2.weight, source.conv2.weight)
    assert torch.equal(target.positional_embedding, state["encoder.positional_embedding"][:128])
    with pytest.raises(CheckpointError, match="do not exist"):
        load_whisper(target, tmp_path / "absent.safetensors")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_whisper(target, tmp_path / "wrong.safetensors")


# --- checkpoints and sizes ----------------------------------------------------------------------------------------


def test_checkpoint_round_trip_and_errors(model: SemoModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, {"note": "x"})
    loaded, metadata = load_checkpoint(path)
    assert loaded.config == model.config
    assert metadata["note"] == "x"
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "absent.safetensors")


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_semo_base_has_the_papers_dimensions() -> None:
    """The paper gives 450 M for the motion autoencoder and 200 M for the generator, and no per-part numbers.

    Its stated dimensions (768 wide, 8 + 12 + 8 layers) give less. With the frozen VAE (84 M) the autoencoder has
    327 M here; what is missing fits a feed-forward network in each Temporal Align layer (57 M) and wider conditioning.
    A DiT with cross-attention has 107 M here; 200 M fits Whisper large's features and projections being counted.
    """
    with torch.device("meta"):
        model = SemoModel(PRESETS["semo-base"])
    assert millions(model.encoder) == pytest.approx(57, abs=3)
    assert millions(model.decoder) == pytest.approx(185, abs=8)
    assert millions(model.vae) == pytest.approx(84, abs=1)
    assert millions(model.generator) == pytest.approx(107, abs=8)


@pytest.mark.slow
def test_semo_base_runs_one_pass() -> None:
    """Portrait and speech to pixels at the paper's size, random weights, two frames and one step."""
    base = PRESETS["semo-base"]
    config = base.model_copy(
        update={
            "decoder": base.decoder.model_copy(update={"steps": 1}),
            "generator": base.generator.model_copy(update={"steps": 1}),
        }
    )
    torch.manual_seed(0)
    graphs = graph_modules(SemoModel(config))
    with torch.no_grad():
        latents, motion, cache = graphs["reference"](torch.randint(0, 255, (1, 256, 256, 3), dtype=torch.uint8))
        features = graphs["audio"](torch.randn(1, WINDOW_SAMPLES) * 0.1)[0]
        context = motion.expand(-1, CONTEXT_FRAMES, -1)
        noise = torch.randn(1, CHUNK_FRAMES, 512)
        made = graphs["motion"](noise, context, motion, features, torch.tensor([16]), torch.ones(1))[0]
        frames = graphs["render"](torch.randn(1, 2, 4, 32, 32), latents, motion, cache, made[:, :2])[0]
    assert made.isfinite().all()
    assert frames.shape == (1, 2, 256, 256, 3)
    assert frames.dtype == torch.uint8
