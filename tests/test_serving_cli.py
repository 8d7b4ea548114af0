"""`semo serve` and `semo keys`: settings that are refused before anything is loaded or opened to the world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semo_sdk.cli import app
from semo_sdk.serving.keys import Keys


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_keys_are_made_shown_once_and_kept_as_hashes(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = [run("keys", "add", name, "--keys", str(file)) for name in ("a", "b")]
    keys = [output.strip() for code, output in made if code == 0]
    entries = json.loads(file.read_text())["keys"]
    assert [entry["name"] for entry in entries] == ["a", "b"]
    assert all(key.startswith("semo_") and len(key) > 40 and key not in file.read_text() for key in keys)
    store = Keys(file)
    assert [store.owner(key) for key in keys] == [entry["id"] for entry in entries]
    for wrong in (None, "", keys[0][:-1], keys[0] + "x", "é"):
        assert store.owner(wrong) is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--host", "0.0.0.0"), "needs API keys"),
        (("--tls-cert", "cert.pem"), "belong together"),
        (("--bundle", "no-such-bundle"), "no-such-bundle"),
    ],
)
def test_impossible_settings_are_refused(arguments: tuple[str, ...], reason: str) -> None:
    code, output = run("serve", *arguments)
    assert code in (2, 4) and reason in output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--batch-sizes", "1,x"), "whole numbers"),
        (("--batch-sizes", "1,2", "--latency", "low,balanced,quality"), "compiled"),
        (("--batch-sizes", "2,1", "--latency", "low"), "ascend"),
        (("--batch-sizes", "1", "--latency", "fast"), "latency"),
    ],
)
def test_impossible_batches_are_refused(tiny_bundle: Path, arguments: tuple[str, ...], reason: str) -> None:
    pytest.importorskip("openvino")
    code, output = run("serve", "--bundle", str(tiny_bundle), "--backend", "openvino", *arguments)
    assert code == 2 and reason in output
