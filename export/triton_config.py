"""``config.pbtxt`` of Triton Inference Server: one for each graph, from its GraphSpec, and one for the chain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from semo_sdk.backends.base import GraphSpec, TensorSpec
from semo_sdk.config import SemoConfig
from semo_sdk.constants import IMAGE_SIZE

TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64"}
PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
IDLE_SECONDS = 300  # a sequence without a request for so long is over, as in `semo serve`


class Word(str):
    """A word without quotes: an enum's value."""


def message(fields: Mapping[str, Any], indent: str = "") -> str:
    """A protobuf message as text.

    Args:
        fields: name -> number, bool, string, :class:`Word`, message, list of numbers, or list of messages.
        indent: of every line.
    """
    lines = []
    for name, value in fields.items():
        repeated = (
            isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, dict) for v in value)
        )
        for item in value if repeated and value else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{message(item, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(item)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return value
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def graph_config(spec: GraphSpec, model: str, *, backend: str, max_batch: int) -> str:
    """Config of one graph as a model of its own.

    Args:
        spec: the graph's contract.
        model: name of the model, which is that of its folder.
        backend: "onnxruntime" or "tensorrt".
        max_batch: largest batch of sessions in one launch.
    """
    return message(
        {
            "name": model,
            "platform": PLATFORMS[backend],
            "backend": backend,
            "max_batch_size": max_batch,
            "input": [_tensor(t) for t in spec.inputs],
            "output": [_tensor(t) for t in spec.outputs],
            "instance_group": [{"count": 1, "kind": Word("KIND_GPU" if backend == "tensorrt" else "KIND_AUTO")}],
            # No delay: what waits while the graph runs is a batch, and nothing waits for company.
            "dynamic_batching": {},
        }
    )


def chain_config(config: SemoConfig, model: str, *, max_batch: int, max_sequences: int) -> str:
    """Config of the chain, which :class:`semo_sdk.serving.triton.TritonPythonModel` runs.

    Args:
        config: the model.
        model: name of the chain.
        max_batch: sequences in one launch.
        max_sequences: sequences at the same time.
    """
    number, side = Word("TYPE_FP32"), IMAGE_SIZE
    inputs = [
        {"name": "PORTRAIT", "data_type": Word("TYPE_STRING"), "dims": [1], "optional": True},
        # pushes may have any length, also those that share a batch
        {"name": "SPEECH", "data_type": number, "dims": [-1], "allow_ragged_batch": True},
    ]
    outputs = [
        {"name": "FRAMES", "data_type": Word("TYPE_UINT8"), "dims": [-1, side, side, 3]},
        {"name": "AUDIO", "data_type": number, "dims": [-1]},
        {"name": "MOTION", "data_type": number, "dims": [-1, config.motion_dim]},
        {"name": "INDEX", "data_type": Word("TYPE_INT64"), "dims": [1]},
    ]
    controls = [
        {"name": name, "control": [{"kind": Word(f"CONTROL_SEQUENCE_{name}"), "int32_false_true": [0, 1]}]}
        for name in ("START", "END", "READY")
    ]
    corrid = {"kind": Word("CONTROL_SEQUENCE_CORRID"), "data_type": Word("TYPE_UINT64")}
    return message(
        {
            "name": model,
            "backend": "python",
            "max_batch_size": max_batch,
            "input": inputs,
            "output": outputs,
            # It computes nothing itself: the graphs are on the GPU.
            "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
            "sequence_batching": {
                "max_sequence_idle_microseconds": IDLE_SECONDS * 1_000_000,
                "control_input": [*controls, {"name": "CORRID", "control": [corrid]}],
                "oldest": {"max_candidate_sequences": max_sequences},
            },
        }
    )


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    """A tensor without its batch axis, which Triton adds."""
    fields: dict[str, Any] = {"name": tensor.name, "data_type": Word(TYPES[tensor.dtype])}
    dims = [-1 if isinstance(d, str) else d for d in tensor.shape[1:]]
    # Triton's shapes have at least one axis beside the batch's; the graph gets it without.
    return {**fields, "dims": dims} if dims else {**fields, "dims": [1], "reshape": {"shape": []}}
