"""Model repositories of Triton: valid by Triton's schema, true to the graphs, complete or not there at all."""

from __future__ import annotations

import json
import re
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient")


import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from semo_sdk.backends import load_engines
from semo_sdk.backends.base import graph_specs
from semo_sdk.backends.engine_files import Device, EngineFile, EngineManifest, parts_key, set_key
from semo_sdk.bundle import WEIGHTS_FILE, Bundle, graph_file, sha256_file
from semo_sdk.cli import app
from semo_sdk.errors import BundleError, ConfigError, EngineMismatchError, ExportError
from semo_sdk.export import triton as triton_module
from semo_sdk.export.triton import check_io, write_model_repository
from tests.fake_triton import Ask, Triton, dtype_of
from tests.fake_triton_wire import listening

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "triton.md"
GRAPHS = ("reference", "motion_encoder", "audio", "motion", "render")


@pytest.fixture(scope="module")
def repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_model_repository(tiny_bundle, folder, name="face")
    return folder


def config_of(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graphs_config_is_what_its_file_says(repository: Path, graph: str) -> None:
    """Names, types and shapes as ONNX Runtime reads them from the repository itself."""
    import onnxruntime

    folder = repository / f"face_{graph}"
    config = config_of(folder)
    assert (config.name, config.backend, config.platform) == (folder.name, "onnxruntime", "onnxruntime_onnx")
    assert config.max_batch_size == 8 and config.HasField("dynamic_batching")
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx" / "model.onnx"))
    for tensors, values in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [t.name for t in tensors] == [v.name for v in values]
        for tensor, value in zip(tensors, values, strict=True):
            kind = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}[value.type]
            assert dtype_of(tensor) == np.dtype(kind)
            dims = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
            batch, *rest = value.shape
            assert isinstance(batch, str), "batches have any size"
            assert dims == [-1 if isinstance(size, str) else size for size in rest]


def test_the_chains_config_batches_sequences(repository: Path) -> None:
    config = config_of(repository / "face")
    assert config.backend == "python" and config.max_batch_size == 8
    batching = config.sequence_batching
    kinds = model_config_pb2.ModelSequenceBatching.Control
    assert {control.name: [c.kind for c in control.control] for control in batching.control_input} == {
        "START": [kinds.CONTROL_SEQUENCE_START],
        "END": [kinds.CONTROL_SEQUENCE_END],
        "READY": [kinds.CONTROL_SEQUENCE_READY],
        "CORRID": [kinds.CONTROL_SEQUENCE_CORRID],
    }
    assert batching.oldest.max_candidate_sequences == 64 and batching.max_sequence_idle_microseconds == 300_000_000
    assert {t.name: (bool(t.optional), bool(t.allow_ragged_batch)) for t in config.input} == {
        "PORTRAIT": (True, False),
        "SPEECH": (False, True),
    }


@pytest.mark.slow
def test_triton_runs_every_graph_as_the_package_does(repository: Path, tiny_bundle: Path) -> None:
    triton, bundle = Triton(repository), Bundle.open(tiny_bundle)
    specs = graph_specs(bundle.config)
    engines = load_engines(bundle, backend="onnxruntime:cpu", precision="fp32", threads=1)
    generator = np.random.default_rng(0)
    for name, spec in specs.items():
        sizes = {axis: {"B": 2, "N": 4}[axis] for axis in spec.axes}
        feeds = {}
        for t in spec.inputs:
            shape = [sizes[d] if isinstance(d, str) else d for d in t.shape]
            floats = generator.uniform(-1, 1, shape).astype(np.float32)
            feeds[t.name] = floats if t.dtype == "float32" else generator.integers(1, 16, shape).astype(t.dtype)
        asked = {k: v[:, None] if v.ndim == 1 else v for k, v in feeds.items()}
        response = triton.infer(f"face_{name}", Ask(asked))
        for output, expected in engines[name](feeds).items():
            np.testing.assert_array_equal(response.output(output), expected, err_msg=f"{name} {output}")
    engines.close()


