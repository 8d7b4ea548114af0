"""What ``gpu_training.py`` starts on the box, in the background: every step a process with a log and a time limit.

    python -m semo_sdk.benchmarks.gpu_training_run work FOLDER --minutes 20

In FOLDER are ``data`` (what was unpacked: clips, portraits, puppets, ...) and ``runs`` (what is made). Puppets are
rendered on the cores while Whisper hears the speech and the generator trains on the GPU; then the first stage trains;
at last it is measured. What is there already is not made again, and a training run that was cut short goes on.

How many steps fit is measured, not guessed: a short run of all phases (``--probe`` steps) comes first, and
``loop.steps`` of the real one is set so that its cosine ends with the time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from semo_sdk.benchmarks.gpu_box import say
from semo_sdk.benchmarks.gpu_training import add_options
from semo_sdk.benchmarks.gpu_training_weights import write_evaluation, write_whole

SEMO = ("-c", "from semo_sdk.cli import main; main()")
ITSELF = ("-m", "semo_sdk.benchmarks.gpu_training_run")
SAVES = 8  # of a training run
MARGIN = 0.93  # of the time, for what the short run did not show
LEAST = 20  # steps that are worth a run
Plan = dict[str, float]


class Run:
    """A folder's processes."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.data, self.runs, self.options = folder / "data", folder / "runs", options
        self.runs.mkdir(parents=True, exist_ok=True)
        self.began: list[subprocess.Popen[bytes]] = []

    def begin(self, name: str, *arguments: str | Path, aside: bool = False) -> subprocess.Popen[bytes]:
        """Starts ``python ARGUMENTS``; what it says goes into ``runs/NAME.log``. ``aside``: others come first."""
        say(f"{time.strftime('%H:%M:%S')} {name}: begins")
        command = [*(("nice", "-n", "10") if aside else ()), sys.executable, *map(str, arguments)]
        with (self.runs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0
            )
        self.began.append(process)
        return process

    def wait(self, name: str, process: subprocess.Popen[bytes], until: float) -> bool:
        """Whether it ended well; after ``until`` (of time.monotonic) it is stopped."""
        try:
            code = process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.stop(process)
            say(f"{time.strftime('%H:%M:%S')} {name}: stopped, its time is over")
            return False
        how = "done" if code == 0 else f"failed ({code}), see {name}.log"
        say(f"{time.strftime('%H:%M:%S')} {name}: {how}")
        return code == 0

    def do(self, name: str, until: float, *arguments: str | Path) -> bool:
        """Starts a process and waits for it."""
        return self.wait(name, self.begin(name, *arguments), until)

    def stop(self, *processes: subprocess.Popen[bytes]) -> None:
        """Ends processes with all that they started."""
        for process in processes:
            for kind in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                        os.killpg(process.pid, kind)
                        process.wait(5)

    def train(self, stage: str, until: float, *arguments: str | Path) -> bool:
        """Trains until its steps are done or the time is over; a run that has saved something goes on."""
        out, fixed = self.runs / stage, ("train", stage, "--config", getattr(self.options, stage), *arguments)
        if (out / "state.safetensors").is_file():
            steps = json.loads((out / "config.json").read_text(encoding="utf-8"))["loop"]["steps"]
            say(f"{stage}: goes on, {steps} steps in all")
            more: tuple[str, ...] = ("--resume",)
        else:
            plan = self.probe(stage, until, *fixed)
            if plan is None:
                return False
            most = self.options.most * int(recipe(getattr(self.options, stage), stage).loop.steps)
            steps = min(fitting_steps(plan, until - time.monotonic()), most)
            if steps < LEAST:
                say(f"{stage}: no time for {LEAST} steps of {plan['step']:.3f} s")
                return False
            say(f"{stage}: {steps} steps of {plan['step']:.4f} s")
            more = ()
        saves = ("--set", f"loop.save_every={math.ceil(steps / SAVES)}")
        return self.do(stage, until, *SEMO, *fixed, "--out", out, "--set", f"loop.steps={steps}", *saves, *more)

    def probe(self, stage: str, until: float, *arguments: str | Path) -> Plan | None:
        """Seconds of a step, of starting and of saving, from a short run; None if that fails."""
        steps, out = self.options.probe, self.runs / f"probe-{stage}"
        kept = out / "plan.json"
        if not kept.is_file():
            for path in out.glob("*.*"):
                path.unlink()
            short = [word for key in ("steps", "save_every") for word in ("--set", f"loop.{key}={steps}")]
            began = time.time()
            if not self.do(
                f"probe-{stage}", until, *SEMO, *arguments, "--out", out, *short, "--set", "loop.log_every=1"
            ):
                return None
            took, log = time.time() - began, out / "log.jsonl"
            rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            saving = max(0.0, began + took - log.stat().st_mtime)
            start = max(0.0, took - saving - rows[-1]["seconds"])
            kept.write_text(json.dumps({"step": seconds_per_step(rows), "start": start, "save": saving}))
        return dict(json.loads(kept.read_text(encoding="utf-8")))


