"""One torch module to one ONNX graph whose names, dtypes and axes are those of its GraphSpec."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from semo_sdk.backends.base import GraphSpec, TensorSpec
from semo_sdk.errors import ExportError

if TYPE_CHECKING:
    import torch
    from torch import nn

OPSET = 18  # the newest that torch writes natively and every runtime here reads


def example_sizes(spec: GraphSpec) -> dict[str, int]:
    """A size for each dynamic axis to trace with: not 1, which tracers take for a constant, unless 1 is the largest."""
    return {name: min(max(2, 2 * axis.min), axis.max) for name, axis in spec.axes.items()}


def export_graph(module: nn.Module, spec: GraphSpec, metadata: Mapping[str, str] | None = None) -> Any:
    """Exports a module.

    Args:
        module: takes tensors in the order of ``spec.inputs``, returns a tuple in the order of ``spec.outputs``.
        spec: the contract to export to.
        metadata: strings to embed (``metadata_props``).

    Returns:
        An ``onnx.ModelProto`` with all weights inside.

    Raises:
        ExportError: torch cannot export the module, or what came out does not fit ``spec``.
    """
    import torch

    sizes = example_sizes(spec)
    inputs = tuple(_example(t, sizes) for t in spec.inputs)
    dims = {
        name: torch.export.Dim(name, min=axis.min, max=axis.max)
        for name, axis in spec.axes.items()
        if axis.min < axis.max
    }
    # A multiple of the smallest size is what a frame axis promises.
    for name, axis in spec.axes.items():
        if name in dims and axis.min > 1:
            dims[name] = axis.min * torch.export.Dim(f"{name}_windows", min=1, max=axis.max // axis.min)
    shapes: Any = tuple(
        {i: dims[d] for i, d in enumerate(t.shape) if isinstance(d, str) and d in dims} for t in spec.inputs
    )
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        shapes = (shapes,)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                inputs,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=[t.name for t in spec.inputs],
                output_names=[t.name for t in spec.outputs],
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
    except Exception as error:  # the exporter raises many unrelated types
        raise ExportError(f"graph {spec.name!r} could not be exported to ONNX: {error}") from error
    _bind(model, spec)
    _strip(model)
    for key, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return model


def _example(tensor: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    import torch

    shape = [sizes[d] if isinstance(d, str) else d for d in tensor.shape]
    dtype: torch.dtype = getattr(torch, tensor.dtype)
    # Ones are valid everywhere: as a guidance, as a number of frames, as a pixel.
    return torch.ones(shape, dtype=dtype)


def _bind(model: Any, spec: GraphSpec) -> None:
    """Checks the graph's signature and writes the spec's names of dynamic axes into it."""
    from onnx import TensorProto, helper

    for kind, values, tensors in (
        ("input", model.graph.input, spec.inputs),
        ("output", model.graph.output, spec.outputs),
    ):
        names = [v.name for v in values]
        if names != [t.name for t in tensors]:
            raise ExportError(f"graph {spec.name!r} has {kind}s {names}, expected {[t.name for t in tensors]}")
        for value, tensor in zip(values, tensors, strict=True):
            found = value.type.tensor_type
            dtype = str(helper.tensor_dtype_to_np_dtype(found.elem_type))
            where = f"graph {spec.name!r}, {kind} {tensor.name!r}"
            if dtype != tensor.dtype:
                stored = TensorProto.DataType.Name(found.elem_type)
                raise ExportError(f"{where}: {stored} instead of {tensor.dtype}")
            if len(found.shape.dim) != len(tensor.shape):
                raise ExportError(f"{where}: {len(found.shape.dim)} axes instead of {len(tensor.shape)}")
            for dim, want in zip(found.shape.dim, tensor.shape, strict=True):
                fixed = spec.axes[want].min == spec.axes[want].max if isinstance(want, str) else True
                if isinstance(want, str) and not fixed:
                    if dim.HasField("dim_value"):
                        raise ExportError(f"{where}: axis {want} was exported with the fixed size {dim.dim_value}")
                    dim.dim_param = want
                elif isinstance(want, int) and dim.HasField("dim_value") and dim.dim_value != want:
                    raise ExportError(f"{where}: size {dim.dim_value} instead of {want}")
                elif isinstance(want, int):
                    dim.dim_value = want


def _strip(model: Any) -> None:
    """Removes traces of the exporting machine: source lines and paths that the exporter attaches to every node."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]  # names axes in the exporter's own way; runtimes infer shapes themselves
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress, and its warnings about packages we do not use, from the caller's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
