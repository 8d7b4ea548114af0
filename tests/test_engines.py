"""Engines are checked against ONNX Runtime, kept under their key, and used only when everything fits."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semo_sdk.backends import graph_specs, load_engines, select, tensorrt
from semo_sdk.backends.base import Engine, GraphSpec
from semo_sdk.backends.engine_files import engine_sets, verify
from semo_sdk.backends.fake import FakeEngine
from semo_sdk.backends.onnxruntime import OnnxRuntimeEngine
from semo_sdk.backends.tensorrt_api import Flavour, Gpu
from semo_sdk.bundle import Bundle
from semo_sdk.engines import BuildReport, build_engines
from semo_sdk.engines import build as build_module
from semo_sdk.engines.check import build_safely, compare, draw_face, make_samples
from semo_sdk.engines.compile import Compiled
from semo_sdk.engines.plan import GraphPlan
from semo_sdk.errors import BackendUnavailableError, BundleError, ConfigError, EngineError, EngineMismatchError
from semo_sdk.media.face import FaceDetector, FaceMesh
from tests.conftest import TINY
from tests.toy_bundle import toy_bundle

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06")
TRT = Flavour("tensorrt", "TensorRT", object(), "11.4.0")
SPECS = graph_specs(TINY)
NUMPY = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("toy") / "toy", TINY)


# -- numbers


def run(bundle: Bundle, precision: str) -> Callable[[GraphSpec], Engine]:
    return lambda spec: OnnxRuntimeEngine(spec, bundle.graph_path(spec.name, precision), threads=1)


def trusted(bundle: Bundle) -> Any:
    return make_samples(bundle.config, {name: run(bundle, "fp32")(spec) for name, spec in SPECS.items()}, batch=2)


def test_samples_feed_every_graph_and_the_same_graph_passes(bundle: Bundle) -> None:
    samples = trusted(bundle)
    for name, spec in SPECS.items():
        spec.check(samples.feeds[name])
        assert compare(spec, "fp16", samples.outputs[name], run(bundle, "fp16")(spec)(samples.feeds[name])).passed


def test_wrong_numbers_are_told_by_output(bundle: Bundle) -> None:
    spec, outputs = SPECS["reference"], trusted(bundle).outputs["reference"]
    damage: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        r"latents: .* NaN": lambda a: np.where(np.arange(a.shape[-1]) == 3, np.nan, a),
        r"latents: .* infinite": lambda a: a * np.float32(np.inf),
        r"latents: shape \(1, ": lambda a: a[:1],
        r"latents: mean error 1": lambda a: a * 2,
    }
    for says, change in damage.items():
        found = {**outputs, "latents": change(outputs["latents"])}
        attempt = compare(spec, "bf16", outputs, found)
        assert not attempt.passed
        with pytest.raises(AssertionError, match=says):
            raise AssertionError(attempt.detail)
    frames = {"frames": np.full((1, 4, 256, 256, 3), 100, np.uint8)}
    assert compare(SPECS["render"], "fp16", frames, {"frames": frames["frames"] + 1}).passed
    assert not compare(SPECS["render"], "fp16", frames, {"frames": frames["frames"] + 9}).passed


def compiled(precision: str, data: bytes = b"x") -> Compiled:
    return Compiled(data, {NUMPY[precision]: 1}, 0.0)


def test_an_overflow_is_built_again_in_a_safer_precision(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loud = toy_bundle(tmp_path / "loud", TINY, gain=600)
    spec = SPECS["reference"]
    exact = run(loud, "fp32")(spec)
    tried: list[str] = []

    def build(precision: str) -> Compiled:
        tried.append(precision)
        return compiled(precision, precision.encode())

    class Rounded(OnnxRuntimeEngine):
        """What float16 does to means of pixels (about 125) times 600."""

        def __call__(self, feeds: Any) -> Any:
            with np.errstate(over="ignore"):
                return {name: array.astype(np.float16) for name, array in super().__call__(feeds).items()}

    def open_engine(data: bytes) -> Engine:
        return Rounded(spec, loud.graph_path(spec.name, "fp32")) if data == b"fp16" else exact

    with caplog.at_level(logging.WARNING, "semo_sdk"):
        result, precision, attempts = build_safely(spec, "fp16", build, open_engine, trusted(loud))
    assert tried == ["fp16", "bf16"] and precision == "bf16" and result.data == b"bf16"
    assert [(a.precision, a.passed) for a in attempts] == [("fp16", False), ("bf16", True)]
    assert "NaN or infinite" in attempts[0].detail
    assert "reference in fp16 is off" in caplog.text and "building it in bf16" in caplog.text


def test_numbers_that_are_wrong_in_every_precision_stop_the_build(bundle: Bundle) -> None:
    spec, samples = SPECS["audio"], trusted(bundle)

    class Wrong(OnnxRuntimeEngine):
        def __call__(self, feeds: Any) -> Any:
            return {name: array + 1 for name, array in super().__call__(feeds).items()}

    def wrong(data: bytes) -> Engine:
        return Wrong(spec, bundle.graph_path("audio", "fp32"), threads=1)

    with pytest.raises(EngineError, match=r"in every precision \(fp16: features.*bf16: .*fp32: .*Nothing was written"):
        build_safely(spec, "fp16", compiled, wrong, samples)


def test_less_than_the_precision_asked_for_is_an_error_and_more_is_told() -> None:
    for asked, made in (("fp32", "fp16"), ("bf16", "fp16"), ("fp16", "bf16")):
        with pytest.raises(EngineError, match=f"asked for in {asked} and computes in {made}"):
            build_safely(SPECS["audio"], asked, lambda precision, made=made: compiled(made), None, None)
    # what reads landmarks stays in float32 in every file, and may be most of a graph
    mixed = Compiled(b"x", {"float32": 9, "float16": 2}, 0.0)
    assert build_safely(SPECS["reference"], "fp16", lambda precision: mixed, None, None)[1] == "fp32"


def test_the_sample_is_a_face_to_those_who_look_for_one() -> None:
    for shift, opening in ((0.0, 0.0), (0.02, 0.02), (-0.02, -0.02)):
        face = draw_face(256, shift, opening)
        found = FaceDetector()(face)
        mesh = FaceMesh()(face, found[0])
        assert len(found) == 1 and mesh is not None and mesh.presence > 0.9


# -- a machine with a GPU, without one


class Machine:
    """Pretends that an H100 and TensorRT are here: engines are names of ONNX files that ONNX Runtime runs."""

    def __init__(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, *, off: str = "") -> None:
        self.bundle, self.off, self.patch = bundle, off, monkeypatch
        self.compiled: list[tuple[str, str]] = []
        for module in (build_module, tensorrt):
            monkeypatch.setattr(module, "gpu", lambda: H100)
            monkeypatch.setattr(module, "installed_flavours", lambda: {"tensorrt": TRT})
        monkeypatch.setattr(build_module, "load_flavour", lambda name: TRT)
        monkeypatch.setattr(build_module, "compile_graph", self.compile)
        monkeypatch.setattr(build_module, "_open", lambda flavour, spec, data: self.open(spec, data))
        monkeypatch.setattr(tensorrt, "check_memory", lambda: None)
        monkeypatch.setattr(tensorrt, "opener", lambda bundle, precision, threads, **_: FakeEngine)
        monkeypatch.setattr(select, "cuda_device_count", lambda: 1)

    def compile(self, flavour: Flavour, plan: GraphPlan, onnx: bytes, path: Path, **_: Any) -> Compiled:
        precision = "bf16" if b"bfloat16" in onnx else path.name.split(".")[1]
        self.compiled.append((plan.spec.name, precision))
        return compiled(precision, f"{plan.spec.name} {precision}".encode())

    def open(self, spec: GraphSpec, data: bytes) -> Engine:
        name, precision = data.decode().split()
        engine = run(self.bundle, "fp16" if precision == "fp16" else "fp32")(spec)
        if name != self.off or precision == "fp32":
            return engine

        class Off(OnnxRuntimeEngine):
            def __call__(self, feeds: Any) -> Any:
                return {key: array * np.nan for key, array in engine(feeds).items()}

        return Off(spec, self.bundle.graph_path(name, "fp32"))


@pytest.fixture
def built(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildReport:
    Machine(bundle, monkeypatch)
    return build_engines(bundle, tmp_path, max_sessions=2)


def here(report: BuildReport, bundle: Bundle, **changes: Any) -> Any:
    settings: dict[str, Any] = {"flavours": {"tensorrt": TRT}, "gpu": H100, "graphs": SPECS, **changes}
    return verify(report.folder, bundle, **settings)


def test_the_offending_graph_alone_is_built_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(bundle, monkeypatch, off="motion")
    report = build_engines(bundle, tmp_path)
    found = {name: engine.precision for name, engine in report.manifest.engines.items()}
    assert found == {**dict.fromkeys(SPECS, "fp16"), "motion": "fp32"}
    assert [p for n, p in machine.compiled if n == "motion"] == ["fp16", "bf16", "fp32"] and len(machine.compiled) == 7
    assert report.manifest.target == "h100" and report.manifest.device.gpu == H100.name
    assert "motion fp16: NOT KEPT, motion: 16384 of 16384 numbers are NaN" in report.table()
    assert build_engines(bundle, tmp_path).reused and len(machine.compiled) == 7


def test_speech_features_stay_in_float32_beside_bfloat16(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(bundle, monkeypatch)
    engines = build_engines(bundle, tmp_path, precision="bf16").manifest.engines
    assert {name: e.precision for name, e in engines.items()} == {**dict.fromkeys(SPECS, "bf16"), "audio": "fp32"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gpu": replace(H100, driver="590.1")}, "driver: built for 580.65.06, here is 590.1"),
        ({"gpu": replace(H100, name="NVIDIA H200")}, "GPU: built for NVIDIA H100 80GB HBM3, here is NVIDIA H200"),
        ({"gpu": replace(H100, compute_capability="8.9")}, "compute capability: built for 9.0, here is 8.9"),
        ({"gpu": None}, "here is none"),
        ({"flavours": {"tensorrt": replace(TRT, version="11.5.0")}}, "TensorRT: built for 11.4.0, here is 11.5.0"),
        ({"flavours": {}}, "TensorRT: built for 11.4.0, here is none"),
        ({"graphs": [*SPECS, "smell"]}, "graph smell: no engine was built"),
    ],
    ids=["driver", "gpu", "capability", "no gpu", "version", "not installed", "graph"],
)
def test_a_mismatch_says_what_differs_and_what_to_do(
    built: BuildReport, bundle: Bundle, changes: dict[str, Any], says: str
) -> None:
    assert here(built, bundle) == built.manifest
    with pytest.raises(EngineMismatchError) as caught:
        here(built, bundle, **changes)
    assert says in str(caught.value)
    assert f"semo build {bundle.path} --target h100 --precision fp16 --max-sessions 2" in str(caught.value)


def test_another_bundle_another_sdk_and_changed_bytes_are_noticed(
    built: BuildReport, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = toy_bundle(tmp_path / "other", TINY, gain=0.25)
    with pytest.raises(EngineMismatchError, match=r"graph reference\.fp16\.onnx: built for [0-9a-f]{12}, here is"):
        here(built, other)
    engine = built.folder / "motion.engine"
    data = engine.read_bytes()
    for damage, says in ((data[::-1], "was altered"), (data[:-1], "bytes instead of"), (None, "is missing")):
        engine.unlink()
        if damage is not None:
            engine.write_bytes(damage)
        with pytest.raises(EngineMismatchError, match=f"motion.engine {says}|motion.engine has .* {says}"):
            here(built, bundle)
    engine.write_bytes(data)
    assert here(built, bundle)
    monkeypatch.setattr("semo_sdk.backends.engine_files.sdk_version", lambda: "9")
    with pytest.raises(EngineMismatchError, match="semo-sdk: built for .*, here is 9"):
        here(built, bundle)


def test_a_manifest_that_was_edited_or_moved_is_refused(built: BuildReport, bundle: Bundle, tmp_path: Path) -> None:
    moved = tmp_path / "engines" / ("0" * 64)
    shutil.copytree(built.folder, moved)
    manifest = built.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"11.4.0"', '"11.5.0"'))
    for folder in (moved, built.folder):
        with pytest.raises(EngineMismatchError, match="does not agree with its own key"):
            verify(folder, bundle, flavours={"tensorrt": TRT}, gpu=H100, graphs=SPECS)
    manifest.write_text("{}")
    with pytest.raises(EngineMismatchError, match="cannot be read"):
        here(built, bundle)
    assert not build_engines(bundle, tmp_path, max_sessions=2).reused, "what is damaged is built again"


def test_auto_takes_engines_of_this_machine_and_says_why(
    built: BuildReport,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert engine_sets(bundle, tmp_path) == engine_sets(bundle, built.folder) == [built.folder]
    with caplog.at_level(logging.INFO, "semo_sdk"), load_engines(bundle, engines=tmp_path) as engines:
        assert (engines.backend, engines.precision) == ("tensorrt", "fp16")
        assert str(built.folder) in engines.reason and H100.driver in engines.reason
    assert caplog.text.count("backend tensorrt") == 1
    with pytest.raises(EngineMismatchError, match="have precision fp16, not fp32"):
        load_engines(bundle, "tensorrt", "fp32", engines=tmp_path)
    monkeypatch.setattr(tensorrt, "gpu", lambda: replace(H100, driver="590.1"))
    with load_engines(bundle, engines=tmp_path) as engines:
        assert engines.backend != "tensorrt"
        assert "driver: built for 580.65.06, here is 590.1" in engines.reason
    with pytest.raises(EngineMismatchError, match="driver"):
        load_engines(bundle, "tensorrt", engines=tmp_path)
    with pytest.raises(BackendUnavailableError, match="no engines were built for bundle 'tiny-random': semo build"):
        load_engines(bundle, "tensorrt", engines=tmp_path / "nowhere")


def test_engines_lie_in_the_users_cache_unless_told_otherwise(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(bundle, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = toy_bundle(tmp_path / "other", TINY.model_copy(update={"name": "other"}))
    report = build_engines(bundle, max_sessions=2)
    assert report.folder.parent == tmp_path / "semo-sdk" / "engines"
    assert tensorrt.find_engines(bundle) == (report.folder, report.manifest)
    with pytest.raises(BackendUnavailableError, match="no engines were built for bundle 'other'"):
        tensorrt.find_engines(other)
    small = build_engines(bundle, max_sessions=1)
    assert tensorrt.find_engines(bundle)[0] == report.folder != small.folder, "more sessions first"
    monkeypatch.setattr(tensorrt, "gpu", lambda: None)
    with pytest.raises(EngineMismatchError, match=r"here is none.*1 older sets do not fit either"):
        tensorrt.find_engines(bundle)


def test_only_bytes_of_the_manifest_are_loaded(built: BuildReport) -> None:
    engine = built.manifest.engines["audio"]
    assert tensorrt.read_plan(built.folder, engine) == b"audio fp16"
    (built.folder / engine.file).write_bytes(b"audio FP16")
    with pytest.raises(EngineMismatchError, match="altered"):
        tensorrt.read_plan(built.folder, engine)


@pytest.mark.parametrize(
    ("wish", "error", "says"),
    [
        ({"precision": "int3"}, ConfigError, "'int3' is unknown; choose auto, fp16, bf16, fp32, int8, fp8"),
        ({"max_sessions": 0}, ConfigError, "max_sessions is 0"),
        ({"target": "l4"}, EngineMismatchError, "this machine has NVIDIA H100"),
        ({"bundle": "nowhere"}, BundleError, "no bundle"),
    ],
)
def test_impossible_wishes_leave_nothing_behind(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: dict[str, Any], error: Any, says: str
) -> None:
    Machine(bundle, monkeypatch)
    with pytest.raises(error, match=says):
        build_engines(**{"bundle": bundle, "out": tmp_path, **wish})
    assert not list(tmp_path.iterdir())
