"""Which module may import which (DESIGN, section 4), and how large a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import semo_sdk

ROOT = Path(__file__).parent.parent
SOURCES = {"semo_sdk": "semo_sdk", "semo_sdk.export": "export", "semo_sdk.engines": "engines"}
SOURCES["semo_sdk.benchmarks"] = "benchmarks"
MAX_LINES = 350

BASE = {"constants", "errors", "config", "files", "vino"}
RUNTIME = BASE | {"bundle", "media", "backends", "provenance", "pipeline"}
API = RUNTIME | {"hub", "motion", "session", "clip", "driving", "animator"}
# Part of the package -> the parts that it may import. Imports point one way: no entry may lead back to itself.
ALLOWED: dict[str, set[str]] = {
    "constants": set(),
    "errors": set(),
    "files": set(),
    "vino": set(),
    "config": {"constants", "errors"},
    "bundle": BASE,
    "hub": BASE | {"bundle"},
    "media": BASE,
    "models": BASE,
    "backends": BASE | {"bundle", "models"},  # models only inside backends/torch.py
    "provenance": BASE | {"bundle", "media"},
    "pipeline": BASE | {"backends", "provenance"},
    "motion": BASE,
    "driving": BASE | {"media"},
    "session": BASE | {"media", "pipeline"},
    "clip": BASE | {"media", "motion", "pipeline", "provenance"},
    "batch": API,
    "animator": RUNTIME | {"hub", "motion", "session", "clip", "driving"},
    "export": BASE | {"bundle", "backends", "models"},
    "engines": BASE | {"bundle", "media", "backends", "pipeline"},
    "training": BASE | {"media", "models"},
    "doctor": RUNTIME,
    "benchmarks": API | {"doctor", "models", "export", "engines", "training", "serving"},
    "serving": API,
    "testing": {"errors"},
    "cli": API | {"batch", "doctor", "models", "export", "engines", "training", "benchmarks", "serving"},
}
HEAVY = {"PIL", "cv2", "diffusers", "imageio_ffmpeg", "matplotlib", "onnx", "onnxruntime", "openvino", "safetensors"}
HEAVY |= {"cuda", "scipy", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "torch", "tqdm", "whisper"}
LIGHT = {"constants", "errors", "config", "bundle", "media", "backends", "pipeline", "motion", "driving", "session"}
HEAVY |= {"c2pa", "cryptography"}
LIGHT |= {"provenance", "batch", "clip", "hub", "animator", "doctor", "cli", "engines", "__init__"}


def modules() -> Iterator[tuple[str, str, Path]]:
    """Part, dotted name and file of every module of the package."""
    for package, folder in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *inner])
            yield name.split(".")[1], name, path


MODULES = list(modules())


def imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Dotted names of everything that these nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(body: list[ast.stmt]) -> Iterator[str]:
    """What is imported when the module is: not inside functions, not for type checkers only."""
    yield from imported(body)
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        for block in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from at_import_time(getattr(node, block, []))


def part_of(name: str) -> str | None:
    """``semo_sdk.media.audio.load_audio`` -> ``media``; None outside the package."""
    pieces = name.split(".")
    if len(pieces) == 2 and pieces[1] in semo_sdk.__all__:  # through the front door
        pieces = getattr(semo_sdk, pieces[1]).__module__.split(".") if pieces[1] != "__version__" else ["version"]
    return pieces[1] if pieces[0] == "semo_sdk" and len(pieces) > 1 else None


@pytest.mark.parametrize(("part", "name", "path"), MODULES, ids=[name for _, name, _ in MODULES])
def test_imports_point_one_way(part: str, name: str, path: Path) -> None:
    if part == "__init__":
        return  # the lazy front door names everything
    assert part in ALLOWED, f"{name}: say in tests/test_imports.py what {part!r} may import"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {part_of(target) for target in imported(ast.walk(tree))} - {None, part}
    assert parts <= ALLOWED[part], f"{name} imports {sorted(str(p) for p in parts - ALLOWED[part])}"


def test_the_allowed_imports_have_no_cycle() -> None:
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {part for part, needs in ALLOWED.items() if needs <= done} - done
        assert ready, f"a cycle among {sorted(set(ALLOWED) - done)}"
        done |= ready


@pytest.mark.parametrize(("part", "name", "path"), MODULES, ids=[name for _, name, _ in MODULES])
def test_the_runtime_imports_nothing_heavy_at_import_time(part: str, name: str, path: Path) -> None:
    if part not in LIGHT:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    heavy = {target.partition(".")[0] for target in at_import_time(tree.body)} & HEAVY
    assert not heavy, f"{name} imports {sorted(heavy)} when it is imported: move that into the function that needs it"


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/*.py")) + [p for _, _, p in MODULES], ids=lambda p: p.name)
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines, at most {MAX_LINES} are allowed: split it"


def test_openvino_does_not_call_home() -> None:
    code = """
import os, sys
def refuse(*_):
    raise AssertionError("a fork")
os.fork = refuse
from semo_sdk.vino import load_openvino
print(load_openvino().Core().available_devices, "openvino_telemetry" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert run.stdout.split() == ["['CPU']", "False"], run.stderr
