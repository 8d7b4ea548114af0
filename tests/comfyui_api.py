"""What a node pack imports from ComfyUI, small: names, arguments and types of its V3 API.

Written from the behaviour of Comfy-Org/ComfyUI (no code of it is here): ``io`` from ``comfy_api/latest/_io.py``,
``ComfyExtension`` from ``__init__.py`` beside it, folders and numbered file names from ``folder_paths.py``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class InterruptProcessingException(Exception):
    """The user cancelled the run."""


class Locked(type):
    """ComfyUI runs clones of node classes that take no attributes: nodes have no state."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise AttributeError(f"node class {cls.__name__} is locked: {name} cannot be set")


class ComfyNode(metaclass=Locked):
    """Base class of nodes."""


class ComfyExtension:
    """Base class of what an entry point returns."""


@dataclass
class Socket:
    """An input or output of a node."""

    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    optional: bool = False
    io_type: str = ""


@dataclass
class Output(Socket):
    is_output_list: bool = False


@dataclass
class Widget(Socket):
    default: Any = None

    def problem(self, value: Any) -> str | None:
        """Why a value is not allowed, in ComfyUI's words."""
        return None


@dataclass
class Number(Widget):
    min: float | None = None
    max: float | None = None
    step: float | None = None
    kind: type = float

    def problem(self, value: Any) -> str | None:
        if not isinstance(value, float | int) or not isinstance(value, self.kind | int):
            return "invalid_input_type"
        if self.min is not None and value < self.min:
            return "value_smaller_than_min"
        return "value_bigger_than_max" if self.max is not None and value > self.max else None


@dataclass
class Choice(Widget):
    options: list[str] = field(default_factory=list)

    def problem(self, value: Any) -> str | None:
        return None if value in self.options else "value_not_in_list"


def io_class(io_type: str, widget: type[Socket] = Socket, **fixed: Any) -> Any:
    """What ``io.Image`` and its like are: a class with Input and Output."""

    def make_input(id: str, **settings: Any) -> Socket:
        return widget(id=id, io_type=io_type, **fixed, **settings)

    def make_output(id: str | None = None, **settings: Any) -> Output:
        return Output(id=id, io_type=io_type, **settings)

    return type(io_type, (), {"Input": staticmethod(make_input), "Output": staticmethod(make_output)})


@dataclass
class Schema:
    """What a node says of itself."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    description: str = ""
    inputs: list[Socket] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    is_output_node: bool = False

    def checked(self) -> Schema:
        """Itself, with names for outputs that have none; ids may not repeat, and inputs and outputs share theirs."""
        for number, output in enumerate(self.outputs):
            output.id = output.id or f"_{number}_{output.io_type}_"
        ids = [socket.id for socket in (*self.inputs, *self.outputs)]
        assert len(set(ids)) == len(ids), f"ids of {self.node_id} repeat: {ids}"
        return self


class NodeOutput:
    """What a node returns."""

    def __init__(self, *args: Any, ui: dict[str, Any] | None = None) -> None:
        self.args, self.ui = args, ui


def folder_paths(root: Path) -> dict[str, Any]:
    """Names of ComfyUI's module ``folder_paths``."""
    known: dict[str, tuple[list[str], set[str]]] = {}

    def add_model_folder_path(name: str, path: str, is_default: bool = False) -> None:
        known.setdefault(name, ([], set()))[0].append(path)

    def get_annotated_filepath(name: str) -> str:
        match = re.fullmatch(r"(.*) \[(input|output)\]", name)
        return str(root / match[2] / match[1] if match else root / "input" / name)

    def get_save_image_path(prefix: str, output: str) -> tuple[str, str, int, str, str]:
        folder, name = Path(output, prefix).parent, Path(prefix).name
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(match[1]) for file in os.listdir(folder) if (match := re.match(rf"{name}_(\d+)_", file))]
        return str(folder), name, max(numbers, default=0) + 1, str(Path(prefix).parent), prefix

    return {
        "models_dir": str(root / "models"),
        "folder_names_and_paths": known,
        "add_model_folder_path": add_model_folder_path,
        "get_folder_paths": lambda name: list(known[name][0]),
        "get_input_directory": lambda: str(root / "input"),
        "get_output_directory": lambda: str(root / "output"),
        "get_annotated_filepath": get_annotated_filepath,
        "get_save_image_path": get_save_image_path,
    }
