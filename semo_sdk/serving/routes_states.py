"""Routes of saved live sessions."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, File, Response, UploadFile
from pydantic import BaseModel

from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.errors import InputError
from semo_sdk.pipeline.state import StreamState
from semo_sdk.serving.auth import Owner
from semo_sdk.serving.problems import ApiError
from semo_sdk.serving.routes import read_upload
from semo_sdk.serving.schemas import Deleted
from semo_sdk.serving.service import Service
from semo_sdk.serving.states import StoredState

__all__ = ["states_router"]


class StateObject(BaseModel):
    """A saved live session: ``session.start`` with its ``state_id`` goes on from it."""

    id: str
    object: Literal["state"] = "state"
    created_at: int
    position: float
    waiting: float
    latency: str

    @classmethod
    def of(cls, stored: StoredState) -> StateObject:
        """How the API shows a state."""
        state = stored.state
        return cls(
            id=stored.id,
            created_at=stored.created_at,
            position=state.time,
            waiting=len(state.pending) / SAMPLE_RATE,
            latency=state.latency,
        )


class StateList(BaseModel):
    """The key's states."""

    object: Literal["list"] = "list"
    data: list[StateObject]


def read_state(data: bytes, service: Service) -> StreamState:
    """A state that was downloaded from this server or another one with the same model.

    Raises:
        InputError: of another model.
        ApiError: damaged, altered, or with parts that a server never saves.
    """
    try:
        state = StreamState.from_bytes(data)
    except InputError as error:  # its words may quote what is inside
        raise ApiError(400, "invalid_state", "not a saved state, or a damaged one", param="state") from error
    if len(state.inlet):
        raise ApiError(400, "invalid_state", "only states saved by a server can be uploaded", param="state")
    return state.check(service.engine.graphs.config)


def states_router(service: Service) -> APIRouter:
    """``/v1/states``."""
    router = APIRouter(prefix="/v1/states", tags=["live"])
    states, settings = service.states, service.settings

    @router.post("", status_code=201)
    async def upload_state(
        who: Owner, state: Annotated[UploadFile, File(description="the content of a saved state")]
    ) -> StateObject:
        """Bring a live session from another server with the same model."""
        data = await read_upload(state, settings.state_bytes, "state")
        found = await service.decode(read_state, data, service)
        return StateObject.of(await service.decode(states.add, found, who))

    @router.get("")
    def list_states(who: Owner) -> StateList:
        """All states of this key."""
        return StateList(data=[StateObject.of(stored) for stored in states.of(who)])

    @router.get("/{state_id}")
    def get_state(state_id: str, who: Owner) -> StateObject:
        """One state."""
        return StateObject.of(states.get(state_id, who))

    @router.get(
        "/{state_id}/content",
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {}}, "description": "motion and sound, .npz"}},
    )
    def state_content(state_id: str, who: Owner) -> Response:
        """The state itself, to keep or to bring elsewhere. It holds the last 2.6 seconds of speech."""
        return Response(states.get(state_id, who).state.to_bytes(), media_type="application/octet-stream")

    @router.delete("/{state_id}")
    def delete_state(state_id: str, who: Owner) -> Deleted:
        """Forget a state."""
        states.remove(state_id, who)
        return Deleted(id=state_id, object="state")

    return router
