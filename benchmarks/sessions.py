"""How many live sessions a machine carries, in one process through the session engine that ``semo serve`` runs.

    semo bench sessions --latency low --json sessions.json

N sessions speak at once, each fed speech at the speed of speech, 20 ms at a time; a player of each wants a frame every
40 ms. A frame that is there when it is due is shown 40 ms after the one before; one that is not makes its player wait,
and everything after it is due later. So the gap between two frames is 40 ms or longer, and

- a machine **carries** N sessions if the p99 gap is 40 ms: at most one frame in a hundred comes late.

Larger and smaller N are tried until the largest that is carried is known. No video is encoded and no network is used
(``semo bench load`` measures a server with both); the players run in the same process, and the processor time that they
need is part of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks.command import add_threads, deliver, label_of, make_parser
from semo_sdk.benchmarks.meters import GpuMeter, peak_memory_mib
from semo_sdk.benchmarks.report import percentiles, table
from semo_sdk.constants import FPS, SAMPLE_RATE
from semo_sdk.errors import ConfigError
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import Reference
from semo_sdk.pipeline.state import LATENCIES
from semo_sdk.serving.capacity import Capacity
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.session import LiveSession
from semo_sdk.serving.speech import Frame, Kind, Observer

FRAME_MS = 1000 / FPS
PUSH_SECONDS = 0.02
POLL_SECONDS = 0.001
SETTLE_SECONDS = 1.5  # after the last session joined, before measuring
ROUNDING_MS = 0.5
LARGEST = 256


class Passes(Observer):
    """What the engine tells of its passes and first frames."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.busy = 0.0
        self.first: list[float] = []

    def batch(self, items: int, seconds: float, video_seconds: float) -> None:
        self.items.append(items)
        self.busy += seconds

    def first_frame(self, seconds: float) -> None:
        self.first.append(seconds)


@dataclass
class Player:
    """One session, its speech and its clock."""

    session: LiveSession
    speech: np.ndarray
    began: float
    due: float
    sent: int = 0
    gaps: list[float] = field(default_factory=list)
    shown: float | None = None
    missed: bool = False

    def turn(self, now: float, measuring: bool) -> None:
        """Sends the speech of the time that has passed, and shows a frame if one is due."""
        while self.sent * PUSH_SECONDS <= now - self.began:
            size = int(PUSH_SECONDS * SAMPLE_RATE)
            start = self.sent * size % (len(self.speech) - size)
            self.session.push(self.speech[start : start + size])
            self.sent += 1
        while now >= self.due:
            item = self.session.take()
            if item is None:
                self.missed = True  # asked for again at the next turn
                return
            if not isinstance(item, Frame):
                continue
            # There when it was first asked for: the player's own lateness (this loop's) is not the engine's.
            at = now if self.missed or self.shown is None else self.due
            self.missed = False
            if self.shown is not None and measuring:
                self.gaps.append(1000 * (at - self.shown))
            self.shown = at
            self.due = at + 1 / FPS


def crowd(
    engine: Engine, seen: Passes, reference: Reference, speech: np.ndarray, count: int, latency: str, seconds: float
) -> dict[str, Any]:
    """``count`` sessions for so long.

    Args:
        engine: calibrated and started; ``seen`` observes it.
        seen: see above.
        reference: the portrait of all of them.
        speech: (n,) float32 mono 16 kHz that each says over and over.
        count: sessions.
        latency: a key of ``LATENCIES``.
        seconds: to measure, after the last one joined and everything settled.

    Returns:
        ``gap_ms`` (percentiles), ``late`` (share of frames that came after they were due), ``carried``, and what the
        engine did: ``busy`` (share of the time that passes ran), ``mean_batch``.
    """
    now = time.monotonic()
    hop = LATENCIES[latency] / FPS
    players = []
    for n in range(count):
        session = engine.open(reference, latency=latency, seed=n)
        offset = n * hop / count  # people do not start to speak at the same moment
        shift = n * SAMPLE_RATE // 3 % len(speech)
        players.append(Player(session, np.roll(speech, -shift), now + offset, now + offset))
    measure = now + hop + SETTLE_SECONDS
    stop = measure + seconds
    busy, batches, processor = 0.0, 0, 0.0
    measuring = False
    lags = []
    last = now
    while (now := time.monotonic()) < stop:
        if not measuring and now >= measure:
            measuring, busy, batches, processor = True, seen.busy, len(seen.items), time.process_time()
        lags.append(1000 * (now - last))
        last = now
        for player in players:
            player.turn(time.monotonic(), measuring)
        time.sleep(POLL_SECONDS)
    wall = now - measure
    processor = time.process_time() - processor
    for player in players:
        player.session.close()
    gaps = [gap for player in players for gap in player.gaps]
    if not gaps:
        gaps = [1000 * seconds]  # nothing came at all
    spread = percentiles(gaps)
    items = seen.items[batches:]
    return {
        "sessions": count,
        "gap_ms": spread,
        "late": round(float(np.mean(np.asarray(gaps) > FRAME_MS + ROUNDING_MS)), 5),
        "carried": spread["p99"] <= FRAME_MS + ROUNDING_MS,
        "frames_per_s": round(len(gaps) / wall, 1),
        "busy": round((seen.busy - busy) / wall, 3),
        "mean_batch": round(float(np.mean(items)), 2) if items else 0.0,
        "cpu_share": round(processor / wall, 3),
        "player_turn_ms_p99": round(float(np.percentile(lags, 99)), 2),
    }


