"""A small Triton Inference Server: a model repository, read by Triton's own schema, and run as Triton would run it.

Graphs run in ONNX Runtime from the repository's files alone, the Python model with a stand-in of what Triton's Python
backend gives to it. Every tensor that goes in or comes out is checked against ``config.pbtxt``. What is not here:
queues, threads, GPUs and other processes; sequences are batched by whoever calls :meth:`Triton.execute`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # OpenVINO forks when it is imported, and gRPC minds

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

UTILS = "triton_python_backend_utils"
CODES = ("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED")


class TritonModelException(Exception):
    """What a Python model raises when it cannot go on."""


@dataclass
class TritonError(Exception):
    """An error as a response."""

    text: str
    code: str = "INTERNAL"

    def message(self) -> str:
        return self.text


for code in CODES:
    setattr(TritonError, code, code)


@dataclass
class Tensor:
    """A named array."""

    label: str
    array: np.ndarray

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class Response:
    """What a model answers: tensors or an error."""

    tensors: Sequence[Tensor] = ()
    problem: TritonError | None = None

    def has_error(self) -> bool:
        return self.problem is not None

    def error(self) -> TritonError | None:
        return self.problem

    def output(self, name: str) -> np.ndarray:
        """One output; raises the error if there is one."""
        if self.problem is not None:
            raise self.problem
        return next(tensor.array for tensor in self.tensors if tensor.label == name)


@dataclass
class Request:
    """What a Python model is given."""

    tensors: Sequence[Tensor]
    outputs: Sequence[str]
    given: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> str:
        return json.dumps(dict(self.given)) if self.given else ""

    def requested_output_names(self) -> Sequence[str]:
        return self.outputs


@dataclass
class Ask:
    """What a client sends.

    Attributes:
        inputs: by name, each with the batch axis.
        sequence: its number; 0 for none.
        start, end: of the sequence.
        parameters: of the request.
        outputs: wanted; None = all.
    """

    inputs: Mapping[str, np.ndarray]
    sequence: int = 0
    start: bool = False
    end: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] | None = None


class Triton:
    """A server.

    Attributes:
        configs: ``ModelConfig`` of every model, by name.
        calls: what was asked of each graph: name -> batch sizes.
        broken: graphs that fail when this says so, for one request's inputs.
    """

    def __init__(self, repository: Path) -> None:
        self.configs: dict[str, Any] = {}
        self.calls: dict[str, list[int]] = {}
        self.broken: Callable[[str, Mapping[str, np.ndarray]], bool]
        self.running: set[int] = set()
        self._run: dict[str, Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]] = {}
        self.python: dict[str, Any] = {}
        for path in sorted(repository.glob("*/config.pbtxt")):
            config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
            assert config.name == path.parent.name
            self.configs[config.name] = config
            if config.backend == "onnxruntime":
                self._run[config.name] = self._session(config, path.parent / "1" / "model.onnx" / "model.onnx")
        self.repository = repository
        self.restart()

    def restart(self) -> None:
        """Forgets all sequences; Python models are imported and initialised again."""
        self.running.clear()
        self.calls.clear()
        self.broken = lambda model, inputs: False
        with self.installed():
            for name, config in self.configs.items():
                if config.backend == "python":
                    self.python[name] = self._load(config, self.repository / name)

    @staticmethod
    def _session(config: Any, path: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in config.output]
        return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))

    @staticmethod
    def _load(config: Any, folder: Path) -> Any:
        """Imports ``model.py`` as the Python backend does, and starts it."""
        spec = importlib.util.spec_from_file_location(f"triton_model_{config.name}", folder / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        text = json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))
        model.initialize(
            {
                "model_config": text,
                "model_name": config.name,
                "model_version": "1",
                "model_repository": str(folder),
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        return model

    @contextmanager
    def installed(self) -> Iterator[None]:
        """``import triton_python_backend_utils`` finds this server's, as inside Triton."""
        module: Any = ModuleType(UTILS)
        module.Tensor, module.TritonError, module.TritonModelException = Tensor, TritonError, TritonModelException
        module.TRITONSERVER_MEMORY_CPU, module.PreferredMemory = 1, lambda kind, device: (kind, device)
        module.InferenceResponse = lambda output_tensors=(), error=None: Response(output_tensors, error)
        module.InferenceRequest = self._bls
        module.get_input_tensor_by_name = lambda request, name: _named(request.tensors, name)
        module.get_output_tensor_by_name = lambda response, name: _named(response.tensors, name)
        before, sys.modules[UTILS] = sys.modules.get(UTILS), module
        try:
            yield
        finally:
            del sys.modules[UTILS]
            if before is not None:
                sys.modules[UTILS] = before

    def _bls(
        self, *, model_name: str, requested_output_names: Sequence[str], inputs: Sequence[Tensor], preferred_memory: Any
    ) -> Any:
        """A request from one model to another."""
        ask = Ask({tensor.label: tensor.array for tensor in inputs}, outputs=requested_output_names)
        request: Any = ModuleType("request")
        request.exec = lambda: self.infer(model_name, ask)
        return request

    def infer(self, model: str, ask: Ask) -> Response:
        """One request."""
        return self.execute(model, [ask])[0]

    def execute(self, model: str, asks: Sequence[Ask]) -> list[Response]:
        """Requests that share a batch."""
        if model not in self.configs:
            return [Response(problem=TritonError(f"unknown model {model!r}", "NOT_FOUND"))] * len(asks)
        config = self.configs[model]
        try:
            for ask in asks:
                self._check_inputs(config, ask.inputs)
            if model in self.python:
                return self._python(config, asks)
            return [self._graph(config, ask) for ask in asks]
        except TritonError as error:
            return [Response(problem=error)] * len(asks)

    def _graph(self, config: Any, ask: Ask) -> Response:
        if self.broken(config.name, ask.inputs):
            raise TritonError("out of memory")
        shapes = {t.name: list(t.reshape.shape) for t in config.input if t.HasField("reshape")}
        feeds = {
            name: array.reshape([len(array), *shapes[name]]) if name in shapes else array
            for name, array in ask.inputs.items()
        }
        self.calls.setdefault(config.name, []).append(len(next(iter(feeds.values()))))
        made = self._run[config.name](feeds)
        return self._checked(config, [Tensor(name, made[name]) for name in ask.outputs or made])

    def _python(self, config: Any, asks: Sequence[Ask]) -> list[Response]:
        """What the sequence batcher does: controls, and no request of a sequence that does not run."""
        requests = []
        assert len(asks) <= config.max_batch_size and len({ask.sequence for ask in asks}) == len(asks)
        for ask in asks:
            if not ask.sequence:
                raise TritonError("a sequence needs a correlation ID", "INVALID_ARG")
            if ask.start:
                self.running.add(ask.sequence)
            elif ask.sequence not in self.running:
                raise TritonError(f"sequence {ask.sequence} must start with the START flag", "INVALID_ARG")
            if ask.end:
                self.running.discard(ask.sequence)
            tensors = [Tensor(name, array) for name, array in ask.inputs.items()]
            values = {"START": ask.start, "END": ask.end, "READY": True}
            for control in config.sequence_batching.control_input:
                (kind,) = control.control
                if control.name == "CORRID":
                    tensors.append(Tensor("CORRID", np.array([[ask.sequence]], np.uint64)))
                else:
                    value = kind.int32_false_true[values[control.name]]
                    tensors.append(Tensor(control.name, np.array([[value]], np.int32)))
            names = [output.name for output in config.output]
            requests.append(Request(tensors, list(ask.outputs or names), ask.parameters))
        with self.installed():
            responses: list[Response] = self.python[config.name].execute(requests)
        assert len(responses) == len(requests)
        return [response if response.has_error() else self._checked(config, response.tensors) for response in responses]

    @staticmethod
    def _check_inputs(config: Any, inputs: Mapping[str, np.ndarray]) -> None:
        known = {t.name: t for t in config.input}
        lacking = {t.name for t in config.input if not t.optional} - set(inputs)
        if lacking or set(inputs) - set(known):
            raise TritonError(f"{config.name}: inputs {sorted(inputs)}, expected {sorted(known)}", "INVALID_ARG")
        for name, array in inputs.items():
            if not _fits(known[name], array, config.max_batch_size):
                raise TritonError(f"{config.name}, {name}: {array.dtype} {array.shape}", "INVALID_ARG")

    @staticmethod
    def _checked(config: Any, tensors: Sequence[Tensor]) -> Response:
        known = {t.name: t for t in config.output}
        for tensor in tensors:
            assert _fits(known[tensor.label], tensor.array, config.max_batch_size), (config.name, tensor.label)
            assert tensor.array.flags.c_contiguous
        return Response(tensors)


def _named(tensors: Sequence[Tensor], name: str) -> Tensor | None:
    return next((tensor for tensor in tensors if tensor.label == name), None)


def dtype_of(tensor: Any) -> np.dtype:
    """numpy's dtype of a tensor in a config."""
    name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return np.dtype(triton_to_np_dtype("BYTES" if name == "STRING" else name))


def _fits(tensor: Any, array: np.ndarray, max_batch: int) -> bool:
    dims = list(tensor.dims)
    return (
        array.dtype == dtype_of(tensor)
        and 1 <= len(array) <= max_batch
        and array.ndim == 1 + len(dims)
        and all(want in (-1, size) for want, size in zip(dims, array.shape[1:], strict=True))
    )
