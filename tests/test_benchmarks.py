"""The benchmarks' arithmetic on known answers, and both benchmarks on real input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from semo_sdk import Animator
from semo_sdk.benchmarks import command, compare, latency, lipsync, mouth, report
from semo_sdk.benchmarks.lipsync import held_out
from semo_sdk.benchmarks.sheet import Row, contact_sheet, moments
from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.errors import InputError
from semo_sdk.media.audio import load_audio

EXAMPLES = Path(__file__).parent.parent / "examples"


def wave(frames: int = 75, shift: int = 0, seed: int = 3) -> np.ndarray:
    """A smooth random series like a speaking mouth, `shift` frames late."""
    noise = np.random.default_rng(seed).standard_normal(frames + 40)
    smooth = np.convolve(noise, np.hanning(7), mode="same")
    return smooth[20 - shift : 20 - shift + frames]


def test_correlation_of_a_series_with_itself_scaled_and_moved_is_one() -> None:
    assert mouth.correlation(3 * wave() + 1, wave()) == pytest.approx(1)
    assert mouth.correlation(-wave(), wave()) == pytest.approx(-1)


def test_correlation_ignores_frames_without_a_face() -> None:
    made = wave().copy()
    made[10:20] = np.nan
    assert mouth.correlation(made, wave()) == pytest.approx(1)


@pytest.mark.parametrize("made", [np.full(75, 0.2), np.full(75, np.nan), wave()[:5]])
def test_a_still_unseen_or_short_series_correlates_with_nothing(made: np.ndarray) -> None:
    assert mouth.correlation(made, wave()) == 0


@pytest.mark.parametrize("shift", [-5, -2, 0, 3, 5])
def test_best_lag_finds_a_known_delay(shift: int) -> None:
    score, lag = mouth.best_lag(wave(shift=shift), wave())
    assert lag == shift
    assert score == pytest.approx(1)


def test_what_all_series_share_is_taken_out_and_what_is_their_own_stays() -> None:
    rhythm = 3 * wave(seed=0)
    own = [wave(seed=seed) for seed in range(1, 9)]
    series = [rhythm + one for one in own]
    assert mouth.correlation(series[0], series[1]) > 0.8
    rests = mouth.without_rhythm(series)
    assert abs(mouth.correlation(rests[0], rests[1])) < 0.5
    assert np.mean([mouth.correlation(rest, one) for rest, one in zip(rests, own, strict=True)]) > 0.8
    assert all(len(rest) == 70 for rest in mouth.without_rhythm([series[0][:70], *series[1:]]))


def test_rhythm_of_series_with_gaps_or_without_any_face() -> None:
    gap = wave(seed=1).copy()
    gap[5:8] = np.nan
    rests = mouth.without_rhythm([gap, wave(seed=2), np.full(75, np.nan)])
    assert all(np.isfinite(rest).all() for rest in rests)
    assert mouth.correlation(rests[2], rests[0]) == 0


def test_amplitude_ratio_is_the_ratio_of_deviations() -> None:
    assert mouth.amplitude_ratio(0.5 * wave() + 9, wave()) == pytest.approx(0.5)
    assert mouth.amplitude_ratio(wave(), np.ones(75)) == 0


def test_loudness_follows_the_volume_frame_by_frame() -> None:
    pcm = np.repeat(np.array([0.0, 0.5, 1.0], np.float32), 640)
    assert mouth.loudness(np.concatenate([pcm, pcm[:100]]), 640) == pytest.approx([0, 0.5, 1])


def test_the_head_of_a_moving_photo_is_followed() -> None:
    from PIL import Image

    photo = Image.open(EXAMPLES / "portrait.jpg").convert("RGB")
    moved = [
        np.asarray(photo.transform(photo.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, 0))) for x in range(-8, 9, 4)
    ]
    track = mouth.track_face(moved)
    still = mouth.track_face([np.asarray(photo)] * 5)
    assert track.detection_rate == still.detection_rate == 1
    assert track.head_motion > 10 * still.head_motion
    steps = np.diff(track.head[:, 0])
    assert steps == pytest.approx(np.full(4, steps.mean()), rel=0.3)


def test_a_video_without_a_face_gives_zeros_not_nan() -> None:
    track = mouth.track_face([np.zeros((64, 64, 3), np.uint8)] * 12)
    assert track.detection_rate == track.head_motion == track.roll_deviation == 0
    assert mouth.amplitude_ratio(track.mouth, wave()) == 0


def test_held_out_takes_the_last_files_by_name(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"clip{index:02}.mp4").touch()
    (tmp_path / "zz.txt").touch()
    assert [path.stem for path in held_out(tmp_path, (".mp4",), 5, 3)] == ["clip15", "clip17", "clip19"]
    with pytest.raises(InputError, match="20 files"):
        held_out(tmp_path, (".mp4",), 60, 21)


def test_contact_sheet_shows_each_row(tmp_path: Path) -> None:
    from PIL import Image

    made = np.full((8, 256, 256, 3), (200, 0, 0), np.uint8)
    real = np.full((9, 256, 256, 3), (0, 0, 200), np.uint8)
    row = Row("title", np.full((256, 256, 3), (0, 200, 0), np.uint8), made, real, np.full(9, np.nan))
    contact_sheet([row, row], tmp_path / "sheet.png", columns=3, tile=40)
    colours = {colour for count, colour in Image.open(tmp_path / "sheet.png").getcolors(100_000) or [] if count >= 1600}
    assert {(200, 0, 0), (0, 0, 200), (0, 200, 0)} <= colours


def test_moments_of_the_sheet_are_open_and_closed_in_turn() -> None:
    opening = np.array([0, 5, 1, 4, 0, 3, np.nan, 6, 2.0])
    assert moments(opening, 3) == [1, 4, 7]


def test_percentiles() -> None:
    assert report.percentiles([1.0, 2.0, 3.0]) == {
        "mean": 2.0,
        "p50": 2.0,
        "p95": 2.9,
        "p99": 2.98,
        "count": 3,
    }


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    report.write_json(tmp_path / "a" / "result.json", {"value": 1})
    with pytest.raises(TypeError):
        report.write_json(tmp_path / "a" / "result.json", {"value": object()})
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == {"value": 1}
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places"):
        report.update_readme("# nothing", [{"benchmark": "lipsync", "pairs_measured": 1, "summary": SUMMARY}])


SUMMARY = {
    name: {"mean": 0.5, "min": 0.25, "max": 0.75}
    for name in (
        "correlation",
        "best_correlation",
        "mismatched",
        "beyond_rhythm",
        "beyond_rhythm_mismatched",
        "loudness",
        "amplitude_ratio",
        "head_motion",
        "head_motion_real",
        "detection_rate",
    )
}


def test_readme_tables_are_replaced_between_their_markers() -> None:
    text = "before\n<!-- lipsync -->\nold\n<!-- end lipsync -->\nafter"
    new = report.update_readme(text, [{"benchmark": "lipsync", "pairs_measured": 7, "summary": SUMMARY}])
    assert new.startswith("before\n<!-- lipsync -->\n| 7 held-out pairs | mean | min | max |")
    assert new.endswith("<!-- end lipsync -->\nafter")
    assert "old" not in new and "0.25" in new


@pytest.fixture(scope="module")
def animator() -> Iterator[Animator]:
    """One portrait on the embedded model."""
    with Animator(EXAMPLES / "portrait.jpg") as animator:
        yield animator


@pytest.fixture(scope="module")
def talking(animator: Animator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `clips` and `portraits`: two videos that the model made, and the photos they were made from."""
    folder = tmp_path_factory.mktemp("talking")
    for name in ("clips", "portraits"):
        (folder / name).mkdir()
    speech = load_audio(EXAMPLES / "speech.wav")[: 3 * SAMPLE_RATE]
    animator.from_audio(EXAMPLES / "grid.wav").save(folder / "clips" / "a.mp4")
    animator.with_portrait(EXAMPLES / "portrait2.jpg").from_audio(speech).save(folder / "clips" / "b.mp4")
    for name in ("portrait.jpg", "portrait2.jpg"):
        shutil.copy(EXAMPLES / name, folder / "portraits")
    return folder