def largest(carries: dict[int, bool], guess: int) -> int | None:
    """What to try next to find the largest number of sessions that is carried; None when it is known."""
    good = max((n for n, ok in carries.items() if ok), default=0)
    bad = min((n for n, ok in carries.items() if not ok and n > good), default=LARGEST + 1)
    if not carries:
        return min(max(guess, 1), LARGEST)
    if bad > LARGEST and good < LARGEST:
        return min(good + max(1, good // 4), LARGEST)
    return None if bad - good <= 1 else (good + bad) // 2


def run(
    photo: Path,
    speech: Path,
    *,
    bundle: str = "semo-tiny",
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    latency: str = "low",
    seconds: float = 8.0,
    counts: Sequence[int] = (),
) -> dict[str, Any]:
    """Finds out how many sessions are carried.

    Args:
        photo: a portrait.
        speech: what they say, at least a second.
        bundle, backend, precision, threads: as for :class:`semo_sdk.Animator`.
        latency: "low", "balanced" or "quality".
        seconds: for each number of sessions.
        counts: numbers to try; empty = search the largest.

    Returns:
        JSON-ready.

    Raises:
        ConfigError: an impossible setting.
        SemoError: anything that the engines raise.
    """
    from semo_sdk.backends import load_engines
    from semo_sdk.bundle import Bundle
    from semo_sdk.doctor import fingerprint
    from semo_sdk.media.audio import load_audio
    from semo_sdk.media.image import find_portrait, load_image

    if latency not in LATENCIES:
        raise ConfigError(f"no latency {latency!r}; choose one of {', '.join(LATENCIES)}")
    opened, pcm, seen = Bundle.open(bundle), load_audio(speech), Passes()
    tries: dict[int, dict[str, Any]] = {}
    with load_engines(opened, backend, precision, threads=threads) as engines, GpuMeter() as meter:
        # More sessions than the machine can carry must be let in, or nobody would know where it ends.
        capacity = Capacity(utilisation=float("inf"), max_sessions=LARGEST)
        engine = Engine(Graphs(engines, opened.config), latencies=(latency,), capacity=capacity, observer=seen)
        engine.calibrate()
        share = capacity.share(Kind(LATENCIES[latency]))
        reference = engine.encode(find_portrait(load_image(photo)))
        engine.start()
        try:
            todo = list(counts)
            while (count := todo.pop(0) if todo else _next(counts, tries, share)) is not None:
                seen.first.clear()
                found = crowd(engine, seen, reference, pcm, count, latency, seconds)
                tries[count] = {**found, "first_frame_s": percentiles(seen.first) if seen.first else None}
                tries[count]["peak_ram_mib"] = peak_memory_mib()
        finally:
            engine.close()
        names = {"backend": engines.backend, "precision": engines.precision}
        sizes = list(engine.sizes)
    return {
        "benchmark": "sessions",
        "bundle": opened.config.name,
        "weights": label_of(opened),
        **names,
        "threads": threads,
        "latency": latency,
        "seconds": seconds,
        "batch_sizes": sizes,
        "share_of_one_session": round(share, 4),
        "carried": max((n for n, row in tries.items() if row["carried"]), default=0),
        "tries": [tries[n] for n in sorted(tries)],
        "gpu": meter.result,
        "fingerprint": fingerprint(),
    }


def _next(counts: Sequence[int], tries: dict[int, dict[str, Any]], share: float) -> int | None:
    if counts:
        return None
    return largest({n: row["carried"] for n, row in tries.items()}, int(1 / share) if share > 0 else 1)


def markdown(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    carried = f"{result['carried']} live session{'' if result['carried'] == 1 else 's'}"
    head = (
        f"`{result['bundle']}` ({result['weights']}), {result['backend']} {result['precision']}, "
        f'`latency="{result["latency"]}"`: **{carried}** carried'
    )
    rows = [
        [
            row["sessions"],
            f"{row['gap_ms']['p50']:.0f} / {row['gap_ms']['p95']:.0f} / {row['gap_ms']['p99']:.0f} ms",
            f"{100 * row['late']:.1f} %",
            "yes" if row["carried"] else "no",
            f"{row['frames_per_s']:.0f}",
            f"{100 * row['busy']:.0f} %",
            f"{row['mean_batch']:.1f}",
        ]
        for row in result["tries"]
    ]
    columns = [
        "sessions",
        "frame gap p50 / p95 / p99",
        "late frames",
        "carried",
        "frames/s",
        "engine busy",
        "mean batch",
    ]
    return f"{head}\n\n{table(columns, rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = make_parser("sessions", "How many live sessions hold 25 frames a second, in one process.")
    add_threads(parser)
    parser.add_argument("--photo", type=Path, default=Path("examples/portrait.jpg"))
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"))
    parser.add_argument("--latency", default="low", choices=list(LATENCIES))
    parser.add_argument("--seconds", type=float, default=8.0, help="for each number of sessions")
    parser.add_argument("--counts", default="", help="numbers to try, separated by commas; default: find the largest")
    options = parser.parse_args(arguments)
    try:
        counts = [int(count) for count in options.counts.split(",") if count]
    except ValueError:
        raise ConfigError(f"--counts is {options.counts!r}; give numbers such as 1,2,4") from None
    result = run(
        options.photo,
        options.speech,
        bundle=options.bundle,
        backend=options.backend,
        precision=options.precision,
        threads=options.threads,
        latency=options.latency,
        seconds=options.seconds,
        counts=counts,
    )
    deliver(result, options.json, markdown(result))


if __name__ == "__main__":
    main()
