"""The HTTP API of a real server: portraits, videos, progress, failures, metrics, restart and drain."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import httpx
import pytest

from semo_sdk.errors import CapacityError
from semo_sdk.media.image import Portrait
from semo_sdk.media.video import read_video
from semo_sdk.serving.client import ServerError
from tests.conftest import random_speech
from tests.serving_tools import Running, error_of, serving, wait_for, wav

SPEECH = wav(random_speech(16_000))


def test_a_video_from_upload_to_download(running: Running, portrait_path: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    with running.client() as client:
        video = client.create_video(SPEECH, image=portrait_path, seed=3)
        assert video["object"] == "video" and video["frames"] == 25 and video["seconds"] == 1.0
        done = client.wait(video["id"], progress=seen.append, poll_seconds=0.02)
        assert done["status"] == "completed" and done["expires_at"] > done["completed_at"] and seen[-1] == 100
        path = client.download(video["id"], tmp_path / "talking.mp4")
    assert len(list(read_video(path))) == 25
    assert [file.name for file in tmp_path.iterdir()] == ["talking.mp4"]


def test_a_portrait_is_uploaded_once_and_used_again(
    running: Running, http: httpx.Client, portrait_path: Path, tmp_path: Path
) -> None:
    with running.client() as client:
        portrait = client.upload_portrait(portrait_path)
        assert portrait in [entry["id"] for entry in http.get("/v1/portraits").json()["data"]]
        videos = [client.create_video(SPEECH, portrait_id=portrait, paste_back=n == 1) for n in range(2)]
        for n, video in enumerate(videos):
            client.wait(video["id"], poll_seconds=0.02)
            frame = next(read_video(client.download(video["id"], tmp_path / f"{n}.mp4")))
            assert (frame.shape == (256, 256, 3)) == (n == 0)
        assert http.delete(f"/v1/portraits/{portrait}").json() == {
            "id": portrait,
            "object": "portrait",
            "deleted": True,
        }
        assert error_of(http.get(f"/v1/portraits/{portrait}"))["code"] == "portrait_not_found"
        with pytest.raises(ServerError, match="no such portrait"):
            client.create_video(SPEECH, portrait_id=portrait)


def test_ranges_and_heads_of_a_video_are_served(running: Running, http: httpx.Client) -> None:
    with running.client() as client:
        video = client.create_video(SPEECH, portrait_id="default")
        client.wait(video["id"], poll_seconds=0.02)
    url = f"/v1/videos/{video['id']}/content"
    whole = http.get(url)
    assert whole.headers["content-type"] == "video/mp4" and whole.headers["accept-ranges"] == "bytes"
    part = http.get(url, headers={"Range": "bytes=100-299"})
    assert part.status_code == 206 and part.content == whole.content[100:300]
    assert http.get(url, headers={"Range": "bytes=99999999-"}).status_code == 416
    head = http.head(url)
    assert head.status_code == 200 and int(head.headers["content-length"]) == len(whole.content) and not head.content


def test_progress_is_streamed(running: Running, http: httpx.Client) -> None:
    with running.client() as client:
        video = client.create_video(SPEECH, portrait_id="default")
    with http.stream("GET", f"/v1/videos/{video['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert seen[-1]["status"] == "completed" and seen[-1]["progress"] == 100
    assert all(entry["id"] == video["id"] for entry in seen)


def test_a_job_can_be_cancelled_and_leaves_nothing(running: Running, http: httpx.Client) -> None:
    folder = running.service.settings.data / "videos"
    gate = running.taps["render"].gate = threading.Event()
    try:
        with running.client() as client:
            video = client.create_video(SPEECH, portrait_id="default")
            url = f"/v1/videos/{video['id']}"
            wait_for(lambda: client.video(video["id"])["status"] == "in_progress")
            assert error_of(http.get(f"{url}/content"))["code"] == "video_not_ready"
            assert http.delete(url).json()["deleted"]  # at once, though a pass is running
            assert http.get(url).status_code == 404
    finally:
        running.taps["render"].gate = None
        gate.set()
    wait_for(lambda: not [file for file in folder.iterdir() if video["id"] in file.name])
    wait_for(lambda: not list(folder.glob(".semo-*")))


def test_unknown_routes_and_methods_have_the_same_error_body(http: httpx.Client) -> None:
    assert error_of(http.get("/v1/nothing"))["code"] == "not_found"
    assert error_of(http.put("/v1/videos"))["code"] == "method_not_allowed"


def test_health_readiness_metrics_and_documentation(running: Running, http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"} and http.get("/ready").json() == {"status": "ready"}
    text = http.get("/metrics").text
    for name in ("first_frame_seconds", "frame_gap_seconds", "queue_depth", "batch_size", "real_time_factor"):
        assert f"semo_{name}" in text
    assert 'route="/v1/videos/{video_id}"' in text and "video_" not in text.replace("video_id", "")
    schema = http.get("/openapi.json").json()
    assert {"/v1/videos", "/v1/portraits", "/v1/videos/{video_id}/content", "/ready"} <= set(schema["paths"])
    assert "WS /v1/live" in schema["info"]["description"]
    assert http.get("/health").headers["x-content-type-options"] == "nosniff"


def test_a_finished_video_survives_a_restart(tmp_path: Path, portrait: Portrait) -> None:
    with serving(tmp_path, portrait) as running, running.client() as client:
        video = client.create_video(SPEECH, portrait_id="default")
        client.wait(video["id"], poll_seconds=0.02)
        before = client.download(video["id"], tmp_path / "before.mp4").read_bytes()
    with serving(tmp_path, portrait) as running, running.client() as client:
        assert client.video(video["id"])["status"] == "completed"
        assert client.download(video["id"], tmp_path / "after.mp4").read_bytes() == before


def test_a_full_disk_fails_the_job_and_not_the_server(
    tmp_path: Path, portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, portrait) as running, running.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0})())
            with pytest.raises(CapacityError, match="disk"):
                client.create_video(SPEECH, portrait_id="default")
        (tmp_path / "videos").rename(tmp_path / "gone")
        (tmp_path / "videos").symlink_to("/dev/full")  # nothing can be written there
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**12})())
            video = client.create_video(SPEECH, portrait_id="default")
            with pytest.raises(ServerError) as failed:
                client.wait(video["id"], poll_seconds=0.02)
        assert failed.value.code == "encode_failed"
        assert client.request("GET", "/health") == {"status": "ok"}


def test_a_broken_engine_is_told_and_the_server_stays_up(tmp_path: Path, portrait: Portrait) -> None:
    with serving(tmp_path, portrait) as running, running.client() as client:
        running.taps["motion"].broken = True
        for _ in range(3):
            video = client.create_video(SPEECH, portrait_id="default")
            with pytest.raises(ServerError, match="broken"):
                client.wait(video["id"], poll_seconds=0.02)
        with pytest.raises(CapacityError, match="not ready"):
            client.request("GET", "/ready")
        assert client.request("GET", "/health") == {"status": "ok"}


def test_a_signal_drains_before_it_stops(tmp_path: Path, portrait: Portrait) -> None:
    with serving(tmp_path, portrait) as running, running.client() as client:
        running.server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: running.service.stop_at is not None)
        wait_for(lambda: running.server.should_exit)
        with pytest.raises((CapacityError, httpx.TransportError)):
            client.create_video(SPEECH, portrait_id="default")
