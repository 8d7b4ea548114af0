"""Any photo is read alike, or refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from semo_sdk.errors import ImageError
from semo_sdk.media import photo as photo_module
from semo_sdk.media.image import load_image
from tests.picture_tools import psnr


def encoded(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photo(portrait_path: Path) -> np.ndarray:
    return load_image(portrait_path)


@pytest.fixture(scope="module")
def gradient() -> np.ndarray:
    """(48, 64, 3): every corner is different."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 4, y * 5, 255 - x * 4], -1).astype(np.uint8)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_lossless_files_are_read_exactly(gradient: np.ndarray, kind: str, options: dict[str, Any]) -> None:
    assert np.array_equal(load_image(encoded(gradient, kind, **options)), gradient)


def test_every_kind_of_source_gives_the_same(gradient: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(gradient, "PNG"))
    opened = Image.open(path)
    sources: list[Any] = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), opened, gradient]
    for source in sources:
        image = load_image(source)
        assert np.array_equal(image, gradient) and image.dtype == np.uint8 and image.flags.c_contiguous
        image[:] = 0  # the caller's own
    assert gradient.any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(gradient: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {
        1: gradient,
        2: gradient[:, ::-1],
        3: gradient[::-1, ::-1],
        4: gradient[::-1],
        5: gradient.transpose(1, 0, 2),
        6: np.rot90(gradient, 1),
        7: gradient.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(gradient, -1),
    }[orientation]
    data = encoded(np.ascontiguousarray(stored), "JPEG", quality=95, exif=exif)
    assert psnr(load_image(data), gradient) > 30


def test_transparency_becomes_white(gradient: np.ndarray) -> None:
    alpha = np.zeros((48, 64, 1), np.uint8)
    alpha[:24], alpha[24:36] = 255, 128
    image = load_image(encoded(np.concatenate([gradient, alpha], 2), "PNG"))
    assert np.array_equal(image[:24], gradient[:24]) and (image[36:] == 255).all()
    assert np.abs(image[24:36] - (gradient[24:36] * 0.5 + 127)).max() < 2
    assert np.abs(load_image(np.concatenate([gradient, alpha], 2)).astype(int) - image).max() <= 1
    palette = Image.fromarray(gradient).quantize(16)
    assert (load_image(encoded(palette, "PNG", transparency=bytes([0] * 16))) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_pillow_modes(gradient: np.ndarray, mode: str) -> None:
    image = Image.fromarray(gradient).convert(mode)
    if mode == "F":
        image = Image.fromarray(np.asarray(image) / np.float32(255))
    if mode == "I":
        image = Image.fromarray(np.asarray(image).astype(np.int32) * 257)
    loaded = load_image(image)
    grey = np.repeat(np.asarray(Image.fromarray(gradient).convert("L"))[..., None], 3, 2)
    assert loaded.shape == gradient.shape
    if mode != "1":
        assert psnr(loaded, grey if mode in ("L", "LA", "I", "F") else gradient) > 20


def test_sixteen_bits_grey_and_float_arrays(gradient: np.ndarray) -> None:
    grey = gradient[..., 0]
    wide = np.repeat(grey[..., None], 3, 2)
    sixteen = grey.astype(np.uint16) * 257
    assert np.array_equal(load_image(encoded(Image.fromarray(sixteen), "PNG")), wide)
    for array in (sixteen, grey, grey[..., None], grey / 255, (grey / 255).astype(np.float32), wide):
        assert np.array_equal(load_image(array), wide), array.dtype
    assert np.array_equal(load_image(grey > 100), np.where(wide > 100, 255, 0))


def test_colour_profiles_are_applied(gradient: np.ndarray) -> None:
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert psnr(load_image(encoded(gradient, "PNG", icc_profile=same)), gradient) > 40
    assert np.array_equal(load_image(encoded(gradient, "PNG", icc_profile=b"no profile")), gradient)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_spoil_a_photo(gradient: np.ndarray) -> None:
    assert load_image(encoded(gradient, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff")).shape == gradient.shape


BAD_IMAGES: list[tuple[Any, str]] = [
    (np.zeros((1, 1, 3), np.uint8), "1 x 1 pixels is too small"),
    (np.zeros((0, 0, 3), np.uint8), "too small"),
    (np.zeros((3, 64, 64), np.uint8), "channels last"),
    (np.zeros((2, 64, 64, 3), np.uint8), "one image"),
    (np.zeros(64, np.uint8), "shape"),
    (np.zeros((64, 64, 3), np.int64), "int64"),
    (np.full((64, 64, 3), np.nan), "finite"),
    (np.full((64, 64, 3), 255.0), r"\[0, 1\]"),
    (b"", "not an image"),
    (b"this is text, not an image\n" * 50, "not an image that can be read: JPEG"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC must be converted"),
    (encoded(Image.new("RGB", (1, 1)), "PNG"), "1 x 1 pixels is too small"),
    ("/nowhere/photo.jpg", "/nowhere/photo.jpg: no such file"),
    (Path(), "folder"),
    (None, "NoneType"),
    (42, "int"),
]


@pytest.mark.parametrize(("source", "message"), BAD_IMAGES)
def test_bad_images(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(source)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_and_damaged_files(photo: np.ndarray, kind: str, tmp_path: Path) -> None:
    data = encoded(photo, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    for share in (0.05, 0.3, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ImageError, match="truncated|not an image") as caught:
            load_image(path)
        assert str(path) in str(caught.value)
    generator = np.random.default_rng(0)
    for _ in range(40):  # flipped bytes: an image or an ImageError, nothing else
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), 8):
            damaged[place] = generator.integers(256)
        try:
            load_image(bytes(damaged))
        except ImageError:
            pass


def png_of(width: int, height: int) -> bytes:
    """The beginning of a PNG that promises that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="too large"):
        load_image(png_of(60_000, 60_000))
    with pytest.raises(ImageError, match="10000 x 9000 pixels is too large, at most 80 megapixels"):
        load_image(png_of(10_000, 9_000))
    monkeypatch.setattr(photo_module, "MAX_PIXELS", 64 * 64)
    with pytest.raises(ImageError, match="64 x 65 pixels is too large"):
        load_image(np.zeros((65, 64, 3), np.uint8))
