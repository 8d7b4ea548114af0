"""The key of a compiled engine: changes when anything changes that the engine was compiled from or for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semo_sdk.backends.engine_files import parts_key
from semo_sdk.bundle import WEIGHTS_FILE, Bundle, graph_file
from semo_sdk.errors import BundleError


def key_parts(
    bundle: Bundle,
    graph: str,
    *,
    stored_precision: str,
    backend: str,
    backend_version: str,
    device: str,
    precision: str,
    shapes: Mapping[str, Sequence[int]],
    sdk_version: str,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What an engine depends on, JSON-ready: engines keep it beside their key, so that a mismatch can be named.

    Args:
        bundle: where the graph and its weights come from; both enter by their sha256, not by path or time.
        graph: "reference", "audio", "motion", "render" or "motion_encoder".
        stored_precision: of the graph's ONNX file: "fp32" or "fp16".
        backend: for example "tensorrt_rtx".
        backend_version: exactly as the backend reports it.
        device: what the engine was compiled for: CPU name and features, or GPU name, compute capability and driver.
        precision: arithmetic that was asked for: "fp32", "bf16", "fp16", "int8" or "fp8".
        shapes: input name (and end of its range) -> shape; their order does not matter.
        sdk_version: ``semo_sdk.__version__``.
        settings: of the compiler, where they change what comes out, and the digest of what int8 and fp8 were
            calibrated with.

    Raises:
        BundleError: the bundle has no such graph.
    """
    files = bundle.manifest.files
    onnx = graph_file(graph, stored_precision)
    if onnx not in files:
        raise BundleError(f"bundle {bundle.name!r} has no {onnx}")
    return {
        "onnx": files[onnx].sha256,
        "weights": files[WEIGHTS_FILE].sha256,
        "backend": backend,
        "backend_version": backend_version,
        "device": device,
        "precision": precision,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "sdk_version": sdk_version,
        "settings": dict(settings or {}),
    }


def engine_key(bundle: Bundle, graph: str, **parts: Any) -> str:
    """What an engine depends on, as one name.

    Args:
        bundle: where the graph and its weights come from.
        graph: the graph's name.
        parts: everything else that :func:`key_parts` takes.

    Returns:
        64 hexadecimal digits, the same on every machine and in every process for the same values.

    Raises:
        BundleError: the bundle has no such graph.
    """
    return parts_key(key_parts(bundle, graph, **parts))
