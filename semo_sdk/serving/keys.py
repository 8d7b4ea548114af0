"""API keys: 256 random bits each, only their hashes on disk, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from semo_sdk.errors import ConfigError
from semo_sdk.files import replacing

__all__ = ["ANYBODY", "Keys", "add_key"]

PREFIX = "semo_"
ANYBODY = "local"  # the owner of everything on a server without keys
RELOAD_SECONDS = 1.0


class Keys:
    """Who may ask.

    Args:
        path: file that :func:`add_key` writes; it is read again when it changes, so a key that is deleted from it stops
            working at once. None: nobody needs a key.

    Raises:
        ConfigError: not such a file, or without keys.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._checked = 0.0
        self._stamp = 0
        self._hashes: dict[str, bytes] = {}
        if path is not None:
            self._read()
            if not self._hashes:
                raise ConfigError(f"{path} holds no keys; make one with `semo keys add NAME --keys {path}`")

    @property
    def needed(self) -> bool:
        """Whether a request needs a key."""
        return self._path is not None

    def owner(self, key: str | None) -> str | None:
        """Identifier of a key's owner, None if the key is not one of ours."""
        if self._path is None:
            return ANYBODY
        with self._lock:
            if time.monotonic() - self._checked > RELOAD_SECONDS:
                self._read()
            hashes = dict(self._hashes)
        given = _hash(key or "")
        found = None
        for name, known in hashes.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(given, known):
                found = name
        return found

    def _read(self) -> None:
        assert self._path is not None
        self._checked = time.monotonic()
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp == self._stamp:
                return
            self._hashes = {entry["id"]: bytes.fromhex(entry["sha256"]) for entry in _entries(self._path)}
            self._stamp = stamp
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._hashes = {}
            if not self._stamp:
                raise ConfigError(f"{self._path}: not a file of API keys ({error})") from error


def add_key(path: Path, name: str) -> str:
    """Makes a key, and the file if there is none (readable by its owner only).

    Args:
        path: the file.
        name: whom it is for; for people.

    Returns:
        The key. It is not stored: only its hash is.

    Raises:
        ConfigError: the file cannot be read or written.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        entries = _entries(path) if path.exists() else []
        entry = {"id": f"key_{secrets.token_hex(8)}", "name": name, "sha256": _hash(key).hex()}
        content = {"keys": [*entries, {**entry, "created_at": int(time.time())}]}
        with replacing(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: the key cannot be added ({error})") from error
    return key


def _entries(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8"))["keys"])


def _hash(key: str) -> bytes:
    # Keys are random, not chosen by people: there is nothing that a slow hash would protect.
    return hashlib.sha256(key.encode()).digest()
