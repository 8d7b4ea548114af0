"""TensorRT-RTX builds engines for real, without a GPU: every graph, every precision, with the contract checked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from semo_sdk import cli
from semo_sdk.backends import graph_specs, load_engines
from semo_sdk.backends.base import TensorSpec
from semo_sdk.backends.engine_files import parts_key, verify
from semo_sdk.backends.onnxruntime import OnnxRuntimeEngine
from semo_sdk.backends.tensorrt_api import Flavour, Gpu, gpu
from semo_sdk.bundle import Bundle, sha256_file
from semo_sdk.config import SemoConfig, preset
from semo_sdk.engines import BuildReport, build_engines
from semo_sdk.engines.check import compare, make_samples
from semo_sdk.engines.compile import compile_graph
from semo_sdk.engines.plan import GraphPlan, plan_graph
from semo_sdk.engines.precision import graph_bytes
from semo_sdk.engines.recipes import recipes
from semo_sdk.errors import BackendUnavailableError, EngineError, EngineMismatchError
from tests.conftest import TINY
from tests.toy_bundle import toy_bundle

SPECS = graph_specs(TINY)
PORTABLE = recipes()["rtx-portable"]
ELEMENTS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
needs_gpu = pytest.mark.skipif(gpu() is None, reason="no NVIDIA GPU here")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("toy") / "toy", TINY)


def plan(bundle: Bundle, rtx: Flavour, graph: str, precision: str = "fp16") -> GraphPlan:
    device = PORTABLE.device(None)
    return plan_graph(
        bundle, SPECS[graph], recipe=PORTABLE, flavour=rtx, device=device, precision=precision, sessions=2
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_all_graphs_are_built_without_a_gpu(toy: Bundle, rtx: Flavour, tmp_path: Path, precision: str) -> None:
    report = build_engines(toy, tmp_path, target="rtx-portable", precision=precision, max_sessions=2)
    manifest = report.manifest
    assert report.folder == tmp_path / "engines" / manifest.key and not report.reused
    assert sorted(p.name for p in report.folder.iterdir()) == sorted([f"{n}.engine" for n in SPECS] + ["manifest.json"])
    assert [p.name for p in (tmp_path / "engines").iterdir()] == [manifest.key], "nothing temporary is left"
    assert (manifest.flavour, manifest.version, manifest.max_sessions) == ("tensorrt_rtx", rtx.version, 2)
    assert manifest.device.gpu == "" and manifest.device.compute_capabilities == PORTABLE.compute_capabilities
    for name, engine in manifest.engines.items():
        path = report.folder / engine.file
        wanted = "fp32" if (name, precision) == ("audio", "bf16") else precision
        assert engine.precision == wanted and engine.arithmetic == {ELEMENTS[wanted]: 1}
        assert (engine.sha256, engine.size) == (sha256_file(path), path.stat().st_size)
        assert engine.key == parts_key(engine.parts) and engine.seconds > 0
        assert engine.parts["shapes"]["noise.max" if name == "motion" else next(iter(engine.parts["shapes"]))]
        assert engine.attempts[0].passed
        plan_bytes = path.read_bytes()
        tensors = (*SPECS[name].inputs, *SPECS[name].outputs)
        assert all(t.name.encode() in plan_bytes for t in tensors), "the engine knows its tensors by name"


def test_what_is_there_is_kept_and_what_is_damaged_is_built_again(toy: Bundle, rtx: Flavour, tmp_path: Path) -> None:
    wish: dict[str, Any] = {"target": "rtx-portable", "max_sessions": 1}
    first = build_engines(toy, tmp_path, **wish)
    again = build_engines(toy, tmp_path, **wish)
    assert again.reused and again.manifest == first.manifest
    engine = first.folder / "audio.engine"
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    repaired = build_engines(toy, tmp_path, **wish)
    assert not repaired.reused and repaired.folder == first.folder
    assert verify(first.folder, toy, flavours={rtx.name: rtx}, gpu=None, graphs=SPECS, must_run=False), "and fits again"


@pytest.fixture(scope="module")
def built(toy: Bundle, rtx: Flavour, tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    return build_engines(toy, tmp_path_factory.mktemp("built"), target="rtx-portable")


def test_portable_engines_run_only_on_gpus_that_they_cover(toy: Bundle, rtx: Flavour, built: BuildReport) -> None:
    report = built
    here: dict[str, Any] = {"flavours": {rtx.name: rtx}, "graphs": SPECS}
    assert verify(report.folder, toy, gpu=Gpu("NVIDIA GeForce RTX 4090", "8.9", "580"), **here)
    with pytest.raises(EngineMismatchError, match=r"compute capability: built for 8\.0, .*, here is 9\.0"):
        verify(report.folder, toy, gpu=Gpu("NVIDIA H100", "9.0", "580"), **here)
    with pytest.raises(EngineMismatchError, match="GPU: built for any GPU of compute capability .* here is none"):
        verify(report.folder, toy, gpu=None, **here)
    if gpu() is None:
        with pytest.raises(BackendUnavailableError, match="TensorRT-RTX .*no NVIDIA GPU"):
            load_engines(toy, "tensorrt", engines=report.folder)


def test_a_graph_with_another_contract_is_not_built(toy: Bundle, rtx: Flavour) -> None:
    wanted, (data, path) = plan(toy, rtx, "audio"), graph_bytes(toy, "audio", "fp16")
    other = replace(wanted.spec, outputs=(TensorSpec("features", "float32", ("B", 24, 999)),))
    with pytest.raises(EngineMismatchError, match=r"output 'features' is .*128.*expected .*999"):
        compile_graph(rtx, replace(wanted, spec=other), data, path)


def test_a_graph_that_cannot_be_read_is_named(toy: Bundle, rtx: Flavour) -> None:
    with pytest.raises(EngineError, match=r"TensorRT-RTX cannot read graph 'audio' \(audio.fp16.onnx\)"):
        compile_graph(rtx, plan(toy, rtx, "audio"), b"no graph", toy.graph_path("audio", "fp16"))


def test_an_unknown_compute_capability_is_refused(toy: Bundle, rtx: Flavour) -> None:
    wanted = replace(plan(toy, rtx, "audio"), compute_capabilities=("5.0",))
    with pytest.raises(EngineMismatchError, match=r"does not build for compute capability 5\.0"):
        compile_graph(rtx, wanted, *graph_bytes(toy, "audio", "fp16"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timings_are_kept_for_the_next_build(toy: Bundle, rtx: Flavour, tmp_path: Path) -> None:
    """What classic TensorRT is told, said to TensorRT-RTX, whose timing cache does nothing but answer."""
    classic, timings = replace(rtx, name="tensorrt"), tmp_path / "timing.cache"
    wanted = replace(plan(toy, rtx, "audio"), compute_capabilities=(), optimization_level=2)
    for known in (None, b"of another GPU", timings):
        if isinstance(known, bytes):
            timings.write_bytes(known)
        made = compile_graph(classic, wanted, *graph_bytes(toy, "audio", "fp16"), timing_cache=timings)
        assert made.precision == "fp16" and timings.stat().st_size > len(b"of another GPU")
    assert [p.name for p in tmp_path.iterdir()] == ["timing.cache"]


class Bar:
    """A tqdm bar that counts, and is interrupted after some steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.total, self.n, self.stop_after = 0, 0, stop_after

    def update(self, n: int) -> None:
        self.n += n
        if self.stop_after is not None and self.n > self.stop_after:
            raise KeyboardInterrupt


