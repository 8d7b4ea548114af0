"""The cluster's memory: uploaded portraits and saved sessions, in one actor on the head node, seen by every replica."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from semo_sdk.errors import CapacityError, SemoError
from semo_sdk.media.image import Portrait
from semo_sdk.pipeline.state import StreamState
from semo_sdk.serving.portraits import DEFAULT, Portraits, StoredPortrait
from semo_sdk.serving.states import States, StoredState

__all__ = ["SharedPortraits", "SharedStates", "Store", "StoreHandle", "open_store"]

NAMESPACE = "semo"
HEAD = "node:__internal_head__"  # a resource that Ray gives the head node alone
ANSWER_SECONDS = 5.0
RETRY_SECONDS = 2.0

Plain = tuple[str, str, Portrait | None, int]  # a stored portrait as it travels; None: the asker has it


class Store:
    """What the actor runs: the stores of a single server, asked from afar.

    Args:
        portraits, portraits_per_key: as in :class:`~semo_sdk.serving.settings.Settings`, for the whole cluster.
        states, states_per_key: likewise.
    """

    def __init__(self, portraits: int, portraits_per_key: int, states: int, states_per_key: int) -> None:
        self.portraits = Portraits(portraits, portraits_per_key)
        self.states = States(states, states_per_key)

    def ask(self, method: str, *arguments: Any) -> tuple[Any, tuple[type, tuple[Any, ...], dict[str, Any]] | None]:
        """Calls a method. An error comes back as its parts: pickle cannot rebuild those whose makers take more than a
        message."""
        try:
            return getattr(self, method)(*arguments), None
        except SemoError as error:
            return None, (type(error), error.args, vars(error))

    def add_portrait(self, portrait: Portrait, owner: str) -> Plain:
        """See :meth:`Portraits.add`."""
        stored = self.portraits.add(portrait, owner)
        return stored.id, owner, None, stored.created_at

    def get_portrait(self, name: str, owner: str, known: bool) -> Plain:
        """See :meth:`Portraits.get`; without the picture if the asker has it."""
        stored = self.portraits.get(name, owner)
        return stored.id, stored.owner, None if known else stored.portrait, stored.created_at

    def names(self, owner: str) -> list[str]:
        """Of an owner's portraits."""
        return [stored.id for stored in self.portraits.of(owner)]

    def remove_portrait(self, name: str, owner: str) -> None:
        """See :meth:`Portraits.remove`."""
        self.portraits.remove(name, owner)

    def add_state(self, state: StreamState, owner: str, replaces: str | None) -> StoredState:
        """See :meth:`States.add`."""
        return self.states.add(state, owner, replaces)

    def get_state(self, name: str, owner: str) -> StoredState:
        """See :meth:`States.get`."""
        return self.states.get(name, owner)

    def states_of(self, owner: str) -> list[StoredState]:
        """See :meth:`States.of`."""
        return self.states.of(owner)

    def remove_state(self, name: str, owner: str) -> None:
        """See :meth:`States.remove`."""
        self.states.remove(name, owner)


class StoreHandle:
    """Asks the actor.

    Args:
        actor: a Ray handle of a :class:`Store`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def ask(self, method: str, *arguments: Any) -> Any:
        """The actor's answer. Blocks: not for an event loop's thread.

        Raises:
            CapacityError: it does not answer now.
            SemoError: what the method raised.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        try:
            answer, error = ray.get(self._actor.ask.remote(method, *arguments), timeout=ANSWER_SECONDS)
        except (GetTimeoutError, RayActorError) as failure:
            raise CapacityError("the cluster's store does not answer; try again", RETRY_SECONDS) from failure
        if error is not None:
            kind, args, fields = error
            rebuilt: SemoError = kind.__new__(kind, *args)
            rebuilt.__dict__.update(fields)
            raise rebuilt
        return answer


def open_store(name: str, *limits: int) -> StoreHandle:
    """The application's store; the first replica makes it.

    It lives on the head node, whose loss ends the cluster anyway, and longer than any replica. Ray restarts it when it
    crashes, empty.

    Args:
        name: of the application.
        limits: of :class:`Store`.
    """
    import ray

    actor = ray.remote(Store).options(
        name=f"semo-store-{name}",
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        resources={HEAD: 0.001},
        max_restarts=-1,
    )
    return StoreHandle(actor.remote(*limits))


class SharedPortraits(Portraits):
    """Portraits that every replica of the cluster sees. The operator's own is a part of each replica.

    Args:
        store: of the cluster.
        kept: portraits whose picture, and what the model makes of it, stay here after use.
    """

    def __init__(self, store: StoreHandle, kept: int = 64) -> None:
        super().__init__(1, 1)
        self._store, self._kept = store, kept
        self._cache: OrderedDict[str, StoredPortrait] = OrderedDict()
        self._guard = threading.Lock()

    def add(self, portrait: Portrait, owner: str, name: str | None = None) -> StoredPortrait:
        """See :meth:`Portraits.add`."""
        if name is not None:
            return super().add(portrait, owner, name)
        key, owner, _, created_at = self._store.ask("add_portrait", portrait, owner)
        return self._keep(StoredPortrait(key, owner, portrait, created_at))

    def get(self, name: str, owner: str) -> StoredPortrait:
        """See :meth:`Portraits.get`."""
        if name == DEFAULT:
            return super().get(name, owner)
        with self._guard:
            known = self._cache.get(name)
        key, whose, portrait, created_at = self._store.ask("get_portrait", name, owner, known is not None)
        return self._keep(known or StoredPortrait(key, whose, portrait, created_at))

    def of(self, owner: str) -> list[StoredPortrait]:
        """See :meth:`Portraits.of`."""
        return [*super().of(owner), *(self.get(name, owner) for name in self._store.ask("names", owner))]

    def remove(self, name: str, owner: str) -> None:
        """See :meth:`Portraits.remove`."""
        if name == DEFAULT:
            super().remove(name, owner)
        self._store.ask("remove_portrait", name, owner)
        with self._guard:
            self._cache.pop(name, None)

    def _keep(self, stored: StoredPortrait) -> StoredPortrait:
        with self._guard:
            kept = self._cache.pop(stored.id, stored)
            self._cache[stored.id] = kept
            if len(self._cache) > self._kept:
                self._cache.popitem(last=False)
            return kept


class SharedStates(States):
    """Saved sessions that every replica of the cluster sees.

    Args:
        store: of the cluster.
    """

    remote = True

    def __init__(self, store: StoreHandle) -> None:
        super().__init__(1, 1)
        self._store = store

    def add(self, state: StreamState, owner: str, replaces: str | None = None) -> StoredState:
        """See :meth:`States.add`."""
        stored: StoredState = self._store.ask("add_state", state, owner, replaces)
        return stored

    def get(self, name: str, owner: str) -> StoredState:
        """See :meth:`States.get`."""
        stored: StoredState = self._store.ask("get_state", name, owner)
        return stored

    def of(self, owner: str) -> list[StoredState]:
        """See :meth:`States.of`."""
        stored: list[StoredState] = self._store.ask("states_of", owner)
        return stored

    def remove(self, name: str, owner: str) -> None:
        """See :meth:`States.remove`."""
        self._store.ask("remove_state", name, owner)
