"""What the conformance kit found."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

__all__ = ["Check", "ConformanceError", "Report"]


class ConformanceError(AssertionError):
    """A check failed; the message is the report."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: of :data:`semo_sdk.testing.CHECKS`.
        ok: whether it passed.
        detail: what was measured, or what was wrong.
        seconds: that it took.
    """

    name: str
    ok: bool
    detail: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """All checks of one subject, in order.

    Attributes:
        subject: class that was checked.
        framework: ``"livekit"`` or ``"pipecat"``, with its version.
        checks: what was found.
    """

    subject: str
    framework: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(check.ok for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if not check.ok)

    def raise_for_failures(self) -> None:
        """For tests.

        Raises:
            ConformanceError: a check failed.
        """
        if not self.ok:
            raise ConformanceError(str(self))

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({**asdict(self), "ok": self.ok}, indent=2)

    def __str__(self) -> str:
        lines = [f"{self.subject} ({self.framework}): {'conforms' if self.ok else 'DOES NOT CONFORM'}"]
        for check in self.checks:
            lines.append(f"  {'ok  ' if check.ok else 'FAIL'} {check.name:<12} {check.detail} ({check.seconds:.1f} s)")
        return "\n".join(lines)
