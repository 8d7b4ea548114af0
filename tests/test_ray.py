"""Batches and the server on a Ray cluster of two nodes: what is made, and what a worker's or replica's death costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semo_sdk.batch import Model, Report, Workers, run_batch
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.errors import CapacityError
from semo_sdk.media.audio import load_audio
from semo_sdk.serving.client import Client, LiveEvent, LiveFrame
from tests.conftest import EXAMPLES, random_speech
from tests.serving_tools import LIMIT, play, wait_for, wav

# not imported here: it takes seconds, in every run of all tests
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")]

NODE_CPUS = 4
# For a machine that does much else: Ray gives its workers the niceness 15, and takes what is slow for dead.
RAY = {"worker_niceness": 0, "health_check_timeout_ms": 120_000}
PATIENCE = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine."""
    os.environ.update(PATIENCE)
    import ray
    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {"num_cpus": NODE_CPUS, "object_store_memory": 100_000_000, "include_dashboard": False}
    two = Cluster()
    for settings in ({**common, "_system_config": RAY}, common):
        for last in (False, False, True):
            try:
                two.add_node(**settings)
                break
            except Exception:  # Ray gives a node 30 s to start, and raises nothing more precise
                if last:
                    raise
    ray.init(address=two.address, log_to_driver=False)
    two.wait_for_nodes()
    yield two
    ray.shutdown()
    two.shutdown()


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    """The tiny model with random weights, on ONNX Runtime."""
    return Model(bundle=str(tiny_bundle), backend="onnxruntime", threads=1)


def batch_of(folder: Path, count: int) -> Path:
    lines = []
    for number in range(count):
        (folder / f"{number}.wav").write_bytes(wav(random_speech(6_400, seed=number)))
        lines.append({"photo": str(EXAMPLES / "portrait.jpg"), "audio": f"{number}.wav", "output": f"{number}.mp4"})
    (folder / "text.jpg").write_text("no photo")
    lines.append({"photo": "text.jpg", "audio": "0.wav", "output": "bad.mp4"})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    return manifest


def statuses(report: Report) -> list[str]:
    return [item.status for item in report.items]


