"""The ``semo`` command.

Exit codes: 0 done; 1 any other failure; 2 wrong usage or setting; 3 unusable photo, speech, video or motion
file; 4 unusable bundle or checkpoint; 5 a backend, engine or export failed; 6 an optional package is missing;
130 interrupted.

Results and progress for people go to stderr. With ``--json`` stdout holds exactly one JSON object: the
result, or ``{"error": {"type", "message", "code"}}``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, ValidationError

from semo_sdk.constants import FPS
from semo_sdk.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    EngineError,
    ExportError,
    InputError,
    MissingDependencyError,
    SemoError,
)

if TYPE_CHECKING:
    from semo_sdk.animator import Animator
    from semo_sdk.clip import Clip

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, 130),
    (ConfigError, 2),
    (InputError, 3),
    (BundleError, 4),
    (CheckpointError, 4),
    (EngineError, 5),
    (ExportError, 5),
    (MissingDependencyError, 6),
)
# A module with a command line of its own gets all arguments, --help included: its options are written once.
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="semo",
    help="One portrait and speech to a talking-head video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 ok, 1 other failure, 2 usage or setting, 3 bad photo / speech / video, "
    "4 bundle or checkpoint, 5 backend, engine or export, 6 missing package, 130 interrupted.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train a model: first the autoencoder, then the generator.")
data_app = typer.Typer(no_args_is_help=True, help="Make training data.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure speed and lip sync.")
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")

Photo = Annotated[Path, typer.Argument(help="photo of a face: jpg, png, webp...", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="the MP4 to write")]
BundleName = Annotated[str, typer.Option("--bundle", "-b", help="bundle folder, or an embedded bundle's name")]
Backend = Annotated[str, typer.Option(help="auto, openvino, onnxruntime or torch")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")]
FaceIndex = Annotated[int | None, typer.Option(help="which face, when the photo has several: 0 is the largest")]
PasteBack = Annotated[bool, typer.Option("--paste-back", help="put the face back into the full photo")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar, errors only")]
TrainData = Annotated[Path, typer.Option("--data", help="training data, for example of `semo data puppet`")]
TrainOut = Annotated[Path, typer.Option("--out", help="folder for checkpoints, log and loss plot")]
TrainConfig = Annotated[Path | None, typer.Option("--config", help="training settings (JSON)")]
TrainSettings = Annotated[list[str] | None, typer.Option("--set", "-s", help="key=value; may be repeated")]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint in --out")]


def main() -> None:
    """Entry point of the ``semo`` command."""
    app()


def exit_code(error: BaseException) -> int:
    """The exit code of an exception (see the module's docstring)."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


@contextmanager
def outcome(as_json: bool = False) -> Iterator[None]:
    """Turns an exception into one clear line (or a JSON object) and the right exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if not isinstance(error, SemoError | OSError | KeyboardInterrupt):
            traceback.print_exc()  # a defect: whoever reports it needs the place
        message = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        if as_json:
            typer.echo(json.dumps({"error": {"type": type(error).__name__, "message": message, "code": code}}))
        else:
            typer.echo(f"semo: {message}", err=True)
        raise typer.Exit(code) from None


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
    photo: Photo,
    speech: Annotated[Path, typer.Argument(help="speech: wav, mp3, m4a, a video...", show_default=False)],
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
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A photo speaks: PHOTO and SPEECH to an MP4 with sound."""
    with outcome(as_json):
        started = time.perf_counter()
        with _animator(photo, bundle, backend, precision, face_index) as animator:
            clip = animator.from_audio(speech, latency=latency, seed=seed, expressiveness=expressiveness)
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
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A photo follows a face: PHOTO moves as the person in VIDEO does."""
    with outcome(as_json):
        started = time.perf_counter()
        with _animator(photo, bundle, backend, precision, face_index) as animator:
            _save(animator.reenact(video), output, paste_back, animator, started, as_json, quiet)


def _animator(photo: Path, bundle: str, backend: str, precision: str, face_index: int | None) -> Animator:
    from semo_sdk.animator import Animator

    return Animator(photo, bundle=bundle, backend=backend, precision=precision, face_index=face_index)


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


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Option(help="checkpoint (.safetensors) to export")],
    out: Annotated[Path, typer.Option(help="bundle folder to write")],
    name: Annotated[str | None, typer.Option(help="name in the manifest; default: the config's")] = None,
    precision: Annotated[str, typer.Option(help="of the graphs, separated by commas")] = "fp32,fp16",
    force: Annotated[bool, typer.Option("--force", help="replace an existing folder")] = False,
    as_json: Json = False,
) -> None:
    """A checkpoint to a bundle: five ONNX graphs, checked against torch on every runtime."""
    with outcome(as_json):
        _need("export", "torch", "onnx", "onnxruntime", "safetensors")
        from semo_sdk.export import export_bundle

        report = export_bundle(checkpoint, out, name=name, precisions=precision.split(","), force=force)
        typer.echo(json.dumps(report) if as_json else f"{out}: written", err=not as_json)


@train_app.command("autoencoder")
def train_autoencoder(
    data: TrainData,
    out: TrainOut,
    config: TrainConfig = None,
    settings: TrainSettings = None,
    resume: Resume = False,
) -> None:
    """Stage 1: motion encoder and motion decoder (paper, section 3.1)."""
    _train("autoencoder", data, out, config, settings or [], resume)


@train_app.command("generator")
def train_generator(
    data: TrainData,
    out: TrainOut,
    config: TrainConfig = None,
    settings: TrainSettings = None,
    resume: Resume = False,
) -> None:
    """Stage 2: the motion generator on a trained autoencoder's tokens (paper, section 3.2)."""
    _train("generator", data, out, config, settings or [], resume)


def _train(stage: str, data: Path, out: Path, config: Path | None, settings: Sequence[str], resume: bool) -> None:
    with outcome():
        _need("train", "torch", "safetensors")
        module = importlib.import_module(f"semo_sdk.training.{stage}")
        module.train(parse_settings(module.TrainConfig, config, settings), data, out, resume=resume)


def parse_settings(kind: type[BaseModel], file: Path | None, settings: Sequence[str]) -> BaseModel:
    """A config from a JSON file and ``key=value`` settings, which win.

    Args:
        kind: the config's class.
        file: JSON, or None for the defaults.
        settings: ``groups=4``, ``loop.steps=2000``: a value is read as JSON where it is JSON, else as text.

    Raises:
        ConfigError: no such file, not JSON, or an unknown or impossible setting, named.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"config file {file} cannot be read: {error}") from error
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set takes key=value, got {setting!r}")
        *groups, last = key.split(".")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{group} is one setting and not a group, in {setting!r}")
        try:
            inner[last] = json.loads(text)
        except ValueError:
            inner[last] = text
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{problems} (settings: {', '.join(kind.model_fields)})") from error


@data_app.command("puppet", context_settings=PASS_THROUGH, add_help_option=False)
def data_puppet(context: typer.Context) -> None:
    """Talking videos of people who do not exist: real speech motion applied to portraits."""
    with outcome():
        _need("train", "cv2", "scipy")
        _delegate("semo_sdk.training.puppet_dataset", context)


@bench_app.command("latency", context_settings=PASS_THROUGH, add_help_option=False)
def bench_latency(context: typer.Context) -> None:
    """Real-time factor, stages, first-frame latency, cold start, memory."""
    with outcome():
        _delegate("semo_sdk.benchmarks.latency", context)


@bench_app.command("lipsync", context_settings=PASS_THROUGH, add_help_option=False)
def bench_lipsync(context: typer.Context) -> None:
    """Mouth opening of generated videos against real ones of the same speech."""
    with outcome():
        _delegate("semo_sdk.benchmarks.lipsync", context)


def _delegate(module: str, context: typer.Context) -> None:
    importlib.import_module(module).main(context.args)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is here, which backends work, and why not. Exit code 1 when `semo animate` cannot work."""
    with outcome(as_json):
        from semo_sdk.doctor import diagnose, render

        report = diagnose()
        typer.echo(json.dumps(report) if as_json else render(report))
        if not report["ok"]:
            raise typer.Exit(1)


def _need(extra: str, *modules: str) -> None:
    """Names the extra when one of its packages is missing."""
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    if lacking:
        raise MissingDependencyError(f"{', '.join(lacking)} is not installed: pip install 'semo-sdk[{extra}]'")
