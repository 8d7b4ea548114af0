"""Which replica gets a request: that of its ``X-Session-Id``, or the one with less to do."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

__all__ = ["SessionRouter"]


class SessionRouter(ConsistentHashRouter):
    """Requests that name a session (header ``X-Session-Id``) go to the replica that its hash falls on, as long as that
    lives and has room; :class:`~semo_sdk.serving.client.Client` sends one with everything about video jobs. Live
    sessions name none: each goes to the less busy of two replicas, and stays there as long as its web socket lives."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Replicas to try, rank by rank; of a rank the one with the shortest queue."""
        if pending_request is None or pending_request.metadata.session_id or not candidate_replicas:
            ranked: list[list[Any]] = await super().choose_replicas(candidate_replicas, pending_request)
            return ranked
        pending_request.routing_context.should_backoff = True
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
