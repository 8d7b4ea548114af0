"""Many videos from one manifest: resumable, each whole or not at all, on this machine or on a Ray cluster.

>>> report = run_batch("manifest.jsonl", "videos", progress=True)
>>> report.made, report.failed, report.ok
"""

from __future__ import annotations

from semo_sdk.batch.cluster import Workers
from semo_sdk.batch.manifest import Item, ItemSettings, read_manifest
from semo_sdk.batch.renderer import Model
from semo_sdk.batch.report import Failure, Report, Result
from semo_sdk.batch.run import run_batch

__all__ = ["Failure", "Item", "ItemSettings", "Model", "Report", "Result", "Workers", "read_manifest", "run_batch"]
