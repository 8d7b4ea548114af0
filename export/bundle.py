"""A checkpoint to a bundle: five graphs in each precision, one weights file, checked against torch on every runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semo_sdk.backends.base import GraphSpec, graph_specs
from semo_sdk.bundle import CARD_FILE, PARITY_FILE, WEIGHTS_FILE, graph_file, sha256_file
from semo_sdk.config import SemoConfig
from semo_sdk.errors import ConfigError, ExportError, MissingDependencyError, ParityError
from semo_sdk.export.card import model_card
from semo_sdk.export.graph import export_graph
from semo_sdk.export.parity import ParityReport, check_parity
from semo_sdk.export.precision import check_types, protect_float32
from semo_sdk.export.weights import WeightIndex, share_weights
from semo_sdk.export.writer import bundle_folder, sdk_version, write_manifest
from semo_sdk.files import write_text

if TYPE_CHECKING:
    from semo_sdk.models.semo import SemoModel

log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16")


def export_bundle(
    checkpoint: str | Path | SemoModel,
    out: str | Path,
    *,
    name: str | None = None,
    precisions: Sequence[str] = PRECISIONS,
    weights_dtype: Literal["fp16", "fp32"] = "fp16",
    licence: str = "",
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Callable[[str], None] = log.info,
) -> ParityReport:
    """Exports a model as a bundle folder.

    Torch, ONNX Runtime and OpenVINO run every graph before the bundle appears at ``out``. The reference of all
    comparisons is torch in float32 with the weights as stored, so rounding the weights is not counted as an error.

    Args:
        checkpoint: a checkpoint file, or a model.
        out: folder to write; it appears complete or not at all.
        name: the model's name in the bundle; None = the config's.
        precisions: precisions of the graphs, of "fp32" and "fp16".
        weights_dtype: storage of the weights; "fp16" halves the bundle.
        licence: of the weights, for example "CC-BY-4.0".
        provenance: where the weights come from; goes into the manifest and the model card.
        metrics: measured quality; goes into the manifest and the model card.
        force: replace an existing bundle at ``out``.
        progress: told what is being done.

    Returns:
        The parity report, which is in the bundle too (``parity.json``).

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: unknown precision or weights dtype.
        BundleError: ``out`` exists and may not be replaced.
        ExportError: a graph cannot be exported.
        ParityError: a runtime's numbers are off. No bundle is written; the report is kept beside ``out``.
        MissingDependencyError: the extra ``export`` is not installed.
    """
    _check_arguments(precisions, weights_dtype)
    _need("torch", "onnx", "onnxscript", "onnxruntime", "safetensors")
    from semo_sdk.models.checkpoint import save_checkpoint

    out = Path(out)
    with bundle_folder(out, force=force) as folder:
        model, source = _load(checkpoint)
        config = model.config if name is None else model.config.model_copy(update={"name": name})
        model.config = config
        weights = folder / WEIGHTS_FILE
        _round_weights(model, weights_dtype)
        save_checkpoint(weights, model, {"sdk_version": sdk_version()}, dtype=_dtype(weights_dtype))
        index = WeightIndex(weights)
        modules = cache(partial(_modules, model))
        for precision in precisions:
            for spec in graph_specs(config).values():
                progress(f"export: {spec.name} {precision}")
                write_graph(modules(precision)[spec.name], spec, config, precision, index)
        report = check_parity(config, folder, modules, precisions=precisions, progress=progress)
        if not report.passed:
            kept = out.absolute().with_name(f"{out.name}.parity-failed.json")
            write_text(kept, report.to_json())
            problems = "; ".join(report.failures)
            raise ParityError(f"{config.name} differs from torch: {problems}. No bundle was written; report: {kept}")
        write_text(folder / PARITY_FILE, report.to_json())
        origin = {**source, **(provenance or {})}
        write_manifest(folder, config, precisions=precisions, licence=licence, provenance=origin, metrics=metrics or {})
        card = model_card(model, report, licence=licence, provenance=origin, metrics=metrics or {})
        write_text(folder / CARD_FILE, card)
    progress(f"export: {out} is written")
    return report


def _load(checkpoint: str | Path | SemoModel) -> tuple[SemoModel, dict[str, Any]]:
    """A float32 copy of the model, and what is known about its origin."""
    from copy import deepcopy

    from semo_sdk.models.checkpoint import load_checkpoint
    from semo_sdk.models.semo import SemoModel

    if isinstance(checkpoint, SemoModel):
        return deepcopy(checkpoint).float().eval(), {}
    model, metadata = load_checkpoint(checkpoint)
    origin: dict[str, Any] = {k: v for k, v in metadata.items() if k not in ("config", "sdk_version")}
    return model, {**origin, "checkpoint_sha256": sha256_file(Path(checkpoint))}


def _round_weights(model: SemoModel, weights_dtype: str) -> None:
    """Rounds weights to what will be stored, so that every runtime starts from the same numbers.

    Raises:
        ExportError: a weight does not fit float16.
    """
    dtype = _dtype(weights_dtype)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        rounded = tensor.to(dtype).to(tensor.dtype)
        if not bool(rounded.isfinite().all()):
            raise ExportError(f"weight {name} is not finite in {weights_dtype}; export with weights_dtype='fp32'")
        tensor.copy_(rounded)


def _modules(model: SemoModel, precision: str) -> Mapping[str, Any]:
    """Graph modules of the model, or of a copy of it in another precision."""
    from copy import deepcopy

    from semo_sdk.models.graphs import graph_modules

    return graph_modules(model if precision == "fp32" else deepcopy(model).to(_dtype(precision)))


def write_graph(module: Any, spec: GraphSpec, config: SemoConfig, precision: str, index: WeightIndex) -> None:
    """Exports one graph beside the weights of ``index``; its numbers are not checked.

    Raises:
        ExportError: it cannot be exported, or is not valid.
    """
    import onnx

    metadata = {
        "semo.sdk_version": sdk_version(),
        "semo.graph": spec.name,
        "semo.precision": precision,
        "semo.config": config.model_dump_json(),
        "semo.spec": spec_json(spec),
    }
    model = export_graph(module, spec, metadata)
    shared = share_weights(model, index)
    if precision == "fp16":
        protect_float32(model)
    check_types(model, spec.name)
    path = index.path.parent / graph_file(spec.name, precision)
    onnx.save(model, path)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"graph {spec.name!r} ({precision}) is not valid ONNX: {error}") from error
    log.info("%s: %d weights shared, %d bytes inside", path.name, shared.shared, shared.inline_bytes)


def spec_json(spec: GraphSpec) -> str:
    """A graph's contract as JSON, embedded in its file."""
    import json
    from dataclasses import asdict

    return json.dumps(asdict(spec))


def _dtype(precision: str) -> Any:
    from semo_sdk.backends.torch import torch_dtype

    return torch_dtype(precision)


def _check_arguments(precisions: Sequence[str], weights_dtype: str) -> None:
    unknown = [p for p in precisions if p not in PRECISIONS]
    if unknown or not precisions or len(set(precisions)) != len(precisions):
        raise ConfigError(f"precisions are {list(precisions)}; give one or both of {', '.join(PRECISIONS)}")
    if weights_dtype not in PRECISIONS:
        raise ConfigError(f"weights_dtype is {weights_dtype!r}; choose {' or '.join(PRECISIONS)}")


def _need(*modules: str) -> None:
    import importlib.util

    lacking = [m for m in modules if importlib.util.find_spec(m) is None]
    if lacking:
        raise MissingDependencyError(f"export needs {', '.join(lacking)}: pip install 'semo-sdk[export]'")
