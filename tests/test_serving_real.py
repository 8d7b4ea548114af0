"""Live sessions on real engines: the same alone and in a crowd; and `semo serve` as a process, from start to drain."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from semo_sdk.backends import load_engines
from semo_sdk.bundle import Bundle
from semo_sdk.errors import CapacityError
from semo_sdk.media.image import Portrait
from semo_sdk.media.video import read_video
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.serving.client import Client, LiveFrame
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.keys import add_key
from semo_sdk.serving.speech import Frame
from tests.conftest import random_speech
from tests.serving_tools import LIMIT, wait_for, wav

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def real_graphs(tiny_bundle: Path) -> Iterator[Graphs]:
    opened = Bundle.open(tiny_bundle)
    graphs = Graphs(load_engines(opened, backend="openvino", precision="fp32", threads=1), opened.config)
    yield graphs
    graphs.close()


def crowd(graphs: Graphs, portrait: Portrait, sizes: tuple[int, ...], others: int) -> np.ndarray:
    """The speaking frames of one session beside others, (n, 256, 256, 3)."""
    engine = Engine(graphs, sizes=sizes, latencies=("low",))
    reference = engine.encode(portrait)
    session = engine.open(reference, seed=1)
    for seed in range(others):
        neighbour = engine.open(reference, seed=seed + 2)
        neighbour.push(random_speech(20_000, seed=seed))
    session.push(random_speech(9_000))
    session.end()
    frames: list[np.ndarray] = []
    while len(frames) < 15:
        engine.step()
        item = session.take()
        if isinstance(item, Frame):
            frames.append(item.image)
    engine.close()
    return np.stack(frames)


def test_in_a_crowd_a_session_is_the_same(real_graphs: Graphs, portrait: Portrait) -> None:
    alone, together = (crowd(real_graphs, portrait, (4,), others) for others in (0, 3))
    np.testing.assert_array_equal(alone, together)  # at a fixed batch size: bit for bit
    single = crowd(real_graphs, portrait, (1,), 0)
    assert np.abs(single.astype(int) - together).max() <= 1  # across batch sizes: within one grey level
    assert single.std(axis=0).max() > 0  # and it moves


def test_serve_from_start_to_drain(tiny_bundle: Path, portrait_path: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "test")
    command = [str(Path(sys.executable).parent / "semo"), "serve", "--port", "0", "--bundle", str(tiny_bundle)]
    command += ["--latency", "low", "--batch-sizes", "1", "--threads", "1", "--portrait", str(portrait_path)]
    command += ["--data", str(tmp_path / "data"), "--keys", str(keys), "--drain", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        assert "http://127.0.0.1:" in first, first + process.stderr.read()
        with Client(first.split()[2], key) as client:

            def ready() -> bool:
                try:
                    return bool(client.request("GET", "/ready"))
                except CapacityError:
                    return False

            wait_for(ready)
            speech = wav(random_speech(8_000))
            path = client.make_video(portrait_path, speech, tmp_path / "out.mp4", latency="low")
            assert len(list(read_video(path))) == 13
            with client.live() as live:
                live.push(random_speech(8_000))
                live.end()
                frames = [item for item, _ in zip(live, range(40), strict=False) if isinstance(item, LiveFrame)]
                assert any(frame.speaking for frame in frames)
                process.send_signal(signal.SIGTERM)
                reasons = [
                    item.data["reason"] for item in live if not isinstance(item, LiveFrame) and "reason" in item.data
                ]
                assert reasons == ["the server is shutting down"]
        assert process.wait(LIMIT) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
    log = process.stderr.read()
    assert "Traceback" not in log and key not in log, log
