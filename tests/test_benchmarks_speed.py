"""The speed benchmarks: sessions found, results compared, pages written; on tiny models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from semo_sdk.benchmarks import compare, fleet, meters, peak, plots, report, sessions, throughput
from semo_sdk.cli import app
from semo_sdk.errors import ConfigError, InputError

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_throughput_of_a_tiny_model(tiny_bundle: Path) -> None:
    result = throughput.run(
        bundle=str(tiny_bundle), backend="openvino", threads=1, batches=[1, 2], seconds=0.05, naive=True
    )
    json.dumps(result)
    assert result["weights"] == "random weights" and result["backend"] == "openvino"
    assert result["peak"]["tflops"] > 0 and result["engine_build"] is None
    assert set(result["first_result_s"]) == {"reference", "audio", "motion", "render"}
    for row, batch in zip(result["batches"], (1, 2), strict=True):
        assert row["batch"] == batch and row["rtf"] == pytest.approx(25 / row["fps"], rel=0.01)
        assert row["megapixels_per_s"] == pytest.approx(row["fps"] * 0.065536, rel=0.05)
        assert row["fps"] == pytest.approx(1000 * 16 * batch / row["pass_ms"]["p50"], rel=0.01)
        for stage in row["stages"].values():
            assert stage["tflops"] == pytest.approx(stage["gflop"] / stage["ms"], rel=0.05, abs=2e-4)
    assert result["times_naive"] > 0 and "no reference cache" in result["naive"]["what"]
    text = throughput.markdown(json.loads(json.dumps(result)))
    assert "random weights" in text and "share of peak" in text and "times the naive version's" in text


def test_impossible_batches_are_refused() -> None:
    for batches in ([], [0], [9]):
        with pytest.raises(ConfigError, match="1 to 8"):
            throughput.run(batches=batches)


@pytest.mark.parametrize("backend", ["fake", "tensorrt"])
def test_a_peak_that_cannot_be_measured_says_why(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from semo_sdk.backends import torch as torch_backend

    monkeypatch.setattr(torch_backend, "has_cuda", lambda: False)
    found = peak.matrix_peak(backend, "fp16")
    assert found["tflops"] is None and found["reason"]


def test_the_peak_of_each_cpu_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "CPU_SIZES", (128,))
    for backend in ("openvino", "onnxruntime:cpu", "torch"):
        assert 0 < peak.matrix_peak(backend, "fp32", 1)["tflops"] < 50
    assert peak.matrix_peak("onnxruntime:cpu", "fp16")["tflops"] is None
    for precision in ("bf16", "int8", "fp8"):
        assert peak.matrix_peak("torch", precision, 1)["tflops"] > 0


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 20, 64, 255, 256, 1000])
@pytest.mark.parametrize("guess", [1, 5, 100])
def test_the_largest_crowd_is_found_in_few_tries(limit: int, guess: int) -> None:
    tries: dict[int, bool] = {}
    while (count := sessions.largest(tries, guess)) is not None:
        assert count not in tries and 1 <= count <= sessions.LARGEST
        tries[count] = count <= limit
    assert max((n for n, ok in tries.items() if ok), default=0) == min(limit, sessions.LARGEST)
    assert len(tries) <= 30


@pytest.mark.slow
def test_sessions_of_a_tiny_model_are_measured(tiny_bundle: Path) -> None:
    result = sessions.run(
        EXAMPLES / "portrait.jpg",
        EXAMPLES / "speech.wav",
        bundle=str(tiny_bundle),
        backend="openvino",
        threads=1,
        seconds=1.0,
        counts=[2],
    )
    json.dumps(result)
    [row] = result["tries"]
    assert row["sessions"] == 2 and row["gap_ms"]["p50"] > 0
    assert row["gap_ms"]["count"] > 0 and 0 <= row["late"] <= 1 and row["busy"] > 0
    assert result["carried"] in (0, 2) and result["weights"] == "random weights"
    assert "live session" in sessions.markdown(result)


def test_a_player_waits_for_late_frames_and_is_not_blamed_for_its_own_lateness() -> None:
    from semo_sdk.serving.speech import Frame

    ready: list[float] = [0.0, 0.0, 0.1, 0.1, 0.1]
    clock = SimpleNamespace(now=0.0)
    image, sound = np.zeros((1, 1, 3), np.uint8), np.zeros(640, np.float32)

    def take() -> Frame | None:
        if ready and ready[0] <= clock.now:
            ready.pop(0)
            return Frame(image, sound, 0, True)
        return None

    session: Any = SimpleNamespace(take=take, push=lambda pcm: None)
    player = sessions.Player(session, np.zeros(16_000, np.float32), began=0.0, due=0.0)
    for clock.now in np.arange(0, 0.25, 0.003):
        player.turn(clock.now, measuring=True)
    assert player.gaps == pytest.approx([40, 62, 40, 40], abs=0.1)


def result_of(kind: str = "throughput", **changes: Any) -> dict[str, Any]:
    row = {"batch": 1, "fps": 100.0, "pass_ms": {"mean": 5.0, "p50": 4.0, "count": 9}, "gpu": {}}
    result = {"benchmark": kind, "batches": [row | changes], "fingerprint": {"cpu": {"memory_gib": 4}}}
    return {**result, "batch_sizes": [0, 3]}  # how many launches of each size: no measurement


def test_comparison_knows_which_way_is_better() -> None:
    before, after = result_of(), result_of(fps=120.0, pass_ms={"mean": 1.0, "p50": 5.0, "count": 1})
    rows = {row["what"]: row for row in compare.compare(before, after)}
    assert set(rows) == {"batches.batch=1.fps", "batches.batch=1.pass_ms.p50"}
    assert rows["batches.batch=1.fps"]["better"] == 1.2 and not rows["batches.batch=1.fps"]["regression"]
    assert rows["batches.batch=1.pass_ms.p50"]["better"] == 0.8 and rows["batches.batch=1.pass_ms.p50"]["regression"]
    text = compare.markdown(before, after)
    assert text.count("WORSE") == 1 and "1 of 2 numbers got worse" in text
    assert not any(row["regression"] for row in compare.compare(before, result_of(fps=97.0)))
    with pytest.raises(InputError, match="throughput and sessions"):
        compare.compare(before, result_of("sessions"))


def test_comparison_of_pictures_and_lips() -> None:
    def aims(psnr: float, lag: float) -> dict[str, Any]:
        rows = [("PSNR", ">= 29", psnr), ("lag", "<= 1", lag), ("identity", ">= 0.85", None)]
        targets = [{"what": what, "target": target, "measured": value} for what, target, value in rows]
        return {"benchmark": "quality", "model": {"name": "mine"}, "clip_seconds": 3.0, "targets": targets}

    rows = {row["what"]: row for row in compare.compare(aims(30.0, 0.5), aims(33.0, 0.8))}
    assert set(rows) == {"PSNR", "lag"}
    assert not rows["PSNR"]["regression"] and rows["lag"]["regression"]
    assert "before: mine, " in compare.markdown(aims(30.0, 0.5), aims(33.0, 0.8))
    lips = [
        {
            "benchmark": "lipsync",
            "summary": {"correlation": {"mean": mean, "min": 0.1}, "amplitude_ratio": {"mean": mean}},
        }
        for mean in (0.8, 0.6)
    ]
    (row,) = compare.compare(*lips)
    assert row["what"] == "summary.correlation.mean" and row["regression"]


def test_comparison_from_the_command_line(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, fps in zip(paths, (100.0, 50.0), strict=True):
        path.write_text(json.dumps(result_of(fps=fps)))
    done = CliRunner().invoke(app, ["bench", "--compare", *map(str, paths)])
    assert done.exit_code == 0 and "0.50x | WORSE" in done.output
    paths[1].write_text("[]")
    assert CliRunner().invoke(app, ["bench", "--compare", *map(str, paths)]).exit_code == 3
    assert CliRunner().invoke(app, ["bench"]).exit_code == 2


def crowd_result(carried: int = 10) -> dict[str, Any]:
    row = {"sessions": carried, "gap_ms": {"p50": 40.0, "p95": 40.0, "p99": 40.0}, "late": 0.0, "carried": True}
    row |= {"frames_per_s": 25.0 * carried, "busy": 0.9, "mean_batch": 4.0}
    cpu = {"model": "A CPU", "usable_cores": 2}
    return {
        "benchmark": "sessions",
        "bundle": "semo-tiny",
        "weights": "trained weights",
        "backend": "openvino",
        "precision": "bf16",
        "threads": None,
        "latency": "low",
        "carried": carried,
        "tries": [row],
        "fingerprint": {"gpu": [], "cpu": cpu},
    }


def test_the_arithmetic_of_a_fleet() -> None:
    found = fleet.fleet(crowd_result(10), price=0.4, streams=100)
    assert found == {
        "carried": 10,
        "planned": 8,
        "machines": 13,
        "price_per_stream_hour": 0.05,
        "price_per_hour": 5.2,
    }
    assert fleet.fleet(crowd_result(1), price=1, streams=3)["machines"] == 3
    assert fleet.fleet(crowd_result(0), price=1, streams=3)["machines"] is None
    with pytest.raises(ConfigError):
        fleet.fleet(crowd_result(), price=1, streams=0)
    assert "1 / 8 = 0.125" in fleet.markdown([crowd_result()]) and "A CPU, 2 cores" in fleet.markdown([crowd_result()])


def test_a_page_shows_all_results_that_it_has_places_for(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- sessions -->\nold\n<!-- end sessions -->\n<!-- fleet -->\nold\n<!-- end fleet -->\n")
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, carried in zip(files, (10, 20), strict=True):
        path.write_text(json.dumps(crowd_result(carried)))
    report.main([str(page), *map(str, files)])
    text = page.read_text()
    assert "old" not in text and "**10 live sessions**" in text and "**20 live sessions**" in text
    assert "1 / 16 = 0.0625" in text
    report.main([str(page), *map(str, files)])
    assert page.read_text() == text


@pytest.mark.parametrize("benchmark", ["throughput", "sessions"])
def test_the_page_shows_the_committed_results(benchmark: str) -> None:
    root = EXAMPLES.parent
    files = sorted((root / "benchmarks" / "results" / "speed").glob(f"{benchmark}*.json"))
    page = (root / "docs" / "performance.md").read_text(encoding="utf-8")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    assert results and report.update_readme(page, results) == page, "see docs/performance.md: how to make its tables"


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots.plot([crowd_result()], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError):
        plots.plot([{"benchmark": "latency"}], tmp_path / "none.png")


class FakeNvml:
    """A card with a meter; ``old`` ones do not tell energy."""

    class NVMLError(Exception):
        pass

    def __init__(self, old: bool = False) -> None:
        self.old, self.asked = old, 0

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, card: int) -> int:
        if self.old:
            raise self.NVMLError("not supported")
        self.asked += 1
        return 5_000 * self.asked

    def nvmlDeviceGetMemoryInfo(self, card: int) -> Any:
        return SimpleNamespace(used=3 << 20)

    def nvmlDeviceGetPowerUsage(self, card: int) -> int:
        return 120_000


@pytest.mark.parametrize(("old", "energy"), [(False, 5.0), (True, None)])
def test_energy_and_memory_of_a_card(old: bool, energy: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(old))
    with meters.GpuMeter() as meter:
        pass
    assert meter.result == {"peak_mib": 3.0, "energy_j": energy, "mean_watts": 120.0}


def test_without_a_card_the_meter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with meters.GpuMeter() as meter:
        pass
    assert "nvidia-ml-py" in meter.result["reason"]
    assert meters.peak_memory_mib() > 20
