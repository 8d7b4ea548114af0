"""``WS /v1/live`` of a real server: frames with their sound, events, interruption, refusal, clients that misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from semo_sdk.constants import FPS, SAMPLES_PER_FRAME
from semo_sdk.errors import CapacityError
from semo_sdk.media.image import Portrait
from semo_sdk.serving.client import LiveEvent, LiveFrame, ServerError
from semo_sdk.serving.keys import add_key
from semo_sdk.serving.protocol import pack_frame, unpack_frame
from semo_sdk.serving.speech import Frame
from tests.conftest import random_speech
from tests.serving_tools import LIMIT, Running, nobody_was_early, serving, small_buffers, wait_for

START = {"type": "session.start"}


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return {"message_bytes": 32_768, "stall_seconds": 1}


@pytest.fixture(autouse=True)
def _everybody_left(running: Running) -> Iterator[None]:
    yield
    wait_for(lambda: running.service.engine.sessions == 0)


def raw(running: Running, **settings: Any) -> ClientConnection:
    return connect("ws" + running.url.removeprefix("http") + "/v1/live", max_size=2**22, **settings)


def collect(live: Any, until: str, seconds: float = LIMIT) -> tuple[list[LiveFrame], list[LiveEvent]]:
    """Everything up to an event."""
    frames: list[LiveFrame] = []
    events: list[LiveEvent] = []
    end = time.monotonic() + seconds
    for item in live:
        assert time.monotonic() < end, [event.type for event in events]
        if isinstance(item, LiveFrame):
            frames.append(item)
            continue
        events.append(item)
        if item.type == until:
            break
    return frames, events


def test_speech_comes_back_with_frames_and_its_end_is_told(running: Running) -> None:
    pcm = np.round(random_speech(20_000) * 32768).astype(np.int16)
    with running.client() as client, client.live(latency="low", seed=1) as live:
        assert live.started == {
            "sample_rate": 16_000, "fps": 25, "width": 256, "height": 256, "frames_per_pass": 4, "position": 0.0,
        }  # fmt: skip
        live.push(pcm)
        live.end()
        frames, events = collect(live, "speech.done")
    spoken = np.concatenate([frame.audio for frame in frames if frame.speaking])
    np.testing.assert_array_equal(spoken[: len(pcm)], pcm)
    assert len(spoken) == 32 * SAMPLES_PER_FRAME and not spoken[len(pcm) :].any()
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert frames[0].image.shape == (256, 256, 3)
    done = events[-1].data
    assert done == {"utterance": 0, "position": (frames[-1].index + 1) / FPS, "played": 1.25}
    assert {"state": "speaking", "position": frames[-32].index / FPS} in [event.data for event in events]


def test_frames_come_in_real_time(running: Running) -> None:
    began = time.monotonic()
    with running.client() as client, client.live() as live:
        times, indices = [], []
        for item in live:
            if isinstance(item, LiveFrame):
                times.append(time.monotonic())
                indices.append(item.index)
            if len(times) == 60:
                break
    assert indices == list(range(60)) and nobody_was_early(began, times)


@pytest.mark.parametrize("rate", [8_000, 24_000, 48_000])
def test_other_rates_are_resampled(running: Running, rate: int) -> None:
    with running.client() as client, client.live(sample_rate=rate) as live:
        live.push(random_speech(rate))
        live.end()
        frames, events = collect(live, "speech.done")
    assert sum(frame.speaking for frame in frames) == 25 and events[-1].data["played"] == 1.0


def test_half_the_frame_rate_has_the_same_sound(running: Running) -> None:
    pcm = np.round(random_speech(20_000) * 32768).astype(np.int16)
    began = time.monotonic()
    with running.client() as client, client.live(latency="quality", fps=12.5) as live:
        assert live.started["fps"] == 12.5
        live.push(pcm)
        live.end()
        frames, _ = collect(live, "speech.done")
        assert time.monotonic() - began >= (len(frames) - 1) / 12.5
        with pytest.raises(ServerError, match="25 or 12.5"):
            client.live(fps=30)
    spoken = np.concatenate([frame.audio for frame in frames if frame.speaking])
    np.testing.assert_array_equal(spoken[: len(pcm)], pcm)
    assert [frame.index for frame in frames] == list(range(0, 2 * len(frames), 2))


def test_a_session_is_saved_carried_to_another_server_and_goes_on(
    running: Running, tmp_path: Path, portrait: Portrait
) -> None:
    pcm = np.round(random_speech(32_000) * 32768).astype(np.int16)
    with running.client() as client, client.live(seed=5) as live:
        live.push(pcm[:24_000])
        frames: list[LiveFrame] = []
        for item in live:
            frames += [item] if isinstance(item, LiveFrame) else []
            if isinstance(item, LiveFrame) and sum(frame.speaking for frame in frames) == 10:
                live.save()
            elif isinstance(item, LiveEvent) and item.type == "session.saved":
                saved = item.data
                break
        assert saved["position"] == (frames[-1].index + 1) / FPS
        shown = client.request("GET", f"/v1/states/{saved['state_id']}")
        assert shown["position"] == saved["position"] and shown["latency"] == "low"
        with pytest.raises(ServerError, match="no such state"):
            client.request("GET", "/v1/states/state_0")
        data = httpx.get(f"{running.url}/v1/states/{saved['state_id']}/content").content
        assert client.request("DELETE", f"/v1/states/{saved['state_id']}")["deleted"]
        assert client.request("GET", "/v1/states")["data"] == []
    with serving(tmp_path, portrait) as other, other.client() as client:
        carried = client.request("POST", "/v1/states", files={"state": data})
        assert carried["waiting"] == shown["waiting"] > 0
        for wrong in ({"seed": 1}, {"latency": "low"}):
            with pytest.raises(ServerError, match="not an event"):
                client.live(state_id=carried["id"], **wrong)
        with client.live(state_id=carried["id"]) as live:
            assert live.started["position"] == saved["position"]
            live.push(pcm[24_000:])
            live.end()
            rest, _ = collect(live, "speech.done")
    assert rest[0].index == frames[-1].index + 1
    spoken = np.concatenate([frame.audio for frame in [*frames, *rest] if frame.speaking])
    np.testing.assert_array_equal(spoken[: len(pcm)], pcm)
    assert not spoken[len(pcm) :].any()


def test_interrupt_stops_speech_and_says_how_much_was_heard(running: Running) -> None:
    with running.client() as client, client.live() as live:
        live.push(random_speech(16_000 * 10))
        frames = []
        for item in live:
            frames += [item] if isinstance(item, LiveFrame) and item.speaking else []
            if len(frames) == 10:
                break
        live.interrupt()
        more, events = collect(live, "speech.interrupted")
        heard = len(frames) + sum(frame.speaking for frame in more)
        assert events[-1].data["played"] == pytest.approx(heard / FPS) and heard < 250
        later = [item for item, _ in zip(live, range(30), strict=False)]
        assert not any(frame.speaking for frame in later if isinstance(frame, LiveFrame))
        live.listen()
        _, events = collect(live, "state")
        assert events[-1].data["state"] in ("idle", "listening")


def test_sessions_side_by_side_do_not_mix(running: Running) -> None:
    speeches = {seed: np.round(random_speech(12_000, seed=seed) * 32768).astype(np.int16) for seed in range(4)}
    heard: dict[int, np.ndarray] = {}

    def talk(seed: int) -> None:
        with running.client() as client, client.live(seed=seed) as live:
            for piece in np.array_split(speeches[seed], 30):
                live.push(piece)
            live.end()
            frames, _ = collect(live, "speech.done")
            heard[seed] = np.concatenate([frame.audio for frame in frames if frame.speaking])

    threads = [threading.Thread(target=talk, args=(seed,)) for seed in speeches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    for seed, pcm in speeches.items():
        np.testing.assert_array_equal(heard[seed][: len(pcm)], pcm)


def test_the_machine_s_and_the_client_s_capacity_are_limits(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = running.service.engine.capacity
    with running.client() as client, client.live():
        monkeypatch.setattr(capacity, "max_sessions", 1)
        with pytest.raises(CapacityError, match="1 live sessions") as refused:
            client.live()
        assert refused.value.retry_after >= 1
        monkeypatch.setattr(capacity, "max_sessions", 64)
        monkeypatch.setattr(capacity, "utilisation", 1e9)
        others = [client.live() for _ in range(3)]
        with pytest.raises(CapacityError, match="4 live sessions already"):
            client.live()
        for other in others:
            other.close()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("nonsense", "invalid_event"),
        ('{"type": "fly"}', "invalid_event"),
        ('{"type": "listen", "on": true, "more": 1}', "invalid_event"),
        ("[" * 20_000, "invalid_event"),
        (json.dumps(START), "already_started"),
        (b"\0", "invalid_audio"),
    ],
)
def test_a_wrong_message_is_told_and_the_session_goes_on(running: Running, message: str | bytes, code: str) -> None:
    with raw(running) as ws:
        ws.send(json.dumps(START))
        ws.send(message)
        frames = 0
        answer: dict[str, Any] = {}
        while frames < 5 or not answer:
            received = ws.recv(LIMIT)
            if isinstance(received, bytes):
                frames += 1
            elif "error" in received:
                answer = json.loads(received)
        assert answer["type"] == "error" and answer["error"]["code"] == code


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("nonsense", "invalid_event"),
        (b"\0\0", "invalid_event"),
        ('{"type": "interrupt"}', "no_start"),
        ('{"type": "session.start", "portrait_id": "portrait_0"}', "portrait_not_found"),
        ('{"type": "session.start", "sample_rate": 1}', "invalid_event"),
        ('{"type": "session.start", "latency": "balanced"}', "invalid_setting"),
    ],
)
def test_a_wrong_start_is_refused_with_the_reason(running: Running, first: str | bytes, code: str) -> None:
    with raw(running) as ws:
        ws.send(first)
        closed = json.loads(ws.recv(LIMIT))
        assert closed["type"] == "session.closed" and closed["error"]["code"] == code
        with pytest.raises(ConnectionClosed):
            ws.recv(LIMIT)


def test_a_message_that_is_too_large_ends_only_its_own_connection(running: Running) -> None:
    with running.client() as client, client.live() as good, raw(running) as bad:
        bad.send(json.dumps(START))
        with pytest.raises(ConnectionClosed):
            bad.send(bytes(100_000))
            while True:
                bad.recv(LIMIT)
        assert len([item for item, _ in zip(good, range(30), strict=False)]) == 30


def test_too_much_speech_is_refused_and_the_session_lives(running: Running) -> None:
    with running.client() as client, client.live() as live:
        live.push(random_speech(16_000 * 70))
        _, events = collect(live, "error")
        assert events[-1].data["error"]["code"] == "capacity"
        live.interrupt()
        collect(live, "speech.interrupted")


def test_clients_that_vanish_or_do_not_read_harm_nobody(running: Running) -> None:
    with (
        running.client() as client,
        client.live() as good,
        raw(running) as vanishing,
        small_buffers(running),
        raw(running) as unread,
    ):
        for ws in (vanishing, unread):
            ws.send(json.dumps(START))
        unread.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        wait_for(lambda: running.service.engine.sessions == 3)
        vanishing.socket.shutdown(socket.SHUT_RDWR)
        indices = [item.index for item, _ in zip(good, range(100), strict=False) if isinstance(item, LiveFrame)]
        assert indices == list(range(len(indices))) and len(indices) > 90
        for _ in zip(good, range(2_000), strict=False):
            if running.service.engine.sessions == 1:
                break
        assert running.service.engine.sessions == 1  # both are gone: one left, the other was given up


def test_a_session_that_fails_says_so_and_the_next_one_works(running: Running) -> None:
    tap = running.taps["render"]
    with running.client() as client:
        with client.live() as live:
            tap.broken = True
            with pytest.raises(ServerError, match="broken"):
                collect(live, "never")
        tap.broken = False
        wait_for(lambda: running.service.engine.sessions == 0)
        with client.live() as live:
            assert any(isinstance(item, LiveFrame) for item, _ in zip(live, range(5), strict=False))


def test_websites_and_strangers_stay_outside(running: Running, tmp_path: Path, portrait: Portrait) -> None:
    with pytest.raises(InvalidStatus) as refused, raw(running, origin="https://evil.example"):
        pass
    assert refused.value.response.status_code == 403
    file = tmp_path / "keys.json"
    key = add_key(file, "me")
    with serving(tmp_path, portrait, keys=file) as locked:
        with locked.client("wrong") as client, pytest.raises(ServerError, match="API key") as stranger:
            client.live()
        assert stranger.value.status == 401
        with locked.client(key) as client, client.live() as live:
            assert live.started["fps"] == 25
        with raw(locked, subprotocols=["semo", f"semo.key.{key}"]) as ws:  # what a browser can do
            assert ws.subprotocol == "semo"


def test_a_draining_server_says_so_and_ends_its_sessions(tmp_path: Path, portrait: Portrait) -> None:
    with serving(tmp_path, portrait) as running, running.client() as client, client.live() as live:
        collect(live, "state")
        running.server.handle_exit(15, None)
        _, events = collect(live, "session.closed")
        assert "server.draining" in [event.type for event in events]
        assert events[-1].data["reason"] == "the server is shutting down"
        with pytest.raises((CapacityError, OSError)):
            client.live()


def test_frames_are_packed_and_unpacked() -> None:
    sound = np.array([0, 0.5, -1, 1], np.float32)
    message = pack_frame(Frame(np.zeros((1, 1, 3), np.uint8), sound, 77, True), b"jpeg")
    index, speaking, pcm, jpeg = unpack_frame(message)
    assert (index, speaking, jpeg) == (77, True, b"jpeg")
    assert pcm.tolist() == [0, 16384, -32768, 32767]
    for bad in (b"", b"\1\0\0", b"\2" + message[1:], message[:10]):
        with pytest.raises(ValueError, match="not a frame"):
            unpack_frame(bad)
