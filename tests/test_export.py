"""A whole bundle: exported from a checkpoint, checked on three runtimes, refused when its numbers are off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from semo_sdk.backends import graph_specs, load_engines, openvino
from semo_sdk.backends.base import Arrays
from semo_sdk.bundle import Bundle
from semo_sdk.constants import WINDOW_SAMPLES
from semo_sdk.errors import BundleError, CheckpointError, ConfigError, ExportError, ParityError
from semo_sdk.export import ParityReport, export_bundle
from semo_sdk.export import bundle as export_module
from semo_sdk.export.parity import ChainParity, check_parity, psnr
from semo_sdk.export.precision import DELICATE, element_types
from semo_sdk.export.weights import stored_tensors
from semo_sdk.models.checkpoint import load_checkpoint
from semo_sdk.models.graphs import graph_modules
from semo_sdk.models.semo import SemoModel
from tests.conftest import TINY, random_model

Exported = tuple[Path, ParityReport]


@pytest.fixture(scope="module")
def model(tiny_model: SemoModel) -> SemoModel:
    return tiny_model


def test_photo_that_goes_around_the_network_arrives_the_same(model: SemoModel) -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(2, 3, 16, 16, generator=generator) * 255
    image = torch.nn.functional.interpolate(small, size=256, mode="bilinear").byte().permute(0, 2, 3, 1)
    with torch.no_grad():
        latents, motion, *rest = graph_modules(model)["reference"](image)
        moved = motion + torch.randn(2, 4, TINY.motion_dim, generator=generator) * 0.5
        inputs = (None, latents, motion, *rest, moved)
        around = model.render_frames(*inputs, steps=1)
        through = model.to_frames(model.render(*inputs, steps=1))
    assert around.shape == (2, 4, 256, 256, 3)
    assert (around.int() - through.int()).abs().max() <= 1


def test_parity_holds_on_every_runtime(exported: Exported) -> None:
    report = exported[1]
    assert report.passed and not report.failures
    runs = {("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("openvino", "fp32"), ("openvino", "fp16")}
    runs |= {("torch", "fp16")} | ({("openvino", "bf16")} if "BF16" in openvino.capabilities() else set())
    assert {(row.runtime, row.precision) for row in report.graphs} == runs
    assert {(row.runtime, row.precision) for row in report.chains} == runs
    outputs = {(spec.name, t.name) for spec in graph_specs(TINY).values() for t in spec.outputs}
    assert {(row.graph, row.output) for row in report.graphs} == outputs
    assert all(str(row.runtime) in report.table() for row in report.chains)


def test_bundle_holds_the_weights_once(exported: Exported, model: SemoModel) -> None:
    bundle = Bundle.open(exported[0])
    assert bundle.name == "renamed" and bundle.config == TINY.model_copy(update={"name": "renamed"})
    assert bundle.precisions == ("fp32", "fp16")
    assert bundle.manifest.provenance["step"] == "7" and len(bundle.manifest.provenance["checkpoint_sha256"]) == 64
    assert json.loads((bundle.path / "parity.json").read_text()) == exported[1].as_dict()
    card = (bundle.path / "README.md").read_text()
    assert all(word in card for word in ("renamed", "CC0-1.0", "weights: random", "psnr: 12.5", "whole chain"))
    numbers = sum(t.numel() for t in model.state_dict().values())
    assert 2 * numbers < bundle.weights_path.stat().st_size < 2.2 * numbers
    for name in graph_specs(TINY):
        for precision in bundle.precisions:
            graph = onnx.load(bundle.graph_path(name, precision), load_external_data=False)
            big = [t.name for t in graph.graph.initializer if len(t.raw_data) > 150_000]
            constants = ("position", "repeat", "kernel")  # embeddings of place, DCT, analysis windows
            assert all(any(word in n for word in constants) for n in big), big


def test_graph_files_say_what_they_are(exported: Exported) -> None:
    bundle = Bundle.open(exported[0])
    graph = onnx.load(bundle.graph_path("render", "fp16"), load_external_data=False)
    metadata = {e.key: e.value for e in graph.metadata_props}
    assert metadata["semo.graph"] == "render" and metadata["semo.precision"] == "fp16"
    assert json.loads(metadata["semo.config"]) == bundle.config.model_dump(mode="json")
    assert [t["name"] for t in json.loads(metadata["semo.spec"])["inputs"]] == [t.name for t in graph.graph.input]


def test_half_graphs_are_strongly_typed(exported: Exported) -> None:
    for name in graph_specs(TINY):
        graph = onnx.load(Bundle.open(exported[0]).graph_path(name, "fp16"), load_external_data=False)
        types = element_types(graph)
        half = [n.op_type for n in graph.graph.node if types.get(n.output[0]) == TensorProto.FLOAT16]
        assert not DELICATE & set(half)
        assert {"MatMul", "Gemm"} & set(half), "the transformer itself computes in float16"


def run_all(bundle: Bundle, backend: str, precision: str = "fp32", *, batch: int = 1, frames: int = 4) -> Arrays:
    """Random inputs (the same for item 0 of any batch) through the chain of graphs."""

    def draw(seed: int, *shape: int) -> np.ndarray:
        items = [np.random.default_rng([seed, i]).uniform(-1, 1, shape) for i in range(batch)]
        return np.stack(items).astype(np.float32)

    with load_engines(bundle, backend, precision) as engines:
        image = ((draw(0, 256, 256, 3) + 1) * 127).astype(np.uint8)
        reference = engines["reference"]({"image": image})
        motion = reference["reference_motion"]
        feeds = {
            "noise": draw(1, 16, TINY.motion_dim),
            "context": np.repeat(motion, 8, 1),
            "reference_motion": motion,
            "available": np.full(batch, 8),
            "guidance": np.full(batch, 1.5, np.float32),
        }
        feeds |= engines["audio"]({"pcm": draw(2, WINDOW_SAMPLES) * 0.1})
        tokens = engines["motion"](feeds)["motion"]
        rendered = engines["render"]({**reference, "motion": tokens[:, :frames]})["frames"]
        read = engines["motion_encoder"]({"frames": rendered})["motion"]
    return {"tokens": tokens, "frames": rendered, "read": read}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_backends_agree_on_a_bundle(exported: Exported, backend: str) -> None:
    bundle = Bundle.open(exported[0])
    expected, found = run_all(bundle, "torch"), run_all(bundle, backend)
    np.testing.assert_allclose(found["tokens"], expected["tokens"], rtol=1e-3, atol=1e-4)
    assert psnr(found["frames"], expected["frames"]) > 50


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), [("torch", "fp16"), ("onnxruntime", "fp16")])
def test_lower_precisions_stay_close(exported: Exported, backend: str, precision: str) -> None:
    bundle = Bundle.open(exported[0])
    found, expected = run_all(bundle, backend, precision), run_all(bundle, "onnxruntime")
    assert psnr(found["frames"], expected["frames"]) > 35


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
def test_batch_and_frame_axes_are_dynamic(exported: Exported, backend: str) -> None:
    bundle = Bundle.open(exported[0])
    alone, crowd = run_all(bundle, backend), run_all(bundle, backend, batch=3, frames=16)
    np.testing.assert_allclose(crowd["tokens"][:1], alone["tokens"], rtol=1e-3, atol=1e-4)
    assert crowd["frames"].shape == (3, 16, 256, 256, 3)
    # frames attend to each other inside windows of four
    assert psnr(crowd["frames"][:1, :4], alone["frames"]) > 50


@pytest.mark.slow
def test_parity_notices_wrong_weights(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(exported[0], folder)
    weights = folder / "weights.safetensors"
    tensor = next(t for t in stored_tensors(weights) if t.name == "generator.embed.weight")
    data = np.memmap(weights, mode="r+")
    data[tensor.offset : tensor.offset + tensor.size] = 0
    data.flush()
    modules = graph_modules(load_checkpoint(exported[0] / "weights.safetensors")[0])
    report = check_parity(TINY, folder, lambda _: modules, precisions=["fp32"])
    assert not report.passed
    assert {row.graph for row in report.graphs if not row.passed} == {"motion"}
    assert any("motion.motion on openvino" in line for line in report.failures)


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes long and is tested above."""
    monkeypatch.setattr(export_module, "write_graph", lambda *_: None)
    report = ParityReport("tiny", (), (ChainParity("openvino", "fp32", float("nan"), 50.0),))
    monkeypatch.setattr(export_module, "check_parity", lambda *_, **__: report)


