"""How much video a machine makes, session beside session in one launch, and how near that is to its limit.

    semo bench throughput --bundle semo-tiny --batches 1,2,4,8 --json throughput.json

For each batch size whole passes are timed (speech in, 16 frames for each session out; no video encoder):

- **frames/s**, **megapixels/s** (256 x 256 pixels a frame) and **RTF** (seconds of computing per second of video,
  summed over the sessions).
- **stages**: milliseconds of each graph, its floating-point operations (:mod:`semo_sdk.benchmarks.flops`) and the share
  of the machine's matrix-product peak (:mod:`semo_sdk.benchmarks.peak`), measured in the same run and precision.
- **memory** of process and GPU, **energy** where NVML tells it.
- **start**: seconds until each graph gave its first result (opening, compiling), and of building engines with TensorRT.

``--naive`` adds what a first version would do: torch in float32, kernel by kernel, one session, no reference cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from semo_sdk.backends.base import graph_specs
from semo_sdk.benchmarks.command import add_threads, deliver, label_of, make_parser
from semo_sdk.benchmarks.flops import count
from semo_sdk.benchmarks.meters import GpuMeter, peak_memory_mib
from semo_sdk.benchmarks.peak import matrix_peak
from semo_sdk.benchmarks.report import percentiles, table
from semo_sdk.constants import CHUNK_FRAMES, FPS, IMAGE_SIZE, SAMPLES_PER_FRAME
from semo_sdk.errors import ConfigError
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import Reference, encode_reference, stack_references
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import step_batch

if TYPE_CHECKING:
    from semo_sdk.bundle import Bundle

STAGES = ("audio", "motion", "render")
MEGAPIXELS = IMAGE_SIZE**2 / 1e6
MIN_PASSES = 3


def passes(graphs: Graphs, batch: int, seconds: float) -> dict[str, Any]:
    """Whole passes of ``batch`` sessions for so long, after one that compiles.

    Returns:
        ``pass_ms`` (percentiles), ``fps``, ``megapixels_per_s``, ``rtf``, ``cpu_share`` (processor time of this process
        per second: on a CPU less than its threads means that other programs took part of it), ``frames``.
    """
    stacked, states = _work(graphs, batch)
    step_batch(graphs, stacked, states)
    graphs.reset_stats()
    taken: list[float] = []
    processor, began = time.process_time(), time.perf_counter()
    while len(taken) < MIN_PASSES or time.perf_counter() - began < seconds:
        begin = time.perf_counter()
        step_batch(graphs, stacked, states)
        taken.append(time.perf_counter() - begin)
    wall, processor = time.perf_counter() - began, time.process_time() - processor
    frames = batch * CHUNK_FRAMES
    rate = frames / float(np.median(taken))
    return {
        "batch": batch,
        "pass_ms": percentiles([1000 * t for t in taken]),
        "fps": round(rate, 2),
        "megapixels_per_s": round(rate * MEGAPIXELS, 2),
        "rtf": round(FPS / rate, 4),
        "cpu_share": round(processor / wall, 3),
        "frames": frames * len(taken),
    }


def _work(graphs: Graphs, batch: int) -> tuple[Reference, list[StreamState]]:
    """Portraits and states with a pass of noise to speak."""
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    stacked = stack_references([encode_reference(graphs, picture)] * batch)
    start = StreamState.start(graphs.config, stacked.motion[0], latency="quality", seed=0)
    speech = generator.uniform(-0.3, 0.3, CHUNK_FRAMES * SAMPLES_PER_FRAME).astype(np.float32)
    return stacked, [start.push(speech)] * batch


def stages(graphs: Graphs, batch: int, seconds: float, flops: dict[str, int], peak: float | None) -> dict[str, Any]:
    """Each graph by itself, waited for: milliseconds, operations a second, share of the peak."""
    graphs.wait = True
    try:
        passes(graphs, batch, seconds)
    finally:
        graphs.wait = False
    found = {}
    for name in STAGES:
        stat = graphs.stats[name]
        mean = stat.seconds / stat.launches
        rate = flops[name] / mean / 1e12
        found[name] = {
            "ms": round(1000 * mean, 3),
            "ms_per_frame": round(1000 * mean / (batch * CHUNK_FRAMES), 4),
            "gflop": round(flops[name] / 1e9, 3),
            "tflops": round(rate, 4),
            "share_of_peak": None if peak is None else round(rate / peak, 4),
        }
    return found


def operations(bundle: Bundle, batch: int) -> dict[str, int]:
    """Floating-point operations of one launch of each graph, by name."""
    sizes = {"B": batch, "N": CHUNK_FRAMES}
    stored = "fp32" if "fp32" in bundle.precisions else bundle.precisions[0]
    return {
        name: sum(count(bundle.graph_path(name, stored), spec, sizes).values())
        for name, spec in graph_specs(bundle.config).items()
    }


def starting(graphs: Graphs) -> dict[str, float]:
    """Seconds until each graph gave its first result: opening, compiling, first launch."""
    graphs.wait = True
    try:
        step_batch(graphs, *_work(graphs, 1))
    finally:
        graphs.wait = False
    return {name: round(stat.seconds, 3) for name, stat in graphs.stats.items()}


def built(bundle: Bundle, backend: str, precision: str) -> dict[str, Any] | None:
    """How long ``semo build`` took for the engines that are used."""
    if backend != "tensorrt":
        return None
    from semo_sdk.backends.tensorrt import find_engines

    _, manifest = find_engines(bundle, precision)
    parts = {name: engine.seconds for name, engine in manifest.engines.items()}
    return {"seconds": manifest.seconds, "flavour": manifest.flavour, "version": manifest.version, "graphs": parts}


def run(
    *,
    bundle: str = "semo-tiny",
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    batches: Sequence[int] = (1, 2, 4, 8),
    seconds: float = 3.0,
    naive: bool = False,
) -> dict[str, Any]:
    """Measures everything the module's docstring names.

    Args:
        bundle, backend, precision, threads: as for :func:`semo_sdk.backends.load_engines`.
        batches: sessions in one launch, 1 to 8.
        seconds: for each measurement.
        naive: measure the naive version too.

    Returns:
        JSON-ready.

    Raises:
        ConfigError: an impossible batch.
        SemoError: anything that the engines raise.
    """
    from semo_sdk.backends import load_engines
    from semo_sdk.benchmarks.naive import naive_passes
    from semo_sdk.bundle import Bundle
    from semo_sdk.doctor import fingerprint

    if not batches or not all(1 <= batch <= 8 for batch in batches):
        raise ConfigError(f"batches are {list(batches)}; give some from 1 to 8")
    opened = Bundle.open(bundle)
    rows = []
    begin = time.perf_counter()
    with load_engines(opened, backend, precision, threads=threads) as engines, GpuMeter() as whole:
        graphs = Graphs(engines, opened.config)
        loaded = time.perf_counter() - begin
        peak = matrix_peak(engines.backend, engines.precision, threads)
        start = starting(graphs)
        for batch in batches:
            with GpuMeter() as meter:
                row = passes(graphs, batch, seconds)
            row["peak_ram_mib"] = peak_memory_mib()
            row["gpu"] = meter.result
            if meter.result.get("energy_j") is not None:
                row["joule_per_video_second"] = round(meter.result["energy_j"] / (row["frames"] / FPS), 4)
            flops = operations(opened, batch)
            row["stages"] = stages(graphs, batch, seconds / 2, flops, peak["tflops"])
            rows.append(row)
        result = {
            "benchmark": "throughput",
            "bundle": opened.config.name,
            "weights": label_of(opened),
            "backend": engines.backend,
            "precision": engines.precision,
            "threads": threads,
            "decoder_steps": opened.config.decoder.steps,
            "peak": peak,
            "load_s": round(loaded, 3),
            "first_result_s": start,
            "engine_build": built(opened, engines.backend, engines.precision),
            "batches": rows,
            "gpu": {},
        }
    result["gpu"] = whole.result
    if naive:
        slow = naive_passes(opened, seconds)
        result["naive"] = slow
        result["times_naive"] = round(max(row["fps"] for row in rows) / slow["fps"], 2)
    return {**result, "fingerprint": fingerprint()}


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    peak = result["peak"]["tflops"]
    limit = "peak not measured" if peak is None else f"matrix-product peak {peak:.3g} TFLOP/s"
    head = f"`{result['bundle']}` ({result['weights']}), {result['backend']} {result['precision']}, {limit}"
    rows = []
    for row in result["batches"]:
        render = row["stages"]["render"]
        share = "not known" if render["share_of_peak"] is None else f"{100 * render['share_of_peak']:.0f} %"
        rows.append(
            [
                row["batch"],
                f"**{row['fps']:.0f}**",
                f"{row['megapixels_per_s']:.1f}",
                f"{row['rtf']:.3f}",
                " / ".join(f"{row['stages'][name]['ms_per_frame']:.2f}" for name in STAGES),
                share,
                f"{row['peak_ram_mib']:.0f}" + (f" / {row['gpu']['peak_mib']:.0f}" if "peak_mib" in row["gpu"] else ""),
            ]
        )
    memory = "RAM / VRAM, MiB" if "peak_mib" in result["gpu"] else "RAM, MiB"
    columns = ["sessions a launch", "frames/s", "megapixels/s", "RTF", "audio / motion / render, ms a frame"]
    text = f"{head}\n\n{table([*columns, 'render, share of peak', memory], rows)}"
    gflop = {name: stage["gflop"] for name, stage in result["batches"][0]["stages"].items()}
    frames = CHUNK_FRAMES * result["batches"][0]["batch"]
    text += "\n\nGFLOP a frame: " + ", ".join(f"{name} {value / frames:.3f}" for name, value in gflop.items()) + "."
    if "naive" in result:
        text += f" {result['times_naive']:.1f} times the naive version's {result['naive']['fps']:.1f} frames/s."
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = make_parser("throughput", "Frames a second by batch size, share of the machine's peak, memory, energy.")
    add_threads(parser)
    parser.add_argument("--batches", default="1,2,4,8", help="sessions in one launch, separated by commas")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--naive", action="store_true", help="torch float32, kernel by kernel, no cache, beside it")
    options = parser.parse_args(arguments)
    try:
        batches = [int(batch) for batch in options.batches.split(",")]
    except ValueError:
        raise ConfigError(f"--batches is {options.batches!r}; give numbers such as 1,2,4,8") from None
    result = run(
        bundle=options.bundle,
        backend=options.backend,
        precision=options.precision,
        threads=options.threads,
        batches=batches,
        seconds=options.seconds,
        naive=options.naive,
    )
    deliver(result, options.json, markdown(result))


if __name__ == "__main__":
    main()
