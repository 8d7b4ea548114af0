"""``semo data`` and ``semo train``: from clips and photos to a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from semo_sdk.cli.outcome import PASS_THROUGH, delegate, need, outcome
from semo_sdk.errors import ConfigError
from semo_sdk.training.settings import parse_settings, recipe

train_app = typer.Typer(no_args_is_help=True, help="Train a model: first the autoencoder, then the generator.")
data_app = typer.Typer(no_args_is_help=True, help="Make training data: videos or puppets, then their motion.")

Out = Annotated[Path, typer.Option("--out", help="folder of the run: checkpoint, log, loss plot")]
ConfigName = Annotated[str | None, typer.Option("--config", help="recipe (semo-base, semo-tiny) or JSON file")]
Settings = Annotated[list[str] | None, typer.Option("--set", "-s", help="loop.steps=2000; may be repeated")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the run in --out")]
Whisper = Annotated[str, typer.Option(help="Whisper's weights: a file, or a model name to download")]
Autoencoder = Annotated[Path, typer.Option(help="checkpoint of `semo train autoencoder`")]


@data_app.command("puppet", context_settings=PASS_THROUGH, add_help_option=False)
def data_puppet(context: typer.Context) -> None:
    """Talking videos of people who do not exist: real speech motion applied to portraits."""
    with outcome():
        need("train", "cv2", "scipy")
        delegate("semo_sdk.training.puppet_dataset", context)


@data_app.command("videos")
def data_videos(
    folder: Annotated[Path, typer.Argument(help="talking videos, in any layout of folders")],
    out: Annotated[Path, typer.Argument(help="folder to write; a run that was cut short goes on")],
    seconds: Annotated[float, typer.Option(min=2.0, help="longest clip; longer videos are cut")] = 10.0,
    crop: Annotated[float, typer.Option(min=1.3, max=4.0, help="side of the square crop in face heights")] = 2.0,
    min_face: Annotated[float, typer.Option(min=16.0, help="least height of a face in pixels")] = 80.0,
    workers: Annotated[int | None, typer.Option(min=1, help="processes; all cores by default")] = None,
) -> None:
    """Clips for both stages from your own talking videos: faces checked and cropped, speech checked."""
    with outcome():
        need("train", "PIL", "tqdm")
        from tqdm import tqdm

        from semo_sdk.training.videos_prepare import Options, prepare_videos

        options = Options(seconds=seconds, crop=crop, min_face=min_face)
        count = len(os.sched_getaffinity(0)) if workers is None else workers
        with tqdm(unit="video", dynamic_ncols=True) as bar:
            for done, total in prepare_videos(folder, out, options, workers=count):
                bar.total = total
                bar.update(done - bar.n)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        typer.echo(
            f"{out}: {report['clips']} clips, {report['minutes']} minutes ({report['minutes_of_speech']} with speech) "
            f"from {report['videos_used']} of {report['videos']} videos",
            err=True,
        )
        for reason, count in {**report["left_out"], **report["pictures_only"]}.items():
            kind = "left out" if reason in report["left_out"] else "used without sound"
            typer.echo(f"  {count} {kind}: {reason}", err=True)


@data_app.command("motion")
def data_motion(
    autoencoder: Autoencoder,
    out: Annotated[Path, typer.Option(help="folder to write")],
    videos: Annotated[Path | None, typer.Option(help="what `semo data videos` wrote")] = None,
    clips: Annotated[Path | None, typer.Option(help="the videos that `semo data puppet` was given")] = None,
    puppets: Annotated[Path | None, typer.Option(help="what `semo data puppet` wrote")] = None,
    encode: Annotated[bool, typer.Option(help="motion from the first stage's encoder, not from the teacher")] = False,
    spoken: Annotated[int, typer.Option(min=0, help="recordings of synthetic voices to add; needs flite")] = 0,
    seed: Annotated[int, typer.Option(help="of crops, speech windows and sentences")] = 0,
) -> None:
    """Motion and speech features, made once with the first stage: of --videos, or of --clips and --puppets."""
    with outcome():
        need("train", "torch", "safetensors", "cv2")
        from semo_sdk.models.checkpoint import load_checkpoint
        from semo_sdk.training.loop import best_device
        from semo_sdk.training.motion_prepare import prepare
        from semo_sdk.training.videos_motion import prepare_motion

        model, _ = load_checkpoint(autoencoder)
        if videos is not None and clips is None and puppets is None and not spoken:
            prepare_motion(model.to(best_device()), videos, out, seed=seed)
        elif videos is None and clips is not None and puppets is not None:
            prepare(model.to(best_device()), clips, puppets, out, taught=not encode, spoken=spoken, seed=seed)
        else:
            raise ConfigError("give either --videos, or --clips and --puppets (and with these --spoken)")
        typer.echo(f"{out}: written", err=True)


@train_app.command("autoencoder")
def train_autoencoder(
    data: Annotated[Path, typer.Option(help="what `semo data videos` or `semo data puppet` wrote")],
    out: Out,
    model: Annotated[str | None, typer.Option(help="preset or config file (JSON) of the model")] = None,
    whisper: Whisper = "tiny.en",
    vae: Annotated[str | None, typer.Option(help="image autoencoder's weights: diffusers folder or hub name")] = None,
    init: Annotated[Path | None, typer.Option(help="checkpoint whose motion encoder and decoder to start from")] = None,
    config: ConfigName = None,
    settings: Settings = None,
    resume: Resume = False,
) -> None:
    """Stage 1: motion encoder and motion decoder (paper, section 3.1)."""
    with outcome():
        need("train", "torch", "safetensors")
        from semo_sdk.training import autoencoder

        changes = [*([] if model is None else [f"model={model}"]), *(settings or [])]
        chosen = parse_settings(autoencoder.TrainConfig, recipe(config, "autoencoder"), changes)
        path = autoencoder.train(chosen, data, out, resume=resume, whisper=whisper, vae=vae, init=init)
        typer.echo(f"{path}: written", err=True)


@train_app.command("generator")
def train_generator(
    autoencoder: Autoencoder,
    data: Annotated[Path, typer.Option(help="what `semo data motion` wrote with the same autoencoder")],
    out: Out,
    config: ConfigName = None,
    settings: Settings = None,
    resume: Resume = False,
) -> None:
    """Stage 2: the motion generator on the first stage's tokens (paper, section 3.2). Its checkpoint is the model."""
    with outcome():
        need("train", "torch", "safetensors")
        from semo_sdk.training import generator

        chosen = parse_settings(generator.TrainConfig, recipe(config, "generator"), settings or [])
        typer.echo(f"{generator.train(chosen, autoencoder, data, out, resume=resume)}: written", err=True)


@train_app.command("syncnet")
def train_syncnet(
    clips: Annotated[Path, typer.Option(help="videos of one speaker with sound (*.mp4); the last 60 are held out")],
    out: Out,
    puppets: Annotated[Path | None, typer.Option(help="what `semo data puppet` wrote with the same clips")] = None,
    settings: Settings = None,
    resume: Resume = False,
) -> None:
    """The small SyncNet that `semo bench quality` measures with: do these lips belong to this sound?"""
    with outcome():
        need("train", "torch", "safetensors", "cv2")
        from semo_sdk.training import syncnet_train

        chosen = parse_settings(syncnet_train.SyncConfig, None, settings or [])
        typer.echo(f"{syncnet_train.train(chosen, clips, puppets, out, resume=resume)}: written", err=True)
