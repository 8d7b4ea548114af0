"""What became of a batch, item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from semo_sdk.batch.manifest import Item
from semo_sdk.files import write_text

__all__ = ["Failure", "Report", "Result"]

Status = Literal["made", "skipped", "failed", "not_run"]


class Failure(BaseModel):
    """Why there is no video: name of the error (see :mod:`semo_sdk.errors`), and what to do about it."""

    model_config = ConfigDict(frozen=True)

    type: str
    message: str


class Result(BaseModel):
    """What became of one item.

    Attributes:
        line: of the manifest.
        output: name inside the output folder.
        status: ``made``; ``skipped``: the same video was there; ``failed``; ``not_run``: the batch ended before.
        frames: of the video, if there is one.
        seconds: that it took, checking included.
        attempts: workers that tried; more than one if workers died.
        error: of a failed one.
    """

    model_config = ConfigDict(frozen=True)

    line: int
    output: str
    status: Status
    frames: int | None = None
    seconds: float = 0.0
    attempts: int = 1
    error: Failure | None = None

    @classmethod
    def failed(cls, item: Item, error: BaseException, seconds: float = 0.0, attempts: int = 1) -> Result:
        """A failed one."""
        failure = Failure(type=type(error).__name__, message=str(error))
        return cls(
            line=item.line,
            output=item.output,
            status="failed",
            seconds=round(seconds, 3),
            attempts=attempts,
            error=failure,
        )


class Report(BaseModel):
    """What became of all items, in the manifest's order."""

    model_config = ConfigDict(frozen=True)

    manifest: str
    out_dir: str
    seconds: float
    items: list[Result]

    def count(self, status: Status) -> int:
        """How many items have this status."""
        return sum(item.status == status for item in self.items)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def made(self) -> int:
        """Videos made now."""
        return self.count("made")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def skipped(self) -> int:
        """Videos that were there already."""
        return self.count("skipped")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def failed(self) -> int:
        """Items without a video."""
        return self.count("failed")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def frames(self) -> int:
        """Frames made now."""
        return sum(item.frames or 0 for item in self.items if item.status == "made")

    @property
    def ok(self) -> bool:
        """Whether every item has its video."""
        return self.made + self.skipped == len(self.items)

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    def summary(self) -> str:
        """For people: counts, then the failures."""
        lines = [
            f"{self.made} made, {self.skipped} were there, {self.failed} failed, of {len(self.items)}; "
            f"{self.frames} frames in {self.seconds:.1f} s"
        ]
        lines += [
            f"line {item.line}, {item.output}: {item.error.type}: {item.error.message}"
            for item in self.items
            if item.error is not None
        ]
        return "\n".join(lines)
