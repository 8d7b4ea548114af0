"""``semo build``: engines for a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from semo_sdk.cli.outcome import outcome


def build(
    bundle: Annotated[str, typer.Argument(help="bundle folder, or an embedded bundle's name")] = "semo-tiny",
    target: Annotated[
        str, typer.Option(help="auto = this machine's GPU; rtx-portable builds without one; rtx, h100, a100, l4...")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp16, bf16, fp32, int8 or fp8")] = "auto",
    max_sessions: Annotated[int | None, typer.Option(help="largest batch of sessions; default: the target's")] = None,
    calibrate: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="PHOTO SPEECH", help="for int8 and fp8: what ranges are taken from", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="engines go to OUT/engines/<key>; default: the user's cache", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="build also what is there already")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar, errors only")] = False,
) -> None:
    """A bundle to TensorRT engines: built, checked against ONNX Runtime where the GPU is, kept under their key."""
    with outcome(as_json):
        from semo_sdk.engines import build_engines

        report = build_engines(
            bundle,
            out,
            target=target,
            precision=precision,
            max_sessions=max_sessions,
            force=force,
            progress=not (quiet or as_json),
            calibrate=calibrate,
        )
        if as_json:
            told = {"output": str(report.folder), "reused": report.reused}
            typer.echo(json.dumps({**told, "manifest": report.manifest.model_dump(mode="json")}))
        elif not quiet:
            typer.echo(report.table(), err=True)
            verb = "were there already" if report.reused else f"built in {report.manifest.seconds:.1f} s"
            typer.echo(f"{report.folder}: {verb}", err=True)
