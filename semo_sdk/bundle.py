"""Bundles: what export writes and everything else reads.

A bundle is one flat folder::

    config.json            the model's SemoConfig
    weights.safetensors    the one copy of the weights
    <graph>.<precision>.onnx   five graphs, each small: their weights are references into weights.safetensors
    manifest.json          format, sha256 and size of each file, precisions, licence, provenance, metrics
    parity.json            how far each runtime's numbers are from torch
    README.md              the model card (not checked: it may be edited)

This module reads and verifies; ``semo_sdk.export`` writes. It needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semo_sdk.config import SemoConfig, parse_config
from semo_sdk.errors import BundleError, ConfigError

__all__ = ["FORMAT_VERSION", "Bundle", "FileEntry", "Manifest", "embedded_bundles", "graph_file", "sha256_file"]

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "manifest.json"
PARITY_FILE = "parity.json"
CARD_FILE = "README.md"

_EMBEDDED = Path(__file__).parent / "bundles"
_AGAIN = "copy or export the bundle again"
_MAKE_ONE = "make one with: semo export --checkpoint CHECKPOINT --out FOLDER"
_verified: dict[tuple[str, int, int], str] = {}  # (path, size, mtime in ns) -> sha256, for this process


class FileEntry(BaseModel):
    """Checksum and size in bytes of one file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(BaseModel):
    """Contents of ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int
    sdk_version: str
    name: str
    files: dict[str, FileEntry]
    precisions: tuple[str, ...]
    licence: str = ""
    provenance: dict[str, Any] = {}
    metrics: dict[str, Any] = {}


class Bundle:
    """A verified bundle on disk. Make one with :meth:`open`.

    Attributes:
        path: the folder.
        manifest: its manifest.
        config: the model's config.
    """

    def __init__(self, path: Path, manifest: Manifest, config: SemoConfig) -> None:
        self.path = path
        self.manifest = manifest
        self.config = config

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, name={self.manifest.name!r})"

    @classmethod
    def open(cls, source: str | Path | Bundle, *, verify: bool = True) -> Bundle:
        """Opens a bundle and verifies it.

        Args:
            source: a folder, the name of an embedded bundle ("semo-tiny"), or an open bundle (returned as it is).
            verify: compare sha256 sums too. Each file is hashed once per process; sizes are always compared.

        Raises:
            BundleError: no such bundle, or a missing, truncated, altered or foreign file; the message names it.
        """
        if isinstance(source, Bundle):
            return source
        path = _find(source)
        manifest = _read_manifest(path)
        for name, entry in manifest.files.items():
            _check_file(path / name, entry, verify=verify)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if name not in manifest.files:
                raise BundleError(f"bundle {path}: {MANIFEST_FILE} does not list {name}; {_MAKE_ONE}")
        try:
            config = parse_config((path / CONFIG_FILE).read_text(encoding="utf-8"), where=str(path / CONFIG_FILE))
        except ConfigError as error:
            raise BundleError(f"bundle {path}: {error}") from error
        return cls(path, manifest, config)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions of the graphs in this bundle."""
        return self.manifest.precisions

    @property
    def weights_path(self) -> Path:
        """The safetensors file: a checkpoint for torch, and the external data of the graphs."""
        return self.path / WEIGHTS_FILE

    @property
    def fingerprint(self) -> str:
        """sha256 over the checksums of all files: two bundles with the same fingerprint behave the same."""
        lines = (f"{name} {entry.sha256}" for name, entry in sorted(self.manifest.files.items()))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def graph_path(self, name: str, precision: str) -> Path:
        """The ONNX file of one graph.

        Raises:
            BundleError: the bundle has no such graph or precision; the message lists what it has.
        """
        file = graph_file(name, precision)
        if file not in self.manifest.files:
            graphs = sorted(f for f in self.manifest.files if f.endswith(".onnx"))
            raise BundleError(f"bundle {self.path} has no {file}; it has {', '.join(graphs) or 'no graphs'}")
        return self.path / file


def graph_file(name: str, precision: str) -> str:
    """File name of one graph in a bundle: ``render.fp16.onnx``."""
    return f"{name}.{precision}.onnx"


def embedded_bundles() -> Mapping[str, Path]:
    """The bundles that come with the package, by name."""
    if not _EMBEDDED.is_dir():
        return {}
    return {p.name: p for p in sorted(_EMBEDDED.iterdir()) if (p / MANIFEST_FILE).is_file()}


def sha256_file(path: Path) -> str:
    """sha256 of a file as 64 hexadecimal digits; remembered in this process until size or time change."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _verified:
        with path.open("rb") as file:
            _verified[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _verified[key]


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    embedded = embedded_bundles()
    if isinstance(source, str) and source in embedded:
        return embedded[source]
    if path.exists():
        raise BundleError(f"bundle {path} is a file; a bundle is a folder: {_MAKE_ONE}")
    names = ", ".join(embedded) or "none"
    raise BundleError(f"no bundle {str(source)!r}: no such folder, and embedded bundles are: {names}; {_MAKE_ONE}")


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST_FILE}; {_MAKE_ONE}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise BundleError(
                f"bundle {path}: format version {version!r}, this semo-sdk reads {FORMAT_VERSION}; "
                "update semo-sdk or export the bundle again"
            )
        manifest = Manifest.model_validate(data)
    except (OSError, ValueError) as error:  # ValidationError and JSONDecodeError are ValueErrors
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise BundleError(f"bundle {path}: {MANIFEST_FILE} cannot be read ({detail}); {_AGAIN}") from error
    for name in manifest.files:
        if name != Path(name).name or name in ("", ".", "..") or "\\" in name:
            raise BundleError(f"bundle {path}: {MANIFEST_FILE} lists {name!r}, which is no plain file name")
    return manifest


def _check_file(file: Path, entry: FileEntry, *, verify: bool) -> None:
    if not file.is_file():
        raise BundleError(f"bundle {file.parent}: {file.name} is missing; {_AGAIN}")
    size = file.stat().st_size
    if size != entry.size:
        raise BundleError(f"bundle {file.parent}: {file.name} has {size} bytes instead of {entry.size}; {_AGAIN}")
    if verify and sha256_file(file) != entry.sha256:
        raise BundleError(f"bundle {file.parent}: {file.name} was altered (sha256 differs from the manifest); {_AGAIN}")
