"""Triton's own network protocol in front of the small server, so that Triton's own client talks to it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from tests.fake_triton import Ask, Triton


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Triton's network protocol in front of it, as far as inference goes."""

    def __init__(self, triton: Triton) -> None:
        self.triton = triton

    def ModelInfer(self, request: Any, context: Any) -> Any:
        import grpc

        inputs = {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            kind = triton_to_np_dtype(tensor.datatype)
            flat = deserialize_bytes_tensor(raw) if tensor.datatype == "BYTES" else np.frombuffer(raw, kind)
            inputs[tensor.name] = flat.reshape(list(tensor.shape))
        given = {
            name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()
        }
        ask = Ask(
            inputs,
            int(given.pop("sequence_id", 0)),
            bool(given.pop("sequence_start", False)),
            bool(given.pop("sequence_end", False)),
            given,
            [output.name for output in request.outputs] or None,
        )
        response = self.triton.infer(request.model_name, ask)
        if response.problem is not None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, response.problem.text)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for tensor in response.tensors:
            datatype, array = np_to_triton_dtype(tensor.array.dtype), tensor.array
            answer.outputs.add(name=tensor.label, datatype=datatype, shape=array.shape)
            raw = serialize_byte_tensor(array).item() if datatype == "BYTES" else array.tobytes()
            answer.raw_output_contents.append(raw)
        return answer


@contextmanager
def listening(triton: Triton) -> Iterator[str]:
    """``host:port`` on loopback where Triton's own client reaches it."""
    import grpc

    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(triton), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)
