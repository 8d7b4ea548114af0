"""A bundle to a model repository of Triton Inference Server: the five graphs, and the chain that speaks live."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semo_sdk.backends.base import Dim, GraphSpec, graph_specs
from semo_sdk.backends.engine_files import EngineManifest, bundle_differences, engine_sets, read_manifest
from semo_sdk.bundle import CONFIG_FILE, Bundle
from semo_sdk.errors import ConfigError, EngineMismatchError, ExportError, MissingDependencyError
from semo_sdk.export.triton_config import chain_config, graph_config
from semo_sdk.export.writer import check_replaceable, sdk_version
from semo_sdk.files import replacing_folder

log = logging.getLogger(__name__)

MANIFEST_FILE = "semo-triton.json"  # Triton ignores files beside the models' folders
FORMAT_VERSION = 1
MAX_SEQUENCES = 64
INLINE_BYTES = 1024  # smaller constants stay inside the graph's file

MODEL_PY = '''"""One portrait speaking live, by semo-sdk's streaming loop: see docs/triton.md of semo-sdk."""

from semo_sdk.serving.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_model_repository(
    bundle: Bundle | str | Path,
    out: str | Path,
    *,
    precision: str = "fp32",
    engines: str | Path | None = None,
    name: str | None = None,
    max_sequences: int = MAX_SEQUENCES,
    force: bool = False,
    progress: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Writes a model repository; it appears complete or not at all.

    Each graph is a model ``<name>_<graph>``; ``<name>`` is the chain, a Python model with sequence batching that calls
    them. Triton's Python must have semo-sdk installed.

    Args:
        bundle: an open bundle, its folder, or the name of an embedded one.
        out: the repository's folder: a new one.
        precision: of the ONNX graphs, "fp32" or "fp16".
        engines: what ``semo build --out`` was given, or one set's own folder: serve these TensorRT engines instead.
        name: of the chain; None = the bundle's.
        max_sequences: live sequences at the same time.
        force: replace a model repository that this function wrote.
        progress: told what is being done.

    Returns:
        What ``semo-triton.json`` in the repository holds.

    Raises:
        BundleError: a damaged bundle, a graph or precision that it lacks, or ``out`` exists and may not be replaced.
        ConfigError: an impossible name or number of sequences.
        EngineMismatchError: no engines of this bundle, or such as Triton cannot load.
        ExportError: a graph's inputs and outputs are not what this semo-sdk calls it with.
        MissingDependencyError: the package onnx is not installed.
    """
    bundle = Bundle.open(bundle)
    chain = bundle.name if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", chain):
        raise ConfigError(f"{chain!r} cannot be a model's name in Triton: letters, digits, - and _; give another name")
    if max_sequences < 1:
        raise ConfigError(f"max_sequences is {max_sequences}; give 1 or more")
    out = Path(out).absolute()
    check_replaceable(out, force, MANIFEST_FILE, "was not written by semo export --triton")
    specs = graph_specs(bundle.config)
    found = None if engines is None else find_engines(bundle, engines, specs)
    batches = {graph: spec.axes["B"].max if found is None else found[1].max_sessions for graph, spec in specs.items()}
    told = {
        "format_version": FORMAT_VERSION,
        "sdk_version": sdk_version(),
        "bundle": bundle.name,
        "fingerprint": bundle.fingerprint,
        "backend": "onnxruntime" if found is None else f"tensorrt {found[1].version}",
        "precision": precision if found is None else found[1].precision,
        "chain": chain,
        "graphs": {graph: f"{chain}_{graph}" for graph in specs},
    }
    with replacing_folder(out) as folder:
        for graph, spec in specs.items():
            model = folder / f"{chain}_{graph}"
            progress(f"triton: {model.name}")
            backend = "onnxruntime" if found is None else "tensorrt"
            _write(model, "config.pbtxt", graph_config(spec, model.name, backend=backend, max_batch=batches[graph]))
            if found is None:
                _write_onnx(bundle, spec, precision, model / "1" / "model.onnx")
            else:
                (model / "1").mkdir()
                shutil.copyfile(found[0] / found[1].engines[graph].file, model / "1" / "model.plan")
        batch = min(batches.values())
        text = chain_config(bundle.config, chain, max_batch=batch, max_sequences=max_sequences)
        _write(folder / chain, "config.pbtxt", text)
        _write(folder / chain / "1", "model.py", MODEL_PY)
        _write(folder / chain / "1", CONFIG_FILE, bundle.config.model_dump_json(indent=2) + "\n")
        _write(folder, MANIFEST_FILE, json.dumps(told, indent=2) + "\n")
        check_replaceable(out, force, MANIFEST_FILE, "was not written by semo export --triton")
    progress(f"triton: {out} is written")
    return told


def find_engines(bundle: Bundle, place: str | Path, graphs: Any) -> tuple[Path, EngineManifest]:
    """The one set of TensorRT engines of a bundle in a place.

    The GPU and the TensorRT of this machine do not matter: Triton's do, and Triton says so when it loads them.

    Raises:
        EngineMismatchError: none, several, of TensorRT-RTX, or of another bundle; the message says what is there.
    """
    folders = engine_sets(bundle, place)
    if not folders:
        raise EngineMismatchError(f"no engines in {place}: build them on the GPU's machine: semo build --out {place}")
    fitting, problems = [], []
    for folder in folders:
        manifest = read_manifest(folder)
        differences = bundle_differences(folder, manifest, bundle, graphs)
        if manifest.flavour != "tensorrt":
            differences.insert(0, "they are of TensorRT-RTX, and Triton loads TensorRT's only")
        if differences:
            problems.append(f"{folder.name[:12]}: {'; '.join(differences)}")
        else:
            fitting.append((folder, manifest))
    if not fitting:
        raise EngineMismatchError(f"no engines in {place} can be served: {'. '.join(problems)}")
    if len(fitting) > 1:
        sets = ", ".join(f"{folder} ({manifest.device})" for folder, manifest in fitting)
        raise EngineMismatchError(f"several sets of engines fit: name one of {sets}")
    return fitting[0]


def _write_onnx(bundle: Bundle, spec: GraphSpec, precision: str, folder: Path) -> None:
    """One graph with the weights that it needs: a folder, as Triton wants an ONNX model of several files."""
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            f"a model repository needs onnx ({error}): pip install 'semo-sdk[export]'"
        ) from error
    path = bundle.graph_path(spec.name, precision)
    model = onnx.load(path)
    check_io(model, spec, path)
    folder.mkdir(parents=True)
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=INLINE_BYTES
    )


def check_io(model: Any, spec: GraphSpec, path: Path) -> None:
    """Compares names, dtypes and shapes of a graph's inputs and outputs with its contract.

    Args:
        model: an ``onnx.ModelProto``.

    Raises:
        ExportError: the first tensor that differs.
    """
    from onnx import helper

    for kind, values, tensors in (
        ("inputs", model.graph.input, spec.inputs),
        ("outputs", model.graph.output, spec.outputs),
    ):
        found = {value.name: value.type.tensor_type for value in values}
        if set(found) != {t.name for t in tensors}:
            names = sorted(t.name for t in tensors)
            raise ExportError(f"{path} has {kind} {sorted(found)}, not {names}; export the bundle again")
        for tensor in tensors:
            there = found[tensor.name]
            dtype = str(helper.tensor_dtype_to_np_dtype(there.elem_type))
            dims = list(there.shape.dim)
            fits = len(dims) == len(tensor.shape) and all(map(_fits, dims, tensor.shape, [spec] * len(dims)))
            if dtype != tensor.dtype or not fits:
                shape = tuple(d.dim_param or d.dim_value or "?" for d in dims)
                raise ExportError(
                    f"{path}: {tensor.name!r} is {dtype} {shape}, not {tensor.dtype} {tensor.shape}; "
                    "export the bundle again"
                )


def _fits(dim: Any, wanted: Dim, spec: GraphSpec) -> bool:
    """Whether an axis of a graph is as its contract says; the file may leave a fixed one open."""
    if isinstance(wanted, str):
        axis = spec.axes[wanted]
        if axis.min < axis.max:
            return not dim.HasField("dim_value")
        wanted = axis.min
    return not dim.HasField("dim_value") or dim.dim_value == wanted


def _write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
