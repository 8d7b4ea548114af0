"""The server's side of a load test: starting one, its keys and portraits, its memory."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from semo_sdk.errors import CapacityError, MissingDependencyError, SemoError
from semo_sdk.serving.client import Client

READY_SECONDS = 300.0  # engines are compiled and measured first
STOP_SECONDS = 30.0
SESSIONS_PER_KEY = 4  # of `semo serve`
RESIDENT = re.compile(r"^process_resident_memory_bytes (\S+)$", re.MULTILINE)


@contextmanager
def own_server(engine: dict[str, Any], sessions: int) -> Iterator[tuple[str, list[str]]]:
    """A ``semo serve`` on loopback, until the block ends.

    Args:
        engine: ``bundle``, ``backend``, ``precision``, ``threads``, ``latency``.
        sessions: that may be opened: as many keys are made as that takes.

    Yields:
        Its address and its keys, when it is ready.

    Raises:
        SemoError: it did not start; with the last lines that it wrote.
    """
    from semo_sdk.serving.keys import add_key

    with tempfile.TemporaryDirectory(prefix="semo-load-") as name:
        folder = Path(name)
        keys = [add_key(folder / "keys.json", f"load {n}") for n in range(-(-sessions // SESSIONS_PER_KEY))]
        command = [sys.executable, "-c", "from semo_sdk.cli import main; main()", "serve", "--port", "0"]
        command += ["--keys", str(folder / "keys.json"), "--data", str(folder / "data"), "--drain", "1"]
        command += ["--max-sessions", str(sessions)]
        for option, value in engine.items():
            command += [] if value is None else [f"--{option}", str(value)]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            yield _address(process, folder / "log"), keys
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Waits until the server is ready."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.2)
        found = re.search(r"https?://\S+", log.read_text(errors="replace"))
        if found is None:
            continue
        with suppress(CapacityError), Client(found[0]) as client:
            client.request("GET", "/ready")
            return found[0]
    raise SemoError(f"the server did not start: {log.read_text(errors='replace').strip()[-500:]}")


def keys_and_portraits(url: str, keys: Sequence[str | None], photo: Path) -> list[tuple[str | None, str]]:
    """Uploads the portrait with each key.

    Raises:
        SemoError: the server refused, or is not there.
    """
    import httpx

    seats: list[tuple[str | None, str]] = []
    try:
        for key in keys:
            with Client(url, key) as client:
                seats.append((key, client.upload_portrait(photo)))
    except httpx.TransportError as error:
        raise SemoError(f"{url} cannot be reached: {error}") from error
    return seats


class Memory:
    """Resident memory of a server, once a second, while the ``async with`` block runs.

    Args:
        url: of the server; its ``/metrics`` say how much it is.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._points: list[tuple[float, float]] = []  # time.perf_counter(), MiB

    def since(self, begin: float) -> list[tuple[float, float]]:
        """(seconds after ``begin``, MiB)."""
        return [(when - begin, mib) for when, mib in self._points if when >= begin]

    async def __aenter__(self) -> Memory:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingDependencyError("the load test needs httpx: pip install 'semo-sdk[serve]'") from error
        async with httpx.AsyncClient(base_url=self._url, timeout=10, trust_env=False) as http:
            while True:
                with suppress(httpx.HTTPError):
                    found = RESIDENT.search((await http.get("/metrics")).text)
                    if found:
                        self._points.append((time.perf_counter(), float(found[1]) / 2**20))
                await asyncio.sleep(1.0)
