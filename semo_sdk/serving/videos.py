"""Video jobs: a portrait and a speech to an MP4 in the operator's folder. A finished video survives a restart."""

from __future__ import annotations

import json
import logging
import math
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.clip import fit_audio, pasted
from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.errors import CapacityError, EncodeError, SemoError
from semo_sdk.files import write_text
from semo_sdk.media.video import VideoWriter
from semo_sdk.pipeline.stream import frames_in
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.portraits import StoredPortrait
from semo_sdk.serving.problems import ApiError, QuotaError, problem
from semo_sdk.serving.recording import Recording
from semo_sdk.serving.settings import Settings

__all__ = ["Video", "Videos"]

log = logging.getLogger(__name__)

WORKERS = 2  # videos made at once
RETRY_SECONDS = 10.0
SAVED = ("id", "owner", "created_at", "frames", "status", "frames_done", "completed_at")


@dataclass(eq=False)
class Video:
    """One job. ``status`` is queued, in_progress, completed, failed or cancelled."""

    id: str
    owner: str
    created_at: int
    frames: int
    status: str = "queued"
    frames_done: int = 0
    completed_at: int | None = None
    error: dict[str, Any] | None = None
    forget_at: float = math.inf  # time.monotonic(): setting the wall clock must not cost a video
    changed: threading.Condition = field(default_factory=threading.Condition, repr=False)
    recording: Recording | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ("completed", "failed", "cancelled")


