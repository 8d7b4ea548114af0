"""Everything that needs a GPU, in one script: engines built, numbers compared, all speed benchmarks, JSON back.

For a box without a network, where this package is not installed. With a network, here, once::

    python benchmarks/gpu_session.py pack .whl            # wheels for that box, in loads that travel: .whl/1, .whl/2...

There, one load each time, in order, and at last the run::

    python3 benchmarks/gpu_session.py stow .whl/1 /tmp/pieces    # keeps pieces; whole wheels are installed
    python3 benchmarks/gpu_session.py run --out "$OUT" --minutes 9 --only tiny         # or parity, contract, cpu
    python3 benchmarks/gpu_session.py run --out "$OUT" --minutes 9 --only base-export  # once: minutes of Python
    python3 benchmarks/gpu_session.py run --out "$OUT" --minutes 9 --only base

A load fits into a transfer of 64 MiB beside this repository *without* semo-tiny's weights: put an empty file in the
place of ``semo_sdk/bundles/semo-tiny/weights.safetensors`` while loads are sent, and the weights back before ``run``.
The first load is all that throughput and parity need, the first four bring latency and sessions; TensorRT-RTX comes
next, ONNX Runtime for CUDA at last.

``run`` without ``--only`` does all of :func:`steps` in order of importance, each step in a process of its own with a
time limit, and stops when the minutes are over. Nothing that fails stops the rest: ``session.json`` says of each step
what came of it. On a machine without a GPU the steps that need one are left out, so that everything else can be tried
anywhere.

The script itself and gpu_box.py beside it need nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from semo_sdk.benchmarks import gpu_box
except ImportError:  # run by its path where the package is not installed
    import gpu_box

# What a box with torch, onnx, onnxruntime, onnxscript, numpy, safetensors, typer, pillow, tqdm and cuda-bindings
# lacks, the most needed first. torch, numpy and what else they name stay the box's own, but for WITH_NEEDS.
WHEELS = (
    "pydantic",
    "diffusers",
    "importlib-metadata",
    "openvino",
    "imageio-ffmpeg",
    "c2pa-python",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt-rtx-cu13-libs",
    "onnxruntime-gpu",
)
WITH_NEEDS = frozenset({"pydantic", "c2pa-python"})  # these in the very versions that they ask for


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: of its log, and of its JSON if it writes one.
        arguments: of ``python``; ``{json}`` is where its result goes, ``{out}`` the folder.
        minutes: at most.
        gpu: whether it is left out without one.
        modules: packages without which it is left out.
    """

    name: str
    arguments: tuple[str, ...]
    minutes: float = 3.0
    gpu: bool = True
    modules: tuple[str, ...] = ()


def steps(base: str, seconds: float) -> list[Step]:
    """What a session does, the most telling first.

    Args:
        base: folder of a semo-base bundle with random weights, which the session exports.
        seconds: of each measurement.
    """
    bench, checks = "semo_sdk.benchmarks.", "semo_sdk.benchmarks.gpu_checks"
    rtx, ort = ("tensorrt_rtx_bindings",), ("onnxruntime",)
    talks = ("openvino", "imageio_ffmpeg")  # a face is found, speech is read
    rows: list[Step] = []

    def throughput(name: str, bundle: str, backend: str, precision: str, *more: str, **options: Any) -> None:
        which = ("--bundle", bundle, "--backend", backend, "--precision", precision, "--seconds", str(seconds))
        rows.append(Step(name, ("-m", f"{bench}throughput", *which, "--json", "{json}", *more), **options))

    def sessions(name: str, bundle: str, backend: str, latency: str, **options: Any) -> None:
        which = ("--bundle", bundle, "--backend", backend, "--latency", latency, "--seconds", str(2 * seconds))
        options["modules"] = (*options.get("modules", ()), *talks)
        rows.append(Step(name, ("-m", f"{bench}sessions", *which, "--json", "{json}"), **options))

    def latency(name: str, bundle: str, backend: str, **options: Any) -> None:
        which = ("--bundle", bundle, "--backend", backend, "--repeats", "20")
        options["modules"] = (*options.get("modules", ()), *talks, "c2pa")  # and a video is signed
        rows.append(Step(name, ("-m", f"{bench}latency", *which, "--json", "{json}"), **options))

    semo = ("-c", "from semo_sdk.cli import main; main()")
    rows.append(Step("doctor", (*semo, "doctor", "--json"), gpu=False))
    rows.append(Step("parity", ("-m", checks, "parity", "semo-tiny", "{json}"), 4, gpu=False, modules=ort))
    rows.append(
        Step(
            "contract-tests",
            ("-m", "pytest", "-q", "-o", "addopts=", "--import-mode=append", "tests/test_gpu.py"),  # in one process
            2,
            modules=("pytest",),
        )
    )
    throughput("tiny-torch-fp16", "semo-tiny", "torch", "fp16", "--naive")
    latency("tiny-latency-torch", "semo-tiny", "torch")
    sessions("tiny-sessions-torch", "semo-tiny", "torch", "low")
    rows.append(
        Step(
            "base-export",
            ("-m", checks, "random", "semo-base", base),
            9,
            gpu=False,
            modules=("diffusers", "onnxscript"),
        )
    )
    throughput("base-torch-bf16", base, "torch", "bf16", "--naive", minutes=4)
    throughput("base-torch-fp16", base, "torch", "fp16", minutes=4)
    latency("base-latency-torch", base, "torch")
    sessions("base-sessions-torch", base, "torch", "low")
    rows.append(Step("tiny-build-rtx", (*semo, "build", "semo-tiny", "--target", "rtx"), 4, modules=rtx))
    throughput("tiny-tensorrt", "semo-tiny", "tensorrt", "auto", modules=rtx)
    latency("tiny-latency-tensorrt", "semo-tiny", "tensorrt", modules=rtx)
    sessions("tiny-sessions-tensorrt", "semo-tiny", "tensorrt", "low", modules=rtx)
    throughput("tiny-ort-cuda", "semo-tiny", "onnxruntime:cuda", "fp16", modules=ort)
    latency("tiny-latency-ort", "semo-tiny", "onnxruntime:cuda", modules=ort)
    throughput("base-ort-cuda", base, "onnxruntime:cuda", "fp16", minutes=4, modules=ort)
    throughput("base-torch-compile", base, "torch:compile", "bf16", "--batches", "1,8", minutes=5)
    rows.append(Step("base-build-rtx", (*semo, "build", base, "--target", "rtx"), 6, modules=rtx))
    throughput("base-tensorrt", base, "tensorrt", "auto", minutes=4, modules=rtx)
    calibrate = ("--calibrate", "examples/portrait2.jpg", "examples/grid.wav")
    for bits in ("int8", "fp8"):
        build = (*semo, "build", "semo-tiny", "--target", "rtx", "--precision", bits, *calibrate)
        rows.append(Step(f"tiny-build-{bits}", build, 4, modules=(*rtx, *ort, *talks)))
        throughput(f"tiny-tensorrt-{bits}", "semo-tiny", "tensorrt", bits, modules=rtx)
    throughput("cpu-onnxruntime", "semo-tiny", "onnxruntime:cpu", "fp32", "--batches", "1,2", gpu=False, modules=ort)
    throughput("cpu-openvino", "semo-tiny", "openvino", "auto", "--batches", "1,2", gpu=False, modules=("openvino",))
    return rows


