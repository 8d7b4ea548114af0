"""The engine key changes with everything that an engine depends on, and with nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from semo_sdk.bundle import Bundle, FileEntry, Manifest
from semo_sdk.config import SemoConfig
from semo_sdk.engines.key import engine_key
from semo_sdk.errors import BundleError

SAME: dict[str, Any] = {
    "graph": "render",
    "stored_precision": "fp32",
    "backend": "openvino",
    "backend_version": "2026.1",
    "device": "CPU avx512_bf16",
    "precision": "bf16",
    "shapes": {"motion": (1, 16, 512), "latents": (1, 192, 32, 32)},
    "sdk_version": "0.1.0",
}


def bundle(weights: str = "a", onnx: str = "b", path: str = "/here") -> Bundle:
    """A bundle that names its files' checksums; nothing is read."""
    files = {
        "weights.safetensors": FileEntry(sha256=weights * 64, size=1),
        "render.fp32.onnx": FileEntry(sha256=onnx * 64, size=1),
        "render.fp16.onnx": FileEntry(sha256="f" * 64, size=1),
    }
    manifest = Manifest(format_version=1, sdk_version="0", name="m", files=files, precisions=("fp32", "fp16"))
    return Bundle(Path(path), manifest, SemoConfig())


def test_same_values_same_key_wherever_the_bundle_lies_and_however_shapes_are_ordered() -> None:
    turned = {**SAME, "shapes": dict(reversed(list(SAME["shapes"].items())))}
    assert engine_key(bundle(), **SAME) == engine_key(bundle(path="/there"), **turned)
    assert len(engine_key(bundle(), **SAME)) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"stored_precision": "fp16"},
        {"backend": "onnxruntime"},
        {"backend_version": "2026.2"},
        {"device": "CPU avx2"},
        {"precision": "fp32"},
        {"shapes": {"motion": (1, 8, 512), "latents": (1, 192, 32, 32)}},
        {"sdk_version": "0.2.0"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_changes_the_key(change: dict[str, Any]) -> None:
    assert engine_key(bundle(), **SAME) != engine_key(bundle(), **{**SAME, **change})


def test_other_weights_or_another_graph_file_change_the_key() -> None:
    keys = {engine_key(made, **SAME) for made in (bundle(), bundle(weights="c"), bundle(onnx="d"))}
    assert len(keys) == 3


def test_a_graph_that_the_bundle_lacks_is_refused() -> None:
    with pytest.raises(BundleError, match="motion.fp32.onnx"):
        engine_key(bundle(), **{**SAME, "graph": "motion"})
