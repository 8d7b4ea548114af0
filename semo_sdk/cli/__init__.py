"""The ``semo`` command.

Exit codes: 0 done; 1 any other failure; 2 wrong usage or setting; 3 unusable photo, speech, video or motion
file; 4 unusable bundle or checkpoint; 5 a backend, engine or export failed; 6 an optional package is missing;
130 interrupted.

Results and progress for people go to stderr. With ``--json`` stdout holds exactly one JSON object: the
result, or ``{"error": {"type", "message", "code"}}``.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semo_sdk.cli.batch import (
    BATCH_ONLY,
    Manifest,
    OnRay,
    OutDir,
    WorkerCount,
    WorkerCpus,
    WorkerGpus,
    animate_batch,
    typed,
)
from semo_sdk.cli.build import build
from semo_sdk.cli.export import export
from semo_sdk.cli.outcome import PASS_THROUGH, delegate, need, outcome
from semo_sdk.cli.provenance import NoProvenance, SignCert, SignKey, chosen, verify
from semo_sdk.cli.serve import register as register_serve
from semo_sdk.cli.training import data_app, train_app
from semo_sdk.constants import FPS
from semo_sdk.errors import ConfigError

if TYPE_CHECKING:
    from semo_sdk.animator import Animator
    from semo_sdk.clip import Clip
    from semo_sdk.provenance.signing import Signer

app = typer.Typer(
    name="semo",
    help="One portrait and speech to a talking-head video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 ok, 1 other failure, 2 usage or setting, 3 bad photo / speech / video, "
    "4 bundle or checkpoint, 5 backend, engine or export, 6 missing package, 130 interrupted.",
)
bench_app = typer.Typer()
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
register_serve(app)
app.command()(build)
app.command()(export)
app.command()(verify)

Photo = Annotated[Path, typer.Argument(help="photo of a face: jpg, png, webp...", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="the MP4 to write")]
BundleName = Annotated[str, typer.Option("--bundle", "-b", help="bundle folder, or an embedded bundle's name")]
Backend = Annotated[str, typer.Option(help="auto, openvino, onnxruntime, torch or tensorrt")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")]
FaceIndex = Annotated[int | None, typer.Option(help="which face, when the photo has several: 0 is the largest")]
PasteBack = Annotated[bool, typer.Option("--paste-back", help="put the face back into the full photo")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar, errors only")]


def main() -> None:
    """Entry point of the ``semo`` command."""
    # A terminated command cleans up like an interrupted one: no half file, no temporary folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    app()


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is chosen and why.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
    if version:
        from semo_sdk import __version__

        typer.echo(f"semo-sdk {__version__}")
        raise typer.Exit()


@app.command()
def animate(
    context: typer.Context,
    photo: Annotated[Path | None, typer.Argument(help="photo of a face: jpg, png, webp...", show_default=False)] = None,
    speech: Annotated[Path | None, typer.Argument(help="speech: wav, mp3, m4a, a video...", show_default=False)] = None,
    output: Output = Path("talking.mp4"),
    bundle: BundleName = "semo-tiny",
    backend: Backend = "auto",
    precision: Precision = "auto",
    latency: Annotated[str, typer.Option(help="frames decided at once: quality 16, balanced 8, low 4")] = "quality",
    seed: Annotated[int, typer.Option(help="same seed, same video")] = 0,
    face_index: FaceIndex = None,
    paste_back: PasteBack = False,
    expressiveness: Annotated[
        float | None, typer.Option(help="how strongly the speech moves the face; default: the model's own")
    ] = None,
    head_motion: Annotated[float, typer.Option(help="how much the head moves: 0 still, 1 as the model does, 2")] = 1.0,
    blink: Annotated[float, typer.Option(help="how far the eyes close in a blink: 0 never, 1 wholly")] = 1.0,
    no_provenance: NoProvenance = False,
    sign_cert: SignCert = None,
    sign_key: SignKey = None,
    batch: Manifest = None,
    out_dir: OutDir = None,
    ray: OnRay = False,
    workers: WorkerCount = None,
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = 0.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A photo speaks: PHOTO and SPEECH to an MP4 with sound; or many, with --batch."""
    with outcome(as_json):
        started = time.perf_counter()
        style = {"expressiveness": expressiveness, "head_motion": head_motion, "blink": blink}
        manner: dict[str, Any] = {"latency": latency, "seed": seed, **style}
        given, marks = typed(context), chosen(no_provenance, sign_cert, sign_key)
        if batch is not None:
            if not isinstance(marks, bool):
                raise ConfigError(
                    "with --batch SEMO_SIGN_CERT and SEMO_SIGN_KEY name your certificate, for all workers"
                )
            animate_batch(
                batch,
                out_dir,
                single=bool(given & {"photo", "speech", "output"}),
                model={"bundle": bundle, "backend": backend, "precision": precision, "provenance": marks},
                defaults={"face_index": face_index, "paste_back": paste_back, **manner},
                ray=ray,
                workers={"count": workers, "cpus": worker_cpus, "gpus": worker_gpus},
                as_json=as_json,
                quiet=quiet,
            )
            return
        if photo is None or speech is None or given & BATCH_ONLY:
            raise ConfigError("give PHOTO and SPEECH, or --batch MANIFEST --out-dir DIR; see semo animate --help")
        with _animator(photo, bundle, backend, precision, face_index, marks) as animator:
            clip = animator.from_audio(speech, **manner)
            _save(clip, output, paste_back, animator, started, as_json, quiet)


