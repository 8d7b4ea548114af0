"""When a compiled engine may be used again: its key.

OpenVINO, ONNX Runtime and torch compile in memory at first use and keep nothing on disk, so nothing is stored yet.
Whatever stores a compiled engine names it by :func:`semo_sdk.engines.key.engine_key` and takes it back only under
the same key; "the file exists" says nothing.
"""
