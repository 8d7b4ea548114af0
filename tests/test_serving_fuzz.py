"""A thousand damaged uploads and messages: typed answers, a server that stays up, nothing left. Fewer by default."""

from __future__ import annotations

import functools
import io
import json
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from semo_sdk.pipeline.state import StreamState
from tests.conftest import EXAMPLES, random_speech
from tests.serving_tools import LIGHT, LIMIT, Running, error_of, wait_for, wav

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return {"image_pixels": 2_000_000, "audio_seconds": 10, "requests_per_minute": 1e9}


@pytest.fixture(autouse=True)
def _unharmed(running: Running) -> Iterator[None]:
    yield
    assert httpx.get(f"{running.url}/ready").status_code == 200
    wait_for(lambda: not running.service.videos.waiting)


@functools.cache
def images() -> dict[str, bytes]:
    """A photo of a face in each format."""
    photo = Image.open(EXAMPLES / "portrait.jpg").convert("RGB").resize((256, 256))
    made = {}
    for kind in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        photo.save(buffer, kind)
        made[kind] = buffer.getvalue()
    return made


@functools.cache
def sounds() -> dict[str, bytes]:
    """A moment of speech in each format."""
    import imageio_ffmpeg

    made = {"wav": wav(random_speech(4_000))}
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", "pipe:0"]
    formats = {
        "flac": ["flac"],
        "ogg": ["ogg", "libopus"],
        "mp3": ["mp3"],
        "adts": ["adts"],
        "webm": ["webm", "libopus"],
    }
    for kind, (form, *codec) in formats.items():
        arguments = ["-f", form, *(["-c:a", *codec] if codec else []), "pipe:1"]
        made[kind] = subprocess.run(
            [*command, *arguments], input=made["wav"], stdout=subprocess.PIPE, check=True
        ).stdout
    return made


@functools.cache
def states() -> dict[str, bytes]:
    state = StreamState.start(LIGHT, np.zeros((1, LIGHT.motion_dim), np.float32), latency="low", seed=1)
    return {"empty": state.to_bytes(), "speaking": state.push(random_speech(2_000)).to_bytes()}


@st.composite
def damaged(draw: st.DrawFn, originals: Callable[[], dict[str, bytes]]) -> bytes:
    """A real file with some bytes changed, cut off, put in, or repeated: mostly near its beginning."""
    data = bytearray(originals()[draw(st.sampled_from(sorted(originals())))])
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.one_of(st.integers(0, min(100, len(data))), st.integers(0, len(data))))
        match draw(st.sampled_from(["change", "insert", "cut", "repeat"])):
            case "change":
                new = draw(st.binary(min_size=1, max_size=8))
                data[at : at + len(new)] = new
            case "insert":
                data[at:at] = draw(st.binary(max_size=40))
            case "cut":
                del data[at : at + draw(st.integers(0, len(data)))]
            case _:
                data[at:at] = data[at : at + draw(st.integers(0, 5_000))]
    return bytes(data) or b"\0"


def expect_typed(answer: httpx.Response, good: int) -> dict[str, Any]:
    """A success, or an error that says what is wrong with the file."""
    if answer.status_code != good:
        assert answer.status_code in (400, 413, 415), answer.text
        assert error_of(answer)["type"] == "invalid_request_error"
    found: dict[str, Any] = answer.json()
    return found


def send_image(http: httpx.Client, data: bytes) -> None:
    found = expect_typed(http.post("/v1/portraits", files={"image": data}), 201)
    if "id" in found:
        assert http.delete(f"/v1/portraits/{found['id']}").status_code == 200


def send_sound(http: httpx.Client, data: bytes) -> None:
    answer = http.post("/v1/videos", data={"portrait_id": "default"}, files={"audio": data})
    found = expect_typed(answer, 202)
    if "id" in found:
        assert http.delete(f"/v1/videos/{found['id']}").status_code == 200


def send_state(http: httpx.Client, data: bytes) -> None:
    expect_typed(http.post("/v1/states", files={"state": data}), 201)


@FEW
@given(data=damaged(images))
def test_damaged_images(http: httpx.Client, data: bytes) -> None:
    send_image(http, data)


