"""What a file says about itself: its C2PA manifest and its watermark."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semo_sdk.bundle import embedded_bundles
from semo_sdk.errors import ConfigError, VideoError
from semo_sdk.provenance.code import model_number
from semo_sdk.provenance.detect import Detection, detect
from semo_sdk.provenance.manifest import Manifest, read_manifest

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        path: the file.
        manifest: its C2PA manifest, None if it has none.
        watermark: the best trace of a watermark; ``watermark.found`` says whether it is one.
    """

    path: str
    manifest: Manifest | None
    watermark: Detection

    @property
    def ai_generated(self) -> bool:
        """Whether a valid manifest says so, or a watermark of semo-sdk was found."""
        said = self.manifest is not None and self.manifest.valid and self.manifest.ai_generated
        return said or self.watermark.found

    @property
    def ok(self) -> bool:
        """Whether it is marked as AI-generated, and its manifest, if it has one, is valid."""
        return self.ai_generated and (self.manifest is None or self.manifest.valid)

    @property
    def model(self) -> str:
        """Name of the model that the watermark names, or its number where the name is not known; empty without one."""
        payload = self.watermark.payload
        if payload is None:
            return ""
        known = [*embedded_bundles(), *([self.manifest.model] if self.manifest else [])]
        return next((name for name in known if model_number(name) == payload.model), f"number {payload.model}")

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        mark, payload = self.watermark, self.watermark.payload
        return {
            "file": self.path,
            "ok": self.ok,
            "ai_generated": self.ai_generated,
            "manifest": asdict(self.manifest) if self.manifest else None,
            "watermark": {
                "found": mark.found,
                "score": round(mark.score, 2),
                "false_alarm": mark.false_alarm,
                "readable": payload is not None,
                "version": payload.version if payload else None,
                "model_number": payload.model if payload else None,
                "model": self.model or None,
                "zoom": round(mark.zoom, 3),
                "frames": mark.frames,
            },
        }

    def __str__(self) -> str:
        return "\n".join((f"{self.path}: {self._summary()}", *self._about_manifest(), *self._about_watermark()))

    def _summary(self) -> str:
        if self.manifest is not None and not self.manifest.valid:
            return "its manifest is INVALID: the file was changed, or the manifest is not its own"
        if self.ai_generated:
            return "AI-generated"
        return "no mark that says AI-generated was found; that does not show that it is real"

    def _about_manifest(self) -> list[str]:
        manifest = self.manifest
        if manifest is None:
            return ["  manifest: none"]
        if not manifest.valid:
            return ["  manifest: INVALID", *(f"    {problem}" for problem in manifest.problems)]
        if manifest.trusted:
            signed = f"signed by {manifest.signer}, whom you trust"
        elif manifest.local:
            signed = (
                "signed by a key that semo-sdk made for its user: not on a trust list, says nothing about who it was"
            )
        else:
            signed = f"signed in the name of {manifest.signer or 'nobody'}: not on a trust list, so that is not proven"
        says = "says AI-generated" if manifest.ai_generated else "does not say AI-generated"
        lines = [f"  manifest: valid, {says}; {signed}"]
        if manifest.generator:
            lines.append(f"    written by {manifest.generator}")
        if manifest.model:
            checksum = f", bundle sha256 {manifest.checksum}" if manifest.checksum else ""
            lines.append(f"    model {manifest.model}{checksum}")
        return lines

    def _about_watermark(self) -> list[str]:
        mark = self.watermark
        if not mark.found:
            return [f"  watermark: none found in {mark.frames} frames (score {mark.score:.1f})"]
        odds = f"score {mark.score:.1f}, false alarm below {max(mark.false_alarm, 1e-99):.0e}"
        told = f"model {self.model}" if self.model else "its payload cannot be read"
        return [f"  watermark: found ({odds}); {told}"]


def verify(path: str | os.PathLike[str], *, trust: str | os.PathLike[str] | None = None) -> Verification:
    """Reads a file's C2PA manifest and looks for the watermark of semo-sdk in its frames.

    A mark shows that somebody used semo-sdk, or wanted it to look so: the watermark's key is public. That no mark is
    found shows nothing: it can be removed.

    Args:
        path: of a video, or of one picture.
        trust: PEM file of root certificates that you trust, beside those that c2pa-python knows.

    Returns:
        What was found; ``str()`` of it says it in words.

    Raises:
        VideoError: not a file that ffmpeg can read.
        ConfigError: ``trust`` cannot be read.
        MissingDependencyError: c2pa-python does not work here.
    """
    from semo_sdk.media.video import read_video

    roots = ""
    if trust is not None:
        try:
            roots = Path(trust).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{os.fspath(trust)!r} cannot be read as a PEM file: {error}") from error
    found = detect(read_video(path))
    if found is None:
        raise VideoError(f"{os.fspath(path)}: no frames")
    return Verification(os.fspath(path), read_manifest(Path(path), roots=roots), found)
