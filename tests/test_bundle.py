"""Bundles: what is verified, what each kind of damage says, and that a bundle appears complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semo_sdk.bundle import Bundle, embedded_bundles, graph_file
from semo_sdk.config import SemoConfig
from semo_sdk.errors import BundleError
from semo_sdk.export.writer import bundle_folder, write_manifest

GRAPH = graph_file("audio", "fp32")


@pytest.fixture
def folder(tmp_path: Path, tiny_config: SemoConfig) -> Path:
    """A bundle whose weights and graph are a few bytes."""
    out = tmp_path / "small"
    with bundle_folder(out) as work:
        (work / "weights.safetensors").write_bytes(b"weights")
        (work / "weights.safetensors").chmod(0o600)
        (work / GRAPH).write_bytes(b"graph")
        (work / "README.md").write_text("card")
        write_manifest(
            work,
            tiny_config,
            precisions=["fp32"],
            licence="CC0-1.0",
            provenance={"data": "none"},
            metrics={"psnr": 30.5},
        )
    return out


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_what_was_written_is_read(folder: Path, tiny_config: SemoConfig) -> None:
    bundle = Bundle.open(folder)
    assert bundle.config == tiny_config
    assert bundle.name == tiny_config.name
    assert bundle.precisions == ("fp32",)
    assert bundle.manifest.licence == "CC0-1.0"
    assert bundle.manifest.provenance == {"data": "none"}
    assert bundle.manifest.metrics == {"psnr": 30.5}
    assert bundle.weights_path.read_bytes() == b"weights"
    assert bundle.graph_path("audio", "fp32").read_bytes() == b"graph"
    assert Bundle.open(bundle) is bundle
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1, "whoever may read one file may read them all"
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name], "no temporary folder stays behind"


def test_the_card_may_be_edited(folder: Path) -> None:
    (folder / "README.md").write_text("a better card")
    Bundle.open(folder)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / GRAPH).unlink(), f"{GRAPH} is missing"),
        (lambda f: (f / GRAPH).write_bytes(b"gra"), f"{GRAPH} has 3 bytes instead of 5"),
        (lambda f: (f / GRAPH).write_bytes(b"Graph"), f"{GRAPH} was altered"),
        (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[]"), "format version None"),
        (lambda f: edit_manifest(f, lambda m: m.update(format_version=99)), "format version 99"),
        (lambda f: edit_manifest(f, lambda m: m.pop("name")), "manifest.json cannot be read"),
        (lambda f: edit_manifest(f, lambda m: m["files"].pop("config.json")), "does not list config.json"),
        (lambda f: edit_manifest(f, lambda m: m["files"].update({"../x": m["files"][GRAPH]})), "no plain file name"),
    ],
)
def test_each_damage_is_named(folder: Path, damage: Callable[[Path], object], says: str) -> None:
    Bundle.open(folder)  # a first success must not hide the damage
    damage(folder)
    with pytest.raises(BundleError, match=says):
        Bundle.open(folder)


def test_an_impossible_config_is_named(folder: Path, tiny_config: SemoConfig) -> None:
    data = json.dumps({**tiny_config.model_dump(), "motion_width": 1, "colour": "red"}).encode()
    (folder / "config.json").write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_manifest(folder, lambda m: m["files"].update({"config.json": entry}))
    with pytest.raises(BundleError, match=r"motion_width.*colour|colour.*motion_width"):
        Bundle.open(folder)


def test_sizes_are_compared_without_verification_too(folder: Path) -> None:
    (folder / GRAPH).write_bytes(b"Graph")
    Bundle.open(folder, verify=False)
    (folder / GRAPH).write_bytes(b"longer graph")
    with pytest.raises(BundleError, match="12 bytes"):
        Bundle.open(folder, verify=False)


def test_unknown_places_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="embedded bundles are") as caught:
        Bundle.open("semo-huge")
    assert all(name in str(caught.value) for name in embedded_bundles())
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleError, match="is no bundle"):
        Bundle.open(tmp_path)


def test_missing_graph_says_what_there_is(folder: Path) -> None:
    with pytest.raises(BundleError, match=rf"has no audio\.fp16\.onnx; it has {GRAPH}"):
        Bundle.open(folder).graph_path("audio", "fp16")


def test_fingerprint_follows_the_contents(folder: Path) -> None:
    before = Bundle.open(folder).fingerprint
    assert before == Bundle.open(folder).fingerprint
    edit_manifest(folder, lambda m: m["files"].pop(GRAPH))
    assert Bundle.open(folder).fingerprint != before


def test_existing_bundle_is_replaced_only_by_force(folder: Path) -> None:
    with pytest.raises(BundleError, match="exists already"), bundle_folder(folder):
        pass
    with bundle_folder(folder, force=True) as work:
        (work / "new").write_text("new")
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_other_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("precious")
    with pytest.raises(BundleError, match="is no bundle"), bundle_folder(tmp_path, force=True):
        pass
    assert (tmp_path / "holiday.jpg").read_text() == "precious"


def test_failure_leaves_the_old_bundle_and_nothing_else(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(RuntimeError, match="power cut"), bundle_folder(folder, force=True) as work:
        (work / "half").write_text("half")
        raise RuntimeError("power cut")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_reading_and_choosing_load_nothing_heavy() -> None:
    code = (
        "import sys, semo_sdk.bundle, semo_sdk.backends, semo_sdk.export; "
        "print([m for m in ('torch', 'onnx', 'openvino', 'onnxruntime') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout == "[]\n"
