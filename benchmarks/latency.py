"""How fast a portrait speaks on this machine.

    python -m semo_sdk.benchmarks.latency --bundle semo-tiny --json latency.json

- **real-time factor** (RTF): seconds of computing per second of video, below 1 is faster than real time. End
  to end: speech in memory to a finished MP4 (H.264, AAC), engines warm.
- **stages**: milliseconds of each graph, and of the encoder, per frame of video.
- **first frame**: from the moment the last needed sample of speech is there until the first frames are in the
  caller's hands (``compute``), and from the first sample of speech (``speech start``: the hop's own length,
  which must be heard first, plus ``compute``). For each of the three latency modes.
- **cold start**: a fresh process: ``import semo_sdk`` to the first frame.
- **memory**: peak resident memory of a fresh process that makes one MP4 (ffmpeg is a process of its own, not counted).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks.command import add_threads, deliver, label_of, make_parser
from semo_sdk.benchmarks.meters import GpuMeter
from semo_sdk.benchmarks.report import percentiles, table
from semo_sdk.constants import FPS, SAMPLE_RATE
from semo_sdk.errors import InputError, SemoError

STAGES = ("reference", "audio", "motion", "render")
LATENCIES = {"quality": 16, "balanced": 8, "low": 4}  # frames of the first pass
WARM_UP_SECONDS = 2.0

# Runs in a fresh process: prints one JSON line.
PROBE = """
import json, sys, time
start = time.perf_counter()
from semo_sdk import Animator
imported = time.perf_counter()
photo, speech, output, bundle, backend, precision, threads = sys.argv[1:]
animator = Animator(photo, bundle=bundle, backend=backend, precision=precision, threads=int(threads) or None)
ready = time.perf_counter()
next(iter(animator.stream(speech)))
first = time.perf_counter()
animator.from_audio(speech).save(output)
from semo_sdk.benchmarks.meters import peak_memory_mib
seconds = {"import_s": imported - start, "animator_s": ready - imported, "first_chunk_s": first - ready}
print(json.dumps({**seconds, "peak_mib": peak_memory_mib()}))
"""


def cold_start(photo: Path, speech: Path, settings: dict[str, str], threads: int | None) -> dict[str, float]:
    """A fresh process from nothing to the first frame, and its peak memory.

    Returns:
        Seconds (``process_s``: interpreter start until the first chunk) and MiB.

    Raises:
        SemoError: the process failed; the message holds its last lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = (settings["bundle"], settings["backend"], settings["precision"], str(threads or 0))
        command = [
            sys.executable,
            "-c",
            PROBE,
            str(photo),
            str(speech),
            str(Path(folder) / "out.mp4"),
            *values,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SemoError(f"the cold-start process failed: {done.stderr.strip()[-500:]}")
    probe = json.loads(done.stdout.splitlines()[-1])
    return {
        "import_s": round(probe["import_s"], 3),
        "animator_s": round(probe["animator_s"], 3),
        "first_chunk_s": round(probe["first_chunk_s"], 3),
        "total_s": round(probe["import_s"] + probe["animator_s"] + probe["first_chunk_s"], 3),
        "peak_mib": probe["peak_mib"],
    }


def end_to_end(animator: Any, pcm: np.ndarray, repeats: int) -> dict[str, Any]:
    """Speech in memory to a finished MP4, ``repeats`` times; with the milliseconds of each graph."""
    seconds = []
    frames = 0
    animator.graphs.reset_stats()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            start = time.perf_counter()
            clip = animator.from_audio(pcm)
            clip.save(Path(folder) / "out.mp4")
            seconds.append(time.perf_counter() - start)
            frames = len(clip)
    stats = animator.graphs.stats
    duration = frames / FPS
    return {
        "video_seconds": duration,
        "frames": frames,
        "seconds": percentiles(seconds),
        "rtf": percentiles([value / duration for value in seconds]),
        "fps": round(frames / float(np.median(seconds)), 2),
        "graph_ms_per_frame": {
            name: round(1000 * stats[name].seconds / (repeats * frames), 3) for name in STAGES if name in stats
        },
        "graph_ms_per_launch": {
            name: round(1000 * stats[name].seconds / stats[name].launches, 3) for name in STAGES if name in stats
        },
    }


def encoder(frames: np.ndarray, pcm: np.ndarray) -> dict[str, float]:
    """The video encoder alone on the frames of one clip."""
    from semo_sdk.media.video import VideoWriter

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with VideoWriter(Path(folder) / "out.mp4", size=(frames.shape[2], frames.shape[1]), audio=pcm) as writer:
            for frame in frames:
                writer.write(frame)
        seconds = time.perf_counter() - start
    return {"ms_per_frame": round(1000 * seconds / len(frames), 3)}


def first_frames(animator: Any, pcm: np.ndarray, latency: str, repeats: int) -> dict[str, Any]:
    """A live session fed 10 ms at a time: when the first frames come, and what every later pass costs.

    The sound is pushed as fast as it is consumed; waiting for it to be spoken is added as the hop's length.
    """
    block = SAMPLE_RATE // 100
    first: list[float] = []
    passes: list[float] = []
    made = 0
    for repeat in range(repeats):
        with animator.session(latency=latency, seed=repeat) as session:
            waiting = True
            for start in range(0, len(pcm) - block + 1, block):
                before = time.perf_counter()
                chunks = session.push(pcm[start : start + block], sample_rate=SAMPLE_RATE)
                seconds = time.perf_counter() - before
                if chunks:
                    (first if waiting else passes).append(seconds)
                    made += 0 if waiting else sum(len(chunk.frames) for chunk in chunks)
                    waiting = False
    hop_ms = 1000 * LATENCIES[latency] / FPS
    compute = percentiles([1000 * value for value in first])
    result = {
        "hop_ms": hop_ms,
        "first_frame_compute_ms": compute,
        "first_frame_from_speech_start_ms": {
            key: value if key == "count" else round(value + hop_ms, 3) for key, value in compute.items()
        },
    }
    if passes:
        result["pass_ms"] = percentiles([1000 * value for value in passes])
        result["rtf_without_encoder"] = round(sum(passes) * FPS / made, 4)
    return result


def references(animator: Any, repeats: int) -> dict[str, float]:
    """The reference graph: once per portrait."""
    from semo_sdk.pipeline.reference import encode_reference

    seconds: list[float] = []
    encode_reference(animator.graphs, animator.portrait.crop)  # compiles: the animator let go of the graph
    for _ in range(repeats):
        start = time.perf_counter()
        encode_reference(animator.graphs, animator.portrait.crop)
        seconds.append(1000 * (time.perf_counter() - start))
    return percentiles(seconds)


def run(
    photo: Path,
    speech: Path,
    *,
    bundle: str = "semo-tiny",
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    repeats: int = 5,
) -> dict[str, Any]:
    """Measures everything the module's docstring names.

    Args:
        photo: a portrait.
        speech: at least 2 s of speech.
        bundle, backend, precision, threads: as in :class:`semo_sdk.Animator`.
        repeats: how often each measurement is made; percentiles are over these.

    Returns:
        JSON-ready.

    Raises:
        InputError: the speech is too short.
        SemoError: anything that the animator raises.
    """
    from semo_sdk import Animator
    from semo_sdk.bundle import Bundle
    from semo_sdk.doctor import fingerprint
    from semo_sdk.media.audio import load_audio

    pcm = load_audio(speech)
    if len(pcm) < WARM_UP_SECONDS * SAMPLE_RATE:
        raise InputError(f"the benchmark needs at least {WARM_UP_SECONDS} s of speech, got {len(pcm) / SAMPLE_RATE} s")
    opened = Bundle.open(bundle)
    cold = cold_start(photo, speech, {"bundle": bundle, "backend": backend, "precision": precision}, threads)
    with Animator(photo, bundle=bundle, backend=backend, precision=precision, threads=threads) as animator:
        warm_up = pcm[: int(WARM_UP_SECONDS * SAMPLE_RATE)]
        for latency in LATENCIES:
            for _ in animator.stream(warm_up, latency=latency):
                pass
        with GpuMeter() as meter:
            whole = end_to_end(animator, pcm, repeats)
        frames = animator.from_audio(pcm).frames
        return {
            "benchmark": "latency",
            "bundle": opened.config.name,
            "weights": opened.manifest.provenance,
            "weights_label": label_of(opened),
            "backend": animator.backend,
            "precision": animator.precision,
            "end_to_end": whole,
            "reference_ms": references(animator, max(repeats, 5)),
            "encoder": encoder(frames, pcm),
            "streaming": {name: first_frames(animator, pcm, name, repeats) for name in LATENCIES},
            "cold_start": cold,
            "gpu": meter.result,
            "fingerprint": fingerprint(),
        }


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    whole, cold, cpu = result["end_to_end"], result["cold_start"], result["fingerprint"]["cpu"]
    graphs = whole["graph_ms_per_frame"]
    rows = [
        [
            "real-time factor, speech to finished MP4 (p50)",
            f"**{whole['rtf']['p50']:.2f}** ({whole['fps']:.0f} frames/s)",
        ],
        ["audio, per frame", f"{graphs['audio']:.2f} ms"],
        ["motion, per frame", f"{graphs['motion']:.2f} ms"],
        ["render, per frame", f"{graphs['render']:.2f} ms"],
        ["H.264 and AAC alone, per frame", f"{result['encoder']['ms_per_frame']:.2f} ms"],
        ["reference, once per portrait", f"{result['reference_ms']['p50']:.1f} ms"],
        ["cold start: import to first chunk", f"{cold['total_s']:.1f} s"],
        ["peak memory", f"{cold['peak_mib']:.0f} MiB"],
    ]
    random = " (random weights)" if result.get("weights_label") == "random weights" else ""
    head = f"`{result['bundle']}`{random}, {result['backend']} {result['precision']}, {cpu['usable_cores']} cores"
    live = [
        [
            f"`{name}`",
            f"{mode['first_frame_compute_ms']['p50']:.0f} / {mode['first_frame_compute_ms']['p95']:.0f} ms",
            f"{mode['first_frame_from_speech_start_ms']['p50']:.0f} ms",
            f"{mode['pass_ms']['p50']:.0f} / {mode['pass_ms']['p95']:.0f} / {mode['pass_ms']['p99']:.0f} ms",
            f"{mode['rtf_without_encoder']:.2f}",
        ]
        for name, mode in result["streaming"].items()
    ]
    second = table(
        [
            "live, `latency=`",
            "first frame after its last sample (p50 / p95)",
            "after the first sample (p50)",
            "each pass (p50 / p95 / p99)",
            "RTF, no encoder",
        ],
        live,
    )
    return f"{table([head, 'measured'], rows)}\n\n{second}"


def first_frames_markdown(result: dict[str, Any]) -> str:
    """When the first frame is there, in full, as a Markdown table."""

    def spread(values: dict[str, float]) -> str:
        return " / ".join(f"{values[name]:.0f}" for name in ("p50", "p95", "p99")) + " ms"

    rows = [
        [
            f"`{name}`",
            spread(mode["first_frame_compute_ms"]),
            spread(mode["first_frame_from_speech_start_ms"]),
            mode["first_frame_compute_ms"]["count"],
        ]
        for name, mode in result["streaming"].items()
    ]
    head = ["`latency=`", "after its last needed sample (p50 / p95 / p99)", "after the first sample of speech", "runs"]
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = make_parser("latency", "Real-time factor, stages, first-frame latency, cold start, memory.")
    parser.add_argument("--photo", type=Path, default=Path("examples/portrait.jpg"))
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"))
    add_threads(parser)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    result = run(
        options.photo,
        options.speech,
        bundle=options.bundle,
        backend=options.backend,
        precision=options.precision,
        threads=options.threads,
        repeats=options.repeats,
    )
    deliver(result, options.json, markdown(result))


if __name__ == "__main__":
    main()
