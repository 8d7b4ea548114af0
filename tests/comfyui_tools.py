"""A small ComfyUI: enough of its executor to run a node pack. ComfyUI itself is on no package index.

Written from the behaviour of Comfy-Org/ComfyUI (no code of it is here); where each part has its truth:

- what a pack imports: :mod:`tests.comfyui_api`
- how a pack is found and asked for its nodes: ``load_custom_node`` in ``nodes.py``
- validation, what reaches ``fingerprint_inputs`` and ``execute``, error reports: ``execution.py``
- what is run again: ``CacheKeySetInputSignature`` in ``comfy_execution/caching.py``
- ``ProgressBar``: ``comfy/utils.py``; cancelling: ``comfy/model_management.py``, ``hijack_progress`` in ``main.py``
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.comfyui_api import (
    Choice,
    ComfyExtension,
    ComfyNode,
    InterruptProcessingException,
    Locked,
    NodeOutput,
    Number,
    Schema,
    Widget,
    folder_paths,
    io_class,
)

Prompt = dict[str, dict[str, Any]]


@dataclass
class Run:
    """One run of a workflow.

    Attributes:
        outputs: of every node, by its id.
        executed: ids of the nodes that ran, in order; the others' outputs were kept from an earlier run.
        progress: (done, total, preview) of every update of the bar.
        error: ``node_id``, ``exception_type``, ``exception_message``; only ``node_id`` after a cancellation.
    """

    outputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    progress: list[tuple[int, int, Any]] = field(default_factory=list)
    error: dict[str, str] | None = None


class ComfyUI:
    """A running ComfyUI with its folders below ``root``.

    Attributes:
        nodes: node classes by node id.
        cancel_at: cancel the run when the bar gets here.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.nodes: dict[str, Any] = {}
        self.cancel_at: int | None = None
        self._cancelled = False
        self._kept: dict[Any, tuple[Any, ...]] = {}
        self._run = Run()
        for name in ("models", "input", "output"):
            (root / name).mkdir()
        for name, module in self._modules().items():
            patch.setitem(sys.modules, name, module)
        self._patch = patch

    def load(self, folder: Path) -> None:
        """Loads a node pack, as at the start."""
        name = str(folder).replace(".", "_x_")
        for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[loaded]
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        self._patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        extension = asyncio.run(module.comfy_entrypoint())
        assert isinstance(extension, ComfyExtension)
        for node in asyncio.run(extension.get_node_list()):  # type: ignore[attr-defined]
            self.add(node)

    def add(self, node: Any) -> None:
        """Registers a node class."""
        self.nodes[self.schema(node).node_id] = node

    def schema(self, node: Any) -> Schema:
        """A node's schema, asked for anew each time."""
        schema = (self.nodes[node] if isinstance(node, str) else node).define_schema()
        assert isinstance(schema, Schema)
        return schema.checked()

    def problems(self, prompt: Prompt) -> list[tuple[str, str, str]]:
        """(node id, input, problem) for everything that would keep the workflow from being queued."""
        found = []
        for number, node in prompt.items():
            sockets = {str(socket.id): socket for socket in self.schema(node["class_type"]).inputs}
            found += [(number, name, "unknown_input") for name in node["inputs"] if name not in sockets]
            for name, socket in sockets.items():
                value = node["inputs"].get(name)
                if name not in node["inputs"]:
                    problem = None if socket.optional else "required_input_missing"
                elif isinstance(value, list):
                    given = self.schema(prompt[value[0]]["class_type"]).outputs[value[1]].io_type
                    problem = None if given == socket.io_type else "return_type_mismatch"
                else:
                    problem = socket.problem(value) if isinstance(socket, Widget) else "required_input_missing"
                if problem:
                    found.append((number, name, problem))
        return found

    def run(self, prompt: Prompt) -> Run:
        """Runs a workflow; stops at the first error."""
        assert not (problems := self.problems(prompt)), problems
        self._run, self._cancelled = Run(), False
        used = {}
        for number in self._order(prompt):
            key = self._signature(prompt, number)
            if key not in self._kept:
                try:
                    self._kept[key] = self._execute(prompt, number)
                except InterruptProcessingException:
                    self._run.error = {"node_id": number}
                    break
                except Exception as error:
                    kind = f"{type(error).__module__}.{type(error).__qualname__}"
                    self._run.error = {"node_id": number, "exception_type": kind, "exception_message": str(error)}
                    break
                self._run.executed.append(number)
            used[key] = self._run.outputs[number] = self._kept[key]
        self._kept = used  # what this workflow does not hold is dropped
        return self._run

    def free(self) -> None:
        """What the button "Free model and node cache" does."""
        self._kept.clear()
        self._run = Run()

    def _execute(self, prompt: Prompt, number: str) -> tuple[Any, ...]:
        node = self.nodes[prompt[number]["class_type"]]
        inputs = {
            name: self._run.outputs[value[0]][value[1]] if isinstance(value, list) else value
            for name, value in prompt[number]["inputs"].items()
        }
        result = Locked(node.__name__, (node,), {}).execute(**inputs)  # type: ignore[attr-defined]
        assert isinstance(result, NodeOutput)
        assert len(result.args) == len(self.schema(node).outputs)
        return result.args

    def _order(self, prompt: Prompt) -> list[str]:
        order: list[str] = []

        def visit(number: str) -> None:
            for value in prompt[number]["inputs"].values():
                if isinstance(value, list):
                    visit(value[0])
            if number not in order:
                order.append(number)

        for number, node in prompt.items():
            if self.schema(node["class_type"]).is_output_node:
                visit(number)
        return order

    def _signature(self, prompt: Prompt, number: str) -> Any:
        """What a node's outputs depend on: its class, its fingerprint, its inputs, and those of all before it."""
        node = prompt[number]
        made = self.nodes[node["class_type"]]
        fingerprint: Any = False
        if hasattr(made, "fingerprint_inputs"):  # sees constants only
            constants = {name: None if isinstance(value, list) else value for name, value in node["inputs"].items()}
            try:
                fingerprint = made.fingerprint_inputs(**constants)
            except Exception:
                fingerprint = object()  # never the same again
        inputs = [
            (name, (self._signature(prompt, value[0]), value[1]) if isinstance(value, list) else value)
            for name, value in sorted(node["inputs"].items())
        ]
        return node["class_type"], fingerprint, tuple(inputs)

    def _throw_if_cancelled(self) -> None:
        if self._cancelled:
            self._cancelled = False
            raise InterruptProcessingException

    def _modules(self) -> dict[str, ModuleType]:
        """Everything that a pack may import."""
        ui, owner = self, {}

        class ProgressBar:
            def __init__(self, total: int, node_id: str | None = None) -> None:
                self.total, self.current = total, 0

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                ui._throw_if_cancelled()
                self.total = self.total if total is None else total
                self.current = min(value, self.total)
                ui._run.progress.append((self.current, self.total, preview))
                if ui.cancel_at is not None and self.current >= ui.cancel_at:
                    ui._cancelled = True

        def module(name: str, **names: Any) -> ModuleType:
            made = ModuleType(name)
            made.__dict__.update(names)
            owner[name] = made
            return made

        io = module(
            "comfy_api.latest.io",
            ComfyNode=ComfyNode,
            NodeOutput=NodeOutput,
            Schema=Schema,
            Custom=io_class,
            Image=io_class("IMAGE"),
            Audio=io_class("AUDIO"),
            Int=io_class("INT", Number, kind=int),
            Float=io_class("FLOAT", Number),
            Boolean=io_class("BOOLEAN", Widget),
            String=io_class("STRING", Widget),
            Combo=io_class("COMBO", Choice),
        )
        latest = module("comfy_api.latest", ComfyExtension=ComfyExtension, io=io)
        module("comfy_api", latest=latest)
        utils = module("comfy.utils", ProgressBar=ProgressBar)
        management = module(
            "comfy.model_management",
            InterruptProcessingException=InterruptProcessingException,
            throw_exception_if_processing_interrupted=self._throw_if_cancelled,
        )
        module("comfy", utils=utils, model_management=management)
        module("folder_paths", **folder_paths(self.root))
        return owner
