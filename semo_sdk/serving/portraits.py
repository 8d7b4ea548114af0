"""Portraits that were uploaded once, to be used again. In memory only, each seen by its owner alone."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from semo_sdk.errors import CapacityError
from semo_sdk.media.image import Portrait
from semo_sdk.pipeline.reference import Reference
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.problems import ApiError

__all__ = ["DEFAULT", "Portraits", "StoredPortrait"]

DEFAULT = "default"  # the operator's portrait, for everybody
RETRY_SECONDS = 30.0


@dataclass(eq=False)
class StoredPortrait:
    """A portrait with its name and its owner; the model's part of it is computed once."""

    id: str
    owner: str
    portrait: Portrait
    created_at: int
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _reference: Reference | None = None

    def reference(self, engine: Engine) -> Reference:
        """What the model keeps of it; the first call waits for the engine.

        Raises:
            EngineError: the engine failed.
        """
        with self._lock:
            if self._reference is None:
                self._reference = engine.encode(self.portrait)
            return self._reference


class Portraits:
    """The store.

    Args:
        total: portraits altogether.
        per_owner: of one owner; the one used least recently makes room.
    """

    def __init__(self, total: int, per_owner: int) -> None:
        self._total, self._per_owner = total, per_owner
        self._lock = threading.Lock()
        self._stored: OrderedDict[str, StoredPortrait] = OrderedDict()  # the one used least recently first

    def add(self, portrait: Portrait, owner: str, name: str | None = None) -> StoredPortrait:
        """Keeps a portrait.

        Args:
            portrait: the photo and its face.
            owner: whose it is.
            name: only for the operator's; others get a random one.

        Raises:
            CapacityError: the store is full.
        """
        stored = StoredPortrait(name or f"portrait_{secrets.token_hex(12)}", owner, portrait, int(time.time()))
        with self._lock:
            mine = [key for key, other in self._stored.items() if other.owner == owner and key != DEFAULT]
            if len(mine) >= self._per_owner:
                del self._stored[mine[0]]
            elif len(self._stored) >= self._total:
                raise CapacityError("no room for another portrait", RETRY_SECONDS)
            self._stored[stored.id] = stored
        return stored

    def get(self, name: str, owner: str) -> StoredPortrait:
        """A portrait of this owner, or the operator's.

        Raises:
            ApiError: there is none, or it is not theirs (404 either way).
        """
        with self._lock:
            found = self._stored.get(name)
            if found is None or (found.owner != owner and name != DEFAULT):
                raise ApiError(404, "portrait_not_found", "no such portrait; upload it again", param="portrait_id")
            self._stored.move_to_end(name)
            return found

    def of(self, owner: str) -> list[StoredPortrait]:
        """All that this owner can use."""
        with self._lock:
            return [found for found in self._stored.values() if found.owner == owner or found.id == DEFAULT]

    def remove(self, name: str, owner: str) -> None:
        """Forgets a portrait of this owner.

        Raises:
            ApiError: there is none, or it is not theirs.
        """
        stored = self.get(name, owner)
        if stored.id == DEFAULT:
            raise ApiError(403, "not_yours", "the default portrait belongs to the server", param="portrait_id")
        with self._lock:
            self._stored.pop(name, None)
