"""Engines: whatever runs a bundle's graphs, behind one protocol."""

from __future__ import annotations

from semo_sdk.backends.base import Arrays, Engine, GraphSpec, graph_specs
from semo_sdk.backends.fake import FakeEngine
from semo_sdk.backends.info import BackendInfo
from semo_sdk.backends.select import EngineSet, available_backends, fake_engines, load_engines

__all__ = [
    "Arrays",
    "BackendInfo",
    "Engine",
    "EngineSet",
    "FakeEngine",
    "GraphSpec",
    "available_backends",
    "fake_engines",
    "graph_specs",
    "load_engines",
]
