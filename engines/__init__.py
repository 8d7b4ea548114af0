"""Bundle to engines: TensorRT and TensorRT-RTX compile graphs for a GPU. Installed as ``semo_sdk.engines``.

``recipes`` says what to build for which GPU, ``plan`` derives profiles and keys, ``compile`` talks to TensorRT,
``check`` compares numbers and falls back, ``build`` does all of it. For int8 and fp8, ``calibrate`` records what the
graphs meet, ``quantize`` rewrites them, ``draft`` decides which of it may be built. What an engine set on disk is, and
whether it may be used, stands in ``semo_sdk.backends.engine_files``; what runs it in ``semo_sdk.backends.tensorrt``.

OpenVINO, ONNX Runtime and torch compile in memory at first use and keep nothing on disk.
"""

from __future__ import annotations

from semo_sdk.engines.build import BuildReport, build_engines

__all__ = ["BuildReport", "build_engines"]