@pytest.mark.usefixtures("without_graphs")
def test_failed_parity_leaves_a_report_and_no_bundle(model: SemoModel, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"openvino fp32: nan dB \(limit 50\).*report: .*b\.parity-failed\.json"):
        export_bundle(model, tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["b.parity-failed.json"]
    written = json.loads((tmp_path / "b.parity-failed.json").read_text())
    assert written["passed"] is False and written["chains"][0]["psnr"] is None


@pytest.mark.usefixtures("without_graphs")
def test_weights_that_overflow_are_named(tmp_path: Path) -> None:
    model = random_model(TINY)
    model.generator.out.bias.data[0] = 1e6
    with pytest.raises(ExportError, match=r"generator\.out\.bias is not finite in fp16.*weights_dtype='fp32'"):
        export_bundle(model, tmp_path / "b")
    with pytest.raises(ParityError):
        export_bundle(model, tmp_path / "b", weights_dtype="fp32")
    assert model.generator.out.bias[0].item() == 1e6, "the caller's model is not touched"


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        ({"precisions": ["int8"]}, ConfigError),
        ({"precisions": []}, ConfigError),
        ({"precisions": ["fp16", "fp16"]}, ConfigError),
        ({"weights_dtype": "bf16"}, ConfigError),
        ({"checkpoint": "nowhere.safetensors"}, CheckpointError),
    ],
)
def test_impossible_wishes_are_refused(wish: dict, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        export_bundle(**{"checkpoint": random_model(TINY), "out": tmp_path / "b", **wish})
    assert not list(tmp_path.iterdir())


def test_existing_bundles_are_not_overwritten(model: SemoModel, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="exists already"):
        export_bundle(model, tmp_path / "b")


def test_initializers_keep_their_values(exported: Exported, model: SemoModel) -> None:
    graph = onnx.load(Bundle.open(exported[0]).graph_path("motion", "fp16"))  # reads the shared weights
    values = [numpy_helper.to_array(t) for t in graph.graph.initializer]
    weight = model.generator.embed.weight.detach().half().numpy()
    assert any(v.shape == weight.shape and np.array_equal(v, weight) for v in values)
