"""What strangers and bad input meet: keys, owners, origins, limits, typed errors, silent logs."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semo_sdk.errors import CapacityError, ConfigError, InputError
from semo_sdk.media.image import Portrait
from semo_sdk.serving.client import ServerError
from semo_sdk.serving.keys import Keys, add_key
from semo_sdk.serving.uploads import sniff_audio, sniff_image
from tests.conftest import random_speech
from tests.serving_tools import LIMIT, Running, error_of, png, serving, wait_for, wav

SPEECH = wav(random_speech(16_000))


@pytest.mark.parametrize(
    ("form", "files", "status", "code"),
    [
        ({}, {"audio": SPEECH}, 400, "one_portrait"),
        ({"portrait_id": "default"}, {}, 400, "invalid_parameter"),
        ({"portrait_id": "../../etc/passwd"}, {"audio": SPEECH}, 404, "portrait_not_found"),
        ({"portrait_id": "default", "latency": "fast"}, {"audio": SPEECH}, 400, "invalid_parameter"),
        ({"portrait_id": "default", "latency": "balanced"}, {"audio": SPEECH}, 400, "invalid_setting"),
        ({"portrait_id": "default", "seed": "-1"}, {"audio": SPEECH}, 400, "invalid_parameter"),
        ({"portrait_id": "default"}, {"audio": b""}, 400, "empty_file"),
        ({"portrait_id": "default"}, {"audio": b"#EXTM3U\nfile:///etc/passwd\n"}, 415, "unsupported_audio"),
        ({"portrait_id": "default"}, {"audio": SPEECH[:30]}, 400, "invalid_audio"),
        ({"portrait_id": "default"}, {"audio": wav(np.zeros(11 * 16_000))}, 400, "invalid_audio"),
        ({}, {"audio": SPEECH, "image": b"<svg/>"}, 415, "unsupported_image"),
        ({}, {"audio": SPEECH, "image": b"\xff\xd8\xff" + bytes(100)}, 400, "invalid_image"),
        ({}, {"audio": SPEECH, "image": png(300, 300)}, 400, "no_face"),
        ({}, {"audio": SPEECH, "image": png(2_000, 1_001)}, 413, "image_too_large"),
        ({}, {"audio": SPEECH, "image": bytes(3_000_001)}, 413, "image_too_large"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(
    http: httpx.Client, form: dict[str, str], files: dict[str, bytes], status: int, code: str
) -> None:
    answer = http.post("/v1/videos", data=form, files=files or {"other": b"x"})
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert "passwd" not in answer.text and "Traceback" not in answer.text


def test_a_request_that_is_too_large_is_refused_before_it_is_read(running: Running, http: httpx.Client) -> None:
    address = (running.server.config.host, int(running.url.rsplit(":", 1)[1]))
    with socket.create_connection(address, timeout=LIMIT) as raw:
        raw.sendall(b"POST /v1/portraits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n")
        assert raw.recv(4_096).startswith(b"HTTP/1.1 413")

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(60):
            yield bytes(1_000_000)

    try:
        chunked = http.post(
            "/v1/portraits", headers={"Content-Type": "multipart/form-data; boundary=x"}, content=endless()
        )
        assert chunked.status_code == 413
    except httpx.TransportError:
        pass  # the server hung up while we were sending


def test_other_websites_cannot_use_a_local_server(http: httpx.Client) -> None:
    evil = http.post("/v1/portraits", headers={"Origin": "https://evil.example"}, files={"image": b"x"})
    assert evil.status_code == 403 and error_of(evil)["code"] == "forbidden_origin"
    rebound = http.get("/v1/portraits", headers={"Host": "evil.example"})
    assert rebound.status_code == 403 and error_of(rebound)["code"] == "forbidden_host"
    assert "access-control-allow-origin" not in http.get("/health", headers={"Origin": "https://evil.example"}).headers


def test_keys_and_whose_is_what(tmp_path: Path, portrait: Portrait, portrait_path: Path) -> None:
    file = tmp_path / "keys.json"
    mine, theirs = add_key(file, "me"), add_key(file, "them")
    assert mine not in file.read_text() and file.stat().st_mode & 0o077 == 0
    with serving(tmp_path, portrait, keys=file, videos_per_key=1, origins=("https://app.example",)) as running:
        with httpx.Client(base_url=running.url) as http:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {mine}"}):
                answer = http.get("/v1/videos", headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert error_of(answer)["type"] == "authentication_error"
            allowed = http.options(
                "/v1/videos",
                headers={"Origin": "https://app.example", "Access-Control-Request-Method": "POST"},
            )
            assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        with running.client(mine) as me, running.client(theirs) as them:
            portrait_id = me.upload_portrait(portrait_path)
            gate = running.taps["render"].gate = threading.Event()
            video = me.create_video(SPEECH, portrait_id=portrait_id)
            with pytest.raises(CapacityError, match="in the making") as refused:
                me.create_video(SPEECH, portrait_id=portrait_id)
            assert refused.value.retry_after >= 1
            running.taps["render"].gate = None
            gate.set()
            me.wait(video["id"], poll_seconds=0.02)
            for use in (
                lambda: them.create_video(SPEECH, portrait_id=portrait_id),
                lambda: them.video(video["id"]),
                lambda: them.download(video["id"], tmp_path / "x.mp4"),
                lambda: them.request("DELETE", f"/v1/videos/{video['id']}"),
            ):
                with pytest.raises(ServerError, match="no such"):
                    use()
            assert them.request("GET", "/v1/videos")["data"] == []
            entries = json.loads(file.read_text())["keys"]
            file.write_text(json.dumps({"keys": entries[1:]}))  # revoked

            def revoked() -> bool:
                try:
                    me.video(video["id"])
                except ServerError as error:
                    return "API key" in str(error)
                return False

            wait_for(revoked)  # the file is looked at now and then


def test_damaged_key_files_are_refused(tmp_path: Path) -> None:
    for text in ("", "[]", '{"keys": [{"id": 1}]}', '{"keys": []}'):
        file = tmp_path / "keys.json"
        file.write_text(text)
        with pytest.raises(ConfigError):
            Keys(file)


def test_too_many_requests_are_refused_for_a_while(tmp_path: Path, portrait: Portrait) -> None:
    with serving(tmp_path, portrait, requests_per_minute=5) as running, httpx.Client(base_url=running.url) as http:
        answers = [http.get("/v1/videos") for _ in range(8)]
        assert [answer.status_code for answer in answers[:5]] == [200] * 5
        assert answers[-1].status_code == 429 and 1 <= int(answers[-1].headers["retry-after"]) <= 13


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    head=st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBP", b"GIF89a"]),
    body=st.binary(max_size=300),
)
def test_any_bytes_as_an_image_are_a_typed_error(running: Running, head: bytes, body: bytes) -> None:
    with running.client() as client, pytest.raises(InputError):
        client.upload_portrait(head + body + b"\0")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    head=st.sampled_from(
        [b"", b"RIFF\x10\0\0\0WAVE", b"fLaC", b"OggS", b"ID3\4", b"\x1a\x45\xdf\xa3", b"\0\0\0\x18ftyp"]
    ),
    body=st.binary(max_size=300),
)
def test_any_bytes_as_audio_are_a_typed_error(running: Running, head: bytes, body: bytes) -> None:
    with running.client() as client, pytest.raises(InputError):
        client.create_video(head + body + b"\0", portrait_id="default")


def test_kinds_are_told_by_their_first_bytes(portrait_path: Path, speech_path: Path) -> None:
    assert sniff_image(portrait_path.read_bytes()) == "JPEG" and sniff_audio(speech_path.read_bytes()) == "wav"


def test_logs_hold_nothing_of_users(
    running: Running, http: httpx.Client, caplog: pytest.LogCaptureFixture, portrait_path: Path
) -> None:
    with caplog.at_level("INFO", "semo_sdk"):
        http.get("/v1/videos/secret-name?token=secret-name", headers={"Authorization": "Bearer secret-name"})
        http.get("/secret-name")
        http.post("/v1/portraits", files={"image": ("secret-name.jpg", portrait_path.read_bytes())})
        http.post("/v1/portraits", files={"image": ("secret-name.jpg", b"secret-name")})
    assert "/v1/videos/{video_id} 404" in caplog.text and "secret-name" not in caplog.text
