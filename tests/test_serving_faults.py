"""What breaks around the server: ffmpeg, the process, the disk, the clock. It stays up, and loses no finished video."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from semo_sdk.media.image import Portrait
from semo_sdk.media.video import read_video
from semo_sdk.serving.client import Client, LiveFrame, ServerError
from semo_sdk.serving.keys import ANYBODY
from tests.conftest import random_speech
from tests.serving_tools import Running, error_of, nobody_was_early, serving, wait_for, wav

SPEECH = wav(random_speech(16_000))
ROOT = Path(__file__).parent.parent
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def encoders(parent: int) -> list[int]:
    """The ffmpeg processes of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = entry.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # it ended meanwhile
        if name.startswith("ffmpeg") and int(rest.split()[1]) == parent and rest.split()[0] != "Z":
            found.append(int(entry.parent.name))
    return found


@contextmanager
def held(running: Running, graph: str = "render") -> Iterator[None]:
    """Passes wait in this graph until the block ends."""
    gate = running.taps[graph].gate = threading.Event()
    try:
        yield
    finally:
        running.taps[graph].gate = None
        gate.set()


def make(client: Client, path: Path) -> bytes:
    """A video, all of it."""
    video = client.create_video(SPEECH, portrait_id="default")
    client.wait(video["id"], poll_seconds=0.02)
    return client.download(video["id"], path).read_bytes()


def only_finished_files(running: Running) -> bool:
    """Of each finished video the file and its note, and nothing else."""
    completed = [video.id for video in running.service.videos.of(ANYBODY) if video.status == "completed"]
    names = {path.name for path in (running.service.settings.data / "videos").iterdir()}
    return names == {f"{name}.{suffix}" for name in completed for suffix in ("mp4", "json")}


@linux
def test_ffmpeg_killed_in_the_middle_fails_its_job_alone(running: Running, tmp_path: Path) -> None:
    with running.client() as client:
        with held(running):
            doomed = client.create_video(SPEECH, portrait_id="default")
            wait_for(lambda: encoders(os.getpid()))
            (ffmpeg,) = encoders(os.getpid())
            other = client.create_video(SPEECH, portrait_id="default")
            os.kill(ffmpeg, signal.SIGKILL)
        with pytest.raises(ServerError, match="could not be encoded") as failed:
            client.wait(doomed["id"], poll_seconds=0.02)
        assert failed.value.code == "encode_failed" and "/" not in str(failed.value)  # no folder of the server
        assert client.wait(other["id"], poll_seconds=0.02)["status"] == "completed"
        assert error_of(httpx.get(f"{running.url}/v1/videos/{doomed['id']}/content"))["code"] == "video_not_ready"
        assert len(list(read_video(client.download(other["id"], tmp_path / "other.mp4")))) == 25
    wait_for(lambda: only_finished_files(running))


SERVER = """
import sys, threading, time
from pathlib import Path
from semo_sdk.media.image import find_portrait, load_image
from tests.serving_tools import serving

with serving(Path(sys.argv[1]), find_portrait(load_image(sys.argv[2]))) as running:
    print(running.url, flush=True)
    sys.stdin.readline()
    running.taps["render"].gate = threading.Event()
    print("held", flush=True)
    time.sleep(600)
"""


@linux
@pytest.mark.slow
def test_a_server_that_is_killed_loses_no_finished_video(
    tmp_path: Path, portrait: Portrait, portrait_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path), str(portrait_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with Client(process.stdout.readline().strip()) as client:
            finished = client.create_video(SPEECH, portrait_id="default")
            client.wait(finished["id"], poll_seconds=0.02)
            before = client.download(finished["id"], tmp_path / "before.mp4").read_bytes()
            process.stdin.write("hold\n")
            process.stdin.flush()
            assert process.stdout.readline() == "held\n"
            lost = client.create_video(SPEECH, portrait_id="default")
            wait_for(lambda: encoders(process.pid))
            orphans = encoders(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))  # it ends with its input
    with serving(tmp_path, portrait) as running, running.client() as client:
        assert [video["id"] for video in client.request("GET", "/v1/videos")["data"]] == [finished["id"]]
        assert client.download(finished["id"], tmp_path / "after.mp4").read_bytes() == before
        with pytest.raises(ServerError, match="no such video"):
            client.video(lost["id"])
        assert only_finished_files(running)  # what the other one left is gone
        make(client, tmp_path / "again.mp4")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No process may write a larger one: what a full disk does, for real, to us and to ffmpeg."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [40_000, 100_000])  # the sound does not fit; the picture does not fit
def test_a_disk_that_fills_up_in_the_middle_costs_that_job_alone(tmp_path: Path, portrait: Portrait, size: int) -> None:
    with serving(tmp_path, portrait) as running, running.client() as client:
        before = make(client, tmp_path / "before.mp4")
        (finished,) = client.request("GET", "/v1/videos")["data"]
        assert len(before) > size
        with largest_file(size):
            doomed = client.create_video(SPEECH, portrait_id="default")
            with pytest.raises(ServerError, match="could not be encoded or stored"):
                client.wait(doomed["id"], poll_seconds=0.02)
            assert client.request("GET", "/ready") == {"status": "ready"}
            with client.live() as live:  # needs no disk
                assert any(isinstance(item, LiveFrame) for item, _ in zip(live, range(5), strict=False))
        assert client.download(finished["id"], tmp_path / "after.mp4").read_bytes() == before
        make(client, tmp_path / "again.mp4")
        wait_for(lambda: only_finished_files(running))


def test_an_upload_that_cannot_be_stored_is_not_the_clients_fault(running: Running, http: httpx.Client) -> None:
    large = wav(random_speech(48_000 * 10), 48_000 * 2)  # of 5 s: 960,000 bytes are kept in memory, the rest is not
    for size in (900_000, 1_000):
        with largest_file(size):
            form, sound = {"portrait_id": "default"}, large if size > 1_000 else SPEECH
            answer = http.post("/v1/videos", data=form, files={"audio": sound + bytes(200_000)})
        assert (answer.status_code, error_of(answer)["code"]) == (503, "storage_full")
        assert int(answer.headers["retry-after"]) > 0 and "/" not in error_of(answer)["message"]


def test_a_video_whose_note_cannot_be_written_is_there_until_the_restart(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("semo_sdk.serving.videos.write_text", full)
    with running.client() as client:
        assert make(client, tmp_path / "out.mp4")


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_jumps_moves_nothing(
    tmp_path: Path, portrait: Portrait, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    real, jump = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + jump[0])
    with serving(tmp_path, portrait) as running, running.client() as client:
        before = make(client, tmp_path / "before.mp4")
        (finished,) = client.request("GET", "/v1/videos")["data"]
        began = time.monotonic()
        with client.live() as live:
            live.push(random_speech(80_000))
            indices, times = [], []
            for item in live:
                if isinstance(item, LiveFrame):
                    indices.append(item.index)
                    times.append(time.monotonic())
                if len(indices) == 20:
                    jump[0] = years * 365 * 86_400.0
                if len(indices) == 60:
                    break
        assert indices == list(range(60)) and nobody_was_early(began, times)
        make(client, tmp_path / "later.mp4")  # which forgets what is too old
        assert client.download(finished["id"], tmp_path / "after.mp4").read_bytes() == before