def test_each_model_holds_its_own_weights_and_nothing_of_this_machine(repository: Path, tiny_bundle: Path) -> None:
    written = files(repository)
    weights = {name: len(data) for name, data in written.items() if name.endswith("weights.bin")}
    assert len(weights) == 5
    stored = (tiny_bundle / WEIGHTS_FILE).stat().st_size
    assert sum(weights.values()) < 2 * stored, "a graph has only what it needs"
    for data in written.values():
        assert str(ROOT).encode() not in data and str(tiny_bundle).encode() not in data
    told = json.loads(written["semo-triton.json"])
    assert told["fingerprint"] == Bundle.open(tiny_bundle).fingerprint
    assert told["graphs"] == {graph: f"face_{graph}" for graph in GRAPHS}


@pytest.mark.slow
def test_half_precision_is_written_too(tiny_bundle: Path, tmp_path: Path) -> None:
    told = write_model_repository(tiny_bundle, tmp_path / "models", precision="fp16")
    assert told["precision"] == "fp16" and told["chain"] == Bundle.open(tiny_bundle).name
    assert Triton(tmp_path / "models").configs.keys() == {told["chain"], *told["graphs"].values()}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"precision": "int8"}, BundleError, "has no .*int8.onnx; it has"),
        ({"name": "my model"}, ConfigError, "'my model' cannot be a model's name"),
        ({"max_sequences": 0}, ConfigError, "max_sequences is 0"),
    ],
)
def test_bad_settings_are_typed_errors_and_write_nothing(
    tiny_bundle: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        write_model_repository(tiny_bundle, tmp_path / "models", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_only_when_asked_and_only_if_it_is_ours(
    repository: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(repository, tmp_path / "models")
    before = files(copy)
    with pytest.raises(BundleError, match="exists already; .*--force"):
        write_model_repository(tiny_bundle, copy)

    def fail(*args: Any) -> None:
        raise ExportError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(triton_module, "chain_config", lambda *args, **settings: fail())
        with pytest.raises(ExportError, match="the disk is full"):
            write_model_repository(tiny_bundle, copy, force=True)
    assert files(copy) == before and [p.name for p in tmp_path.iterdir()] == ["models"]
    write_model_repository(tiny_bundle, copy, name="other", force=True)
    assert (copy / "other").is_dir() and not (copy / "face").exists()
    (copy / "semo-triton.json").unlink()
    with pytest.raises(BundleError, match="was not written by semo export --triton"):
        write_model_repository(tiny_bundle, copy, force=True)


def test_graphs_that_this_version_does_not_call_are_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    spec = graph_specs(bundle.config)["audio"]
    path = bundle.graph_path("audio", "fp32")

    def graph() -> Any:
        return onnx.load(path, load_external_data=False)

    check_io(graph(), spec, path)
    renamed, typed, fixed, shaped = (graph() for _ in range(4))
    renamed.graph.input[0].name = "sound"
    typed.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    shaped.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    for model, says in (
        (renamed, r"has inputs \['sound'\], not \['pcm'\]"),
        (typed, "'pcm' is float16 .*not float32"),
        (fixed, r"'pcm' is float32 \(1, .*not float32 \('B'"),
        (shaped, "has outputs .*'more'"),
    ):
        with pytest.raises(ExportError, match=says):
            check_io(model, spec, path)


def engine_set(bundle: Path, place: Path, *, flavour: str = "tensorrt", weights: str | None = None) -> Path:
    """What `semo build` leaves behind, with engines that hold their graph's name."""
    engines = {}
    for graph in GRAPHS:
        parts = {
            "onnx": sha256_file(bundle / graph_file(graph, "fp16")),
            "weights": weights or sha256_file(bundle / WEIGHTS_FILE),
            "graph": graph,
        }
        engines[graph] = (parts, f"plan of {graph}".encode())
    key = set_key({graph: parts_key(parts) for graph, (parts, _) in engines.items()})
    folder = place / "engines" / key
    folder.mkdir(parents=True)
    for graph, (_, data) in engines.items():
        (folder / f"{graph}.engine").write_bytes(data)
    manifest = EngineManifest(
        key=key,
        bundle="tiny-random",
        target="h100",
        flavour=flavour,
        version="10.16.0",
        device=Device(gpu="NVIDIA H100", driver="570.1", compute_capabilities=("9.0",)),
        precision="fp16",
        max_sessions=6,
        sdk_version="1",
        seconds=1,
        engines={
            graph: EngineFile(
                file=f"{graph}.engine",
                sha256=sha256_file(folder / f"{graph}.engine"),
                size=len(data),
                key=parts_key(parts),
                parts=parts,
                stored_precision="fp16",
                precision="fp16",
                arithmetic={},
                attempts=(),
                seconds=1,
            )
            for graph, (parts, data) in engines.items()
        },
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


def test_engines_are_served_as_plans(tiny_bundle: Path, tmp_path: Path) -> None:
    engine_set(tiny_bundle, tmp_path / "built")
    told = write_model_repository(tiny_bundle, tmp_path / "models", engines=tmp_path / "built", name="face")
    assert told["backend"] == "tensorrt 10.16.0" and told["precision"] == "fp16"
    for graph in GRAPHS:
        folder = tmp_path / "models" / f"face_{graph}"
        config = config_of(folder)
        assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "tensorrt", 6)
        assert (folder / "1" / "model.plan").read_bytes() == f"plan of {graph}".encode()
        assert [p.name for p in (folder / "1").iterdir()] == ["model.plan"]
    assert config_of(tmp_path / "models" / "face").max_batch_size == 6


def test_engines_that_triton_cannot_use_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    def refused(place: Path, says: str) -> None:
        with pytest.raises(EngineMismatchError, match=says):
            write_model_repository(tiny_bundle, tmp_path / "models", engines=place)
        assert not (tmp_path / "models").exists()

    refused(tmp_path / "none", "no engines in .*semo build --out")
    engine_set(tiny_bundle, tmp_path / "rtx", flavour="tensorrt_rtx")
    refused(tmp_path / "rtx", "TensorRT-RTX, and Triton loads TensorRT's only")
    engine_set(tiny_bundle, tmp_path / "other", weights="0" * 64)
    refused(tmp_path / "other", "weights weights.safetensors: built for 000000000000, here is")
    damaged = engine_set(tiny_bundle, tmp_path / "damaged")
    (damaged / "audio.engine").write_bytes(b"plan of AUDIO")
    refused(tmp_path / "damaged", "audio.engine was altered")
    whole = engine_set(tiny_bundle, tmp_path / "two")
    shutil.copytree(
        engine_set(tiny_bundle, tmp_path / "again", weights=None).parent, tmp_path / "two" / "engines" / "x"
    )
    assert write_model_repository(tiny_bundle, tmp_path / "models", engines=whole)["precision"] == "fp16"


def test_the_command_writes_it(tiny_bundle: Path, tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["export", *words])

    models = tmp_path / "models"
    result = run(
        "--triton", str(models), "--bundle", str(tiny_bundle), "--name", "face", "--max-sequences", "7", "--json"
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["triton"]["output"] == str(models) and told["triton"]["chain"] == "face"
    assert config_of(models / "face").sequence_batching.oldest.max_candidate_sequences == 7
    for words, code in (
        ((), 2),
        (("--out", "b"), 2),
        (("--checkpoint", "a", "--out", "b", "--triton", "c", "--bundle", "d"), 2),
        (("--checkpoint", "a", "--out", "b", "--engines", "c"), 2),
        (("--triton", str(models), "--bundle", str(tiny_bundle)), 4),
        (("--triton", str(tmp_path / "new"), "--bundle", "no-such-bundle"), 4),
        (("--triton", str(tmp_path / "new"), "--bundle", str(tiny_bundle), "--engines", str(tmp_path)), 5),
    ):
        assert run(*words).exit_code == code, words


def test_the_client_of_the_documentation_runs_against_tritons_own_protocol(
    repository: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's real client over real gRPC; behind it the small server of these tests."""
    pytest.importorskip("grpc")
    (code,) = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "portrait.jpg", tmp_path / "examples")
    with wave.open(str(ROOT / "examples" / "speech.wav")) as whole, wave.open("examples/speech.wav", "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(5_500))  # the page's code hears a little of it
    models = tmp_path / "models"
    write_model_repository(tiny_bundle, models, name="semo-tiny")
    with listening(Triton(models)) as address:
        assert "localhost:8001" in code
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(code.replace("localhost:8001", address), "docs/triton.md", "exec"), names)
    assert sum(len(frames) for frames in names["shown"]) == -(-len(names["speech"]) // 640)
    assert sum(len(sound) for sound in names["heard"]) == 640 * sum(len(frames) for frames in names["shown"])
