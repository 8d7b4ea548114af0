"""Configs of training runs: recipes that come with the package, JSON files, and ``key=value`` settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from semo_sdk.config import load_config
from semo_sdk.errors import ConfigError

__all__ = ["parse_settings", "recipe"]

Config = TypeVar("Config", bound=BaseModel)


def recipe(name: str | None, stage: str) -> Path | None:
    """The file of a recipe that comes with the package, or the file that ``name`` is; None without a name.

    Raises:
        ConfigError: no such recipe; the message lists them.
    """
    if name is None or name.endswith(".json"):
        return None if name is None else Path(name)
    folder = Path(__file__).parent / "recipes"
    path = folder / f"{name}.{stage}.json"
    if not path.is_file():
        there = ", ".join(p.name.removesuffix(f".{stage}.json") for p in sorted(folder.glob(f"*.{stage}.json")))
        raise ConfigError(f"no recipe {name!r} for the {stage}; there are {there}; or give a .json file")
    return path


def parse_settings(kind: type[Config], file: Path | None, settings: Sequence[str] = ()) -> Config:
    """A config from its defaults, then a JSON file, then ``key=value`` settings: the last one wins.

    A ``model`` may be the name of a preset or of a JSON file; later settings then change parts of it.

    Args:
        kind: the config's class.
        file: JSON, or None.
        settings: ``groups=4``, ``loop.steps=2000``: a value is read as JSON where it is JSON, else as text.

    Raises:
        ConfigError: no such file, not JSON, or an unknown or impossible setting, named.
    """
    fields = {name: field for name, field in kind.model_fields.items() if not field.is_required()}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    values = {n: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for n, v in defaults.items()}
    try:
        values = _with_model(_merged(values, json.loads(file.read_text(encoding="utf-8")) if file else {}))
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
        values = _with_model(_merged(values, value))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{problems} (settings: {', '.join(kind.model_fields)})") from error


def _with_model(values: dict[str, Any]) -> dict[str, Any]:
    """The same with a model that is named written out."""
    named = values.get("model")
    return {**values, "model": load_config(named).model_dump(mode="json")} if isinstance(named, str) else values


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with the values of ``new``; groups are merged, not replaced."""
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, Mapping) and isinstance(old.get(name), Mapping)
        merged[name] = _merged(old[name], value) if both else value
    return merged
