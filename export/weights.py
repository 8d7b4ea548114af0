"""One copy of the weights for every graph of a bundle.

Each large initializer of an exported graph that equals a tensor of the bundle's safetensors file, or its transpose, is
replaced by a reference into that file (ONNX external data), with ``Transpose`` and ``Cast`` nodes where layout or dtype
differ. Runtimes fold those nodes when they load the graph. Constants that are no weight stay inside the graph.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.errors import ExportError

MIN_SHARED_BYTES = 1024  # smaller constants stay inside the graph: a reference costs more than it saves
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit

_DTYPES: dict[str, str] = {"F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "U8": "uint8"}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a safetensors file.

    Attributes:
        name: its key.
        dtype: numpy dtype name.
        shape: its shape.
        offset: first byte, counted from the start of the file.
        size: number of bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class SharedWeights:
    """How much of a graph points into the weights file.

    Attributes:
        shared: number of initializers that are references now.
        shared_bytes: bytes they would take inside the graph.
        inline_bytes: bytes of the constants that stay inside.
    """

    shared: int
    shared_bytes: int
    inline_bytes: int


def stored_tensors(path: str | Path) -> list[StoredTensor]:
    """Tensors of a safetensors file, read from its header alone.

    Tensors of a dtype that no graph shares (bfloat16, for one) are left out.

    Raises:
        ExportError: not a safetensors file.
    """
    path = Path(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= MAX_HEADER_BYTES:
            raise ExportError(f"{path} is not a safetensors file")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError as error:
            raise ExportError(f"{path} is not a safetensors file: {error}") from error
    start = 8 + length
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _DTYPES:
            continue
        first, last = entry["data_offsets"]
        tensors.append(StoredTensor(name, _DTYPES[entry["dtype"]], tuple(entry["shape"]), start + first, last - first))
    return tensors


class WeightIndex:
    """Finds tensors of a safetensors file by value."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.dtypes: set[str] = set()
        self._found: dict[tuple[str, tuple[int, ...], bytes], tuple[StoredTensor, bool]] = {}
        data = np.memmap(self.path, mode="r")
        for tensor in stored_tensors(self.path):
            if tensor.size < MIN_SHARED_BYTES:
                continue
            self.dtypes.add(tensor.dtype)
            values = data[tensor.offset : tensor.offset + tensor.size].view(tensor.dtype).reshape(tensor.shape)
            if values.ndim == 2:
                flipped = np.ascontiguousarray(values.T)
                self._found.setdefault(_key(flipped, flat=False), (tensor, True))
            # The declared shape of a reference is free, so the flat values are what has to agree.
            self._found[_key(values, flat=True)] = (tensor, False)

    def find(self, values: np.ndarray) -> tuple[StoredTensor, bool] | None:
        """The stored tensor with exactly these values, and whether it is stored transposed; None without one."""
        for dtype in sorted(self.dtypes):
            candidate = values
            if str(values.dtype) != dtype:
                if values.dtype.kind != "f" or np.dtype(dtype).kind != "f":
                    continue
                with np.errstate(over="ignore"):
                    candidate = values.astype(dtype)
                if not np.array_equal(candidate.astype(values.dtype), values):
                    continue
            found = self._found.get(_key(candidate, flat=True)) or self._found.get(_key(candidate, flat=False))
            if found is not None:
                return found
        return None


def share_weights(model: Any, index: WeightIndex) -> SharedWeights:
    """Replaces the weights inside a graph by references into ``index.path``, in place.

    The graph must be saved in the folder of the weights file: references hold the file's name only.

    Args:
        model: an ``onnx.ModelProto`` whose initializers are all inside.
        index: the weights file to point into.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    kept, added, nodes, references = [], [], [], set()
    shared = shared_bytes = inline_bytes = 0
    for initializer in graph.initializer:
        values = numpy_helper.to_array(initializer)
        found = index.find(values) if values.nbytes >= MIN_SHARED_BYTES else None
        if found is None:
            kept.append(initializer)
            inline_bytes += values.nbytes
            continue
        stored, transposed = found
        shared += 1
        shared_bytes += values.nbytes
        shape = stored.shape if transposed else values.shape
        cast = stored.dtype != str(values.dtype)
        # Only a reference that needs no node can take the initializer's own name.
        direct = not transposed and not cast
        name = initializer.name if direct else f"{stored.name}@{'x'.join(map(str, shape))}"
        if name not in references:
            references.add(name)
            added.append(_reference(name, stored, shape, index.path.name))
        if transposed:
            flipped = f"{initializer.name}@transposed" if cast else initializer.name
            nodes.append(helper.make_node("Transpose", [name], [flipped], name=f"{flipped}/node", perm=[1, 0]))
            name = flipped
        if cast:
            nodes.append(
                helper.make_node(
                    "Cast", [name], [initializer.name], name=f"{initializer.name}/cast", to=initializer.data_type
                )
            )
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added])
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return SharedWeights(shared, shared_bytes, inline_bytes)


def _key(values: np.ndarray, *, flat: bool) -> tuple[str, tuple[int, ...], bytes]:
    shape = (values.size,) if flat else values.shape
    digest = hashlib.blake2b(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, digest_size=16).digest()
    return str(values.dtype), shape, digest


def _reference(name: str, stored: StoredTensor, shape: tuple[int, ...], location: str) -> Any:
    from onnx import TensorProto, helper

    tensor = TensorProto()
    tensor.name = name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(stored.dtype))
    tensor.dims.extend(shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", stored.offset), ("length", stored.size)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return tensor
