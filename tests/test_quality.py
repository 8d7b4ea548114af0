"""The quality benchmark: its metrics on known answers, and a small run from folder to page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from semo_sdk.benchmarks import (
    endurance,
    faces,
    mouth,
    pixels,
    quality,
    quality_page,
    quality_plot,
    quality_tables,
    report,
)
from semo_sdk.benchmarks.faces import FaceSeries
from semo_sdk.benchmarks.learned import Distance, Lpips, check_distances
from semo_sdk.benchmarks.sync import GridSyncNet
from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.errors import InputError
from semo_sdk.media.video import VideoWriter

ROOT = Path(__file__).parent.parent
EXAMPLES, DOCS, RESULTS = ROOT / "examples", ROOT / "docs", ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """(256, 256, 3) uint8 of a face."""
    from PIL import Image

    return np.array(Image.open(EXAMPLES / "portrait.jpg").convert("RGB").resize((256, 256)))


def noisy(frames: np.ndarray, strength: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, strength, frames.shape)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


def test_identical_frames_reach_the_ceiling(photo: np.ndarray) -> None:
    frames = np.stack([photo, photo[::-1]])
    assert pixels.psnr(frames, frames) == pytest.approx([pixels.PSNR_CEILING] * 2)
    assert pixels.ssim(frames, frames) == pytest.approx([1, 1])
    assert not pixels.mean_squared_error(frames, frames).any()


def test_more_noise_lowers_psnr_and_ssim_and_raises_sharpness(photo: np.ndarray) -> None:
    steps = [noisy(photo[None], strength) for strength in (0, 4, 8, 16)]
    psnr = [float(pixels.psnr(step, photo[None])[0]) for step in steps]
    ssim = [float(pixels.ssim(step, photo[None])[0]) for step in steps]
    assert psnr == sorted(psnr, reverse=True) and ssim == sorted(ssim, reverse=True)
    assert psnr[2] == pytest.approx(20 * np.log10(255 / 8), abs=0.3)
    focus = [pixels.sharpness(step[0]) for step in steps]
    assert focus == sorted(focus)


def test_psnr_and_ssim_follow_their_definitions() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 256, (2, 1, 11, 11, 3), dtype=np.uint8)  # exactly one window
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    assert pixels.psnr(a, b)[0] == pytest.approx(10 * np.log10(255**2 / error))
    place = np.arange(-5, 6)
    window = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    scores = []
    for channel in range(3):
        x, y = (image[0, ..., channel] / 255 for image in (a, b))
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy, cov = ((window * (p - mp) * (q - mq)).sum() for p, mp, q, mq in
                       ((x, mx, x, mx), (y, my, y, my), (x, mx, y, my)))  # fmt: skip
        scores.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert pixels.ssim(a, b)[0] == pytest.approx(np.mean(scores), abs=1e-5)


def test_frames_of_other_shapes_are_refused(photo: np.ndarray) -> None:
    for metric in (pixels.psnr, pixels.ssim):
        with pytest.raises(ValueError, match="both must be the same"):
            metric(photo[None], photo[None, :128])


def test_sharpness_falls_with_blur_and_looks_at_its_box_only(photo: np.ndarray) -> None:
    from PIL import Image, ImageFilter

    soft = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(2)))
    assert pixels.sharpness(soft) < 0.5 * pixels.sharpness(photo)
    mixed = photo.copy()
    mixed[:, :128] = 0
    assert pixels.sharpness(mixed, (0, 0, 120, 256)) == 0
    assert pixels.sharpness(photo, (300, 300, 400, 400)) == 0


def test_frechet_distance_of_gaussians() -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((4000, 4))
    assert pixels.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert pixels.frechet_distance(features, features + 3) == pytest.approx(4 * 9)
    # N(0, 1) against N(0, 4) in each of four dimensions: (2 - 1)^2 each
    assert pixels.frechet_distance(features, 2 * features) == pytest.approx(4, rel=0.1)
    few = generator.standard_normal((5, 40))  # singular covariances
    assert pixels.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        pixels.frechet_distance(features[:1], features)


def series_of(width: np.ndarray, lids: np.ndarray | None = None) -> FaceSeries:
    """Meshes whose mouth has this width and whose eyes this aspect, with outer eye corners 100 pixels apart."""
    mesh = np.zeros((len(width), faces.MESH, 3))
    mesh[:, 33, 0], mesh[:, 133, 0], mesh[:, 362, 0], mesh[:, 263, 0] = 0, 30, 70, 100
    mesh[:, 291, 0] = 100 * width
    for upper, lower in ((160, 144), (158, 153), (385, 380), (387, 373)):
        mesh[:, lower, 1] = 30 * (np.full(len(width), 0.3) if lids is None else lids)
        mesh[:, upper, 1] = 0
    return FaceSeries(mesh)


@pytest.mark.parametrize("shift", [-3, 0, 4])
def test_a_shifted_mouth_width_gives_the_lag(shift: int) -> None:
    noise = np.convolve(np.random.default_rng(1).standard_normal(120), np.hanning(7), mode="same")
    made, real = series_of(0.5 + 0.02 * noise[20 - shift : 95 - shift]), series_of(0.5 + 0.02 * noise[20:95])
    score, lag = mouth.best_lag(made.width, real.width)
    assert lag == shift and score == pytest.approx(1)


def test_blinks_are_counted_and_noise_is_not() -> None:
    open_eyes = 0.3 + 0.01 * np.random.default_rng(0).standard_normal(250)
    assert faces.blinks(open_eyes) == 0
    blinking = open_eyes.copy()
    for start in (40, 120, 200):
        blinking[start : start + 5] = 0.08
    blinking[90] = 0.08  # one frame: a slip of the landmarks
    blinking[10:14] = np.nan
    assert faces.blinks(series_of(np.full(250, 0.5), blinking).eye_aspect) == 3
    assert faces.blinks(np.full(250, np.nan)) == 0


@pytest.mark.parametrize(("open_level", "fps"), [(0.32, 25), (0.18, 25), (0.32, 50)])
def test_a_blink_is_one_against_the_eye_s_own_opening(open_level: float, fps: int) -> None:
    step = fps // 25
    eyes = open_level * (1 + 0.01 * np.random.default_rng(1).standard_normal(250 * step))
    eyes *= np.linspace(1.1, 0.9, len(eyes))  # the head bows
    for start, shape in ((50, (0.8, 0.65, 0.68, 0.8)), (110, (0.3, 0.05, 0.3, 0.6, 0.8)), (117, (0.6, 0.1, 0.4, 0.8))):
        eyes[start * step : (start + len(shape)) * step] *= np.repeat(shape, step)  # half closed; two in a row
    eyes[170 * step : 190 * step] *= 0.75  # a look down
    assert faces.blinks(eyes, fps) == 3


def test_head_speed_and_lip_range() -> None:
    head = np.stack([np.arange(50) * 0.02, np.zeros(50)], axis=1)
    track = mouth.Track(np.zeros(50), head, np.zeros(50))
    assert faces.head_speed(track) == pytest.approx(0.02 * 25)
    assert faces.head_speed(mouth.Track(np.zeros(50), np.full((50, 2), np.nan), np.zeros(50))) == 0
    assert faces.lip_range(np.linspace(0, 1, 101)) == pytest.approx(0.9)
    assert faces.lip_range(np.full(9, np.nan)) == 0


def test_landmark_error_is_in_eye_distances() -> None:
    real = series_of(np.full(20, 0.5))
    moved = FaceSeries(real.mesh + np.array([3.0, 4.0, 0.0]))
    assert faces.landmark_error(moved, real) == pytest.approx(0.05)
    assert np.isnan(faces.landmark_error(FaceSeries(np.full_like(real.mesh, np.nan)), real))


def test_speech_is_repeated_to_length() -> None:
    pcm = endurance.speech_of([np.ones(SAMPLE_RATE), np.zeros(SAMPLE_RATE)], 5)
    assert len(pcm) == 5 * SAMPLE_RATE
    assert [float(pcm[second * SAMPLE_RATE]) for second in range(5)] == [1, 0, 1, 0, 1]


def test_what_is_missing_is_named_and_nothing_stands_in() -> None:
    class NoPackage(Lpips):
        def __init__(self) -> None:
            raise ModuleNotFoundError("LPIPS metric requires that torchvision is installed.")

    class NoWeights(Lpips):
        definitions = {"fvd": "FVD"}

        def __init__(self) -> None:
            raise OSError("Name or service not known")

    usable, reasons = check_distances([NoPackage, NoWeights])
    assert not usable
    assert reasons["lpips"] == "not computed: LPIPS metric requires that torchvision is installed."
    assert reasons["fvd"].startswith("not computed: the weights could not be loaded (OSError: Name")


@pytest.mark.parametrize("page", ["evaluation.md", "model-card.md"])
def test_pages_hold_the_committed_numbers(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    results = [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("quality", "lipsync")]
    wanted = [result for result in results if f"<!-- {result['benchmark']} -->" in text]
    assert wanted and report.update_readme(text, wanted) == text


def test_every_number_is_shown_and_what_is_missing_named() -> None:
    result = json.loads((RESULTS / "quality.json").read_text(encoding="utf-8"))
    text = quality_tables.details(result)
    for group in result["reconstruction"]["methods"].values():
        assert {"model", "copy_reference", "vae_round_trip", "puppet", "flow_warp"} == set(group)
    assert text.count("**Reconstruction") == text.count("**Audio-driven") == 2 and "| LPIPS |" not in text
    missing = {name for name, one in result["metrics"].items() if one["status"] != "computed"}
    named = text.partition("Not computed on that machine: ")[2].strip(". \n")
    assert set(named.split(", ")) - {""} == missing
    assert all(f"`{name}`" in text for name in result["controls"])


def test_curves_are_drawn_of_quality_results_only(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    quality_plot.main([str(tmp_path / "curves.png"), str(RESULTS / "quality.json")])
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="no result of semo bench quality"):
        quality_plot.plot({"benchmark": "latency"}, tmp_path / "other.png")


def test_plots_leave_gaps_and_escape_names() -> None:
    svg = quality_page.line_plot({"a": [0, 1, None, 3, 2]}, step=1, x_label="s", y_label="<b>")
    assert svg.count('stroke-width="1.6"') == 2 and "&lt;b&gt;" in svg and "nan" not in svg


class Difference(Distance):
    """Stands for a learned metric: counts what it is given."""

    definitions = {"difference": "mean absolute difference"}

    def __init__(self) -> None:
        self._sum = 0.0

    def update(self, made: np.ndarray, real: np.ndarray) -> None:
        self.samples += len(made)
        self._sum += float(np.abs(made.astype(float) - real).mean(axis=(1, 2, 3)).sum())

    def compute(self) -> dict[str, float]:
        return {"difference": self._sum / self.samples}


@pytest.fixture(scope="module")
def folders(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `clips` and `portraits`: a photo that drifts over the screen, with speech."""
    from semo_sdk.media.audio import load_audio

    root = tmp_path_factory.mktemp("quality")
    for name in ("clips", "portraits"):
        (root / name).mkdir()
    speech = load_audio(EXAMPLES / "speech.wav")
    for number, name in enumerate(("a", "b")):
        frames = np.stack([np.roll(photo, (step // 3) * (1 - 2 * number), axis=1) for step in range(25)])
        with VideoWriter(root / "clips" / f"{name}.mp4", (256, 256), audio=speech[number * SAMPLE_RATE :]) as writer:
            writer.write(frames)
    for name in ("portrait.jpg", "portrait2.jpg"):
        shutil.copy(EXAMPLES / name, root / "portraits" / name)
    return root


@pytest.mark.slow
def test_a_small_run_from_folders_to_a_page(
    folders: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WINDOW": 2, "SPEECH": 1.0, "SILENCE": 2.0}.items():
        monkeypatch.setattr(endurance, name, value)
    page = tmp_path / "quality.html"
    result = quality.run(
        folders / "clips",
        folders / "portraits",
        bundle=str(tiny_bundle),
        precision="fp32",
        count=2,
        seconds=4,
        out=page,
        videos=1,
        distances=(Difference,),
        meters=(GridSyncNet,),
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    methods = result["reconstruction"]["methods"]["held_out_clips"]
    ceiling = methods["vae_round_trip"]
    assert ceiling["psnr"]["min"] > 45 and ceiling["ssim"]["min"] > 0.99 and ceiling["landmark_error"]["mean"] < 0.01
    assert ceiling["mse_from_copy_to_ceiling"] == 1 and methods["copy_reference"]["mse_from_copy_to_ceiling"] == 0
    assert methods["puppet"]["landmark_error"]["mean"] < 0.5 * methods["copy_reference"]["landmark_error"]["mean"]
    assert methods["flow_warp"]["mse_from_copy_to_ceiling"] > max(0.5, methods["puppet"]["mse_from_copy_to_ceiling"])
    assert methods["copy_reference"]["difference"] > ceiling["difference"]
    sets = result["generation"]["held_out_clips"]
    assert set(sets) == {"portraits", "same_person", "puppet"} and sets["portraits"]["clips"] == 2
    assert sets["same_person"]["summary"]["psnr"]["mean"] > 5
    assert len(result["long_run"]["windows"]) == 2 and len(result["silence"]["series"]) == 75
    assert result["metrics"]["difference"]["status"] == "computed"
    assert result["metrics"]["grid_syncnet_distance"]["status"] == "computed"
    assert len(result["targets"]) == 10 and "| aim |" in quality_tables.readme(result)

    text = page.read_text(encoding="utf-8")
    videos = sorted(tmp_path.glob("quality_files/*.mp4"))
    assert len(videos) == 2 and all(f"quality_files/{video.name}" in text for video in videos)
    assert "random weights" in text and "http" not in text
    assert "Reconstruction: 2 held-out clips" in quality_tables.markdown(result)


@pytest.mark.parametrize(("count", "seconds"), [(1, 60.0), (2, 3.0)])
def test_impossible_runs_are_refused(folders: Path, count: int, seconds: float) -> None:
    with pytest.raises(InputError, match="are needed"):
        quality.run(folders / "clips", folders / "portraits", count=count, seconds=seconds)
