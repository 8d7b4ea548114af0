"""``semo animate --batch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from semo_sdk.cli.outcome import need
from semo_sdk.errors import ConfigError

__all__ = [
    "BATCH_ONLY",
    "Manifest",
    "OnRay",
    "OutDir",
    "WorkerCount",
    "WorkerCpus",
    "WorkerGpus",
    "animate_batch",
    "typed",
]

BATCH_ONLY = {"out_dir", "ray", "workers", "worker_cpus", "worker_gpus"}  # parameters that mean nothing without --batch

Manifest = Annotated[
    Path | None, typer.Option("--batch", help="many videos: JSON lines with photo, audio, output and settings")
]
OutDir = Annotated[Path | None, typer.Option(help="folder of a batch's videos and its report.json")]
OnRay = Annotated[bool, typer.Option("--ray", help="work on a Ray cluster: RAY_ADDRESS, or the one that runs here")]
WorkerCount = Annotated[int | None, typer.Option("--workers", min=1, help="with --ray; default: as many as fit")]
WorkerCpus = Annotated[float, typer.Option(min=0, help="of each worker")]
WorkerGpus = Annotated[float, typer.Option(min=0, help="of each worker; may be a part of one")]


def typed(context: typer.Context) -> set[str]:
    """Names of the parameters that were typed, not taken from a default."""
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return {name for name, source in sources if source is not None and source.name == "COMMANDLINE"}


def animate_batch(
    manifest: Path,
    out_dir: Path | None,
    *,
    single: bool,
    model: dict[str, Any],
    defaults: dict[str, Any],
    ray: bool,
    workers: dict[str, Any],
    as_json: bool,
    quiet: bool,
) -> None:
    """Runs the batch and says what became of it; exit code 1 if an item has no video.

    Args:
        manifest: the file.
        out_dir: the folder.
        single: whether something was given that belongs to a single video.
        model: fields of :class:`semo_sdk.batch.Model`.
        defaults: settings of lines without their own.
        ray: on a cluster.
        workers: fields of :class:`semo_sdk.batch.Workers`.
        as_json: the report on stdout.
        quiet: failures only.
    """
    if single:
        raise ConfigError("--batch takes photos, speech and the videos' names from the manifest: leave them out")
    if out_dir is None:
        raise ConfigError("--batch needs --out-dir, the folder of the videos")
    if not ray and any(workers[name] != usual for name, usual in (("count", None), ("cpus", 1.0), ("gpus", 0.0))):
        raise ConfigError("--workers, --worker-cpus and --worker-gpus belong to --ray")
    if ray:
        need("ray", "ray")
    from semo_sdk.batch import Model, Workers, run_batch

    report = run_batch(
        manifest,
        out_dir,
        model=Model(**model),
        defaults=defaults,
        workers=Workers(**workers) if ray else None,
        progress=None if quiet or as_json else True,
    )
    if as_json:
        typer.echo(report.model_dump_json())
    elif not (quiet and report.ok):
        typer.echo(report.summary(), err=True)
    if not report.ok:
        raise typer.Exit(1)