def test_a_model_measured_against_its_own_videos_agrees_with_itself(talking: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = lipsync.run(talking / "clips", talking / "portraits", count=2, sheet=sheet)
    assert [pair["clip"] for pair in result["pairs"]] == ["a", "b"]
    for pair in result["pairs"]:
        # not quite 1: another crop, H.264, and the landmarks' noise
        assert pair["correlation"] > 0.9
        assert 0.85 < pair["amplitude_ratio"] < 1.15
        assert pair["detection_rate"] == pair["detection_rate_real"] == 1
    assert result["summary"]["mismatched"]["mean"] < result["summary"]["correlation"]["mean"]
    assert sheet.stat().st_size > 10_000
    json.dumps(result)
    assert "2 held-out pairs" in lipsync.markdown(result)


def test_portraits_without_a_face_are_left_out_and_listed(talking: Path, tmp_path: Path) -> None:
    from PIL import Image

    portraits = tmp_path / "portraits"
    shutil.copytree(talking / "portraits", portraits)
    Image.new("RGB", (300, 300)).save(portraits / "none.png")
    clips = tmp_path / "clips"
    shutil.copytree(talking / "clips", clips)
    shutil.copy(clips / "a.mp4", clips / "c.mp4")
    with pytest.raises(InputError, match="needs at least 2"):
        lipsync.run(clips, portraits, count=1)
    result = lipsync.run(clips, portraits, count=3)
    assert result["pairs_measured"] == 2
    assert [left["portrait"] for left in result["left_out"]] == ["none"]


def test_latency_measures_everything_and_names_the_machine(tiny_bundle: Path) -> None:
    result = latency.run(EXAMPLES / "portrait.jpg", EXAMPLES / "grid.wav", bundle=str(tiny_bundle), repeats=1)
    whole = result["end_to_end"]
    assert whole["frames"] == 75 and whole["video_seconds"] == 3.0
    assert whole["rtf"]["p50"] == pytest.approx(whole["seconds"]["p50"] / 3, rel=0.01)
    assert set(whole["graph_ms_per_frame"]) == {"audio", "motion", "render"}
    assert sum(whole["graph_ms_per_frame"].values()) < 1000 * whole["seconds"]["mean"] / 75
    assert list(result["streaming"]) == ["quality", "balanced", "low"]
    for name, hop_ms in {"quality": 640, "balanced": 320, "low": 160}.items():
        first = result["streaming"][name]
        compute, whole_wait = first["first_frame_compute_ms"], first["first_frame_from_speech_start_ms"]
        assert whole_wait["p50"] == pytest.approx(compute["p50"] + hop_ms)
        assert first["rtf_without_encoder"] > 0
    assert result["cold_start"]["peak_mib"] > 50
    assert result["fingerprint"]["cpu"]["usable_cores"] >= 1 and result["fingerprint"]["packages"]["openvino"]
    table = latency.markdown(json.loads(json.dumps(result)))
    assert "real-time factor" in table and "`low`" in table


def test_latency_refuses_speech_that_is_too_short(tmp_path: Path) -> None:
    short = tmp_path / "short.wav"
    short.write_bytes((EXAMPLES / "grid.wav").read_bytes()[:32_044])
    with pytest.raises(InputError, match=r"at least 2\.0 s"):
        latency.run(EXAMPLES / "portrait.jpg", short)


@pytest.mark.parametrize(
    ("provenance", "trained"),
    [
        ({}, False),
        ({"weights": "random"}, False),
        ({"step": "7", "weights": "random"}, False),
        ({"statement": "Random weights of the paper's sizes"}, False),
        ({"step": 7, "recipe": "random truncation of speech"}, True),
    ],
)
def test_random_weights_are_called_so(provenance: dict[str, Any], trained: bool) -> None:
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(provenance=provenance))
    assert command.label_of(bundle) == ("trained weights" if trained else "random weights")


def test_a_comparison_names_the_weights_as_the_results_do() -> None:
    common = {"benchmark": "latency", "weights": {"recipe": "random truncation"}, "weights_label": "trained weights"}
    told = compare.markdown(common, {"benchmark": "latency", "weights": "random weights"})
    assert "before: None (trained weights)" in told and "after: None (random weights)" in told