def run(out: Path, minutes: float, seconds: float, only: str) -> dict[str, Any]:
    """Does the steps whose name holds ``only``; what each wrote lies in ``out`` and, together, in ``session.json``."""
    out.mkdir(parents=True, exist_ok=True)
    work = gpu_box.work_folder()
    environment = gpu_box.environment(work)
    until = time.monotonic() + 60 * minutes
    has_gpu = shutil.which("nvidia-smi") is not None and subprocess.run(["nvidia-smi", "-L"]).returncode == 0
    done: dict[str, Any] = {}
    for step in steps(str(work / "semo-base-random"), seconds):
        if only not in step.name:
            continue
        left = until - time.monotonic()
        lacking = [name for name in step.modules if not _there(name, environment)]
        if step.gpu and not has_gpu:
            done[step.name] = {"state": "left out", "why": "no NVIDIA GPU"}
        elif lacking:
            done[step.name] = {"state": "left out", "why": f"{', '.join(lacking)} is not installed"}
        elif left < 20:
            done[step.name] = {"state": "left out", "why": "the time was over"}
        else:
            done[step.name] = _do(step, work, environment, min(left, 60 * step.minutes))
        gpu_box.say(f"{step.name}: {done[step.name]['state']}")
        summary = {"steps": done, "seconds_per_measurement": seconds}
        (out / "session.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return done


def _do(step: Step, work: Path, environment: dict[str, str], seconds: float) -> dict[str, Any]:
    result = work / f"{step.name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, *(argument.replace("{json}", str(result)) for argument in step.arguments)]
    began = time.monotonic()
    try:
        ended = subprocess.run(
            command,
            cwd=gpu_box.ROOT,
            env=environment,
            text=True,
            timeout=seconds,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        text, state = ended.stdout, "done" if ended.returncode == 0 else f"failed ({ended.returncode})"
    except subprocess.TimeoutExpired as error:
        text, state = str(error.stdout or ""), "too slow"
    found: dict[str, Any] = {"state": state, "seconds": round(time.monotonic() - began, 1), "log": text[-3000:]}
    if result.is_file():
        found["result"] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _there(module: str, environment: dict[str, str]) -> bool:
    return (
        subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, capture_output=True).returncode == 0
    )


def pack(folder: Path) -> list[Path]:
    """Downloads the wheels and cuts them into loads: folders of pieces, each for one transfer."""
    wheels = gpu_box.download(WHEELS, WITH_NEEDS, folder / "wheels")
    loads = gpu_box.cut(wheels, folder)
    shutil.rmtree(folder / "wheels")
    return loads


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Builds, checks and measures everything on a GPU box.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("pack").add_argument("folder", type=Path)
    stowing = commands.add_parser("stow")
    stowing.add_argument("folder", type=Path)
    stowing.add_argument("kept", type=Path)
    running = commands.add_parser("run")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--minutes", type=float, default=9.0)
    running.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    running.add_argument("--only", default="", help="steps whose name holds this")
    options = parser.parse_args(arguments)
    if options.command == "pack":
        for load in pack(options.folder):
            gpu_box.say(f"{load}: {', '.join(sorted({path.name.split('-')[0] for path in load.iterdir()}))}")
    elif options.command == "stow":
        installed = gpu_box.stow(options.folder, options.kept, gpu_box.work_folder())
        gpu_box.say(f"installed: {', '.join(installed) or 'nothing yet'}")
    else:
        run(options.out, options.minutes, options.seconds, options.only)


if __name__ == "__main__":
    main()
