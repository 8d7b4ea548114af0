"""Writes engine sets: everything goes to a temporary name beside the target, which is then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, then renames it."""
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_for(target: Path) -> Iterator[Path]:
    """A temporary folder that takes ``target``'s place when the block ends well, and disappears when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
        old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
        if target.exists():
            target.rename(old)
        folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
