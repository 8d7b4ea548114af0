"""Both training stages on a GPU that is lent for half an hour: data there, puppets, training, weights back.

For a box with torch and a GPU, but no network, where this package is not installed, that takes 64 MiB a call and gives
back 8 files of 16 MiB. Here, once, where flite and the data are::

    python -m semo_sdk.benchmarks.gpu_training pack .load --clips CLIPS --portraits PORTRAITS --puppets PUPPETS \\
        --whisper whisper-tiny.en-encoder.safetensors --spoken 480

There, one load each time, in any order, then the run, which goes on between calls::

    python3 benchmarks/gpu_training.py stow .load/1
    python3 benchmarks/gpu_training.py start --minutes 20
    python3 benchmarks/gpu_training.py fetch --wait 540 --out "$OUT"     # again and again; the last one brings the end

Here, with what came back, as often as something came back::

    python -m semo_sdk.benchmarks.gpu_training join FETCHED --out model.safetensors
    semo export --checkpoint model.safetensors --out my-bundle

``start`` again goes on with a run that was stopped, while the box is the same one. A later box goes on from weights:
``pack --init model.safetensors``. A load fits beside this repository without semo-tiny's weights, see gpu_session.py.

The script itself and gpu_box.py beside it need nothing but Python's standard library. ``gpu_training_run.py`` has what
``start`` does. Nobody has run any of this on a GPU yet: it was tested on a CPU.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

try:
    from semo_sdk.benchmarks import gpu_box
except ImportError:  # run by its path where the package is not installed
    import gpu_box

# What a box with torch, numpy, scipy, opencv, safetensors, typer, pillow, tqdm and matplotlib lacks.
WHEELS = ("pydantic", "openvino", "imageio-ffmpeg<0.7")  # a later one brings 38 MB more
WITH_NEEDS = frozenset({"pydantic"})
SHARD_BYTES = 15 << 20  # what comes back: files of at most 16 MiB, eight of them, 64 MiB together
SHARDS = 4
LOG_BYTES = 3 << 20  # of logs, plots and sample sheets
RUN = "semo_sdk.benchmarks.gpu_training_run"
MOTION = ("driver.npz", "driver_cache.npz", "portraits.npz")  # what rendering begins with, but for the landmarks


def pack(folder: Path, options: argparse.Namespace) -> list[Path]:
    """Writes the loads: ``folder/1``, ``folder/2``, ...

    Args:
        options: ``clips``, ``portraits``, ``puppets``, ``whisper``, ``init``, ``spoken``, ``wheels`` of the command.

    Raises:
        SystemExit: loads are there already, or something is not there that must travel.
    """
    if (folder / "1").exists():
        raise SystemExit(f"{folder} holds loads already: choose another folder, or remove it")
    puppets = [options.puppets / name for name in MOTION]
    for path in (*puppets, options.whisper, *([options.init] if options.init else [])):
        if not path.is_file():
            raise SystemExit(f"{path} does not exist; `semo data puppet ... --groups 1` makes what PUPPETS must hold")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        files = gpu_box.download(WHEELS, WITH_NEEDS, work / "wheels") if options.wheels else []
        small = {f"puppets/{path.name}": path for path in puppets} | {"whisper.safetensors": options.whisper}
        small |= {"init.safetensors": options.init} if options.init else {}
        if options.spoken:
            from semo_sdk.benchmarks.gpu_training_data import MOTION as SPOKEN_MOTION
            from semo_sdk.benchmarks.gpu_training_data import SOUND, record

            record(options.clips, options.puppets, work, options.spoken)
            small |= {f"spoken/{path}": work / path for path in (SOUND, SPOKEN_MOTION)}
        films = {f"clips/{path.name}": path for path in options.clips.glob("*.mp4")}
        photos = {f"portraits/{path.name}": path for path in options.portraits.glob("*.jpg")}
        for number, members in enumerate((small, photos, films)):
            files.append(work / f"data{number}.tar")
            with tarfile.open(files[-1], "w") as archive:
                for inside, path in sorted(members.items()):
                    archive.add(path, inside)
        return gpu_box.cut(files, folder)


def training_folder() -> Path:
    """Where the box keeps data and runs."""
    folder = gpu_box.work_folder() / "training"
    folder.mkdir(exist_ok=True)
    return folder


def running(work: Path) -> int | None:
    """The process that trains, if it still does."""
    try:
        process = int((work / "pid").read_text())
        about = Path(f"/proc/{process}")
        state = (about / "stat").read_text().rpartition(")")[2].split()[0]
        command = (about / "cmdline").read_bytes()  # empty while it starts
    except (OSError, ValueError):
        return None
    return process if state != "Z" and (not command or RUN.encode() in command) else None


def start(options: argparse.Namespace) -> int:
    """Starts a run that goes on when this process ends, or goes on with the one that was stopped.

    Args:
        options: what :func:`add_options` adds.

    Returns:
        The process's number; of the run that is under way, where one is.
    """
    work = training_folder()
    already = running(work)
    if already is not None:
        gpu_box.say(f"a run is under way (process {already}): nothing was started")
        return already
    if not (work / "data" / "whisper.safetensors").is_file():
        raise SystemExit(f"{work}/data lacks whisper.safetensors: stow every load that `pack` wrote first")
    known = argparse.ArgumentParser()
    add_options(known)
    chosen = (f"--{name}={value}" for name, value in vars(options).items() if name in vars(known.parse_args([])))
    with (work / "progress.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", RUN, "work", str(work), *chosen],
            cwd=gpu_box.ROOT,
            env=gpu_box.environment(work),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (work / "pid").write_text(str(process.pid))
    gpu_box.say(f"started as process {process.pid}; {work}/progress.log says how far it is")
    return process.pid


def fetch(out: Path, wait: float) -> list[str]:
    """Waits for the run's end, at most so many seconds, and brings back the latest averaged weights and the logs.

    Returns:
        Names of the files in ``out``.

    Raises:
        SystemExit: the weights are more than a call brings back.
    """
    work, until = training_folder(), time.monotonic() + wait
    while running(work) and time.monotonic() < until:
        time.sleep(1)
    for line in progress(work):
        gpu_box.say(line)
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / "run.tar.gz", "w:gz") as archive:
        room = LOG_BYTES
        for path in worth_keeping(work):
            if path.stat().st_size <= room:
                room -= path.stat().st_size
                archive.add(path, str(path.relative_to(work)))
    weights = work / "model.safetensors"
    command = [sys.executable, "-m", RUN, "weights", str(work), "--out", str(weights)]
    made = subprocess.run(command, cwd=gpu_box.ROOT, env=gpu_box.environment(work), capture_output=True, text=True)
    if made.returncode:
        gpu_box.say(f"no weights: {(made.stderr.strip().splitlines() or ['?'])[-1]}")
    elif weights.stat().st_size > SHARDS * SHARD_BYTES:
        raise SystemExit(f"{weights} has {weights.stat().st_size >> 20} MiB: more than a call brings back")
    else:
        for name, piece in gpu_box.split(weights, SHARD_BYTES):
            (out / name).write_bytes(piece)
    return sorted(path.name for path in out.iterdir())


def progress(work: Path) -> Iterator[str]:
    """What the run said, and the last line of every log."""
    said = work / "progress.log"
    yield from said.read_text(encoding="utf-8", errors="replace").splitlines()[-30:] if said.is_file() else []
    for log in sorted((work / "runs").glob("*.log"), key=lambda path: path.stat().st_mtime):
        lines = log.read_bytes()[-4000:].decode(errors="replace").replace("\r", "\n").split("\n")
        yield f"{log.name}: {next((line for line in reversed(lines) if line.strip()), '')[-200:]}"
    yield "under way" if running(work) else "not running"


def worth_keeping(work: Path) -> Iterator[Path]:
    """Files of a run, the most telling first: what it said, numbers, plots, the last sample sheets."""
    runs = work / "runs"
    for pattern in ("progress.log", "runs/*.json", "runs/*/*.json", "runs/*/*.jsonl", "runs/*/loss.png"):
        yield from sorted(work.glob(pattern))
    sheets = sorted((runs / "autoencoder" / "samples").glob("*.png"), reverse=True)
    yield from sheets[:1]
    yield from sorted(runs.glob("*.log"))
    yield from sheets[1:]


def join(folder: Path, out: Path) -> Path:
    """Puts together what came back: the checkpoint at ``out``, logs and plots beside it in a folder.

    Raises:
        SystemExit: a file is missing or was damaged on the way.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        copy = Path(name) / "copy"
        shutil.copytree(folder, copy)
        copy.chmod(0o755)  # what came back may be read-only
        whole = gpu_box.collect(copy)
        if [path.name for path in whole] != ["model.safetensors"]:
            raise SystemExit(f"{folder} lacks a piece of model.safetensors: fetch again")
        whole[0].replace(out)
        if (copy / "run.tar.gz").is_file():
            with tarfile.open(copy / "run.tar.gz") as archive:
                archive.extractall(out.with_suffix(""), filter="data")
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Trains on a GPU that is lent for half an hour.")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="here: data and wheels in loads that travel")
    packing.add_argument("folder", type=Path)
    for name in ("clips", "portraits", "puppets"):
        packing.add_argument(f"--{name}", type=Path, required=True, help="as for `semo data puppet`")
    packing.add_argument("--whisper", type=Path, required=True, help="the encoder's weights")
    packing.add_argument("--init", type=Path, help="checkpoint to start from")
    packing.add_argument("--spoken", type=int, default=0, help="recordings of synthetic speech; needs flite")
    packing.add_argument("--no-wheels", dest="wheels", action="store_false", help="the box has them")
    stowing = commands.add_parser("stow", help="there: takes a load")
    stowing.add_argument("folder", type=Path)
    add_options(commands.add_parser("start", help="there: trains, also after this command has ended"))
    fetching = commands.add_parser("fetch", help="there: waits, and brings weights and logs")
    fetching.add_argument("--out", type=Path, required=True)
    fetching.add_argument("--wait", type=float, default=0.0, help="seconds, or until the run's end")
    joining = commands.add_parser("join", help="here: a checkpoint from what came back")
    joining.add_argument("folder", type=Path)
    joining.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    options = parser.parse_args(arguments)
    if options.command == "pack":
        for load in pack(options.folder, options):
            gpu_box.say(f"{load}: {sum(path.stat().st_size for path in load.iterdir()) >> 20} MiB")
    elif options.command == "stow":
        whole = gpu_box.stow(options.folder, training_folder() / "pieces", training_folder() / "data")
        gpu_box.say(f"whole now: {', '.join(whole) or 'nothing yet'}")
    elif options.command == "start":
        start(options)
    elif options.command == "fetch":
        gpu_box.say(f"brought back: {', '.join(fetch(options.out, options.wait))}")
    else:
        gpu_box.say(f"{join(options.folder, options.out)}: written")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen about a run; ``gpu_training_run work`` takes the same."""
    parser.add_argument("--minutes", type=float, default=20.0, help="from now to the end, measuring included")
    parser.add_argument("--share", type=float, default=0.35, help="of the minutes for puppets and the generator")
    parser.add_argument("--groups", type=int, default=420, help="of puppets; fewer if their time is over")
    parser.add_argument("--autoencoder", default="semo-tiny", help="recipe or JSON file of the first stage")
    parser.add_argument("--generator", default="semo-tiny", help="recipe or JSON file of the second stage")
    parser.add_argument("--most", type=int, default=4, help="times the recipe's steps, at most")
    parser.add_argument("--probe", type=int, default=200, help="steps of the short runs")


if __name__ == "__main__":
    main()