@app.command()
def reenact(
    photo: Photo,
    video: Annotated[Path, typer.Argument(help="driving video of one face", show_default=False)],
    output: Output = Path("reenacted.mp4"),
    bundle: BundleName = "semo-tiny",
    backend: Backend = "auto",
    precision: Precision = "auto",
    face_index: FaceIndex = None,
    paste_back: PasteBack = False,
    no_provenance: NoProvenance = False,
    sign_cert: SignCert = None,
    sign_key: SignKey = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A photo follows a face: PHOTO moves as the person in VIDEO does."""
    with outcome(as_json):
        started = time.perf_counter()
        marks = chosen(no_provenance, sign_cert, sign_key)
        with _animator(photo, bundle, backend, precision, face_index, marks) as animator:
            _save(animator.reenact(video), output, paste_back, animator, started, as_json, quiet)


def _animator(
    photo: Path, bundle: str, backend: str, precision: str, face_index: int | None, marks: bool | Signer
) -> Animator:
    from semo_sdk.animator import Animator

    animator = Animator(
        photo, bundle=bundle, backend=backend, precision=precision, face_index=face_index, provenance=marks
    )
    if animator.provenance is not None:
        animator.provenance.check()  # before the speech is read and the graphs are compiled
    return animator


def _save(
    clip: Clip, output: Path, paste_back: bool, animator: Animator, started: float, as_json: bool, quiet: bool
) -> None:
    """Writes the clip with a progress bar (frames per second, on stderr) and reports it."""
    rendering = time.perf_counter()
    clip.save(output, paste_back=paste_back, progress=None if quiet or as_json else True)
    finished = time.perf_counter()
    seconds, frames = finished - rendering, len(clip)
    result = {
        "output": str(output),
        "frames": frames,
        "duration": round(frames / FPS, 3),
        "seconds": round(seconds, 3),
        "seconds_with_start": round(finished - started, 3),
        "fps": round(frames / seconds, 2),
        "real_time_factor": round(seconds * FPS / frames, 4),
        "backend": animator.backend,
        "precision": animator.precision,
    }
    if as_json:
        typer.echo(json.dumps(result))
    elif not quiet:
        typer.echo(
            f"{output}: {frames} frames, {frames / FPS:.2f} s, made in {seconds:.1f} s "
            f"({result['fps']:.0f} frames/s, real-time factor {result['real_time_factor']:.2f}, "
            f"{animator.backend} {animator.precision})",
            err=True,
        )


@bench_app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="BEFORE AFTER", help="two results of the same benchmark")
    ] = None,
) -> None:
    """Measure speed, lip sync and quality; --compare sets two results side by side."""
    with outcome():
        if context.invoked_subcommand is None and compare is None:
            typer.echo(context.get_help())
            raise typer.Exit(2)
        if compare is not None:
            from semo_sdk.benchmarks.compare import load, markdown

            typer.echo(markdown(load(compare[0]), load(compare[1])))
            raise typer.Exit()


@bench_app.command("latency", context_settings=PASS_THROUGH, add_help_option=False)
def bench_latency(context: typer.Context) -> None:
    """Real-time factor, stages, first-frame latency, cold start, memory."""
    with outcome():
        delegate("semo_sdk.benchmarks.latency", context)


@bench_app.command("lipsync", context_settings=PASS_THROUGH, add_help_option=False)
def bench_lipsync(context: typer.Context) -> None:
    """Mouth opening of generated videos against real ones of the same speech."""
    with outcome():
        delegate("semo_sdk.benchmarks.lipsync", context)


@bench_app.command("load", context_settings=PASS_THROUGH, add_help_option=False)
def bench_load(context: typer.Context) -> None:
    """Live sessions that a server carries: gaps, first frames, lost samples, memory."""
    with outcome():
        need("serve", "fastapi", "uvicorn", "websockets", "httpx")
        delegate("semo_sdk.benchmarks.load", context)


@bench_app.command("quality", context_settings=PASS_THROUGH, add_help_option=False)
def bench_quality(context: typer.Context) -> None:
    """Reconstruction, audio-driven generation, long runs, silence, with baselines: JSON and a page."""
    with outcome():
        delegate("semo_sdk.benchmarks.quality", context)


@bench_app.command("sessions", context_settings=PASS_THROUGH, add_help_option=False)
def bench_sessions(context: typer.Context) -> None:
    """How many live sessions hold 25 frames a second, in one process."""
    with outcome():
        delegate("semo_sdk.benchmarks.sessions", context)


@bench_app.command("watermark", context_settings=PASS_THROUGH, add_help_option=False)
def bench_watermark(context: typer.Context) -> None:
    """Watermark: bit errors after compression, resizing and cropping; false alarms; visibility; cost."""
    with outcome():
        delegate("semo_sdk.benchmarks.watermark", context)


@bench_app.command("throughput", context_settings=PASS_THROUGH, add_help_option=False)
def bench_throughput(context: typer.Context) -> None:
    """Frames a second by batch size, share of the machine's peak, memory, energy."""
    with outcome():
        need("export", "onnx")
        delegate("semo_sdk.benchmarks.throughput", context)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is here, which backends work, and why not. Exit code 1 when `semo animate` cannot work."""
    with outcome(as_json):
        from semo_sdk.doctor import diagnose, render

        report = diagnose()
        typer.echo(json.dumps(report) if as_json else render(report))
        if not report["ok"]:
            raise typer.Exit(1)