def test_the_bar_reaches_its_end_and_an_interrupt_stops_the_build(toy: Bundle, rtx: Flavour) -> None:
    bar = Bar()
    compile_graph(rtx, plan(toy, rtx, "audio"), *graph_bytes(toy, "audio", "fp16"), bar=bar)
    assert bar.n == bar.total > 5
    with pytest.raises(KeyboardInterrupt):
        compile_graph(rtx, plan(toy, rtx, "audio"), *graph_bytes(toy, "audio", "fp16"), bar=Bar(stop_after=2))


def test_the_command_builds_and_says_what_it_did(toy: Bundle, built: BuildReport) -> None:
    out = str(built.folder.parent.parent)

    def semo(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["build", str(toy.path), "--out", out, *arguments])

    told = json.loads(semo("--target", "rtx-portable", "--json", "--force").stdout)
    assert not told["reused"] and set(told["manifest"]["engines"]) == set(SPECS)
    assert Path(told["output"]).is_dir()
    plain = semo("--target", "rtx-portable")
    assert plain.stdout == "" and "were there already" in plain.stderr and "1 float16" in plain.stderr
    assert "rtx-portable" in semo("--help").stdout
    refused = semo("--target", "rtx-portable", "--precision", "int3")
    assert refused.exit_code == 2 and "unknown" in refused.stderr
    if gpu() is None:
        nothing = semo("--json")
        assert nothing.exit_code == 5 and "rtx-portable" in json.loads(nothing.stdout)["error"]["message"]


