"""How a backend is chosen: what "auto" takes, what is said, what is refused."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, save

from semo_sdk.backends import (
    available_backends,
    fake_engines,
    graph_specs,
    load_engines,
    onnxruntime,
    openvino,
    select,
    torch,
)
from semo_sdk.backends.base import Engine, GraphSpec
from semo_sdk.backends.fake import FakeEngine
from semo_sdk.backends.select import BACKENDS
from semo_sdk.bundle import Bundle
from semo_sdk.config import SemoConfig
from semo_sdk.constants import WINDOW_SAMPLES
from semo_sdk.errors import BackendUnavailableError, BundleError, ConfigError, EngineError
from semo_sdk.export.writer import bundle_folder, write_manifest
from tests.test_backends import SPEC, TYPES


def hollow(spec: GraphSpec) -> ModelProto:
    """A graph with the right names that computes nothing."""
    inputs = [helper.make_tensor_value_info(t.name, TYPES[t.dtype], t.shape) for t in spec.inputs]
    outputs = [helper.make_tensor_value_info(t.name, TYPES[t.dtype], [1]) for t in spec.outputs]
    nodes = [
        helper.make_node("Constant", [], [t.name], value=helper.make_tensor(t.name, TYPES[t.dtype], [1], [0]))
        for t in spec.outputs
    ]
    graph = helper.make_graph(nodes, spec.name, inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with hollow graphs: enough to choose, open and close."""
    config = SemoConfig()
    out = tmp_path_factory.mktemp("bundles") / "toy"
    with bundle_folder(out) as work:
        (work / "weights.safetensors").write_bytes(b"none")
        for name, spec in graph_specs(config).items():
            save(hollow(spec), work / f"{name}.fp32.onnx")
        write_manifest(work, config, precisions=["fp32"], licence="", provenance={}, metrics={})
    return Bundle.open(out)


def test_every_backend_speaks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    infos = available_backends()
    assert [info.name for info in infos] == ["openvino", "onnxruntime", "torch", "tensorrt"]
    assert all(info.available and info.devices and info.reason for info in infos if info.name != "tensorrt")
    assert all(bool(info.devices) == info.available and info.reason for info in infos)
    for name in (*BACKENDS, "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    openvino._core.cache_clear()
    missing = available_backends()
    openvino._core.cache_clear()
    assert not any(info.available or info.devices for info in missing)
    assert all("pip install" in info.reason for info in missing)


def test_auto_prefers_openvino_and_says_so(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "semo_sdk"), load_engines(bundle) as engines:
        assert engines.backend == "openvino"
        assert engines.precision == ("bf16" if openvino.has_bf16() else "fp32")
        assert "OpenVINO" in engines.reason and engines.reason in caplog.text
        assert list(engines) == ["reference", "motion_encoder", "audio", "motion", "render"]
        assert engines["audio"] is engines["audio"]
    with pytest.raises(EngineError, match="closed"):
        engines["audio"]


def test_auto_takes_the_next_when_one_is_missing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with load_engines(bundle) as engines:
        assert engines.backend == "onnxruntime"
        assert "openvino" in engines.reason
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendUnavailableError, match=r"openvino.*semo-sdk\[ort\].*torch"):
        load_engines(bundle)
    with pytest.raises(BackendUnavailableError, match=r"semo-sdk\[ort\]"):
        load_engines(bundle, "onnxruntime")
    openvino._core.cache_clear()


def test_bf16_is_not_taken_where_the_environment_forbids_its_instructions(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "capabilities", lambda: frozenset({"FP32", "BF16"}))
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    for limit, expected in (("", "bf16"), ("avx2", "fp32"), ("AVX512_CORE_VNNI", "fp32"), ("AVX512_CORE_BF16", "bf16")):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert openvino.resolve_precision("auto", bundle) == expected
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert "limits instruction sets to AVX2" in openvino.probe().reason
    with pytest.raises(BackendUnavailableError, match="ONEDNN_MAX_CPU_ISA=AVX2 leaves no bf16"):
        openvino.resolve_precision("bf16", bundle)


