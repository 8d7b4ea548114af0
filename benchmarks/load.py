"""How many live sessions a server carries, and how well, for how long.

    python -m semo_sdk.benchmarks.load --hold 600 --json load.json --plot load.png

starts a server of its own on loopback; ``--url`` tests one that runs, here or on another machine. Clients join one by
one. Each sends real speech at the speed of speech, utterance after utterance with pauses, and checks what comes back:

- **gap**: between two frames, as they arrive; 40 ms at 25 frames a second.
- **first frame**: from the first sample sent to the first frame that speaks, so the hop's own length is in it.
- **samples**: each utterance as it came back is compared with what was sent, sample by sample.
- **memory**: resident memory of the server, from its ``/metrics``, once a second.

The server is full when it refuses a client, or when the p99 gap is longer than two frames (the last client leaves
then). With ``--hold`` the clients that are left stay for so long. If no frame comes for two seconds, what the kernel
knows about that connection is noted. Clients cost computing time too: on the same machine they are part of the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks.command import deliver, make_parser
from semo_sdk.benchmarks.load_client import Speaker, Trace, without_zeros
from semo_sdk.benchmarks.load_report import flatness, markdown
from semo_sdk.benchmarks.load_server import Memory, keys_and_portraits, own_server
from semo_sdk.benchmarks.report import percentiles
from semo_sdk.constants import FPS
from semo_sdk.errors import CapacityError, ConfigError, SemoError

MAX_GAP_FRAMES = 2.0
SETTLE_SECONDS = 2.0  # after a client joined, before measuring
WARM_UP = 0.2  # share of the hold before memory must be flat, at most a minute


@dataclass
class Client:
    """A speaker and its task."""

    speaker: Speaker
    task: asyncio.Task[None]
    stop: asyncio.Event

    async def leave(self) -> None:
        """Finishes its utterance, then goes."""
        self.stop.set()
        await self.task


class Crowd:
    """The clients of one run.

    Args:
        url: of the server.
        seats: (API key, portrait) pairs, used in turns.
        start: fields of ``session.start`` that all share.
        speech: (n,) int16 without zeros.
    """

    def __init__(
        self, url: str, seats: Sequence[tuple[str | None, str]], start: dict[str, Any], speech: np.ndarray
    ) -> None:
        self._url, self._seats, self._start, self._speech = url, seats, start, speech
        self._clients: list[Client] = []
        self._gone: list[Trace] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def traces(self) -> list[Trace]:
        """Of everybody who was ever there."""
        return self._gone + [client.speaker.trace for client in self._clients]

    async def join(self) -> None:
        """One client more.

        Raises:
            CapacityError: the server refused every key.
        """
        number = next(self._numbers)
        turn = number % len(self._seats)
        for last, (key, portrait) in enumerate([*self._seats[turn:], *self._seats[:turn]], 1 - len(self._seats)):
            speaker = Speaker(self._url, key, {**self._start, "portrait_id": portrait}, self._speech, number)
            try:
                await speaker.open()
            except CapacityError:
                if last == 0:
                    raise
                continue
            stop = asyncio.Event()
            self._clients.append(Client(speaker, asyncio.create_task(speaker.run(stop)), stop))
            return

    async def leave(self) -> None:
        """The client that came last goes."""
        client = self._clients.pop()
        self._gone.append(client.speaker.trace)
        await client.leave()

    async def end(self) -> None:
        """Everybody goes."""
        await asyncio.gather(*(client.leave() for client in self._clients))

    def measure(self, begin: float, end: float) -> dict[str, Any]:
        """Gaps and first frames between two times, in milliseconds."""
        gaps, firsts = (
            [1000 * value for trace in self.traces for when, value in getattr(trace, name) if begin <= when < end]
            for name in ("gaps", "firsts")
        )
        result: dict[str, Any] = {"sessions": len(self), "seconds": round(end - begin, 1)}
        for name, values in (("gap_ms", gaps), ("first_frame_ms", firsts)):
            result[name] = {**percentiles(values), "max": round(max(values), 3)} if values else None
        return result


async def run_at(
    url: str,
    seats: Sequence[tuple[str | None, str]],
    speech: np.ndarray,
    memory: Memory,
    *,
    fps: float,
    latency: str,
    sessions: int,
    step: float,
    hold: float,
) -> dict[str, Any]:
    """One run at one frame rate: the ramp, then the hold.

    Args:
        url: of the server.
        seats: (API key, portrait) pairs.
        speech: (n,) int16 without zeros.
        memory: of the server.
        fps, latency: of the sessions.
        sessions: never more.
        step: seconds between two clients.
        hold: seconds at the end with as many as fit.

    Returns:
        JSON-ready.
    """
    start = {"latency": latency, **({} if fps == FPS else {"fps": fps})}
    crowd = Crowd(url, seats, start, speech)
    levels: list[dict[str, Any]] = []
    stopped = f"{sessions} were asked for"
    limit = 1000 * MAX_GAP_FRAMES / fps
    try:
        while len(crowd) < sessions:
            try:
                await crowd.join()
            except CapacityError as refused:
                stopped = f"the server refused one more: {refused}"
                break
            await wait(SETTLE_SECONDS, "")
            begin = time.perf_counter()
            await wait(step, f"{fps:g} fps, {len(crowd)} sessions")
            levels.append(crowd.measure(begin, time.perf_counter()))
            gap = levels[-1]["gap_ms"]
            if gap is None or gap["p99"] > limit:
                stopped = f"with {len(crowd)} the p99 gap was over {limit:g} ms"
                await crowd.leave()
                break
        begin = time.perf_counter()
        if hold and len(crowd):
            await wait(hold, f"{fps:g} fps, {len(crowd)} sessions, holding")
        held = crowd.measure(begin, time.perf_counter()) if hold and len(crowd) else None
        if held is not None:
            held["memory"] = flatness(memory.since(begin), min(WARM_UP * hold, 60.0))
    finally:
        await crowd.end()
    traces = crowd.traces
    sums = {
        name: sum(getattr(trace, name) for trace in traces)
        for name in ("utterances", "samples", "lost", "doubled", "altered", "frames_lost")
    }
    return {
        "fps": fps,
        "sessions": held["sessions"] if held else max((level["sessions"] for level in levels), default=0),
        "stopped": stopped,
        "ramp": levels,
        "hold": held,
        "checked": sums,
        "freezes": [note for trace in traces for note in trace.freezes],
        "failures": [failure for trace in traces for failure in trace.failures],
    }


async def wait(seconds: float, text: str) -> None:
    """Sleeps, behind a progress bar if it has a name."""
    from tqdm import tqdm

    end = time.perf_counter() + seconds
    if not text:
        await asyncio.sleep(seconds)
        return
    with tqdm(total=round(seconds), desc=text, unit="s", disable=None) as bar:
        while (left := end - time.perf_counter()) > 0:
            await asyncio.sleep(min(left, 1.0))
            bar.update(min(1, round(seconds) - bar.n))


async def run(
    url: str,
    keys: Sequence[str | None],
    *,
    photo: Path,
    speech: Path,
    rates: Sequence[float] = (FPS,),
    latency: str = "low",
    sessions: int = 64,
    step: float = 15.0,
    hold: float = 0.0,
) -> dict[str, Any]:
    """Measures a server that runs.

    Args:
        url: http or https.
        keys: API keys; ``[None]`` if it needs none. A key has a limited number of sessions.
        photo: a portrait.
        speech: a recording to take utterances from.
        rates: frames a second, 25 or 12.5, one run each.
        latency, sessions, step, hold: see :func:`run_at`.

    Returns:
        JSON-ready.

    Raises:
        SemoError: the server cannot be reached or used.
    """
    from semo_sdk.media.audio import load_audio

    if not set(rates) <= {FPS, FPS / 2}:
        raise ConfigError(f"frame rates are {FPS} and {FPS / 2:g}, got {list(rates)}")
    pcm = without_zeros(load_audio(speech))
    seats = await asyncio.to_thread(keys_and_portraits, url, keys, photo)
    settings: dict[str, Any] = {"latency": latency, "sessions": sessions, "step": step, "hold": hold}
    async with Memory(url) as memory:
        runs = [await run_at(url, seats, pcm, memory, fps=fps, **settings) for fps in rates]
    return {"benchmark": "load", "latency": latency, "runs": runs}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = make_parser("load", "Live sessions that a server carries: gaps, first frames, lost samples, memory.")
    parser.add_argument("--url", help="of a server that runs; default: one of its own on loopback")
    parser.add_argument("--key", action="append", help="API key for --url; may be repeated: each has its own limit")
    parser.add_argument("--photo", type=Path, default=Path("examples/portrait.jpg"))
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"))
    parser.add_argument("--latency", default="low", choices=["low", "balanced", "quality"])
    parser.add_argument("--fps", default=f"{FPS}", help="25 or 12.5, or both, separated by a comma: one run each")
    parser.add_argument("--sessions", type=int, default=64, help="never more")
    parser.add_argument("--step", type=float, default=15.0, help="seconds between two clients")
    parser.add_argument("--hold", type=float, default=0.0, help="seconds with as many as fit, after the ramp")
    parser.add_argument("--threads", type=int, help="CPU threads of the server's engines; default: all usable cores")
    parser.add_argument("--plot", type=Path, help="a picture (PNG or SVG) of the result; needs matplotlib")
    options = parser.parse_args(arguments)
    try:
        rates = [float(part) for part in options.fps.split(",")]
    except ValueError:
        parser.error(f"--fps takes 25 or 12.5, got {options.fps!r}")
    from semo_sdk.doctor import fingerprint

    engine = {name: getattr(options, name) for name in ("bundle", "backend", "precision", "threads", "latency")}
    with contextlib.ExitStack() as stack:
        if options.url:
            url, keys = options.url, options.key or [None]
        else:
            url, keys = stack.enter_context(own_server(engine, options.sessions))
        settings = {name: getattr(options, name) for name in ("photo", "speech", "latency", "sessions", "step", "hold")}
        result = asyncio.run(run(url, keys, rates=rates, **settings))
    where = "of the client" if options.url else "of server and client"
    result |= {"bundle": options.bundle, "own_server": not options.url, "fingerprint_is": where}
    result["fingerprint"] = fingerprint()
    if options.plot:
        from semo_sdk.benchmarks.load_plot import plot

        plot(result, options.plot)
    deliver(result, options.json, markdown(result))
    failures = [failure for run in result["runs"] for failure in run["failures"]]
    if failures:
        raise SemoError(f"{len(failures)} failures, the first: {failures[0]}")


if __name__ == "__main__":
    main()
