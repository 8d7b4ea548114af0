"""A small client of ``semo serve``: videos, portraits and live sessions, with this package's errors.

>>> client = Client("http://127.0.0.1:8000", api_key="semo_...")
>>> client.make_video("portrait.jpg", "speech.wav", "talking.mp4")
>>> with client.live(client.upload_portrait("portrait.jpg"), sample_rate=24_000) as live:
...     live.push(pcm)
...     live.end()
...     for item in live: ...
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.errors import InputError, MissingDependencyError
from semo_sdk.files import replacing
from semo_sdk.serving.client_lasting import LastingLive
from semo_sdk.serving.client_live import ConnectionLostError, Live, LiveEvent, LiveFrame, ServerError, raise_problem

__all__ = ["Client", "ConnectionLostError", "LastingLive", "Live", "LiveEvent", "LiveFrame", "ServerError"]

Source = str | os.PathLike[str] | bytes


class Client:
    """Talks to a server.

    Args:
        base_url: for example ``"https://avatars.example.org"``.
        api_key: if the server has keys.
        timeout: seconds that one answer may take.

    Raises:
        MissingDependencyError: httpx is not installed.
    """

    def __init__(
        self, base_url: str = "http://127.0.0.1:8000", api_key: str | None = None, *, timeout: float = 60.0
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingDependencyError("the client needs httpx: pip install 'semo-sdk[serve]'") from error
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = base_url.rstrip("/")
        # a cluster sends all requests of one client to one of its servers, so that a job's server is asked for it
        affinity = {"X-Session-Id": secrets.token_hex(8)}
        self._http = httpx.Client(base_url=self._url, headers={**self._headers, **affinity}, timeout=timeout)

    def upload_portrait(self, image: Source, *, face_index: int | None = None) -> str:
        """Uploads a portrait; its identifier is for :meth:`create_video` and :meth:`live`.

        Raises:
            InputError, ServerError, CapacityError: see :meth:`request`.
        """
        fields = {} if face_index is None else {"face_index": str(face_index)}
        with _files(image=image) as files:
            return str(self.request("POST", "/v1/portraits", data=fields, files=files)["id"])

    def create_video(
        self, audio: Source, *, image: Source | None = None, portrait_id: str | None = None, **settings: Any
    ) -> dict[str, Any]:
        """Starts a job.

        Args:
            audio: speech, a path or the bytes of a file.
            image: a photo, or
            portrait_id: one that was uploaded.
            settings: ``latency``, ``seed``, ``expressiveness``, ``head_motion``, ``blink``, ``paste_back``,
                ``face_index``.

        Returns:
            The job, with its ``id`` and ``status``.
        """
        fields = {name: str(value) for name, value in settings.items() if value is not None}
        if portrait_id is not None:
            fields["portrait_id"] = portrait_id
        sources = {"audio": audio} if image is None else {"audio": audio, "image": image}
        with _files(**sources) as files:
            return self.request("POST", "/v1/videos", data=fields, files=files)

    def video(self, video_id: str) -> dict[str, Any]:
        """A job's status and progress."""
        return self.request("GET", f"/v1/videos/{video_id}")

    def wait(
        self, video_id: str, *, progress: Callable[[int], Any] | None = None, poll_seconds: float = 0.5
    ) -> dict[str, Any]:
        """Waits for a job.

        Args:
            video_id: of the job.
            progress: called with percents.
            poll_seconds: between two looks.

        Raises:
            ServerError: the job failed or was cancelled.
        """
        while True:
            video = self.video(video_id)
            if progress is not None:
                progress(video["progress"])
            if video["status"] == "completed":
                return video
            if video["status"] in ("failed", "cancelled"):
                error = video["error"] or {"message": "the video was cancelled", "code": "cancelled"}
                raise ServerError(error["message"], error["code"])
            time.sleep(poll_seconds)

    def download(self, video_id: str, path: str | Path) -> Path:
        """Saves a finished video; the file appears under its name when it is complete."""
        target = Path(path)
        with self._http.stream("GET", f"/v1/videos/{video_id}/content") as answer, replacing(target) as temporary:
            if answer.is_error:
                answer.read()
                raise_problem(answer.status_code, answer.content, answer.headers.get("Retry-After"))
            with temporary.open("wb") as file:
                for piece in answer.iter_bytes():
                    file.write(piece)
        return target

    def make_video(self, image: Source, audio: Source, path: str | Path, **settings: Any) -> Path:
        """A portrait and speech to an MP4: all of it, waiting for the end."""
        video = self.create_video(audio, image=image, **settings)
        self.wait(video["id"])
        return self.download(video["id"], path)

    def live(self, portrait_id: str = "default", *, sample_rate: int = SAMPLE_RATE, **settings: Any) -> Live:
        """Opens a live session.

        Args:
            portrait_id: one that was uploaded.
            sample_rate: of the sound that will be pushed, in Hz.
            settings: ``latency``, ``seed``, ``expressiveness``, ``head_motion``, ``blink``, ``fps``, ``jpeg_quality``;
                or ``state_id`` of a session that was saved, in the place of the first five.

        Raises:
            CapacityError: the server is full.
            ServerError: it refused for another reason.
        """
        from websockets.exceptions import InvalidHandshake, InvalidStatus
        from websockets.sync.client import connect

        url = "ws" + self._url.removeprefix("http") + "/v1/live"
        start = {"type": "session.start", "portrait_id": portrait_id, "sample_rate": sample_rate, **settings}
        with ExitStack() as stack:
            try:
                socket = stack.enter_context(connect(url, additional_headers=self._headers, max_size=2**22))
            except InvalidStatus as refused:
                answer = refused.response
                raise_problem(answer.status_code, bytes(answer.body or b""), answer.headers.get("Retry-After"))
            except InvalidHandshake as error:
                raise ConnectionLostError from error
            return Live(socket, start, stack.pop_all())

    def lasting(
        self,
        portrait_id: str = "default",
        *,
        sample_rate: int = SAMPLE_RATE,
        save_seconds: float = 1.0,
        give_up_seconds: float = 60.0,
        **settings: Any,
    ) -> LastingLive:
        """Opens a live session that goes on when its server dies: on another one that shares its saved states (a Ray
        cluster, docs/cluster.md), or on the same one when it was only the connection.

        Args:
            portrait_id, sample_rate, settings: as for :meth:`live`, without ``state_id``.
            save_seconds: between two saves: the most that is computed, and perhaps shown, again.
            give_up_seconds: how long a broken connection is tried again.

        Raises:
            CapacityError, ServerError: as for :meth:`live`.
        """
        again = {name: value for name, value in settings.items() if name in ("fps", "jpeg_quality")}

        def connect(state_id: str | None) -> Live:
            how = settings if state_id is None else {**again, "state_id": state_id}
            return self.live(portrait_id, sample_rate=sample_rate, **how)

        return LastingLive(
            connect,
            lambda state_id: self.request("DELETE", f"/v1/states/{state_id}"),
            rate=sample_rate,
            save_seconds=save_seconds,
            give_up_seconds=give_up_seconds,
        )

    def request(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """Any request.

        Raises:
            InputError: what was sent cannot be used.
            CapacityError: the server, or this key's share of it, is full.
            ServerError: anything else.
        """
        answer = self._http.request(method, path, **arguments)
        if answer.is_error:
            raise_problem(answer.status_code, answer.content, answer.headers.get("Retry-After"))
        found: dict[str, Any] = answer.json()
        return found

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _files(**sources: Source) -> Iterator[dict[str, Any]]:
    """Files of a form. Their names stay here."""
    with ExitStack() as stack:
        try:
            yield {
                name: (name, source if isinstance(source, bytes) else stack.enter_context(open(source, "rb")))
                for name, source in sources.items()
            }
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
