"""The page at ``/``: a few files of the package, no framework, no other host."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter
from fastapi.responses import Response

__all__ = ["FILES", "page_router"]

# What is served, and nothing else: no path comes from a request.
FILES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "sound.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "portrait.jpg": "image/jpeg",
    "speech.mp3": "audio/mpeg",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_router() -> APIRouter:
    """The page and its files. It needs no key; what it does with the API does."""
    router = APIRouter(include_in_schema=False)
    folder = resources.files("semo_sdk.serving") / "page"

    def serve(path: str, content: bytes, kind: str) -> None:
        @router.get(path)
        def file() -> Response:
            return Response(content, media_type=kind, headers=HEADERS)

    for name, kind in FILES.items():
        content = (folder / name).read_bytes()
        serve("/" if name == "index.html" else f"/page/{name}", content, kind)
    return router
