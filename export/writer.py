"""Writes bundles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from semo_sdk.bundle import CARD_FILE, CONFIG_FILE, FORMAT_VERSION, MANIFEST_FILE, sha256_file
from semo_sdk.config import SemoConfig
from semo_sdk.errors import BundleError
from semo_sdk.files import replacing_folder, write_text


def sdk_version() -> str:
    """Installed version of semo-sdk."""
    try:
        return version("semo-sdk")
    except PackageNotFoundError:
        return "0+unknown"


@contextmanager
def bundle_folder(out: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends well, and disappears when it does not.

    Args:
        out: the bundle's folder.
        force: replace an existing bundle. Anything else that exists is never replaced.

    Raises:
        BundleError: ``out`` exists and may not be replaced.
    """
    out = Path(out).absolute()
    check_replaceable(out, force, MANIFEST_FILE, "is no bundle")
    with replacing_folder(out) as folder:
        yield folder
        check_replaceable(out, force, MANIFEST_FILE, "is no bundle")


def write_manifest(
    folder: Path,
    config: SemoConfig,
    *,
    precisions: Sequence[str],
    licence: str,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Writes ``config.json`` and then ``manifest.json``, which lists all files but itself and the card."""
    write_text(folder / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name not in (MANIFEST_FILE, CARD_FILE))
    mode = (folder / CONFIG_FILE).stat().st_mode
    for path in files:
        path.chmod(mode)  # safetensors writes for the owner only
    manifest = {
        "format_version": FORMAT_VERSION,
        "sdk_version": sdk_version(),
        "name": config.name,
        "files": {p.name: {"sha256": sha256_file(p), "size": p.stat().st_size} for p in files},
        "precisions": list(precisions),
        "licence": licence,
        "provenance": dict(provenance),
        "metrics": dict(metrics),
    }
    write_text(folder / MANIFEST_FILE, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def check_replaceable(out: Path, force: bool, mark: str, otherwise: str) -> None:
    """Whether a folder may be written: it is new or empty, or ``force`` is given and it is what is written here.

    Args:
        out: the folder. force: replace it.
        mark: a file that only such a folder has. otherwise: what to say of one without.

    Raises:
        BundleError: it may not.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise BundleError(f"{out} exists already; choose another folder or pass force (--force) to replace it")
    if not (out / mark).is_file():
        raise BundleError(f"{out} {otherwise}, so it is not replaced; choose another folder")
