"""A real server on a free port, on fake engines of a model so small that they are quick."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from semo_sdk.backends import fake_engines
from semo_sdk.config import AudioConfig, DecoderConfig, EncoderConfig, GeneratorConfig, SemoConfig
from semo_sdk.constants import FPS, SAMPLE_RATE
from semo_sdk.errors import EngineError
from semo_sdk.media.image import Portrait
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.serving.app import create_app
from semo_sdk.serving.client import Client, LiveEvent
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.metrics import Metrics
from semo_sdk.serving.server import Server
from semo_sdk.serving.service import Service
from semo_sdk.serving.settings import Settings

LIMIT = 120.0  # seconds; what takes so long never comes

# Small tensors: a fake engine hashes all of its inputs.
LIGHT = SemoConfig(
    name="light",
    encoder=EncoderConfig(hidden=64, layers=1, heads=2),
    decoder=DecoderConfig(
        hidden=64, layers=1, heads=2, temporal_window=4, prior="reference", prior_noise=0.0, cache_reference=False
    ),
    generator=GeneratorConfig(hidden=64, layers=1, heads=2),
    audio=AudioConfig(model="random", width=64, heads=2, layers=1),
)


class Tap:
    """An engine that can fail, wait, or note what it was given."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.spec = engine, engine.spec
        self.contexts: list[np.ndarray] = []
        self.poison: float | None = None  # fails when this value is in the context
        self.broken = False
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self.waiting = False  # at the gate

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.entered.set()
        if self.gate is not None:
            self.waiting = True
            try:
                assert self.gate.wait(LIMIT)
            finally:
                self.waiting = False
        if "context" in feeds:
            self.contexts.append(feeds["context"].copy())
            if self.poison is not None and (feeds["context"] == self.poison).any():
                raise EngineError("poisoned")
        if self.broken:
            raise EngineError("broken")
        outputs: dict[str, np.ndarray] = self.engine(feeds)
        return outputs

    def close(self) -> None:
        self.engine.close()


def tapped() -> tuple[Graphs, dict[str, Tap]]:
    taps = {name: Tap(engine) for name, engine in fake_engines(LIGHT).items()}
    return Graphs(taps, LIGHT), taps


@dataclass
class Running:
    """A server that runs."""

    url: str
    service: Service
    server: Server
    taps: dict[str, Tap] = field(default_factory=dict)

    def client(self, key: str | None = None) -> Client:
        return Client(self.url, key)


@contextlib.contextmanager
def serving(data: Path, portrait: Portrait, *, graphs: Graphs | None = None, **settings: Any) -> Iterator[Running]:
    """Starts one, waits until it is ready, stops it."""
    if graphs is None:
        graphs, taps = tapped()
    else:
        taps = {}
    metrics = Metrics()
    engine = Engine(graphs, sizes=(1, 4), latencies=("low", "quality"), observer=metrics)
    service = Service(engine, Settings(data=data, drain_seconds=0.5, **settings), metrics, portrait=portrait)
    listening: list[str] = []
    server = Server.of(create_app(service), service, host="127.0.0.1", port=0, announce=listening.append)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: bool(listening) and engine.healthy)
        yield Running(listening[0], service, server, taps)
    finally:
        server.should_exit = True
        thread.join(LIMIT)
        assert not thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def small_buffers(running: Running) -> Iterator[None]:
    """Connections that the server accepts now soon notice that nobody reads."""
    (listening,) = (each for server in running.server.servers for each in server.sockets)
    usual = listening.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    try:
        yield
    finally:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, usual // 2)  # Linux doubles what it is told


def wait_for(condition: Any, seconds: float = LIMIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def nobody_was_early(began: float, times: Sequence[float], fps: float = FPS) -> bool:
    """Whether frames that came at these times, of a session opened after ``began``, keep real time.

    How late they are depends on what else the machine does; the clock of ``serving_world`` says that they are not.
    """
    return all(when - began >= number / fps for number, when in enumerate(times))


def wav(pcm: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    """(n,) float as the bytes of a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((pcm * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A picture of nothing."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(buffer, "PNG")
    return buffer.getvalue()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert set(answer.json()) == {"error"} and answer.json()["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = answer.json()["error"]
    return error


def play(live: Any, pcm: np.ndarray, act: Callable[[list[Any]], None], pause: float = 0.1) -> list[Any]:
    """Speaks, 100 ms of sound each `pause` seconds; `act` is called with all that has come, after each item."""
    items: list[Any] = []

    def speak() -> None:
        for start in range(0, len(pcm), 1_600):
            live.push(pcm[start : start + 1_600])
            time.sleep(pause)
        live.end()

    thread = threading.Thread(target=speak)
    thread.start()
    end = time.monotonic() + LIMIT
    for item in live:
        assert time.monotonic() < end, "waited too long"
        items.append(item)
        act(items)
        if isinstance(item, LiveEvent) and item.type == "speech.done":
            break
    thread.join(LIMIT)
    return items
