"""A conformance kit for talking avatars: run it on any LiveKit ``VideoGenerator`` or Pipecat video service.

>>> report = asyncio.run(check_video_generator(lambda: MyGenerator(), options=AvatarOptions(...)))
>>> print(report)
>>> report.raise_for_failures()                                    # in a test

It needs the framework that it checks, and no model: the checks are those of :data:`CHECKS`.
"""

from __future__ import annotations

from semo_sdk.testing.checks import CHECKS
from semo_sdk.testing.kit import check_video_generator, check_video_service
from semo_sdk.testing.report import Check, ConformanceError, Report

__all__ = ["CHECKS", "Check", "ConformanceError", "Report", "check_video_generator", "check_video_service"]
