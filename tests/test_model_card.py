"""The model card says what is in the bundle, and the package stays small enough for a package index."""

from __future__ import annotations

import json
import re
import struct
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from semo_sdk.bundle import Bundle

ROOT = Path(__file__).parent.parent
CARD = (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")
LARGEST = 95  # MB of the whole wheel


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open("semo-tiny")


def parameters(weights: Path) -> Counter[str]:
    """How many numbers each part of the model has, the few constants among them that are stored too."""
    with weights.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    counts: Counter[str] = Counter()
    for name, tensor in header.items():
        if name != "__metadata__":
            counts[name.split(".")[0]] += int(np.prod(tensor["shape"]))
    return counts


def test_the_parts_have_the_sizes_that_the_card_says(bundle: Bundle) -> None:
    named = {"reader": "face reader", "encoder": "encoder", "decoder": "decoder", "generator": "generator"}
    counts = parameters(bundle.weights_path)
    for part, name in {**named, "whisper": "tiny.en's encoder"}.items():
        match = re.search(rf"\b{re.escape(name)} ([\d.]+) M", CARD)
        assert match is not None, name
        assert float(match[1]) == pytest.approx(counts[part] / 1e6, abs=0.12), part


def test_the_card_names_data_licences_cost_failures_use_and_misuse(bundle: Bundle) -> None:
    sections = {title.strip() for title in re.findall(r"^## (.+)$", CARD, re.MULTILINE)}
    assert {"Data", "Training", "Measured", "Where it fails", "Use"} <= sections
    for source in ("GRID", "SFHQ-T2I", "Whisper", "MediaPipe", "CC BY 4.0", "MIT", "Apache-2.0"):
        assert source in CARD, source
    pictures = re.findall(r"!\[.+\]\((.+)\)", CARD.split("## Where it fails")[1])
    assert pictures and all((ROOT / "docs" / name).stat().st_size > 10_000 for name in pictures)
    assert "Not for:" in CARD and "impersonation" in CARD and re.search(r"\b(minutes|hours)\b", CARD)
    statement = bundle.manifest.provenance
    for key in ("statement", "intended use", "misuse", "known failures", "first stage", "second stage"):
        assert str(statement[key]).strip(), key
    assert "Not the authors' SeMo checkpoint" in str(statement["statement"])


def test_the_wheel_stays_below_its_limit() -> None:
    """Weights do not compress, so what a wheel holds is about as large as its files."""
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    files = [
        file
        for folder in folders.values()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and "results" not in file.parts
    ]
    assert any(file.name == "weights.safetensors" for file in files)
    assert sum(file.stat().st_size for file in files) < LARGEST * 1e6