class Videos:
    """The jobs.

    Args:
        engine: makes the frames.
        settings: limits and the folder, which is made if it is not there.
        ended: called with the status of each job that ends.

    Raises:
        OSError: the folder cannot be used.
    """

    def __init__(self, engine: Engine, settings: Settings, ended: Callable[[str], None] = lambda status: None) -> None:
        self._engine, self._settings, self._ended = engine, settings, ended
        self._folder = settings.data / "videos"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._videos: dict[str, Video] = {}
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="semo-video")
        self._closing = False
        self._restore()

    def create(
        self, owner: str, portrait: StoredPortrait, pcm: np.ndarray, *, paste_back: bool = False, **settings: Any
    ) -> Video:
        """Takes a job.

        Args:
            owner: who may see it.
            portrait: whose face.
            pcm: (n,) float32 mono 16 kHz in [-1, 1].
            paste_back: the whole photo instead of the 256 x 256 crop.
            settings: of :meth:`Engine.record`.

        Raises:
            CapacityError: too many jobs wait, or the disk is full.
        """
        self._prune()
        if shutil.disk_usage(self._folder).free < self._settings.free_bytes:
            raise CapacityError("the server's disk is full; try again later", RETRY_SECONDS)
        video = Video(f"video_{secrets.token_hex(12)}", owner, int(time.time()), frames_in(len(pcm)))
        with self._lock:
            waiting = [other for other in self._videos.values() if not other.finished]
            if self._closing:
                raise CapacityError("the server is shutting down", RETRY_SECONDS)
            if sum(other.owner == owner for other in waiting) >= self._settings.videos_per_key:
                raise QuotaError(f"{self._settings.videos_per_key} of your videos are in the making", RETRY_SECONDS)
            if len(waiting) >= self._settings.videos_waiting:
                raise CapacityError(f"{len(waiting)} videos are in the making already", RETRY_SECONDS)
            self._videos[video.id] = video
        self._workers.submit(self._make, video, portrait, pcm, paste_back, settings)
        return video

    def get(self, name: str, owner: str) -> Video:
        """A job of this owner.

        Raises:
            ApiError: there is none, or it is not theirs (404 either way).
        """
        with self._lock:
            video = self._videos.get(name)
        if video is None or video.owner != owner:
            raise ApiError(404, "video_not_found", "no such video", param="video_id")
        return video

    def of(self, owner: str) -> list[Video]:
        """All jobs of this owner, the newest first."""
        with self._lock:
            mine = [video for video in self._videos.values() if video.owner == owner]
        return sorted(mine, key=lambda video: video.created_at, reverse=True)

    def content(self, name: str, owner: str) -> Path:
        """The file of a completed job. Its name is made of the job's id, which is ours.

        Raises:
            ApiError: no such job, or it is not completed.
        """
        video = self.get(name, owner)
        if video.status != "completed":
            raise ApiError(409, "video_not_ready", f"the video is {video.status}", param="video_id")
        return self._path(video)

    def remove(self, name: str, owner: str) -> Video:
        """Cancels a job that runs; forgets one that ended, and its file.

        Raises:
            ApiError: there is none, or it is not theirs.
        """
        video = self.get(name, owner)
        with video.changed:
            if not video.finished:
                self._finish(video, "cancelled")
                if video.recording is not None:
                    video.recording.close()
        self._forget(video)
        return video

    @property
    def waiting(self) -> int:
        """Jobs that have not ended."""
        with self._lock:
            return sum(not video.finished for video in self._videos.values())

    def close(self) -> None:
        """Takes no more jobs, cancels those that run, waits for their threads. Finished videos stay."""
        self._closing = True
        with self._lock:
            running = [video for video in self._videos.values() if not video.finished]
        for video in running:
            with video.changed:
                self._finish(video, "cancelled")
                if video.recording is not None:
                    video.recording.close()
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _make(
        self, video: Video, stored: StoredPortrait, pcm: np.ndarray, paste_back: bool, settings: dict[str, Any]
    ) -> None:
        try:
            reference = stored.reference(self._engine)
            recording = self._engine.record(reference, pcm, **settings)
            with video.changed:
                video.recording = recording
                if video.finished:
                    recording.close()
                    return
                video.status = "in_progress"
            portrait = stored.portrait
            height, width = portrait.photo.shape[:2] if paste_back else (IMAGE_SIZE, IMAGE_SIZE)
            provenance, sound = self._engine.graphs.provenance, fit_audio(pcm, video.frames)
            with VideoWriter(self._path(video), (width, height), audio=sound, seal=provenance) as writer:
                for chunk in recording.chunks():
                    writer.write(pasted(portrait, chunk, provenance) if paste_back else chunk.frames)
                    with video.changed:
                        video.frames_done += len(chunk)
                        video.changed.notify_all()
            with video.changed:
                if not video.finished:
                    self._finish(video, "completed")
                    self._save(video)
                    return
            self._path(video).unlink(missing_ok=True)  # cancelled in its last moment
        except Exception as error:
            with video.changed:
                if video.finished:  # cancelled: that is why
                    return
                reason = error if isinstance(error, EncodeError) else type(error).__name__
                log.warning("video job failed: %s", reason, exc_info=not isinstance(error, SemoError))
                video.error = problem(error)[1]["error"]
                self._finish(video, "failed")

    def _finish(self, video: Video, status: str) -> None:
        video.status, video.completed_at = status, int(time.time())
        video.forget_at = time.monotonic() + 3600 * self._settings.video_hours
        video.changed.notify_all()
        self._ended(status)

    def _path(self, video: Video) -> Path:
        return self._folder / f"{video.id}.mp4"

    def _save(self, video: Video) -> None:
        """What a restart needs to know. A full disk costs the memory of the video, not the video."""
        record = {name: getattr(video, name) for name in SAVED}
        target = self._folder / f"{video.id}.json"
        try:
            write_text(target, json.dumps(record))
        except OSError as error:
            log.warning("a finished video could not be noted for restarts: %s", error.strerror)

    def _restore(self) -> None:
        for folder in self._folder.glob(".semo-*"):  # of writers that were killed
            shutil.rmtree(folder, ignore_errors=True)
        for file in self._folder.glob("video_*.json"):
            try:
                video = Video(**json.loads(file.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                log.warning("a damaged note about a video was ignored")
                continue
            if self._path(video).is_file():
                age = max(time.time() - (video.completed_at or 0), 0.0)
                video.forget_at = time.monotonic() + 3600 * self._settings.video_hours - age
                self._videos[video.id] = video

    def _prune(self) -> None:
        """Forgets what is too old or too much."""
        with self._lock:
            ended = sorted((v for v in self._videos.values() if v.finished), key=lambda v: v.forget_at)
        now = time.monotonic()
        too_many = len(ended) - self._settings.videos_kept
        for number, video in enumerate(ended):
            if number < too_many or video.forget_at < now:
                self._forget(video)

    def _forget(self, video: Video) -> None:
        with self._lock:
            self._videos.pop(video.id, None)
        self._path(video).unlink(missing_ok=True)
        self._path(video).with_suffix(".json").unlink(missing_ok=True)
