"""Tensors that stay on the engine's device from graph to graph change no frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from semo_sdk.backends import EngineSet, load_engines
from semo_sdk.backends.base import Axis, Engine, GraphSpec, TensorSpec
from semo_sdk.backends.device import DeviceArray, DeviceEngine
from semo_sdk.errors import EngineError
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import encode_reference, stack_references
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import Chunk, step_batch
from tests.conftest import random_speech


class OnHost:
    """An engine whose tensors come to the host every time."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.spec = engine, engine.spec

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert all(isinstance(array, np.ndarray) for array in feeds.values())
        return self.engine(feeds)

    def close(self) -> None: ...


@pytest.fixture(scope="module", params=["torch", "onnxruntime"])
def engines(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[EngineSet]:
    pytest.importorskip(request.param)
    with load_engines(tiny_bundle, request.param, "fp32", threads=1) as opened:
        yield opened


def passes(graphs: Graphs, latency: str, count: int = 2) -> list[Chunk]:
    """Two passes of ``count`` sessions with portraits, speech and seeds of their own."""
    # as smooth as a photo: in noise a warp that is a hundredth of a pixel off is another picture
    waves = np.sin(np.arange(256) / 30)[:, None, None] + np.cos(np.arange(256) / 25)[:, None]
    pictures = [(128 + 55 * waves + 9 * n * np.arange(-1, 2)).astype(np.uint8) for n in range(count)]
    references = [encode_reference(graphs, picture) for picture in pictures]
    states = [
        StreamState.start(graphs.config, r.motion[0], latency=latency, seed=i).push(random_speech(32 * 640, seed=i))
        for i, r in enumerate(references)
    ]
    chunks = []
    for _ in range(2):
        made = step_batch(graphs, stack_references(references), states)
        chunks += [chunk for chunk, _ in made]
        states = [state for _, state in made]
    return chunks


@pytest.mark.parametrize("latency", ["quality", "low"])
def test_frames_are_the_same_with_and_without_copies(engines: EngineSet, tiny_config: Any, latency: str) -> None:
    assert all(isinstance(engines[name], DeviceEngine) for name in engines)
    stayed = passes(Graphs(engines, tiny_config), latency)
    copied = passes(Graphs({name: OnHost(engines[name]) for name in engines}, tiny_config), latency)
    for mine, theirs in zip(stayed, copied, strict=True):
        assert isinstance(mine.frames, np.ndarray) and isinstance(mine.motion, np.ndarray)
        np.testing.assert_array_equal(mine.frames, theirs.frames)
        np.testing.assert_array_equal(mine.motion, theirs.motion)


def test_a_reference_stays_and_its_motion_can_be_read(engines: EngineSet, tiny_config: Any) -> None:
    reference = encode_reference(Graphs(engines, tiny_config), np.full((256, 256, 3), 90, np.uint8))
    assert all(isinstance(array, DeviceArray) for array in reference.arrays.values())
    assert reference.motion.shape == (1, 1, tiny_config.motion_dim) and "DeviceArray" in repr(
        reference.arrays["latents"]
    )


def test_stats_can_wait_for_the_device(engines: EngineSet, tiny_config: Any) -> None:
    graphs = Graphs(engines, tiny_config)
    graphs.wait = True
    encode_reference(graphs, np.full((256, 256, 3), 90, np.uint8))
    assert graphs.stats["reference"].launches == 1 and graphs.stats["reference"].seconds > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_torch_in_half_precision_is_close_to_float32(tiny_bundle: Path, tiny_config: Any, precision: str) -> None:
    with load_engines(tiny_bundle, "torch", "fp32", threads=1) as exact:
        expected = passes(Graphs(exact, tiny_config), "quality", count=1)
    with load_engines(tiny_bundle, "torch", precision, threads=1) as half:
        assert half.precision == precision
        found = passes(Graphs(half, tiny_config), "quality", count=1)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.abs(mine.frames.astype(int) - theirs.frames.astype(int)).mean() < 6
        assert np.abs(mine.motion - theirs.motion).mean() < 0.1 * theirs.motion.std()


class FakeCuda:
    """CUDA graphs of torch, on the CPU: a replay computes again what was called while it was captured."""

    def __init__(self, torch: Any, module: Any, works: bool) -> None:
        self.torch, self.module, self.works = torch, module, works
        self.calls = self.replays = 0
        self.recording: Any = None

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        self.calls += 1
        outputs: tuple[Any, ...] = self.module(*inputs)
        if self.recording is not None:
            self.recording.parts = inputs, outputs
        return outputs

    def eval(self) -> FakeCuda:
        return self

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(parts=None)

        def replay() -> None:
            self.replays += 1
            inputs, outputs = graph.parts
            for target, value in zip(outputs, self.module(*inputs), strict=True):
                target.copy_(value)

        graph.replay = replay
        return graph

    @contextmanager
    def graph(self, graph: Any, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        if not self.works:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recording = graph
        yield
        self.recording = None


@pytest.mark.parametrize("works", [True, False])
def test_torch_replays_what_it_captured(works: bool, caplog: pytest.LogCaptureFixture) -> None:
    torch = pytest.importorskip("torch")
    from semo_sdk.backends.torch import MAX_CAPTURED, TorchDevice, TorchEngine

    spec = GraphSpec(
        "sum",
        (TensorSpec("a", "float32", ("B", 3)), TensorSpec("b", "float32", ("B", 3))),
        (TensorSpec("c", "float32", ("B", 3)),),
        {"B": Axis(1, 1, 32)},
    )
    device = TorchDevice()
    cuda = FakeCuda(torch, lambda a, b: (a + 2 * b,), works)
    device.torch = SimpleNamespace(
        cuda=cuda, tensor=torch.tensor, inference_mode=torch.inference_mode, cat=torch.cat, empty=torch.empty
    )
    engine: Any = TorchEngine(spec, cuda, device=device)  # type: ignore[arg-type]
    engine._capture = True  # the device says that it is no GPU

    def feeds(batch: int, seed: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(seed)
        return {name: generator.standard_normal((batch, 3), np.float32) for name in "ab"}

    kept = [engine.on_device(feeds(2, seed))["c"] for seed in range(4)]
    for seed, array in enumerate(kept):
        given = feeds(2, seed)
        np.testing.assert_allclose(np.asarray(array), given["a"] + 2 * given["b"], rtol=1e-6)
    assert ("without a CUDA graph" in caplog.text) != works
    if works:
        assert cuda.replays == 4 and cuda.calls == 4, "three to warm up, one to capture"
        for batch in range(1, MAX_CAPTURED + 4):
            engine(feeds(batch, 0))
        assert len(engine._captured) == MAX_CAPTURED
    chained = engine({"a": kept[0], "b": np.zeros((2, 3), np.float32)})["c"]
    np.testing.assert_array_equal(chained, np.asarray(kept[0]))
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine(feeds(1, 0))
