"""``semo export``: a checkpoint to a bundle, and a bundle to a model repository of Triton."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from semo_sdk.cli.outcome import need, outcome
from semo_sdk.errors import ConfigError


def export(
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint (.safetensors) to export")] = None,
    out: Annotated[Path | None, typer.Option(help="bundle folder to write")] = None,
    name: Annotated[
        str | None, typer.Option(help="name in the manifest or of Triton's model; default: its own")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="of the graphs; default: fp32,fp16 in a bundle, the first of these in Triton")
    ] = None,
    weights_dtype: Annotated[str, typer.Option(help="storage of the weights: fp16 or fp32")] = "fp16",
    licence: Annotated[str, typer.Option(help="of the weights, for manifest and model card")] = "",
    provenance: Annotated[Path | None, typer.Option(help="JSON object: where the weights come from")] = None,
    metrics: Annotated[Path | None, typer.Option(help="JSON object: measured quality")] = None,
    triton: Annotated[Path | None, typer.Option(help="model repository of Triton Inference Server to write")] = None,
    bundle: Annotated[
        str | None, typer.Option("--bundle", "-b", help="for --triton without --checkpoint; default: semo-tiny")
    ] = None,
    engines: Annotated[
        Path | None, typer.Option(help="for --triton: TensorRT engines, what `semo build --out` was given")
    ] = None,
    max_sequences: Annotated[int, typer.Option(min=1, help="for --triton: live sequences at once")] = 64,
    force: Annotated[bool, typer.Option("--force", help="replace an existing bundle or model repository")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """A checkpoint to a bundle (--checkpoint, --out): five ONNX graphs, checked against torch on every runtime. A
    bundle to a model repository of Triton Inference Server (--triton)."""
    with outcome(as_json):
        if (checkpoint is None) != (out is None):
            raise ConfigError("--checkpoint and --out belong together")
        if checkpoint is None and triton is None:
            raise ConfigError("give --checkpoint and --out for a bundle, --triton for a model repository, or both")
        if checkpoint is not None and bundle is not None:
            raise ConfigError("with --checkpoint the model repository is made of --out: leave --bundle away")
        if engines is not None and triton is None:
            raise ConfigError("--engines are for --triton")
        told: dict[str, Any] = {}
        if checkpoint is not None and out is not None:
            need("export", "torch", "onnx", "onnxscript", "onnxruntime", "safetensors")
            from semo_sdk.export import export_bundle

            report = export_bundle(
                checkpoint,
                out,
                name=name,
                precisions=(precision or "fp32,fp16").split(","),
                weights_dtype=weights_dtype,
                licence=licence,
                provenance=_json_object(provenance),
                metrics=_json_object(metrics),
                force=force,
                progress=_tell,
            )
            told |= {"output": str(out), "parity": json.loads(report.to_json())}
        if triton is not None:
            need("export", "onnx")
            from semo_sdk.export.triton import write_model_repository

            repository = write_model_repository(
                out or bundle or "semo-tiny",
                triton,
                precision=(precision or "fp32").split(",")[0],
                engines=engines,
                name=name,
                max_sequences=max_sequences,
                force=force,
                progress=_tell,
            )
            told |= {"triton": {"output": str(triton), **repository}}
        if as_json:
            typer.echo(json.dumps(told))


def _tell(message: str) -> None:
    typer.echo(message, err=True)


def _json_object(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} holds no JSON object")
    return found
