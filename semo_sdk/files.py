"""Files and folders that appear under their name only when they are complete."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{kind}-{secrets.token_hex(4)}-{path.name}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name, with the same suffix, for a file to write.

    The file takes the place of ``path`` when the block ends well, and disappears when it does not. Its folder must
    exist.
    """
    temporary = _beside(Path(path), "tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``path`` when the block ends well, and disappears when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = _beside(path, "tmp")
    folder.mkdir()
    try:
        yield folder
        old = _beside(path, "old")
        if path.exists():
            path.rename(old)
        folder.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file (UTF-8), see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