# -- real models


def check_built(report: Any, bundle: Bundle) -> None:
    for name, engine in report.manifest.engines.items():
        half = engine.arithmetic.get("float16", 0)
        assert engine.precision == "fp16" and half > engine.arithmetic.get("float32", 0), name
    assert report.manifest.bundle == bundle.name


@pytest.mark.slow
def test_a_small_model_is_built(tiny_bundle: Path, rtx: Flavour, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    check_built(build_engines(bundle, tmp_path, target="rtx-portable"), bundle)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_semo_tiny_itself_is_built(rtx: Flavour, tmp_path: Path, precision: str) -> None:
    report = build_engines("semo-tiny", tmp_path, target="rtx-portable", precision=precision)
    asked = "fp16" if precision == "auto" else precision
    assert report.manifest.precision == asked and set(report.manifest.engines) == set(SPECS)
    for name, engine in report.manifest.engines.items():
        assert set(engine.arithmetic) <= {ELEMENTS[asked], "float32"}, name
    for name in ("motion", "render"):  # where the time goes; what reads landmarks is float32 in every file
        assert report.manifest.engines[name].precision == asked


@pytest.mark.slow
def test_bfloat16_graphs_compute_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    """On OpenVINO, which reads bfloat16: made from float16 graphs, by what ``semo build`` uses."""
    import openvino

    bundle = Bundle.open(tiny_bundle)
    specs = graph_specs(bundle.config)
    exact = {n: OnnxRuntimeEngine(s, bundle.graph_path(n, "fp32"), threads=1) for n, s in specs.items()}
    samples = make_samples(bundle.config, exact)
    shutil.copyfile(bundle.weights_path, tmp_path / bundle.weights_path.name)
    for name in ("reference", "motion_encoder", "motion", "render"):
        model = onnx.load_from_string(graph_bytes(bundle, name, "bf16")[0])
        types = {t.data_type for t in model.graph.initializer} | {
            a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute
        }
        assert onnx.TensorProto.BFLOAT16 in types
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        core = openvino.Core()
        run = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = run(samples.feeds[name])
        found = {t.name: np.array(results[t.name]) for t in specs[name].outputs}
        attempt = compare(specs[name], "bf16", samples.outputs[name], found)
        assert attempt.passed, attempt.detail


def one_layer(config: SemoConfig) -> SemoConfig:
    """The paper's widths and autoencoder, with one layer and one step of everything."""
    parts = {
        "encoder": config.encoder.model_copy(update={"layers": 1}),
        "decoder": config.decoder.model_copy(update={"layers": 1, "steps": 1}),
        "generator": config.generator.model_copy(update={"layers": 1, "steps": 1}),
        "audio": config.audio.model_copy(update={"model": "random", "layers": 1}),
    }
    return config.model_copy(update={"name": "semo-base-one-layer-random", **parts})


@pytest.mark.slow
def test_semo_base_with_one_layer_is_built(rtx: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from semo_sdk.export import bundle as export_module
    from semo_sdk.export.parity import ChainParity, ParityReport
    from semo_sdk.models.semo import SemoModel

    passed = ParityReport("random", (), (ChainParity("none", "fp16", 99.0, 50.0),))
    monkeypatch.setattr(export_module, "check_parity", lambda *_, **__: passed)  # the exporter has its own tests
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SemoModel(one_layer(preset("semo-base"))).eval()
    export_module.export_bundle(model, tmp_path / "base", precisions=["fp16"], licence="random weights")
    bundle = Bundle.open(tmp_path / "base")
    check_built(build_engines(bundle, tmp_path, target="rtx-portable"), bundle)


# -- with a GPU


@pytest.mark.gpu
@needs_gpu
def test_engines_of_this_gpu_compute_what_onnx_runtime_computes(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    report = build_engines(bundle, tmp_path, target="auto", max_sessions=2)
    assert all("mean error" in e.attempts[-1].detail for e in report.manifest.engines.values())
    with load_engines(bundle, engines=tmp_path) as engines:
        assert engines.backend == "tensorrt"
        exact = {n: OnnxRuntimeEngine(s, bundle.graph_path(n, "fp32")) for n, s in engines.specs.items()}
        samples = make_samples(bundle.config, exact, batch=2)
        for name, spec in engines.specs.items():
            precision = report.manifest.engines[name].precision
            found = engines[name](samples.feeds[name])
            assert compare(spec, precision, samples.outputs[name], found).passed
            again = engines[name](samples.feeds[name])
            assert all(np.array_equal(found[key], again[key]) for key in found)