def workers_of(name: str) -> list[int]:
    """Processes of actors whose title holds a name."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if title.startswith("ray::") and name in title:
                found.append(int(entry.name))
    return found


def test_a_batch_on_two_nodes_survives_the_death_of_a_worker(cluster: Any, model: Model, tmp_path: Path) -> None:
    manifest, out = batch_of(tmp_path, 5), tmp_path / "out"
    killed: list[int] = []

    def kill(result: Any) -> None:
        if not killed and result.status == "made":
            killed.extend(workers_of("Worker")[:1])
            os.kill(killed[0], signal.SIGKILL)

    report = run_batch(manifest, out, model=model, workers=Workers(count=2), progress=kill)
    assert statuses(report) == ["made"] * 5 + ["failed"], report
    assert killed and sum(item.attempts - 1 for item in report.items) <= 1
    assert all(len(load_audio(out / f"{number}.mp4")) >= 10 * SAMPLES_PER_FRAME for number in range(5))
    again = run_batch(manifest, out, model=model)  # here: the same notes
    assert statuses(again) == ["skipped"] * 5 + ["failed"]


def test_an_item_that_kills_every_worker_fails_alone(
    cluster: Any, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from semo_sdk.batch import cluster as module

    class Deadly(module.Worker):
        def run(self, item: Any) -> Any:
            if item.output == "1.mp4":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(item)

    monkeypatch.setattr(module, "Worker", Deadly)
    report = run_batch(batch_of(tmp_path, 3), tmp_path / "out", model=model, workers=Workers(count=1, retries=1))
    assert statuses(report) == ["made", "failed", "made", "failed"]
    error = report.items[1].error
    assert error is not None and error.type == "EngineError" and "died 2 times" in error.message


def test_a_model_that_no_worker_can_open_ends_the_batch(cluster: Any, tmp_path: Path) -> None:
    from semo_sdk.errors import BundleError

    with pytest.raises(BundleError, match="nowhere"):
        run_batch(batch_of(tmp_path, 2), tmp_path / "out", model=Model(bundle="nowhere"), workers=Workers(count=1))


@pytest.fixture(scope="module")
def address(cluster: Any, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application with a replica on each node."""
    from ray import serve

    from semo_sdk.serving.ray_app import build

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    fields = {
        "bundle": model.bundle,
        "backend": model.backend,
        "threads": 1,
        "latency": "low",
        "portrait": str(EXAMPLES / "portrait.jpg"),
        "data": str(tmp_path_factory.mktemp("data")),
        "sessions": 1,  # one always fits, however slow the machine was measured
        "min_replicas": 2,
        "max_replicas": 3,
        "upscale_seconds": 1,
        "cpus": NODE_CPUS / 2,  # a third one fits; Serve spreads the first two
    }
    serve.run(build(fields), name="semo", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def replicas() -> dict[int, dict[str, Any]]:
    """What the replicas say of themselves, by process."""
    from ray import serve

    handle = serve.get_app_handle("semo")
    said = [handle.describe.remote().result(timeout_s=LIMIT) for _ in range(8)]
    return {replica["pid"]: replica for replica in said}


def test_replicas_are_on_both_nodes_and_share_portraits(cluster: Any, address: str) -> None:
    found = replicas()
    assert len(found) == 2 and len({replica["node"] for replica in found.values()}) == 2
    with Client(address) as client:
        assert client.request("GET", "/health") == {"status": "ok"}
        assert client.request("GET", "/ready") == {"status": "ready"}
        portrait = client.upload_portrait(EXAMPLES / "portrait2.jpg")
    for _ in range(4):  # another client is another session for the router
        with Client(address) as other:
            assert other.request("GET", f"/v1/portraits/{portrait}")["id"] == portrait


def test_a_job_is_asked_for_where_it_runs(cluster: Any, address: str, tmp_path: Path) -> None:
    with Client(address) as client:
        job = client.create_video(wav(random_speech(12_800)), portrait_id="default", latency="low")
        events = ""
        affinity = client._http.headers
        import httpx

        with httpx.stream("GET", f"{address}/v1/videos/{job['id']}/events", headers=affinity, timeout=LIMIT) as answer:
            for piece in answer.iter_text():  # as they come
                events += piece
        assert '"status":"completed"' in events
        assert len(load_audio(client.download(job["id"], tmp_path / "job.mp4"))) >= 20 * SAMPLES_PER_FRAME


def spoken(items: list[Any]) -> np.ndarray:
    """The sound of the speaking frames of a recording that is cut where a resumed session says."""
    frames: dict[int, LiveFrame] = {}
    for item in items:
        if isinstance(item, LiveFrame):
            frames[item.index] = item
        elif item.type == "session.resumed":
            first = round(item.data["position"] * 25)
            frames = {index: frame for index, frame in frames.items() if index < first}
    return np.concatenate([frames[index].audio for index in sorted(frames) if frames[index].speaking])


def session_host() -> int:
    """Process of the replica that has a live session."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [pid for pid, replica in replicas().items() if replica["sessions"]]
        return bool(found)

    wait_for(look)
    return found[0]


def test_a_session_outlives_its_replica_without_losing_a_sample(cluster: Any, address: str) -> None:
    pcm = (random_speech(5 * 16_000) * 20_000).astype(np.int16)
    killed: list[int] = []

    def kill(items: list[Any]) -> None:
        if not killed and sum(isinstance(item, LiveFrame) and item.speaking for item in items) > 40:
            killed.append(session_host())
            os.kill(killed[0], signal.SIGKILL)

    with Client(address) as client, client.lasting(save_seconds=0.5) as live:
        items = play(live, pcm, kill)
    assert killed
    resumed = [item for item in items if isinstance(item, LiveEvent) and item.type == "session.resumed"]
    assert len(resumed) == 1
    heard = spoken(items)
    assert np.array_equal(heard[: len(pcm)], pcm) and not heard[len(pcm) :].any()
    done = items[-1].data
    assert (done["utterance"], done["played"]) == (0, 5.0)


def test_without_that_the_client_is_told_that_it_may_try_again(cluster: Any, address: str) -> None:
    from semo_sdk.serving.client import ConnectionLostError

    wait_for(lambda: len(replicas()) >= 2)
    with Client(address) as client, client.live() as live:
        next(iter(live))
        os.kill(session_host(), signal.SIGKILL)
        with pytest.raises(ConnectionLostError):
            for _ in live:
                pass


def opened(client: Client) -> Any:
    """A live session, as soon as a replica has room."""
    end = time.monotonic() + LIMIT
    while True:
        try:
            return client.live()
        except CapacityError:
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.5)


def test_more_sessions_bring_more_replicas(cluster: Any, address: str) -> None:
    wait_for(lambda: len(replicas()) >= 2)
    with contextlib.ExitStack() as stack, Client(address) as client:
        for _ in range(2):  # more than 2 replicas x 1 session x 0.75
            live = stack.enter_context(opened(client))
            threading.Thread(target=list, args=(live,), daemon=True).start()
        wait_for(lambda: len(replicas()) == 3)
