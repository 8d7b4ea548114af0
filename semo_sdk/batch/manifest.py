"""The manifest of a batch: one JSON object a line, each a photo, a speech and the name of a video."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from semo_sdk.errors import ConfigError

__all__ = ["Item", "ItemSettings", "read_manifest"]

NOTES = ".semo-batch"  # folder inside the output folder: what is known of finished videos, and unfinished ones
EXAMPLE = '{"photo": "a.jpg", "audio": "a.wav", "output": "a.mp4"}'
MAX_PROBLEMS = 20  # that one error names


class ItemSettings(BaseModel):
    """What may differ from video to video; see :meth:`semo_sdk.Animator.from_audio`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency: str = Field("quality", pattern="^(quality|balanced|low)$")
    seed: int = Field(0, ge=0, le=2**64 - 1)
    expressiveness: float | None = Field(None, ge=0, le=10)
    head_motion: float = Field(1.0, ge=0, le=2)
    blink: float = Field(1.0, ge=0, le=1)
    face_index: int | None = Field(None, ge=0)
    paste_back: bool = False

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings alone, by name."""
        return {name: getattr(self, name) for name in ItemSettings.model_fields}


class Entry(ItemSettings):
    """One line, as it is written."""

    photo: str = Field(min_length=1)
    audio: str = Field(min_length=1)
    output: str = Field(min_length=1)

    @field_validator("output")
    @classmethod
    def _inside(cls, output: str) -> str:
        name = PurePosixPath(output)
        if name.is_absolute() or ".." in name.parts or "\\" in output or name.parts[:1] == (NOTES,):
            raise ValueError("must be a name inside the output folder, like clips/anna.mp4")
        if name.suffix.lower() != ".mp4":
            raise ValueError("must end in .mp4")
        return str(name)


class Item(ItemSettings):
    """One video to make.

    Attributes:
        line: of the manifest, from 1.
        photo, audio: absolute paths.
        output: name inside the output folder.
    """

    line: int
    photo: Path
    audio: Path
    output: str


def read_manifest(path: str | Path, defaults: Mapping[str, Any] | None = None) -> list[Item]:
    """Reads a manifest: a JSON object a line with ``photo``, ``audio``, ``output``, and any of :class:`ItemSettings`.

    Relative paths start at the manifest's folder. Empty lines are skipped. Whether photos and recordings can be used
    shows when their turn comes: that is no error of the manifest.

    Args:
        path: of the file (UTF-8).
        defaults: settings for lines that do not have their own.

    Returns:
        The items in the manifest's order.

    Raises:
        ConfigError: it cannot be read, is empty, or lines are wrong: all of them are named with their numbers.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the manifest {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        usual = ItemSettings(**(defaults or {})).chosen
    except ValidationError as error:
        raise ConfigError("; ".join(_problems(error))) from error
    folder = Path(os.path.abspath(file)).parent
    items: list[Item] = []
    problems: list[str] = []
    lines: dict[str, int] = {}  # output -> line
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = _item(number, line, usual, folder)
        except ValidationError as error:
            problems += [f"line {number}: {problem}" for problem in _problems(error)]
            continue
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if item.output in lines:
            problems.append(f"line {number}: output {item.output} is that of line {lines[item.output]} too")
        lines.setdefault(item.output, number)
        items.append(item)
    if problems:
        more = f"\n... and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise ConfigError(f"{file}:\n" + "\n".join(problems[:MAX_PROBLEMS]) + more)
    if not items:
        raise ConfigError(
            f'{file} has no lines; one looks like {{"photo": "a.jpg", "audio": "a.wav", "output": "a.mp4"}}'
        )
    return items


def _item(number: int, line: str, usual: Mapping[str, Any], folder: Path) -> Item:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    entry = Entry.model_validate({**usual, **found})
    photo, audio = (Path(os.path.abspath(folder / name)) for name in (entry.photo, entry.audio))
    return Item(**entry.chosen, line=number, photo=photo, audio=audio, output=entry.output)


def _problems(error: ValidationError) -> Iterator[str]:
    """What pydantic found, a sentence each."""
    for found in error.errors(include_url=False):
        yield f"{'.'.join(map(str, found['loc'])) or 'settings'}: {found['msg'].removeprefix('Value error, ')}"
