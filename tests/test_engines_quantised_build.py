"""int8 and fp8 in `semo build`: what is quantised, under which key, on which GPU, and what falls back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from semo_sdk import cli
from semo_sdk.backends.base import Engine, GraphSpec, graph_specs
from semo_sdk.backends.engine_files import Attempt
from semo_sdk.backends.tensorrt_api import Flavour, Gpu, gpu
from semo_sdk.bundle import Bundle
from semo_sdk.engines import build as build_module
from semo_sdk.engines import build_engines
from semo_sdk.engines.calibrate import Calibration, drawn_calibration
from semo_sdk.engines.check import build_safely
from semo_sdk.engines.compile import Compiled
from semo_sdk.engines.draft import Draft
from semo_sdk.engines.plan import SPARED, GraphPlan
from semo_sdk.engines.recipes import recipes
from semo_sdk.errors import ConfigError, EngineError
from tests.conftest import TINY
from tests.test_engines import H100, Machine
from tests.toy_bundle import toy_bundle

SPECS = graph_specs(TINY)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("toy") / "toy", TINY)


def with_drafts(monkeypatch: pytest.MonkeyPatch, *, checked: bool = False) -> list[str]:
    """Drafts in no time: the render graph is one, the others are not. Returns the digests that were asked with.

    Numbers of built engines are taken on trust unless ``checked``.
    """
    digests: list[str] = []

    def drafts(bundle: Bundle, precision: str, calibration: Calibration, *, progress: bool) -> dict[str, Draft]:
        digests.append(calibration.digest)
        no = {name: Draft(None, Attempt(precision=precision, passed=False, detail="no")) for name in SPECS}
        good = Attempt(precision=precision, passed=True, detail="9 of 9 layers")
        return {**no, "render": Draft(f"quantised {precision}".encode(), good)}

    monkeypatch.setattr(build_module, "draft_graphs", drafts)
    if not checked:
        monkeypatch.setattr(build_module, "_samples", lambda bundle, batch: None)
    return digests


class Quantising(Machine):
    """The machine of the engines' tests, which also knows quantised graphs."""

    def compile(self, flavour: Flavour, plan: GraphPlan, onnx: bytes, path: Path, **rest: Any) -> Compiled:
        if not onnx.startswith(b"quantised"):
            return super().compile(flavour, plan, onnx, path, **rest)
        precision = onnx.decode().split()[1]
        self.compiled.append((plan.spec.name, precision))
        arithmetic = {{"fp8": "float8_e4m3fn"}.get(precision, precision): 5, "float16": 9, "float32": 1}
        return Compiled(f"{plan.spec.name} {precision}".encode(), arithmetic, 0.0)

    def open(self, spec: GraphSpec, data: bytes) -> Engine:
        return super().open(spec, data.replace(b"int8", b"fp16").replace(b"fp8", b"fp16"))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_only_what_was_drafted_is_quantised_and_the_report_tells(
    toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    machine, digests = Quantising(toy, monkeypatch), with_drafts(monkeypatch)
    report = build_engines(toy, tmp_path, precision=precision)
    found = {name: engine.precision for name, engine in report.manifest.engines.items()}
    assert found == {**dict.fromkeys(SPECS, "fp16"), "render": precision}
    assert report.manifest.precision == precision and digests == [drawn_calibration().digest]
    table = report.table()
    assert f"motion {precision}: NOT KEPT, no" in table and f"render {precision}: 9 of 9 layers" in table
    assert build_engines(toy, tmp_path, precision=precision).reused and len(machine.compiled) == len(SPECS)


def test_numbers_that_are_off_on_the_gpu_are_built_again_in_fp16(
    toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Quantising(toy, monkeypatch, off="render")
    with_drafts(monkeypatch, checked=True)
    engine = build_engines(toy, tmp_path, precision="int8", max_sessions=1).manifest.engines["render"]
    assert [p for n, p in machine.compiled if n == "render"] == ["int8", "fp16", "bf16", "fp32"]
    assert [a.precision for a in engine.attempts] == ["int8", "int8", "fp16", "bf16", "fp32"]


def test_the_key_knows_precision_and_calibration(toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Quantising(toy, monkeypatch)
    with_drafts(monkeypatch)
    drawn = drawn_calibration()
    monkeypatch.setattr(build_module, "open_calibration", lambda *_: replace(drawn, crops=drawn.crops[:1]))
    wishes: list[dict[str, Any]] = [{"precision": p} for p in ("fp16", "int8", "fp8")]
    wishes.append({"precision": "int8", "calibrate": ("photo.jpg", "speech.wav")})
    assert len({build_engines(toy, tmp_path, **wish).manifest.key for wish in wishes}) == len(wishes)


def test_fp8_is_for_gpus_that_have_it(toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    portable = recipes()["rtx-portable"]
    assert portable.device(None, "fp8").compute_capabilities == ("8.9", "12.0")
    assert portable.device(None, "int8").compute_capabilities == portable.compute_capabilities
    assert recipes()["h100"].device(H100, "fp8").compute_capabilities == ("9.0",)
    ampere = Gpu("NVIDIA A100-SXM4-80GB", "8.0", "580")
    assert recipes()["a100"].device(ampere, "int8")
    with pytest.raises(ConfigError, match=r"8\.9 or newer .*A100-SXM4-80GB has 8\.0; choose int8"):
        recipes()["a100"].device(ampere, "fp8")
    old = portable.model_copy(update={"compute_capabilities": ("8.0", "8.6")})
    with pytest.raises(ConfigError, match=r"is for 8\.0, 8\.6; choose int8"):
        old.device(None, "fp8")
    Machine(toy, monkeypatch)
    with pytest.raises(ConfigError, match="'fp16' needs no calibration"):
        build_engines(toy, tmp_path, calibrate=("photo.jpg", "speech.wav"))
    assert not list(tmp_path.iterdir())


def test_an_engine_without_a_product_in_the_precision_is_an_error() -> None:
    spec = SPECS["render"]
    for made in ({"float16": 9}, {"int8": 3, "bfloat16": 9}):
        with pytest.raises(EngineError, match="asked for in int8"):
            build_safely(spec, "int8", lambda precision, made=made: Compiled(b"x", made, 0.0), None, None)
    mixed = Compiled(b"x", {"float16": 9, "int8": 3}, 0.0)
    assert build_safely(spec, "int8", lambda precision: mixed, None, None)[1] == "int8"


# -- TensorRT-RTX itself, which builds without a GPU


def test_the_command_takes_int8_and_what_to_calibrate_with(toy: Bundle, rtx: Flavour, tmp_path: Path) -> None:
    wish = ["build", str(toy.path), "--out", str(tmp_path), "--target", "rtx-portable"]
    asked = CliRunner().invoke(cli.app, [*wish, "--precision", "int8"])
    assert asked.exit_code == 0, asked.stderr
    assert "int8: render is tried" in asked.stderr  # the bar
    assert f"audio int8: NOT KEPT, {SPARED['audio']}" in asked.stderr
    assert "render int8: NOT KEPT, no linear layer" in asked.stderr
    missing = CliRunner().invoke(cli.app, [*wish, "--precision", "int8", "--calibrate", "no.jpg", "no.wav"])
    assert missing.exit_code == 3 and "no.jpg" in missing.stderr
    unneeded = CliRunner().invoke(cli.app, [*wish, "--calibrate", "no.jpg", "no.wav"])
    assert unneeded.exit_code == 2 and "needs no calibration" in unneeded.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "element"), [("int8", "int8"), ("fp8", "float8_e4m3fn")])
def test_semo_tiny_is_built_in_eight_bits(rtx: Flavour, tmp_path: Path, precision: str, element: str) -> None:
    examples = Path(__file__).parent.parent / "examples"
    report = build_engines(
        "semo-tiny",
        tmp_path,
        target="rtx-portable",
        precision=precision,
        calibrate=(examples / "portrait2.jpg", examples / "grid.wav"),
    )
    engines = report.manifest.engines
    assert report.manifest.precision == precision and engines["render"].precision == precision
    assert engines["render"].arithmetic[element] >= 16 and "float32" in engines["render"].arithmetic
    assert "on ONNX Runtime: frames: mean error" in engines["render"].attempts[0].detail
    for name in ("reference", "motion_encoder", "audio", "motion"):
        assert element not in engines[name].arithmetic and f"{name} {precision}: NOT KEPT" in report.table()
    if precision == "fp8":
        assert report.manifest.device.compute_capabilities == ("8.9", "12.0")
    assert gpu() is not None or "numbers not" in engines["render"].attempts[-1].detail
