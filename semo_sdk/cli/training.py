"""``semo data`` and ``semo train``: from clips and photos to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from semo_sdk.cli.outcome import PASS_THROUGH, delegate, need, outcome
from semo_sdk.config import load_config
from semo_sdk.errors import ConfigError

train_app = typer.Typer(no_args_is_help=True, help="Train a model: first the autoencoder, then the generator.")
data_app = typer.Typer(no_args_is_help=True, help="Make training data: puppets, then their motion.")

Config = TypeVar("Config", bound=BaseModel)
Out = Annotated[Path, typer.Option("--out", help="folder of the run: checkpoint, log, loss plot")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="training settings (JSON)")]
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


@data_app.command("motion")
def data_motion(
    autoencoder: Autoencoder,
    clips: Annotated[Path, typer.Option(help="the videos that `semo data puppet` was given")],
    puppets: Annotated[Path, typer.Option(help="what `semo data puppet` wrote")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    encode: Annotated[bool, typer.Option(help="motion from the first stage's encoder, not from the teacher")] = False,
    seed: Annotated[int, typer.Option(help="of crops and speech windows")] = 0,
) -> None:
    """Motion and speech features of clips, made once with the first stage."""
    with outcome():
        need("train", "torch", "safetensors", "cv2")
        from semo_sdk.models.checkpoint import load_checkpoint
        from semo_sdk.training.motion_data import prepare

        model, _ = load_checkpoint(autoencoder)
        prepare(model, clips, puppets, out, taught=not encode, seed=seed)
        typer.echo(f"{out}: written", err=True)


@train_app.command("autoencoder")
def train_autoencoder(
    data: Annotated[Path, typer.Option(help="what `semo data puppet` wrote")],
    out: Out,
    model: Annotated[str, typer.Option(help="preset or config file (JSON) of the model")] = "semo-tiny",
    whisper: Whisper = "tiny.en",
    init: Annotated[Path | None, typer.Option(help="checkpoint whose motion encoder and decoder to start from")] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    resume: Resume = False,
) -> None:
    """Stage 1: motion encoder and motion decoder (paper, section 3.1)."""
    with outcome():
        need("train", "torch", "safetensors")
        from semo_sdk.training import autoencoder

        base = {"model": load_config(model).model_dump(mode="json")}
        chosen = parse_settings(autoencoder.TrainConfig, config, settings or [], base)
        path = autoencoder.train(chosen, data, out, resume=resume, whisper=whisper, init=init)
        typer.echo(f"{path}: written", err=True)


@train_app.command("generator")
def train_generator(
    autoencoder: Autoencoder,
    data: Annotated[Path, typer.Option(help="what `semo data motion` wrote with the same autoencoder")],
    out: Out,
    config: ConfigFile = None,
    settings: Settings = None,
    resume: Resume = False,
) -> None:
    """Stage 2: the motion generator on the first stage's tokens (paper, section 3.2). Its checkpoint is the model."""
    with outcome():
        need("train", "torch", "safetensors")
        from semo_sdk.training import generator

        chosen = parse_settings(generator.TrainConfig, config, settings or [], {})
        typer.echo(f"{generator.train(chosen, autoencoder, data, out, resume=resume)}: written", err=True)


def parse_settings(kind: type[Config], file: Path | None, settings: Sequence[str], base: Mapping[str, Any]) -> Config:
    """A config from its defaults, then ``base``, then a JSON file, then ``key=value`` settings: the last one wins.

    Args:
        kind: the config's class.
        file: JSON, or None.
        settings: ``groups=4``, ``loop.steps=2000``: a value is read as JSON where it is JSON, else as text.
        base: values that replace the class's defaults.

    Raises:
        ConfigError: no such file, not JSON, or an unknown or impossible setting, named.
    """
    fields = {name: field for name, field in kind.model_fields.items() if not field.is_required()}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    values = {n: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for n, v in defaults.items()}
    values = _merged(values, base)
    try:
        values = _merged(values, json.loads(file.read_text(encoding="utf-8")) if file else {})
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"config file {file} cannot be read: {error}") from error
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set takes key=value, got {setting!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        for name in reversed(key.split(".")):
            value = {name: value}
        values = _merged(values, value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{problems} (settings: {', '.join(kind.model_fields)})") from error


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with the values of ``new``; groups are merged, not replaced."""
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, Mapping) and isinstance(old.get(name), Mapping)
        merged[name] = _merged(old[name], value) if both else value
    return merged