@FEW
@given(data=damaged(sounds))
def test_damaged_sounds(http: httpx.Client, data: bytes) -> None:
    send_sound(http, data)


@settings(FEW, max_examples=100)
@given(data=damaged(states))
def test_damaged_states(http: httpx.Client, data: bytes) -> None:
    send_state(http, data)


@pytest.mark.slow
@MANY
@given(data=damaged(images))
def test_500_damaged_images(http: httpx.Client, data: bytes) -> None:
    send_image(http, data)


@pytest.mark.slow
@MANY
@given(data=damaged(sounds))
def test_500_damaged_sounds(http: httpx.Client, data: bytes) -> None:
    send_sound(http, data)


def zipped(arrays: dict[str, Any], *, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def promising(arrays: dict[str, np.ndarray], samples: int) -> bytes:
    """A state whose header promises so much speech, and does not bring it."""
    buffer, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (samples,)})
    with zipfile.ZipFile(io.BytesIO(zipped(arrays))) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, header.getvalue() if name == "pending.npy" else source.read(name))
    return buffer.getvalue()


def test_states_that_would_fill_the_memory_or_break_arithmetic_are_refused(http: httpx.Client) -> None:
    with np.load(io.BytesIO(states()["speaking"])) as file:
        good = {name: file[name] for name in file.files}
    bad = [
        zipped({**good, "pending": np.zeros(50_000_000, np.float32)}, compressed=True),  # a bomb
        zipped(good, compressed=True),
        zipped({**good, "frame_index": np.asarray(2**40)}),
        zipped({**good, "pass_index": np.asarray(-1)}),
        zipped({**good, "guidance": np.asarray(np.nan)}),
        zipped({**good, "hop": np.asarray([4, 4])}),
        zipped({**good, "seed": np.asarray(1.5)}),
        zipped({**good, "format": np.asarray(["1"])}),
        zipped({**good, "context": good["context"].astype(np.complex64)}),
        zipped({**good, "inlet": np.full(5, 1e300)}),
        zipped({**good, "more": np.zeros(1)}),
        promising(good, 10**13),
    ]
    for data in bad:
        answer = http.post("/v1/states", files={"state": data})
        assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_state")
    assert http.post("/v1/states", files={"state": zipped(good)}).status_code == 201
    other = zipped({**good, "context": np.zeros((8, 64), np.float32)})
    assert "another model" in error_of(http.post("/v1/states", files={"state": other}))["message"]


MESSAGES = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100),
    st.sampled_from(["speech.end", "interrupt", "listen", "settings", "session.save", "session.start", "x"]).flatmap(
        lambda name: st.dictionaries(
            st.sampled_from(["on", "expressiveness", "state_id", "fps", "seed", "more"]),
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            max_size=2,
        ).map(lambda fields: json.dumps({"type": name, **fields}))
    ),
)


@settings(FEW, max_examples=15)
@given(messages=st.lists(MESSAGES, max_size=12))
def test_any_messages_to_a_live_session(running: Running, messages: list[str | bytes]) -> None:
    with connect("ws" + running.url.removeprefix("http") + "/v1/live", max_size=2**22) as ws:
        ws.send('{"type": "session.start"}')
        try:
            for message in messages:
                ws.send(message)
            ws.send('{"type": "session.end"}')
            while True:
                told = ws.recv(LIMIT)
                if isinstance(told, str) and json.loads(told)["type"] == "error":
                    assert json.loads(told)["error"]["code"] not in ("internal", "engine_failed")
        except ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code in (1000, 1008)
    wait_for(lambda: running.service.engine.sessions == 0)


def test_what_is_fuzzed_is_good_before(http: httpx.Client) -> None:
    assert http.post("/v1/portraits", files={"image": images()["PNG"]}).status_code == 201
    for data in sounds().values():
        answer = http.post("/v1/videos", data={"portrait_id": "default"}, files={"audio": data})
        assert answer.status_code == 202
        http.delete(f"/v1/videos/{answer.json()['id']}")
    for data in states().values():
        assert http.post("/v1/states", files={"state": data}).status_code == 201
