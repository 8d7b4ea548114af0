"""Checkpoint to bundle, with numeric parity. Installed as ``semo_sdk.export``; needs the extra ``export``."""

from __future__ import annotations

from semo_sdk.export.bundle import export_bundle
from semo_sdk.export.parity import ParityReport

__all__ = ["ParityReport", "export_bundle"]
