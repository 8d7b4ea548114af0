"""WebRTC of a real server, with a client that is no browser: media, events, refusal, clients that misbehave."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("aiortc")

from aiortc import RTCConfiguration, RTCPeerConnection  # noqa: E402

from semo_sdk.constants import FPS, SAMPLES_PER_FRAME  # noqa: E402
from semo_sdk.errors import ConfigError  # noqa: E402
from semo_sdk.media.image import Portrait  # noqa: E402
from semo_sdk.serving.keys import add_key  # noqa: E402
from semo_sdk.serving.problems import ApiError  # noqa: E402
from semo_sdk.serving.settings import read_ice_servers  # noqa: E402
from semo_sdk.serving.speech import Frame  # noqa: E402
from semo_sdk.serving.webrtc_media import Gate, Tripler, pictures_and_sound  # noqa: E402
from semo_sdk.serving.webrtc_offer import checked_offer  # noqa: E402
from tests.conftest import random_speech  # noqa: E402
from tests.serving_tools import LIMIT, Running, error_of, nobody_was_early, serving, wait_for  # noqa: E402
from tests.serving_world import World  # noqa: E402
from tests.webrtc_tools import Microphone, call  # noqa: E402

SDP = (
    "v=0\r\na=group:BUNDLE 0 1 2\r\nm=audio 9 X 0\r\na=mid:0\r\n{0}"
    "m=video 9 X 0\r\na=mid:1\r\nm=application 9 X 0\r\na=mid:2\r\n"
)
HOST = "a=candidate:1 1 udp 2130706431 {0} 5000 typ host\r\n"


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return {"message_bytes": 32_768, "stall_seconds": LIMIT}


@pytest.fixture(autouse=True)
def _everybody_left(running: Running) -> Iterator[None]:
    yield
    wait_for(lambda: running.service.engine.sessions == 0)


def talk(seconds: float, rate: int) -> np.ndarray:
    """(n,) float32: a voice between two silences."""
    time = np.arange(round(seconds * rate)) / rate
    voice = 0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 4 * time)) / 2
    quiet = np.zeros(rate // 2)
    return np.concatenate([quiet, voice, quiet]).astype(np.float32)


@pytest.mark.parametrize("codec", ["VP8", pytest.param("H264", marks=pytest.mark.slow)])
def test_speech_comes_back_as_pictures_and_sound(running: Running, codec: str) -> None:
    async def converse() -> None:
        began = time.monotonic()
        async with call(running.url, codec=codec, latency="low", seed=1) as caller:
            assert (await caller.event("session.started"))["frames_per_pass"] == 4
            caller.push(random_speech(32_000))
            caller.say("speech.end")
            done = await caller.event("speech.done")
            assert done["played"] == 2.0 and 2.0 <= done["position"] <= time.monotonic() - began
            assert {"speaking"} <= {event["state"] for event in caller.of("state")}
            stats = await caller.event("stats")
            assert stats["waiting"] >= 0 and 0 <= stats["fps"] < 30

            def apart() -> float:
                heard = sum(len(pcm) for _, pcm in caller.sound) / 48_000
                return abs(heard - len(caller.pictures) / FPS)

            await caller.until(lambda: len(caller.pictures) > 40 and apart() < 0.3)
            assert nobody_was_early(began, [when for when, _ in caller.pictures])
            assert caller.pictures[-1][1].shape == (256, 256, 3)
            sound = np.concatenate([pcm for _, pcm in caller.sound])
            assert sound.std() > 0.05  # what was said is in it

    asyncio.run(converse())


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_microphone_makes_it_speak_and_its_pauses_do_not(running: Running, channels: int) -> None:
    async def converse() -> None:
        microphone = Microphone(talk(1.0, 48_000), channels=channels)
        async with call(running.url, microphone=microphone) as caller:
            caller.say("listen", on=True)
            done = await caller.event("speech.done")  # the gate ended it: nobody said speech.end
            # packets that come too late, on a busy machine, are lost
            assert 0.3 < done["played"] < 1.35 + Gate.PAUSE_SECONDS + Gate.BEFORE_SECONDS
            await caller.until(lambda: [event["state"] for event in caller.of("state")][-1] == "listening")

    asyncio.run(converse())


def test_interrupt_settings_and_mistakes_travel_over_the_data_channel(running: Running) -> None:
    async def converse() -> None:
        async with call(running.url) as caller:
            caller.say("settings", expressiveness=2.0)
            caller.push(random_speech(16_000 * 10))
            await caller.until(lambda: any(event["state"] == "speaking" for event in caller.of("state")))
            caller.say("interrupt")
            assert (await caller.event("speech.interrupted"))["played"] < 10
            await caller.until(lambda: caller.of("state")[-1]["state"] == "idle")
            caller.channel.send("nonsense")
            assert (await caller.event("error"))["error"]["code"] == "invalid_event"
            caller.say("settings", expressiveness=99)
            await caller.until(lambda: len(caller.of("error")) == 2)
            caller.say("session.end")
            assert (await caller.event("session.closed"))["reason"] == "ended by the client"
            await asyncio.wait_for(caller.closed.wait(), LIMIT)

    asyncio.run(converse())


def test_settings_change_from_the_next_pass_on() -> None:
    world = World()
    session = world.open(expressiveness=1.0)
    session.push(random_speech(16_000))
    assert session.begin(world.clock()).state.guidance == 1.0
    session.adjust(expressiveness=2.0)
    assert session.begin(world.clock()).state.guidance == 2.0
    session.adjust(head_motion=0.5, blink=0.0)
    state = session.begin(world.clock()).state
    assert (state.guidance, state.head_motion, state.blink) == (2.0, 0.5, 0.0)


def test_clients_that_vanish_or_never_come_free_their_slot(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def vanish() -> None:
        async with call(running.url) as caller:
            assert running.service.engine.sessions == 1
            monkeypatch.setitem(vars(running.service.settings), "stall_seconds", 0.5)
            for transport in caller.pc._RTCPeerConnection__iceTransports:  # type: ignore[attr-defined]
                for protocol in transport._connection._protocols:
                    protocol.transport.abort()  # as if the cable were pulled: no goodbye
            await caller.until(lambda: not running.service.engine.sessions)

    async def never_come() -> None:
        monkeypatch.setattr("semo_sdk.serving.webrtc.CONNECT_SECONDS", 0.5)
        async with call(running.url, connect=False) as caller:
            await caller.pc.close()
            await caller.until(lambda: not running.service.engine.sessions)

    asyncio.run(vanish())
    asyncio.run(never_come())


def test_sessions_are_counted_hung_up_and_seen_by_their_owner_alone(tmp_path: Path, portrait: Portrait) -> None:
    file = tmp_path / "keys.json"
    mine, theirs = add_key(file, "me"), add_key(file, "you")

    async def converse(locked: Running) -> None:
        async with httpx.AsyncClient(base_url=locked.url) as http:
            assert error_of(await http.get("/v1/webrtc"))["code"] == "invalid_api_key"
            refused = await http.post("/v1/webrtc/offer", json={"sdp": SDP})
            assert refused.status_code == 401
            assert (await http.get("/")).status_code == 200  # the page itself is no secret
            async with call(locked.url, key=mine) as caller:
                path = f"/v1/webrtc/{caller.name}"
                full = await http.post("/v1/webrtc/offer", json={"sdp": SDP.format("")}, headers=bearer(mine))
                assert full.status_code == 429 and error_of(full)["code"] == "quota"
                assert (await http.delete(path, headers=bearer(theirs))).status_code == 404
                assert (await http.delete(path, headers=bearer(mine))).status_code == 200
                await asyncio.wait_for(caller.closed.wait(), LIMIT)
        wait_for(lambda: locked.service.engine.sessions == 0)

    with serving(tmp_path, portrait, keys=file, sessions_per_key=1) as locked:
        asyncio.run(converse(locked))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_draining_server_says_goodbye(tmp_path: Path, portrait: Portrait) -> None:
    async def converse(draining: Running) -> None:
        async with call(draining.url) as caller:
            draining.server.handle_exit(15, None)
            await caller.event("server.draining")
            assert (await caller.event("session.closed"))["reason"] == "the server is shutting down"

    with serving(tmp_path, portrait) as draining:
        asyncio.run(converse(draining))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"sdp": "nonsense"}, "invalid_offer"),
        ({"sdp": SDP.format("")}, "invalid_offer"),
        ({"sdp": SDP.format("") * 2}, "invalid_offer"),
        ({"sdp": "m=video 9 X 0\r\n"}, "invalid_offer"),
        ({"sdp": "x" * 70_000}, "invalid_parameter"),
        ({"sdp": SDP, "expressiveness": -1}, "invalid_parameter"),
        ({"sdp": SDP, "more": 1}, "invalid_parameter"),
        ({}, "invalid_parameter"),
        ({"sdp": SDP.format(""), "portrait_id": "portrait_0"}, "portrait_not_found"),
    ],
)
def test_a_wrong_offer_is_refused_with_the_reason(http: httpx.Client, body: dict[str, object], code: str) -> None:
    answer = http.post("/v1/webrtc/offer", json=body)
    assert 400 <= answer.status_code < 500 and error_of(answer)["code"] == code


def test_damaged_offers_harm_nobody(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semo_sdk.serving.webrtc.CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(running.service.rates, "check", lambda owner: None)

    async def offer() -> str:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        pc.createDataChannel("semo")
        pc.addTransceiver("audio")
        pc.addTransceiver("video")
        await pc.setLocalDescription(await pc.createOffer())
        sdp: str = pc.localDescription.sdp
        await pc.close()
        return sdp

    lines = asyncio.run(offer()).splitlines()
    rng = random.Random(0)
    statuses = set()
    with httpx.Client(base_url=running.url, timeout=30) as http:
        for _ in range(60):
            damaged = list(lines)
            for _ in range(rng.choice([1, 1, 2, 5])):
                at = rng.randrange(len(damaged))
                line = damaged[at]
                damaged[at] = rng.choice(
                    ["", line[: rng.randrange(len(line) + 1)], line + line, re.sub(r"\d", "9", line), "a=" + line]
                )
            answer = http.post("/v1/webrtc/offer", json={"sdp": "\r\n".join(damaged) + "\r\n"})
            statuses.add(answer.status_code)
            if answer.status_code not in (201, 429):
                assert error_of(answer)["code"] == "invalid_offer"
    assert statuses <= {201, 400, 429} and {201, 400} <= statuses
    wait_for(lambda: running.service.engine.sessions == 0)
    wait_for(lambda: not [one for one in threading.enumerate() if one.name.endswith("-decoder")])


def test_stun_and_turn_servers_come_from_a_file(tmp_path: Path, portrait: Portrait) -> None:
    file = tmp_path / "ice.json"
    file.write_text('[{"urls": "turns:turn.example.org:5349?transport=tcp", "username": "me", "credential": "secret"}]')
    with serving(tmp_path, portrait, ice_servers=read_ice_servers(file)) as server:
        config = httpx.get(server.url + "/v1/webrtc").json()
    assert config["ice_servers"][0]["credential"] == "secret" and config["default_portrait"]
    assert config["controls"][0] == {"name": "expressiveness", "minimum": 0, "maximum": 10, "value": 1.0}
    for wrong in ("nonsense", '{"urls": "stun:a"}', '[{"urls": "http://a"}]', '[{"urls": "stun:a", "more": 1}]'):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="STUN and TURN"):
            read_ice_servers(file)


def test_addresses_that_a_client_names_are_not_called() -> None:
    sdp = SDP.format(
        HOST.format("192.0.2.7") + HOST.format("printer.local") + HOST.format("::1") + "a=end-of-candidates\r\n"
    )
    assert "candidate" not in checked_offer(sdp, keep_candidates=False)
    kept = checked_offer(sdp, keep_candidates=True)  # needed behind NAT
    assert "192.0.2.7" in kept and "::1" in kept and "printer.local" not in kept
    many = SDP.format(HOST.format("192.0.2.7") * 100)
    assert checked_offer(many, keep_candidates=True).count("a=candidate") == 16
    for wrong, why in (
        (SDP.format("m=audio 9 X 0\r\n"), "data channel"),
        (SDP.format("").replace("application", "text"), "data channel"),
        (SDP.format("").replace("BUNDLE 0 1 2", "BUNDLE 0 1 3"), "bundles"),
        (SDP.format("").replace("mid:1", "mid:2"), "bundles"),
        ("", "data channel"),
    ):
        with pytest.raises(ApiError, match=why):
            checked_offer(wrong, keep_candidates=False)


def test_picture_and_sound_of_a_frame_have_one_clock() -> None:
    tripler = Tripler()
    sound = np.zeros(2 * SAMPLES_PER_FRAME, np.float32)
    for index, size in ((3, SAMPLES_PER_FRAME), (4, 2 * SAMPLES_PER_FRAME)):
        frame = Frame(np.zeros((256, 256, 3), np.uint8), sound[:size], index, False)
        picture, packets = pictures_and_sound(frame, tripler)
        assert picture.pts is not None and picture.time_base is not None
        assert float(picture.pts * picture.time_base) == pytest.approx(index / FPS)
        starts = [packet.pts * packet.time_base for packet in packets if packet.pts is not None and packet.time_base]
        assert [float(start) for start in starts] == pytest.approx(
            [index / FPS + 0.02 * n for n in range(len(packets))]
        )
        assert sum(packet.samples for packet in packets) == 3 * size


def test_tripling_the_rate_keeps_sound_and_does_not_care_how_it_is_split() -> None:
    tone = (0.5 * np.sin(2 * np.pi * 1_000 * np.arange(1_600) / 16_000)).astype(np.float32)
    whole = Tripler().push(tone)
    tripler = Tripler()
    np.testing.assert_array_equal(np.concatenate([tripler.push(piece) for piece in np.split(tone, 10)]), whole)
    expected = 0.5 * np.sin(2 * np.pi * 1_000 * (np.arange(4_800) / 48_000 - 0.001))  # 1 ms late
    assert np.abs(whole[500:] / 32767 - expected[500:]).max() < 0.01


def test_the_gate_lets_speech_through_whole_and_noise_not_at_all() -> None:
    rng, gate = np.random.default_rng(0), Gate()
    noise = rng.normal(0, 0.003, 48_000 * 6).astype(np.float32)
    said = noise.copy()
    said[96_000:144_000] += talk(1.0, 48_000)[24_000:-24_000]
    heard, ends = [], []
    for number, packet in enumerate(said.reshape(-1, 960)):
        voice, ended = gate.push(packet, 48_000)
        heard.append(voice)
        ends += [number * 0.02] if ended else []
    total = sum(map(len, heard)) / 48_000
    assert total == pytest.approx(1.0 + Gate.BEFORE_SECONDS + Gate.PAUSE_SECONDS, abs=0.2)
    assert len(ends) == 1 and ends[0] == pytest.approx(3.0 + Gate.PAUSE_SECONDS, abs=0.2)
    assert not any(len(Gate().push(packet, 48_000)[0]) for packet in np.zeros((10, 960), np.float32))
