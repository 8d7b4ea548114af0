"""What only a GPU can show: the same contract and the same numbers on CUDA. Skipped, with the reason, without one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from semo_sdk.backends import load_engines
from semo_sdk.backends.base import graph_specs
from semo_sdk.backends.device import DeviceArray, first, join
from semo_sdk.backends.info import cuda_device_count
from semo_sdk.bundle import Bundle
from semo_sdk.engines.check import Samples, compare, make_samples
from semo_sdk.errors import BackendUnavailableError
from semo_sdk.pipeline.graphs import Graphs
from tests.test_device_tensors import OnHost, passes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda_device_count(), reason="this machine has no NVIDIA GPU"),
]
KINDS = [("torch", "fp32"), ("torch", "bf16"), ("torch", "fp16"), ("onnxruntime:cuda", "fp16"), ("tensorrt", "auto")]


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Trusted numbers of the embedded model."""
    pytest.importorskip("onnxruntime")
    bundle = Bundle.open("semo-tiny")
    with load_engines(bundle, "onnxruntime:cpu", "fp32") as engines:
        return make_samples(bundle.config, engines, batch=2)


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def graphs(request: pytest.FixtureRequest) -> Iterator[Graphs]:
    backend, precision = request.param
    bundle = Bundle.open("semo-tiny")
    try:
        engines = load_engines(bundle, backend, precision)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    yield Graphs(engines, bundle.config)
    engines.close()


def test_numbers_are_those_of_the_cpu(graphs: Graphs, samples: Samples) -> None:
    for name, spec in graph_specs(graphs.config).items():
        for _ in range(3):  # the first launch, one that captures, one that is replayed
            found = graphs(name, samples.feeds[name])
        attempt = compare(spec, graphs.precision, samples.outputs[name], found)
        assert attempt.passed, f"{name}: {attempt.detail}"


@pytest.mark.parametrize("latency", ["quality", "low"])
def test_tensors_that_stay_on_the_gpu_change_no_frame(graphs: Graphs, latency: str) -> None:
    stayed = passes(graphs, latency)
    copied = passes(Graphs({name: OnHost(graphs.engines[name]) for name in graphs.engines}, graphs.config), latency)
    for mine, theirs in zip(stayed, copied, strict=True):
        np.testing.assert_array_equal(mine.frames, theirs.frames)


def test_results_are_kept_while_the_next_are_made(graphs: Graphs, samples: Samples) -> None:
    feeds = samples.feeds["reference"]
    mine = graphs.on_device("reference", feeds)
    kept = {name: np.asarray(tensor).copy() for name, tensor in mine.items()}
    other = {"image": 255 - feeds["image"]}
    hosts = [graphs("reference", given) for given in (feeds, other, other)]
    for name, array in kept.items():
        assert isinstance(mine[name], DeviceArray)
        np.testing.assert_array_equal(np.asarray(mine[name]), array)
        np.testing.assert_array_equal(hosts[0][name], array)
        np.testing.assert_array_equal(hosts[1][name], hosts[2][name])


def test_tensors_are_joined_and_cut(graphs: Graphs, samples: Samples) -> None:
    features = graphs.on_device("audio", samples.feeds["audio"])["features"]
    whole = np.asarray(features)
    np.testing.assert_array_equal(np.asarray(join([features, features])), np.concatenate([whole, whole]))
    np.testing.assert_array_equal(np.asarray(first(features, 5)), whole[:, :5])


def test_memory_of_the_cuda_runtime() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    from semo_sdk.backends.cuda_memory import CudaDevice, open_memory

    memory = open_memory()
    device, data = CudaDevice(memory), np.random.default_rng(0).standard_normal((3, 40), np.float32)
    source, target = memory.allocate(data.nbytes), memory.allocate(data.nbytes)
    memory.upload(source.address, data)
    replay = memory.capture(lambda: memory.copy(target.address, source.address, data.nbytes))
    replay()
    array = device.keep(target.address, data.shape, "float32")
    np.testing.assert_array_equal(np.asarray(array), data)
    memory.upload(source.address, 2 * data)
    replay()
    np.testing.assert_array_equal(np.asarray(device.keep(target.address, data.shape, "float32")), 2 * data)
    np.testing.assert_array_equal(
        np.asarray(device.first(device.join([array, array]), 7)), np.tile(data, (2, 1))[:, :7]
    )


def test_the_first_engine_of_a_gpu_is_on_it() -> None:
    with load_engines("semo-tiny") as engines:
        assert engines.backend in ("tensorrt", "onnxruntime", "torch"), engines.reason
