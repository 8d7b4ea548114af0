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

The script itself needs nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(os.environ.get("SEMO_SITE", "/tmp/semo-site"))
PIECE_BYTES = 8 << 20
LOAD_BYTES = 48 << 20  # of pieces in one transfer
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
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


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
    throughput("cpu-onnxruntime", "semo-tiny", "onnxruntime:cpu", "fp32", "--batches", "1,2", gpu=False, modules=ort)
    throughput("cpu-openvino", "semo-tiny", "openvino", "auto", "--batches", "1,2", gpu=False, modules=("openvino",))
    return rows


def run(out: Path, minutes: float, seconds: float, only: str) -> dict[str, Any]:
    """Does the steps whose name holds ``only``; what each wrote lies in ``out`` and, together, in ``session.json``."""
    out.mkdir(parents=True, exist_ok=True)
    work = Path(os.environ.get("SEMO_WORK", "/tmp/semo-work"))
    work.mkdir(parents=True, exist_ok=True)
    site = install_tree()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(site), "XDG_CACHE_HOME": str(work / "cache")}
    if site:
        environment["PYTHONSAFEPATH"] = "1"  # this checkout's semo_sdk has no benchmarks inside; the copy has
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
        say(f"{step.name}: {done[step.name]['state']}")
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
            cwd=ROOT,
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


def install_tree() -> list[str]:
    """Folders for ``PYTHONPATH``: none where the package is installed, else a copy of this checkout and the wheels."""
    if importlib.util.find_spec("semo_sdk") is not None and importlib.util.find_spec("semo_sdk.benchmarks") is not None:
        return []
    SITE.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "semo_sdk", SITE / "semo_sdk", dirs_exist_ok=True)
    for name in ("export", "engines", "benchmarks"):
        shutil.copytree(ROOT / name, SITE / "semo_sdk" / name, dirs_exist_ok=True)
    return [str(SITE)]


def pack(folder: Path) -> list[Path]:
    """Downloads the wheels through pip and cuts them into pieces, with a list of their checksums.

    Returns:
        The loads: folders of pieces, each for one transfer.
    """
    base = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--python-version", "3.12"]
    base += ["--implementation", "cp", *(word for platform in PLATFORMS for word in ("--platform", platform))]
    wheels: list[Path] = []
    for name in WHEELS:
        fetched = folder / "wheels" / name
        fetched.mkdir(parents=True, exist_ok=True)
        subprocess.run([*base, *([] if name in WITH_NEEDS else ["--no-deps"]), "-d", str(fetched), name], check=True)
        wheels += [w for w in sorted(fetched.glob("*.whl")) if w.name not in {other.name for other in wheels}]
    loads: list[Path] = []
    room = 0
    for wheel in wheels:
        data = wheel.read_bytes()
        pieces = [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]
        digest = hashlib.sha256(data).hexdigest()
        listing = json.dumps({"sha256": digest, "pieces": len(pieces)}).encode()
        files = [*((f"{wheel.name}.{number:03}", piece) for number, piece in enumerate(pieces))]
        for name, part in (*files, (f"{wheel.name}.list", listing)):
            if not loads or len(part) > room:
                loads.append(folder / str(len(loads) + 1))
                loads[-1].mkdir()
                room = LOAD_BYTES
            (loads[-1] / name).write_bytes(part)
            room -= len(part)
    shutil.rmtree(folder / "wheels")
    return loads


def stow(folder: Path, kept: Path) -> list[str]:
    """Keeps what came this time, and installs every wheel whose pieces are all there.

    Returns:
        Names of the wheels that were installed now.
    """
    kept.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        shutil.copy(path, kept / path.name)
    whole = []
    for listing in sorted(kept.glob("*.list")):
        expected, name = json.loads(listing.read_text()), listing.name.removesuffix(".list")
        pieces = [kept / f"{name}.{number:03}" for number in range(expected["pieces"])]
        if not all(piece.is_file() for piece in pieces):
            continue
        data = b"".join(piece.read_bytes() for piece in pieces)
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise SystemExit(f"{name} was damaged on the way: send its pieces again")
        (kept / name).write_bytes(data)
        for path in (*pieces, listing):
            path.unlink()
        whole.append(name)
    if whole:
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade"]
        subprocess.run([*install, "--target", str(SITE), *(str(kept / name) for name in whole)], check=True)
    return whole


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
            say(f"{load}: {', '.join(sorted({path.name.split('-')[0] for path in load.iterdir()}))}")
    elif options.command == "stow":
        say(f"installed: {', '.join(stow(options.folder, options.kept)) or 'nothing yet'}")
    else:
        run(options.out, options.minutes, options.seconds, options.only)


def say(text: str) -> None:
    """A line of progress."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
