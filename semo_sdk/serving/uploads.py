"""What users send, checked before anything decodes it: size, kind by its first bytes, pixels, seconds."""

from __future__ import annotations

import io
import time
import warnings
from collections import OrderedDict

import numpy as np

from semo_sdk.errors import AudioError, ImageError
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import Portrait, find_portrait, load_image
from semo_sdk.serving.problems import ApiError, QuotaError

__all__ = ["Rates", "read_audio", "read_portrait", "sniff_audio", "sniff_image"]

MAX_SIDE = 1920  # pixels: what is kept of a photo; the same bound as in a saved clip
MAX_OWNERS = 10_000  # whose rates are remembered


def sniff_image(data: bytes) -> str:
    """``"JPEG"``, ``"PNG"`` or ``"WEBP"``, by the first bytes; names and declared types are not believed.

    Raises:
        ApiError: something else (415).
    """
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise ApiError(415, "unsupported_image", "the image is none of JPEG, PNG, WebP", param="image")


def sniff_audio(data: bytes) -> str:
    """``"wav"``, ``"flac"``, ``"ogg"``, ``"mp3"``, ``"aac"``, ``"mp4"`` or ``"webm"``, by the first bytes.

    Playlists and everything else that could make a decoder open other files are not among them.

    Raises:
        ApiError: something else (415).
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav"
    for magic, kind in ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"ID3", "mp3"), (b"\x1a\x45\xdf\xa3", "webm")):
        if data.startswith(magic):
            return kind
    if data[4:8] == b"ftyp":
        return "mp4"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return "aac"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] & 0x06:
        return "mp3"
    raise ApiError(415, "unsupported_audio", "the audio is none of WAV, FLAC, Ogg, MP3, AAC, MP4, WebM", param="audio")


def read_portrait(data: bytes, max_pixels: int, face_index: int | None = None) -> Portrait:
    """A photo's face; the photo is kept at 1920 pixels at most.

    Raises:
        ApiError: not a kind of image that is taken, or too many pixels.
        ImageError: damaged, or no usable face.
    """
    from PIL import Image

    kind = sniff_image(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=(kind,))  # reads the header only
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        raise ImageError(f"damaged {kind} image") from error
    if image.width * image.height > max_pixels:
        message = (
            f"the image has {image.width} x {image.height} pixels, at most {max_pixels / 1e6:g} million can be used"
        )
        raise ApiError(413, "image_too_large", message, param="image")
    return find_portrait(load_image(image), face_index=face_index).limited(MAX_SIDE)


def read_audio(data: bytes, max_seconds: float) -> np.ndarray:
    """(n,) float32 mono 16 kHz; decoding stops after ``max_seconds``.

    Raises:
        ApiError: not a kind of audio that is taken.
        AudioError: damaged, empty or too long.
    """
    kind = sniff_audio(data)
    try:
        return load_audio(data, max_seconds=max_seconds)
    except AudioError as error:
        # ffmpeg's own words may quote what is inside the file; the kind and the reason are enough.
        reason = str(error).split(": ", 1)[-1].split(" (", 1)[0]
        raise AudioError(f"the {kind} audio cannot be used: {reason}") from error


class Rates:
    """So many requests a minute for each owner, in a burst if they like.

    Args:
        per_minute: of one owner.
    """

    def __init__(self, per_minute: float) -> None:
        self._size, self._refill = per_minute, per_minute / 60
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, owner: str) -> None:
        """Counts one request.

        Raises:
            QuotaError: too many; says when the next one will be served.
        """
        now = time.monotonic()
        level, since = self._buckets.pop(owner, (self._size, now))
        level = min(self._size, level + (now - since) * self._refill)
        self._buckets[owner] = (max(level - 1, 0.0) if level >= 1 else level, now)
        while len(self._buckets) > MAX_OWNERS:
            self._buckets.popitem(last=False)
        if level < 1:
            raise QuotaError("too many requests; send fewer", retry_after=(1 - level) / self._refill)
