"""int8 and fp8: which layers, with which numbers, and what happens where they are not good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from semo_sdk.backends.base import Arrays, Axis, GraphSpec, TensorSpec, graph_specs
from semo_sdk.backends.tensorrt_api import Flavour
from semo_sdk.constants import CHUNK_FRAMES, IMAGE_SIZE
from semo_sdk.engines.calibrate import CYCLES, FRAMES, Calibration, drawn_calibration, open_calibration, record
from semo_sdk.engines.check import MEAN_LIMITS
from semo_sdk.engines.compile import compile_graph
from semo_sdk.engines.draft import draft, harmful
from semo_sdk.engines.plan import LARGEST, GraphPlan, profile
from semo_sdk.engines.quantize import Linear, linear_layers, observe, open_session, quantize, run
from semo_sdk.errors import AudioError
from semo_sdk.media.face import FaceDetector, FaceMesh
from tests.conftest import TINY

SPECS = graph_specs(TINY)
ROWS, WIDTH, INNER = 32, 64, 128
SPEC = GraphSpec(
    "small",
    (TensorSpec("x", "float32", ("B", ROWS, WIDTH)),),
    tuple(TensorSpec(name, "float32", ("B", ROWS, size)) for name, size in (("y", 8), ("exact", WIDTH))),
    {"B": Axis(1, 1, 4)},
)


def small_graph(folder: Path, gain: float = 1.0) -> Any:
    """x -> two large float16 layers -> a small one -> y; and a float32 layer -> exact. Weights lie in a file.

    ``gain`` widens one input channel of the second layer, so that one large number hides all others.
    """
    generator = np.random.default_rng(0)
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = (generator.standard_normal(shape) / np.sqrt(WIDTH)).astype(np.float16)
        return numpy_helper.from_array(values, name)

    spread = np.ones(INNER, np.float16)
    spread[3] = gain
    weights = [weight("first", INNER, WIDTH), weight("second", INNER, WIDTH), weight("last", WIDTH, 8)]
    constants = [
        numpy_helper.from_array(spread, "spread"),
        numpy_helper.from_array(numpy_helper.to_array(weight("w", WIDTH, WIDTH)).astype(np.float32), "plain"),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=half),
        helper.make_node("Transpose", ["first"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["half", "turned"], ["wide"]),
        helper.make_node("Tanh", ["wide"], ["bent"]),
        helper.make_node("Mul", ["bent", "spread"], ["spiky"]),
        helper.make_node("MatMul", ["spiky", "second"], ["narrow"]),
        helper.make_node("MatMul", ["narrow", "last"], ["few"]),
        helper.make_node("Cast", ["few"], ["y"], to=full),
        helper.make_node("MatMul", ["x", "plain"], ["exact"]),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, full, t.shape) for t in tensors]
        for tensors in (SPEC.inputs, SPEC.outputs)
    )
    graph = helper.make_graph(nodes, "small", inputs, outputs, [*weights, *constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "small.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    return onnx.load(folder / "small.onnx", load_external_data=False)


def inputs(count: int = 2, seed: int = 1) -> list[Arrays]:
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal((1, ROWS, WIDTH), np.float32)} for _ in range(count)]


def launches(model: Any, folder: Path, seed: int = 1) -> list[tuple[Arrays, Arrays]]:
    session = open_session(model, folder)
    return [(feeds, run(session, ["y", "exact"], feeds)) for feeds in inputs(seed=seed)]


@pytest.fixture
def small(tmp_path: Path) -> Any:
    return small_graph(tmp_path)


def test_large_float16_layers_are_found_and_watched(small: Any, tmp_path: Path) -> None:
    layers = linear_layers(small)
    assert layers == (Linear("wide", "half", "first", True), Linear("narrow", "spiky", "second", False))
    assert [layer.channels for layer in layers] == [0, 1]
    feeds = inputs()
    observed = observe(small, tmp_path, layers, feeds)
    assert observed.peaks["half"] == pytest.approx(max(np.abs(f["x"]).max() for f in feeds), rel=1e-3)
    assert 0.5 < observed.peaks["spiky"] <= 1 and observed.rows == {"half": ROWS, "spiky": ROWS}
    per_row = {"wide": WIDTH * INNER, "narrow": INNER * WIDTH, "few": WIDTH * 8, "exact": WIDTH * WIDTH}
    assert observed.operations == {name: 2 * ROWS * size for name, size in per_row.items()}


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.02), ("fp8", 0.05)])
def test_quantised_numbers_are_close_and_float32_stays(
    small: Any, tmp_path: Path, precision: str, limit: float
) -> None:
    layers = linear_layers(small)
    made = quantize(small, tmp_path, layers, observe(small, tmp_path, layers, inputs()).peaks, precision)
    for feeds, expected in launches(small, tmp_path, seed=2):
        found = run(open_session(made, tmp_path), ["y", "exact"], feeds)
        off = np.abs(found["y"] - expected["y"]).mean() / expected["y"].std()
        assert 1e-4 < off < limit, "rounded, and no more than that"
        assert np.array_equal(found["exact"], expected["exact"]), "what is float32 is not touched"
    kept = {node.output[0]: node for node in small.graph.node if node.output[0] in ("half", "few", "y", "exact")}
    assert {node.output[0]: node for node in made.graph.node if node.output[0] in kept} == kept


def test_weights_are_scaled_by_channel_symmetrically_and_stay_in_their_file(small: Any, tmp_path: Path) -> None:
    layers = linear_layers(small)
    made = quantize(small, tmp_path, layers, dict.fromkeys(("half", "spiky"), 2.54), "int8")
    tensors = {t.name: t for t in made.graph.initializer}
    loaded = {t.name: t for t in onnx.load(tmp_path / "small.onnx").graph.initializer}
    for layer in layers:
        scale = numpy_helper.to_array(tensors[f"{layer.weight}/quantised/scale"])
        values = np.abs(numpy_helper.to_array(loaded[layer.weight]).astype(np.float32))
        np.testing.assert_allclose(scale * LARGEST["int8"], values.max(axis=1 - layer.channels), rtol=1e-6)
        assert scale.dtype == np.float32, "float16 scales overflow in TensorRT-RTX"
        assert numpy_helper.to_array(tensors[f"{layer.activation}/quantised/scale"]) == pytest.approx(0.02)
        assert tensors[layer.weight].data_location == TensorProto.EXTERNAL
        for name in (layer.weight, layer.activation):
            assert tensors[f"{name}/quantised/zero"].data_type == TensorProto.INT8
            assert not numpy_helper.to_array(tensors[f"{name}/quantised/zero"]).any()
    assert len(made.SerializeToString()) < 16_000


def test_a_weight_or_an_activation_of_two_layers_is_quantised_once(small: Any, tmp_path: Path) -> None:
    twin = helper.make_node("MatMul", ["half", "turned"], ["again"])
    small.graph.node.insert(3, twin)
    made = quantize(small, tmp_path, linear_layers(small), {"half": 3.0, "spiky": 1.0}, "fp8")
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph.node) == 4
    assert made.opset_import[0].version >= 19, "float8 is new there"


def test_layers_that_hurt_are_found_by_halving() -> None:
    layers = [Linear(str(i), "", "", False) for i in range(64)]
    runs: list[int] = []

    def excess(some: Sequence[Linear]) -> float:
        runs.append(len(some))
        return sum(0.9 if layer.output in ("7", "50") else 0.001 for layer in some)

    assert [layer.output for layer in harmful(layers, excess)] == ["7", "50"]
    assert len(runs) < 30
    assert harmful(layers[:7], excess) == []
    assert harmful(layers[:2], lambda some: float("nan")) == layers[:2], "no number is no excuse"


def loosen(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Limits for random weights, whose errors do not average out."""
    monkeypatch.setitem(MEAN_LIMITS, precision, (0.15, 0.3))
    monkeypatch.setattr("semo_sdk.engines.draft.SQUARE_LIMITS", (0.15, 0.7))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_draft_says_what_it_does(small: Any, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loosen(monkeypatch, precision)
    seen, held_out = launches(small, tmp_path, seed=1), launches(small, tmp_path, seed=2)
    ticks: list[int] = []
    made = draft(small, tmp_path, SPEC, precision, seen, held_out, tick=lambda: ticks.append(1))
    assert made.model is not None and made.attempt.passed and made.attempt.precision == precision
    assert "2 of 2 large linear layers, 78% of operations; on ONNX Runtime: y: mean error" in made.attempt.detail
    assert ticks


def test_a_layer_that_spoils_is_left_out_and_a_graph_that_is_off_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loosen(monkeypatch, "int8")
    spiky = small_graph(tmp_path, gain=2000)  # the second layer's other inputs are rounded away
    seen, held_out = launches(spiky, tmp_path, seed=1), launches(spiky, tmp_path, seed=2)
    shown = [(feeds, {**wanted, "y": wanted["y"] * 0 + 1e-3}) for feeds, wanted in seen]
    assert draft(spiky, tmp_path, SPEC, "int8", shown, held_out).attempt.detail == (
        "every linear layer alone spoils the result"
    )
    other = [(feeds, {**wanted, "y": -wanted["y"]}) for feeds, wanted in held_out]
    refused = draft(spiky, tmp_path, SPEC, "int8", seen, other)
    assert refused.model is None and not refused.attempt.passed
    assert "on ONNX Runtime: y: mean error" in refused.attempt.detail and "(limit 0.15)" in refused.attempt.detail


def test_graphs_without_large_layers_are_not_worth_it(small: Any, tmp_path: Path) -> None:
    seen = launches(small, tmp_path)
    plain = next(t for t in small.graph.initializer if t.name == "plain")
    plain.CopyFrom(numpy_helper.from_array(np.zeros((WIDTH, 4096), np.float32), "plain"))
    del small.graph.output[1].type.tensor_type.shape.dim[2:]
    small.graph.output[1].type.tensor_type.shape.dim.add().dim_value = 4096
    refused = draft(small, tmp_path, SPEC, "int8", seen, seen)
    assert refused.model is None and "6% of its operations: not worth an error" in refused.attempt.detail
    for tensor in small.graph.initializer:
        if tensor.name in ("first", "second"):
            tensor.data_type = TensorProto.FLOAT
    assert "no linear layer in float16" in draft(small, tmp_path, SPEC, "int8", seen, seen).attempt.detail


# -- what is calibrated with


class Still:
    """An engine that gives zeros: noise takes its time at this size."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec

    def __call__(self, feeds: Any) -> Arrays:
        self.spec.check(feeds)
        sizes = {d: n for t in self.spec.inputs for d, n in zip(t.shape, feeds[t.name].shape, strict=True)}
        shapes = {t.name: [d if isinstance(d, int) else sizes[d] for d in t.shape] for t in self.spec.outputs}
        return {t.name: np.zeros(shapes[t.name], t.dtype) for t in self.spec.outputs}

    def close(self) -> None: ...


def test_every_graph_is_recorded_at_every_latency_and_the_last_speech_is_held_out() -> None:
    recording = record(TINY, {name: Still(spec) for name, spec in SPECS.items()}, drawn_calibration())
    hops = {pairs[0]["motion"].shape[1] for pairs in recording.seen["render"]}
    assert {CHUNK_FRAMES} < hops
    for name, spec in SPECS.items():
        once = name == "reference"
        assert len(recording.seen[name]) == (CYCLES - 1) * (1 if once else 3)
        assert len(recording.held_out[name]) == (1 if once else 3)
        for feeds, outputs in (*recording.seen[name], *recording.held_out[name]):
            spec.check(feeds)
            assert set(outputs) == {t.name for t in spec.outputs}
    heard = [feeds["pcm"] for name in ("seen", "held_out") for feeds, _ in getattr(recording, name)["audio"]]
    assert len({pcm.tobytes() for pcm in heard}) == len(heard)


def test_drawn_faces_are_faces_and_not_flat() -> None:
    detector, mesh = FaceDetector(), FaceMesh()
    for crop in drawn_calibration().crops:
        found = mesh(crop, detector(crop)[0])
        assert found is not None and found.presence > 0.9
        assert np.abs(np.diff(crop[::4, ::4].astype(float), axis=0)).mean() > 8, "a warp that is off can be seen"


def test_the_digest_tells_faces_and_speech_apart() -> None:
    drawn = drawn_calibration()
    assert drawn.digest == drawn_calibration().digest
    others = (replace(drawn, crops=drawn.crops[:1]), replace(drawn, speech=drawn.speech[::-1].copy()))
    assert len({drawn.digest, *(other.digest for other in others)}) == 3
    assert drawn.crops[0].shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and drawn.speech.shape == (FRAMES * 640,)


def test_a_photo_and_speech_are_read_and_silence_is_refused(tmp_path: Path) -> None:
    import wave

    examples = Path(__file__).parent.parent / "examples"
    found = open_calibration(examples / "portrait2.jpg", examples / "grid.wav")
    assert isinstance(found, Calibration) and found.speech.shape == (FRAMES * 640,) and len(found.crops) == 1
    with wave.open(str(tmp_path / "silence.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(32_000))
    with pytest.raises(AudioError, match="silent"):
        open_calibration(examples / "portrait2.jpg", tmp_path / "silence.wav")


# -- TensorRT-RTX itself, which builds without a GPU


@pytest.mark.parametrize(("precision", "element"), [("int8", "int8"), ("fp8", "float8_e4m3fn")])
def test_tensorrt_counts_products_by_what_was_dequantised(
    small: Any, tmp_path: Path, rtx: Flavour, precision: str, element: str
) -> None:
    made = quantize(small, tmp_path, linear_layers(small), {"half": 4.0, "spiky": 1.0}, precision)
    plan = GraphPlan(SPEC, precision, profile(SPEC, 2), {}, None, ("8.9",))
    built = compile_graph(rtx, plan, made.SerializeToString(), tmp_path / "small.onnx")
    assert built.arithmetic == {element: 2, "float16": 1, "float32": 1}
