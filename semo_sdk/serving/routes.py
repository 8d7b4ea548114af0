"""Routes of portraits, videos and WebRTC."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Response, UploadFile
from fastapi.responses import FileResponse, StreamingResponse

from semo_sdk.serving.auth import Owner
from semo_sdk.serving.portraits import DEFAULT, StoredPortrait
from semo_sdk.serving.problems import ApiError
from semo_sdk.serving.protocol import Offer, Style
from semo_sdk.serving.schemas import (
    Control,
    Deleted,
    PortraitList,
    PortraitObject,
    VideoList,
    VideoObject,
    WebRTCAnswer,
    WebRTCConfig,
)
from semo_sdk.serving.service import Service
from semo_sdk.serving.uploads import read_audio, read_portrait
from semo_sdk.serving.webrtc import Peers

__all__ = ["portraits_router", "videos_router", "webrtc_router"]

PROGRESS_SECONDS = 0.25  # between two looks at a job
FaceIndex = Annotated[int | None, Form(ge=0, le=100, description="which face: 0 is the largest")]


async def read_upload(upload: UploadFile, limit: int, param: str) -> bytes:
    """A file of a form.

    Raises:
        ApiError: too large, or empty.
    """
    data = await upload.read(limit + 1)
    if len(data) > limit:
        raise ApiError(413, f"{param}_too_large", f"the {param} may have {limit} bytes", param=param)
    if not data:
        raise ApiError(400, "empty_file", f"the {param} is empty", param=param)
    return data


def portraits_router(service: Service) -> APIRouter:
    """``/v1/portraits``."""
    router = APIRouter(prefix="/v1/portraits", tags=["portraits"])
    settings, portraits = service.settings, service.portraits

    @router.post("", status_code=201)
    async def upload_portrait(
        who: Owner,
        image: Annotated[UploadFile, File(description="JPEG, PNG or WebP with a face")],
        face_index: FaceIndex = None,
    ) -> PortraitObject:
        """Upload a portrait once, use it in any number of videos and live sessions. Kept in memory only."""
        data = await read_upload(image, settings.image_bytes, "image")
        portrait = await service.decode(read_portrait, data, settings.image_pixels, face_index)
        return PortraitObject.of(await service.decode(portraits.add, portrait, who))

    @router.get("")
    def list_portraits(who: Owner) -> PortraitList:
        """All portraits that this key can use."""
        return PortraitList(data=[PortraitObject.of(stored) for stored in portraits.of(who)])

    @router.get("/{portrait_id}")
    def get_portrait(portrait_id: str, who: Owner) -> PortraitObject:
        """One portrait."""
        return PortraitObject.of(portraits.get(portrait_id, who))

    @router.delete("/{portrait_id}")
    def delete_portrait(portrait_id: str, who: Owner) -> Deleted:
        """Forget a portrait. Sessions and jobs that use it go on."""
        portraits.remove(portrait_id, who)
        return Deleted(id=portrait_id, object="portrait")

    return router


def videos_router(service: Service) -> APIRouter:
    """``/v1/videos``."""
    router = APIRouter(prefix="/v1/videos", tags=["videos"])
    settings, videos = service.settings, service.videos

    @router.post("", status_code=202)
    async def create_video(
        response: Response,
        who: Owner,
        audio: Annotated[UploadFile, File(description="speech: WAV, FLAC, Ogg, MP3, AAC, MP4 or WebM")],
        image: Annotated[UploadFile | None, File(description="JPEG, PNG or WebP with a face")] = None,
        portrait_id: Annotated[str | None, Form(max_length=64, description="instead of an image")] = None,
        face_index: FaceIndex = None,
        latency: Annotated[Literal["quality", "balanced", "low"], Form()] = "quality",
        seed: Annotated[int, Form(ge=0, le=2**64 - 1)] = 0,
        expressiveness: Annotated[float | None, Form(ge=0, le=10)] = None,
        head_motion: Annotated[float | None, Form(ge=0, le=2)] = None,
        blink: Annotated[float | None, Form(ge=0, le=1)] = None,
        paste_back: Annotated[bool, Form(description="the whole photo, not only its face")] = False,
    ) -> VideoObject:
        """A portrait and speech to a video. Answers at once with a job."""
        service.check_ready()
        if (image is None) == (portrait_id is None):
            raise ApiError(400, "one_portrait", "send either an image or a portrait_id", param="image")
        if image is not None:
            data = await read_upload(image, settings.image_bytes, "image")
            portrait = await service.decode(read_portrait, data, settings.image_pixels, face_index)
            stored = StoredPortrait(secrets.token_hex(12), who, portrait, int(time.time()))
        else:
            stored = await service.decode(service.portraits.get, portrait_id or "", who)
        sound = await read_upload(audio, settings.audio_bytes, "audio")
        pcm = await service.decode(read_audio, sound, settings.audio_seconds)
        service.engine.check(latency)
        style = Style(expressiveness=expressiveness, head_motion=head_motion, blink=blink).model_dump()
        video = videos.create(who, stored, pcm, paste_back=paste_back, latency=latency, seed=seed, **style)
        response.headers["Location"] = f"/v1/videos/{video.id}"
        return VideoObject.of(video, settings.video_hours)

    @router.get("")
    def list_videos(who: Owner) -> VideoList:
        """All jobs of this key, the newest first."""
        return VideoList(data=[VideoObject.of(video, settings.video_hours) for video in videos.of(who)])

    @router.get("/{video_id}")
    def get_video(video_id: str, who: Owner) -> VideoObject:
        """Status and progress of a job."""
        return VideoObject.of(videos.get(video_id, who), settings.video_hours)

    @router.get("/{video_id}/events", response_class=StreamingResponse)
    async def video_events(video_id: str, who: Owner) -> StreamingResponse:
        """Progress as server-sent events: the job whenever it changed, until it ends."""
        video = videos.get(video_id, who)

        async def changes() -> AsyncIterator[str]:
            last = ""
            while True:
                finished = video.finished
                now = VideoObject.of(video, settings.video_hours).model_dump_json()
                if now != last:
                    last = now
                    yield f"event: video\ndata: {now}\n\n"
                if finished:
                    return
                await asyncio.sleep(PROGRESS_SECONDS)

        return StreamingResponse(changes(), media_type="text/event-stream")

    @router.head("/{video_id}/content", include_in_schema=False)
    @router.get("/{video_id}/content", response_class=FileResponse)
    def video_content(video_id: str, who: Owner) -> FileResponse:
        """The MP4 of a completed job; ranges are served."""
        path = videos.content(video_id, who)
        return FileResponse(path, media_type="video/mp4", filename=path.name, content_disposition_type="inline")

    @router.delete("/{video_id}")
    def delete_video(video_id: str, who: Owner) -> Deleted:
        """Cancel a job, or forget it and its file."""
        videos.remove(video_id, who)
        return Deleted(id=video_id, object="video")

    return router


def webrtc_router(service: Service, peers: Peers) -> APIRouter:
    """``/v1/webrtc``."""
    router = APIRouter(prefix="/v1/webrtc", tags=["live"])

    @router.get("")
    def webrtc_config(who: Owner) -> WebRTCConfig:
        """What to know before an offer: STUN and TURN servers, latencies, settings that may change."""
        engine, settings = service.engine, service.settings
        own = {"expressiveness": engine.graphs.config.generator.guidance}  # where None means the model's own
        controls = []
        usable = Style.model_fields if engine.graphs.config.has_controls else own
        for name, schema in Style.model_json_schema()["properties"].items():
            if name not in usable:
                continue
            number = next(kind for kind in schema.get("anyOf", [schema]) if kind["type"] == "number")
            value = own.get(name, 1.0) if schema["default"] is None else schema["default"]
            controls.append(Control(name=name, minimum=number["minimum"], maximum=number["maximum"], value=value))
        return WebRTCConfig(
            ice_servers=list(settings.ice_servers),
            latencies=list(engine.latencies),
            controls=controls,
            default_portrait=any(stored.id == DEFAULT for stored in service.portraits.of(who)),
        )

    @router.post("/offer", status_code=201)
    async def webrtc_offer(offer: Offer, response: Response, who: Owner) -> WebRTCAnswer:
        """Begin a live session over WebRTC: a complete SDP offer (no trickle) with at most one audio (the microphone),
        one video and a data channel ``semo``, which carries the messages of `WS /v1/live`."""
        name, sdp = await peers.answer(offer, who)
        response.headers["Location"] = f"/v1/webrtc/{name}"
        return WebRTCAnswer(id=name, sdp=sdp)

    @router.delete("/{session_id}")
    async def webrtc_hang_up(session_id: str, who: Owner) -> Deleted:
        """End a session. Closing the connection does the same."""
        peers.hang_up(session_id, who)
        return Deleted(id=session_id, object="webrtc.session")

    return router
