"""Photos of any kind as upright, opaque, 8-bit sRGB arrays (Pillow)."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from semo_sdk.errors import ImageError
from semo_sdk.media.ffmpeg import check_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["load_image"]

logger = logging.getLogger(__name__)

MIN_SIDE = 32  # pixels: nothing smaller holds a usable face
MAX_PIXELS = 80_000_000  # 240 MB as RGB; larger ones are refused before they are decoded
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")


def load_image(source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray) -> np.ndarray:
    """A photo as the models want it: upright, opaque, 8-bit sRGB.

    Args:
        source: the path or the bytes of a file that Pillow reads (JPEG, PNG, WebP...), a Pillow image, or an array
            (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16, bool, or float in [0, 1]. The EXIF
            orientation and the colour profile are applied, transparency becomes white.

    Returns:
        (H, W, 3) uint8 RGB; a copy.

    Raises:
        ImageError: no such file, not an image, truncated, too small (32 pixels), too large (80 megapixels).
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, "the image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), f"{len(source)} bytes")
    path = check_file(source, ImageError)
    try:
        with open(path, "rb") as file:
            return _from_file(file, str(path))
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error


def _from_file(file: BinaryIO, name: str) -> np.ndarray:
    from PIL import Image

    head = file.read(12)
    file.seek(0)
    hint = "; HEIC must be converted to JPEG first" if head[8:] in HEIC_BRANDS else ""
    with _damage(name, hint), Image.open(file) as image:
        return _from_pil(image, name)


@contextlib.contextmanager
def _damage(name: str, hint: str = "") -> Iterator[None]:
    """Whatever a decoder raises on bad bytes, as one error that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        hint = hint or ": JPEG, PNG and WebP are"
        raise ImageError(f"{name}: not an image that can be read{hint}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too large ({error})") from error
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        raise ImageError(f"{name}: damaged or truncated image ({type(error).__name__}: {error})") from error


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{name}: {width} x {height} pixels is too small, at least {MIN_SIDE} a side are needed")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} pixels is too large, at most {MAX_PIXELS // 10**6} megapixels can be used"
        )


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    from PIL import Image, ImageOps

    _check_size(image.width, image.height, name)
    with _damage(name):
        image.load()
        with contextlib.suppress(Exception):  # damaged EXIF: the pixels are still good
            image = ImageOps.exif_transpose(image)
        if image.mode == "F" or image.mode.startswith("I"):
            pixels = np.asarray(image)
            if image.mode != "F":
                pixels = np.clip(pixels, 0, 65535).astype(np.uint16)
            return _from_array(pixels)
        image = _to_srgb(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))


def _to_srgb(image: Image.Image) -> Image.Image:
    """Applies an embedded colour profile (phones save Display P3, printers CMYK)."""
    from PIL import ImageCms

    profile: Any = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    mode = "RGB" if image.mode == "CMYK" else image.mode
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.info("colour profile ignored: %s", error)
        return image


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"array of shape {array.shape}: expected one image (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, channels last"
        )
    _check_size(array.shape[1], array.shape[0], "the array")
    values: np.ndarray
    if array.dtype == np.bool_:
        values = array * np.float32(255)
    elif array.dtype == np.uint8:
        values = array
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        values = array / np.float32(257)
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ImageError("a float image must have finite values in [0, 1]; give 0 to 255 as uint8")
        values = array * np.float32(255)
    else:
        raise ImageError(f"array of type {array.dtype}: expected uint8, uint16, bool or float in [0, 1]")
    if values.shape[2] == 4:
        alpha = values[..., 3:] / np.float32(255)
        values = values[..., :3] * alpha + 255 * (1 - alpha)
    pixels = np.array(values if values.dtype == np.uint8 else np.rint(values).astype(np.uint8))
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
