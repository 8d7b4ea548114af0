"""The machine's matrix-product peak: what the library reaches on nothing but large matrix products.

It is measured in the same run and the same precision as the graphs; the share of it that a graph reaches says how far
the graph is from the hardware's limit.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.backends.base import Axis, GraphSpec, TensorSpec
from semo_sdk.errors import BackendUnavailableError, ConfigError

CPU_SIZES = (512, 1024, 2048)
GPU_SIZES = (4096, 8192)
CHAIN = 4  # products in a row in one launch, so that copies in and out hardly count
REPEATS = 5


def matrix_peak(backend: str, precision: str, threads: int | None = None) -> dict[str, Any]:
    """The fastest of several sizes, each the best of some launches.

    Args:
        backend: that is measured beside it; on a GPU torch (cuBLAS) stands for all of them.
        precision: "fp32", "bf16" or "fp16"; of tensorrt also "int8" or "fp8".
        threads: CPU threads.

    Returns:
        ``tflops`` (None with a ``reason`` where it cannot be measured), ``size`` of the square matrices, ``by``.
    """
    from semo_sdk.backends import torch as torch_backend

    name, _, variant = backend.partition(":")
    on_gpu = name == "tensorrt" or (name in ("torch", "onnxruntime") and variant != "cpu" and _has_gpu(name))
    try:
        if on_gpu and not torch_backend.has_cuda():
            return {"tflops": None, "reason": "needs torch with CUDA", "by": "torch"}
        if on_gpu or name == "torch":
            return _in_torch(precision, "cuda" if on_gpu else "cpu", GPU_SIZES if on_gpu else CPU_SIZES)
        if name in ("openvino", "onnxruntime"):
            return _in_engine(name, precision, threads)
    except (BackendUnavailableError, ImportError) as error:
        return {"tflops": None, "reason": str(error), "by": name}
    return {"tflops": None, "reason": f"backend {backend!r} computes nothing", "by": name}


def _has_gpu(name: str) -> bool:
    from semo_sdk.backends import onnxruntime, torch

    return torch.has_cuda() if name == "torch" else onnxruntime.has_cuda()


def _in_torch(precision: str, device: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    rates = {}
    with torch.inference_mode():
        for size in sizes:
            multiply = _multiply(precision, device, size)
            seconds = []
            for _ in range(1 + REPEATS):
                wait()
                start = time.perf_counter()
                for _ in range(CHAIN):
                    multiply()
                wait()
                seconds.append((time.perf_counter() - start) / CHAIN)
            rates[size] = 2 * size**3 / min(seconds[1:]) / 1e12
    return _best(rates, f"torch {torch.__version__}")


def _multiply(precision: str, device: str, size: int) -> Callable[[], Any]:
    """One product of two square matrices; those of 8 bits are added up in int32 and float32, as engines do."""
    import torch

    from semo_sdk.backends.torch import torch_dtype

    a, b = torch.randn(2, size, size, device=device)
    if precision == "int8":
        a, b = (torch.clamp(32 * x, -127, 127).to(torch.int8) for x in (a, b))
        return lambda: torch._int_mm(a, b)
    if precision == "fp8":
        one = torch.ones((), device=device)
        a, b = (x.to(torch.float8_e4m3fn) for x in (a, b))
        return lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)
    a, b = (x.to(torch_dtype(precision)) for x in (a, b))
    return lambda: a @ b


def _in_engine(name: str, precision: str, threads: int | None) -> dict[str, Any]:
    from semo_sdk.backends.onnxruntime import OnnxRuntimeEngine
    from semo_sdk.backends.openvino import OpenVinoEngine

    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in CPU_SIZES:
            spec, path = _product(size, Path(folder))
            if name == "openvino":
                engine: Any = OpenVinoEngine(spec, path, precision=precision, threads=threads)
            elif precision == "fp32":
                engine = OnnxRuntimeEngine(spec, path, threads=threads)
            else:
                raise BackendUnavailableError(f"ONNX Runtime has no fast {precision} on a CPU")
            feeds = {"x": np.random.default_rng(0).standard_normal((size, size), np.float32)}
            seconds = []
            for _ in range(1 + REPEATS):
                start = time.perf_counter()
                engine(feeds)
                seconds.append((time.perf_counter() - start) / CHAIN)
            engine.close()
            rates[size] = 2 * size**3 / min(seconds[1:]) / 1e12
    return _best(rates, name)


def _product(size: int, folder: Path) -> tuple[GraphSpec, Path]:
    """``CHAIN`` products with fixed matrices, as an ONNX file."""
    from onnx import TensorProto, helper, numpy_helper, save

    spec = GraphSpec(
        "product",
        (TensorSpec("x", "float32", ("B", size)),),
        (TensorSpec("y", "float32", ("B", size)),),
        {"B": Axis(1, size, size)},
    )
    generator = np.random.default_rng(1)
    names = ["x", *(f"h{i}" for i in range(1, CHAIN)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(CHAIN)]
    weights = [generator.standard_normal((size, size), np.float32) / np.float32(size**0.5) for _ in range(CHAIN)]
    ports = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in (*spec.inputs, *spec.outputs)]
    constants = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "product", ports[:1], ports[1:], constants)
    path = folder / f"product{size}.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return spec, path


def _best(rates: dict[int, float], by: str) -> dict[str, Any]:
    if not rates:
        raise ConfigError("no size was measured")
    size = max(rates, key=lambda s: rates[s])
    return {"tflops": float(f"{rates[size]:.4g}"), "size": size, "by": by}
