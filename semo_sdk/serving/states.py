"""Live sessions that were saved, to go on later or on another server. In memory only, each seen by its owner alone."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from semo_sdk.errors import CapacityError
from semo_sdk.pipeline.state import StreamState
from semo_sdk.serving.problems import ApiError

__all__ = ["States", "StoredState"]

RETRY_SECONDS = 30.0


@dataclass(frozen=True, eq=False)
class StoredState:
    """A saved session with its name and its owner."""

    id: str
    owner: str
    state: StreamState
    created_at: int


class States:
    """The store.

    Attributes:
        remote: whether it is in another process: to ask it takes time.

    Args:
        total: states altogether.
        per_owner: of one owner; the oldest makes room.
    """

    remote = False

    def __init__(self, total: int, per_owner: int) -> None:
        self._total, self._per_owner = total, per_owner
        self._lock = threading.Lock()
        self._stored: OrderedDict[str, StoredState] = OrderedDict()  # the oldest first

    def add(self, state: StreamState, owner: str, replaces: str | None = None) -> StoredState:
        """Keeps a state, in the place of the owner's state ``replaces`` if there is one.

        Raises:
            CapacityError: the store is full.
        """
        stored = StoredState(f"state_{secrets.token_hex(12)}", owner, state, int(time.time()))
        with self._lock:
            former = self._stored.get(replaces or "")
            if former is not None and former.owner == owner:
                del self._stored[former.id]
            mine = [name for name, other in self._stored.items() if other.owner == owner]
            if len(mine) >= self._per_owner:
                del self._stored[mine[0]]
            elif len(self._stored) >= self._total:
                raise CapacityError("no room for another state", RETRY_SECONDS)
            self._stored[stored.id] = stored
        return stored

    def get(self, name: str, owner: str) -> StoredState:
        """A state of this owner.

        Raises:
            ApiError: there is none, or it is not theirs (404 either way).
        """
        with self._lock:
            found = self._stored.get(name)
        if found is None or found.owner != owner:
            raise ApiError(404, "state_not_found", "no such state; it was deleted, pushed out, or never saved here")
        return found

    def of(self, owner: str) -> list[StoredState]:
        """All of this owner, the oldest first."""
        with self._lock:
            return [found for found in self._stored.values() if found.owner == owner]

    def remove(self, name: str, owner: str) -> None:
        """Forgets a state of this owner.

        Raises:
            ApiError: there is none, or it is not theirs.
        """
        self.get(name, owner)
        with self._lock:
            self._stored.pop(name, None)