class Gpu:
    """Pretends that a GPU is here; the backends of it that are ``broken`` do not start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *broken: str) -> None:
        monkeypatch.setattr(select, "cuda_device_count", lambda: 1)
        monkeypatch.setattr(select, "_said", set())
        monkeypatch.setattr(onnxruntime, "has_cuda", lambda: "onnxruntime" not in broken)
        monkeypatch.setattr(torch, "has_cuda", lambda: "torch" not in broken)
        for module in (onnxruntime, torch):
            monkeypatch.setattr(module, "opener", self.opener(f"{module.NAME} starts" in broken))

    def opener(self, fails: bool) -> Callable[..., Any]:
        def start(spec: GraphSpec) -> Engine:
            if fails:
                raise EngineError("no libcudnn")
            return FakeEngine(spec)

        return lambda bundle, precision, threads, *, variant="": start


@pytest.mark.parametrize(
    ("broken", "chosen"),
    [
        ((), "onnxruntime"),
        (("onnxruntime",), "torch"),
        (("onnxruntime starts",), "torch"),
        (("onnxruntime starts", "torch starts"), "openvino"),
        (("onnxruntime", "torch"), "openvino"),
    ],
)
def test_on_a_gpu_the_first_that_starts_is_taken_and_the_rest_told_once(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: tuple[str, ...],
    chosen: str,
) -> None:
    Gpu(monkeypatch, *broken)
    for _ in range(2):
        assert load_engines(bundle).backend == chosen
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1 and told[0].startswith(f"running on {chosen}") and "tensorrt: " in told[0]
    assert ("no libcudnn" in told[0]) == any("starts" in word for word in broken)


def test_variants_are_part_of_the_name(bundle: Bundle) -> None:
    with load_engines(bundle, "onnxruntime:cpu") as engines:
        assert (engines.backend, engines.precision) == ("onnxruntime:cpu", "fp32")
    if not onnxruntime.has_cuda():
        with pytest.raises(BackendUnavailableError, match="onnxruntime:tensorrt' needs an NVIDIA GPU"):
            load_engines(bundle, "onnxruntime:tensorrt")
    with pytest.raises(ConfigError, match="no variant 'fast'; choose torch:compile"):
        load_engines(bundle, "torch:fast")
    with pytest.raises(ConfigError, match="it has none, use 'openvino'"):
        load_engines(bundle, "openvino:gpu")


def test_the_tensorrt_provider_is_told_every_shape() -> None:
    [(name, settings), *rest] = onnxruntime._providers(SPEC, "tensorrt", True)
    assert name == "TensorrtExecutionProvider" and settings["trt_fp16_enable"]
    assert settings["trt_profile_min_shapes"] == "frames:1x1x3,gain:1"
    assert settings["trt_profile_max_shapes"] == "frames:8x16x3,gain:8"
    assert rest == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_openvino_reads_landmarks_in_float32_also_where_the_cpu_computes_in_float16(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "capabilities", lambda: frozenset({"FP32", "BF16", "FP16"}))
    for precision, hint in {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}.items():
        hints = {}
        for name, spec in graph_specs(bundle.config).items():
            engine = openvino.OpenVinoEngine(spec, bundle.graph_path(name, "fp32"), precision=precision)
            hints[name] = engine._settings["INFERENCE_PRECISION_HINT"]
            engine.close()
        assert hints == dict.fromkeys(hints, hint) | dict.fromkeys(("audio", "reference", "motion_encoder"), "f32")


def test_the_tensorrt_provider_computes_in_float32_what_does_not_survive_float16(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, tuple[str, bool]] = {}

    def engine(spec: GraphSpec, path: Path, *, fp16: bool, **_: Any) -> None:
        made[spec.name] = (path.name, fp16)

    monkeypatch.setattr(onnxruntime, "OnnxRuntimeEngine", engine)
    monkeypatch.setattr(onnxruntime, "OrtDevice", lambda name: None)
    monkeypatch.setattr(onnxruntime, "_provider", lambda variant: variant)
    manifest = bundle.manifest.model_copy(update={"precisions": ("fp32", "fp16")})
    monkeypatch.setattr(bundle, "manifest", manifest)
    monkeypatch.setattr(Bundle, "graph_path", lambda self, name, precision: Path(f"{name}.{precision}"))
    for variant in ("tensorrt", "cuda"):
        open_graph = onnxruntime.opener(bundle, "fp16", None, variant=variant)
        for spec in graph_specs(bundle.config).values():
            open_graph(spec)
        half = {name for name, (path, fp16) in made.items() if fp16 and path == f"{name}.fp16"}
        exact = {name for name, (path, fp16) in made.items() if not fp16 and path == f"{name}.fp32"}
        assert exact == ({"audio", "reference", "motion_encoder"} if variant == "tensorrt" else set())
        assert half | exact == set(made) == set(graph_specs(bundle.config))


def test_graphs_open_late_and_once(bundle: Bundle) -> None:
    engines = load_engines(bundle, "onnxruntime", graphs=["audio", "motion"], threads=1)
    assert len(engines) == 2 and not engines._engines
    engines.prepare(["audio"])
    assert list(engines._engines) == ["audio"]
    engines.prepare()
    assert list(engines._engines) == ["audio", "motion"]
    engines.close()
    engines.close()


def compilers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("semo-compile")]


def finish() -> None:
    for thread in compilers():
        thread.join()


def test_graphs_compile_in_the_background_each_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = openvino.OpenVinoEngine.prepare

    def prepare(engine: openvino.OpenVinoEngine, sizes: dict[str, int]) -> None:
        asked.append((engine.spec.name, dict(sizes)))
        real(engine, sizes)

    monkeypatch.setattr(openvino.OpenVinoEngine, "prepare", prepare)
    with load_engines(bundle, "openvino", threads=1) as engines:
        for frames in (16, 16, 4):
            engines.compile_ahead(["audio", "render"], {"B": 1, "N": frames})
        finish()
        # a graph without that axis is the same graph again
        assert sorted(asked, key=str) == [
            ("audio", {"B": 1, "N": 16}),
            ("render", {"B": 1, "N": 16}),
            ("render", {"B": 1, "N": 4}),
        ]
        engine = engines["audio"]
        assert isinstance(engine, openvino.OpenVinoEngine) and len(engine._compiled) == 1
        assert engine({"pcm": np.zeros((1, WINDOW_SAMPLES), np.float32)})["features"].shape == (1,)
        assert len(engine._compiled) == 1


def test_what_cannot_be_compiled_ahead_fails_at_the_call(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(engine: openvino.OpenVinoEngine) -> None:
        raise EngineError("no such operator")

    monkeypatch.setattr(openvino.OpenVinoEngine, "_read", refuse)
    caplog.set_level(logging.DEBUG)
    with load_engines(bundle, "openvino", threads=1) as engines:
        engines.compile_ahead(["audio"], {"B": 1})
        finish()
        assert "graph audio does not compile ahead of its use: no such operator" in caplog.text
        with pytest.raises(EngineError, match="no such operator"):
            engines["audio"]


def test_closing_waits_for_what_compiles_and_starts_nothing_more(bundle: Bundle) -> None:
    engines = load_engines(bundle, "openvino", threads=1)
    engines.compile_ahead(list(engines), {"B": 1, "N": 16})
    engines.close()
    finish()
    with pytest.raises(EngineError, match="closed"):
        engines["audio"]


def test_other_backends_compile_on_the_thread_that_calls(bundle: Bundle) -> None:
    with load_engines(bundle, "onnxruntime", threads=1) as engines:
        engines.compile_ahead(list(engines), {"B": 1, "N": 16})
        assert not compilers() and not engines._engines


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"backend": "tensorflow"}, "no backend 'tensorflow'; choose auto, openvino"),
        ({"precision": "int4"}, "no precision 'int4'; choose auto, fp32"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "no precision 'bf16'"),
        ({"graphs": ["audio", "smell"]}, "no graph 'smell'"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_impossible_wishes_are_refused(bundle: Bundle, wish: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_engines(bundle, **wish)


def test_a_precision_that_the_bundle_lacks_is_named(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no audio\.fp16\.onnx; it has audio\.fp32\.onnx"):
        load_engines(bundle, precision="fp16")["audio"]


def test_fake_engines_stand_for_a_whole_model(bundle: Bundle) -> None:
    by_config, by_bundle = fake_engines(bundle.config), load_engines(bundle, "fake")
    pcm = {"pcm": np.zeros((1, WINDOW_SAMPLES), np.float32)}
    np.testing.assert_array_equal(by_config["audio"](pcm)["features"], by_bundle["audio"](pcm)["features"])