def recipe(name: str, stage: str) -> Any:
    """What ``semo train STAGE --config NAME`` trains with: a ``TrainConfig`` of that stage."""
    from semo_sdk.training import autoencoder, generator, settings

    kinds: Mapping[str, Any] = {"autoencoder": autoencoder.TrainConfig, "generator": generator.TrainConfig}
    return settings.parse_settings(kinds[stage], settings.recipe(name, stage))


def seconds_per_step(rows: Sequence[Mapping[str, float]]) -> float:
    """Of a run whose every step is logged: the phases' means, each by its share of the steps.

    Only the later half of a phase counts: batches that were made ahead while the run started hide what they cost.
    """
    total, last = 0.0, 0
    for _, phase in groupby(rows, key=lambda row: sorted(row)):
        first, last = last, last + len(list(phase))
        middle = (first + last) // 2
        start = rows[middle - 1]["seconds"] if middle else 0.0
        total += (rows[last - 1]["seconds"] - start) / (last - middle) * (last - first)
    return total / len(rows)


def fitting_steps(plan: Plan, seconds: float) -> int:
    """Steps that fit into so many seconds, starting and saving included."""
    return max(0, int((MARGIN * seconds - plan["start"] - (SAVES + 1) * plan["save"]) / plan["step"]))


def work(folder: Path, options: argparse.Namespace) -> None:
    """Everything, within ``options.minutes``."""
    now = time.monotonic()
    ends, second_ends = now + 60 * options.minutes, now + 60 * options.minutes * options.share
    measured = ends - min(60.0, 0.1 * 60 * options.minutes)  # the rest is for measuring
    run = Run(folder, options)
    data, runs, puppets = run.data, run.runs, run.data / "puppets"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was begun is stopped below
    whisper, start = data / "whisper.safetensors", data / "init.safetensors"
    init = ("--init", start) if start.is_file() else ()
    try:
        rendering = None
        begun = (runs / "probe-autoencoder").exists()  # its data must not change any more
        if not begun and len(list(puppets.glob("group_*/meta.json"))) < options.groups:
            which = ("--groups", str(options.groups), "--autoencoder", options.autoencoder)
            rendering = run.begin("render", *ITSELF, "render", folder, *which, aside=True)
        heard = (data / "motion" / "sequences.json").is_file() or run.do(
            "hear", second_ends, *ITSELF, "hear", folder, "--autoencoder", options.autoencoder
        )
        if heard:
            run.train("generator", second_ends, "--autoencoder", runs / "heard.safetensors", "--data", data / "motion")
        if rendering is not None:
            run.wait("render", rendering, second_ends)
        say(f"{len(list(puppets.glob('group_*/meta.json')))} groups of puppets")
        run.train("autoencoder", measured, "--data", puppets, "--whisper", whisper, *init)
        run.do("evaluate", ends + 60, *ITSELF, "evaluate", folder)
    finally:
        run.stop(*run.began)
    say("the end")


def render(folder: Path, groups: int, config: str) -> None:
    """Puppets, and their landmarks, which the first stage would look for while the GPU waits."""
    from semo_sdk.models.semo import SemoModel
    from semo_sdk.training import puppet_dataset
    from semo_sdk.training.data import PuppetData
    from semo_sdk.training.reader import find_landmarks, load_face_mesh

    clips, portraits, puppets = (folder / "data" / name for name in ("clips", "portraits", "puppets"))
    workers = max(1, len(os.sched_getaffinity(0)) - 3)
    many = ["--groups", str(groups), "--workers", str(workers)]
    puppet_dataset.main([str(clips), str(portraits), str(puppets), *many])
    chosen = recipe(config, "autoencoder")
    reader = SemoModel(chosen.model).reader
    if reader is not None:
        load_face_mesh(reader.mesh)
        find_landmarks(reader, PuppetData(puppets, min_face=chosen.min_face), puppets / "landmarks.npz")


def prepare_motion(folder: Path, config: str) -> None:
    """Motion data, and the checkpoint to train the generator with, which needs no more of a first stage than an ear."""
    from semo_sdk.benchmarks.gpu_training_data import hear
    from semo_sdk.models.checkpoint import load_checkpoint, save_checkpoint
    from semo_sdk.models.semo import SemoModel
    from semo_sdk.models.whisper import load_whisper
    from semo_sdk.training.loop import best_device

    data, start = folder / "data", folder / "data" / "init.safetensors"
    chosen = recipe(config, "autoencoder")
    model = load_checkpoint(start)[0] if start.is_file() else SemoModel(chosen.model)
    load_whisper(model.whisper, data / "whisper.safetensors")
    save_checkpoint(folder / "runs" / "heard.safetensors", model, {"stage": "autoencoder", "step": "0"})
    hear(model.to(best_device()), data / "clips", data / "puppets", data / "spoken", data / "motion")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semo_sdk.benchmarks.gpu_training_run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=("work", "render", "hear", "evaluate", "weights"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="for weights: file to write")
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.command == "work":
        work(options.folder, options)
    elif options.command == "render":
        render(options.folder, options.groups, options.autoencoder)
    elif options.command == "hear":
        prepare_motion(options.folder, options.autoencoder)
    elif options.command == "evaluate":
        write_evaluation(options.folder)
    else:
        write_whole(options.folder / "runs", options.out)


if __name__ == "__main__":
    main()
