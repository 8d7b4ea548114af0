"""The script for a lent GPU, as far as it goes without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from semo_sdk.backends import load_engines
from semo_sdk.benchmarks import gpu_box, gpu_checks, gpu_session
from semo_sdk.bundle import Bundle
from semo_sdk.config import PRESETS, DecoderConfig
from tests.conftest import TINY


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEMO_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(gpu_box, "SITE", tmp_path / "site")
    return tmp_path


def test_wheels_travel_in_loads_and_are_installed_when_whole(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {"small.whl": b"s" * 10, "large.whl": bytes(range(256)) * 10}
    calls: list[list[str]] = []

    def pip(command: list[str], **_: Any) -> None:
        calls.append(command)
        if "download" in command:
            folder = Path(command[command.index("-d") + 1])
            for name, data in contents.items():  # small.whl is a need of both
                if name == "small.whl" or command[-1] == "large":
                    (folder / name).write_bytes(data)

    monkeypatch.setattr(gpu_box.subprocess, "run", pip)
    monkeypatch.setattr(gpu_box, "PIECE_BYTES", 1000)
    monkeypatch.setattr(gpu_box, "LOAD_BYTES", 1500)
    monkeypatch.setattr(gpu_session, "WHEELS", ("small", "large"))
    monkeypatch.setattr(gpu_session, "WITH_NEEDS", frozenset({"small"}))
    loads = gpu_session.pack(work / "packed")
    assert ["--no-deps" in command for command in calls] == [False, True]
    assert sorted((work / "packed").iterdir()) == loads and len(loads) == 3, "nothing but the loads is left"
    sizes = [[path.stat().st_size for path in load.iterdir()] for load in loads]
    assert all(sum(load) <= 1500 and max(load) <= 1000 for load in sizes)
    assert sum(map(len, sizes)) == 2 + 1 + 3, "two listings, a piece of one wheel and three of the other"
    kept = work / "kept"
    installed = [gpu_box.stow(load, kept, work) for load in loads]
    assert installed == [["small.whl"], [], ["large.whl"]]
    assert {name: (kept / name).read_bytes() for name in contents} == contents
    assert sum("install" in command for command in calls) == 2


def test_a_damaged_wheel_is_not_installed(work: Path) -> None:
    sent = work / "sent"
    sent.mkdir()
    (sent / "a.whl.000").write_bytes(b"damaged")
    (sent / "a.whl.list").write_text(json.dumps({"sha256": "0" * 64, "pieces": 1}))
    with pytest.raises(SystemExit, match=r"a\.whl was damaged"):
        gpu_box.stow(sent, work / "kept", work)


def test_steps_are_told_apart_and_their_commands_exist() -> None:
    rows = gpu_session.steps("/base", 1.0)
    assert len({step.name for step in rows}) == len(rows)
    modules = {step.arguments[1] for step in rows if step.arguments[0] == "-m"}
    for module in modules - {"pytest"}:
        assert subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True).returncode == 0, module


def test_without_a_gpu_a_session_says_what_it_left_out(work: Path) -> None:
    out = work / "out"
    done = gpu_session.run(out, minutes=1, seconds=0.1, only="tiny-torch")
    written = json.loads((out / "session.json").read_text())
    assert written["steps"] == done and list(done) == ["tiny-torch-fp16"]
    if done["tiny-torch-fp16"]["state"] == "left out":
        assert done["tiny-torch-fp16"]["why"] == "no NVIDIA GPU"


def test_steps_that_fail_or_take_too_long_are_told(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        gpu_session.Step("good", ("-c", "import sys; open(sys.argv[1], 'w').write('[1]')", "{json}"), gpu=False),
        gpu_session.Step("bad", ("-c", "raise SystemExit('no such card')"), gpu=False),
        gpu_session.Step("slow", ("-c", "import time; time.sleep(60)"), minutes=0.01, gpu=False),
        gpu_session.Step("lacking", ("-c", ""), gpu=False, modules=("no_such_module",)),
    ]
    monkeypatch.setattr(gpu_session, "steps", lambda base, seconds: rows)
    done = gpu_session.run(work / "out", minutes=5, seconds=0.1, only="")
    assert [row["state"] for row in done.values()] == ["done", "failed (1)", "too slow", "left out"]
    assert done["good"]["result"] == [1] and "no such card" in done["bad"]["log"]
    assert "no_such_module" in done["lacking"]["why"]


@pytest.mark.slow
def test_a_preset_of_random_weights_runs_in_float16(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    plain = DecoderConfig(hidden=64, layers=1, heads=2, prior="reference", prior_noise=0.0, steps=1)  # soon exported
    small = TINY.model_copy(update={"decoder": plain, "generator": TINY.generator.model_copy(update={"steps": 1})})
    monkeypatch.setattr("semo_sdk.config.PRESETS", {**PRESETS, "small": small})
    gpu_checks.random_bundle("small", work / "bundle")
    bundle = Bundle.open(work / "bundle")
    assert bundle.precisions == ("fp16",) and bundle.manifest.provenance == {"weights": "random"}
    from semo_sdk.benchmarks.throughput import passes
    from semo_sdk.pipeline.graphs import Graphs

    for backend in ("onnxruntime:cpu", "torch"):
        with load_engines(bundle, backend, "fp16", threads=1) as engines:
            assert passes(Graphs(engines, bundle.config), 1, 0.0)["fps"] > 0
