"""Portraits: any photo is read alike, the right face is cropped as in training, and frames go back without a trace."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from semo_sdk.errors import AmbiguousFaceError, FaceTooSmallError, ImageError, NoFaceError
from semo_sdk.media import photo as photo_module
from semo_sdk.media.image import Portrait, crop_square, face_square, find_portrait, load_image, paste_back


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / (np.mean(np.square(a.astype(np.float64) - b)) + 1e-9)))


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def encoded(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photo(portrait_path: Path) -> np.ndarray:
    return load_image(portrait_path)


@pytest.fixture(scope="module")
def other(portrait_path: Path) -> np.ndarray:
    return load_image(portrait_path.with_name("portrait2.jpg"))


@pytest.fixture(scope="module")
def portrait(photo: np.ndarray) -> Portrait:
    return find_portrait(photo)


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


def test_the_crop_is_the_square_around_the_mesh(portrait: Portrait, photo: np.ndarray) -> None:
    x0, y0, side = portrait.box
    points = portrait.landmarks.points[:, :2]
    low, high = points.min(0), points.max(0)
    assert side == pytest.approx(2 * (high[1] - low[1]), rel=1e-5)
    assert np.allclose([x0 + side / 2, y0 + side / 2], (low + high) / 2, atol=1e-2)
    assert face_square(portrait.landmarks.points, 2.0) == portrait.box
    assert portrait.crop.shape == (256, 256, 3) and np.array_equal(portrait.photo, photo)
    assert find_portrait(photo, crop_scale=1.6).box[2] == pytest.approx(0.8 * side)


def test_the_crop_does_not_depend_on_the_size_of_the_photo(portrait: Portrait, photo: np.ndarray) -> None:
    height, width = photo.shape[:2]
    large = find_portrait(resized(photo, 5 * width, 5 * height))
    assert np.allclose(np.array(large.box) / 5, portrait.box, atol=0.01 * portrait.box[2])
    assert psnr(large.crop, portrait.crop) > 28


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 7.3])
def test_crop_square_is_exact_on_a_plane(scale: float) -> None:
    """A linear ramp stays that ramp at every position and scale: no shift of half a pixel anywhere."""
    slope = 1.237 / scale  # rounding errors cancel
    y, x = np.mgrid[0:600, 0:600] + 0.5
    ramp = np.rint(np.clip(np.stack([slope * x, slope * y, slope * (x + y) / 2], -1), 0, 255)).astype(np.uint8)
    crop = crop_square(ramp, (41.3, 60.7, 64 * scale), 64)
    along = (np.arange(64) + 0.5) * scale
    for channel, expected in ((0, slope * (41.3 + along[None, :])), (1, slope * (60.7 + along[:, None]))):
        error = crop[..., channel] - expected
        assert np.abs(error).max() < 1.1 and abs(error.mean()) < 0.15  # half a pixel would be 0.6


def test_fine_stripes_do_not_alias() -> None:
    stripes = np.zeros((1_100, 1_100, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(crop_square(stripes, (10.0, 10.0, 1_024.0)).astype(int) - 127).max() < 6


def test_outside_the_photo_the_edge_goes_on(photo: np.ndarray) -> None:
    crop = crop_square(photo, (-100.0, -100.0, 600.0))
    inside = crop[43:213, 43:213]
    assert psnr(inside, resized(photo, 171, 171)[:170, :170]) > 20
    assert np.abs(crop[60:200, 0].astype(int) - crop[60:200, 41]).mean() < 25  # like the edge, not black
    assert not np.ptp(
        crop_square(photo, (900.0, 900.0, 50.0)), axis=(0, 1)
    ).any()  # even when nothing of the photo is left


def test_no_face(gradient: np.ndarray) -> None:
    with pytest.raises(NoFaceError, match="64 x 48 pixels"):
        find_portrait(gradient)
    with pytest.raises(NoFaceError):
        find_portrait(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))


def test_two_faces_of_one_size_need_a_choice(photo: np.ndarray, other: np.ndarray) -> None:
    group = np.concatenate([photo, other], 1)
    with pytest.raises(AmbiguousFaceError, match=r"2 faces.*face_index=.*\n  0: x \d+ to \d+.*\n  1: x") as caught:
        find_portrait(group)
    assert isinstance(caught.value, ImageError)
    first, second = find_portrait(group, face_index=0), find_portrait(group, face_index=1)
    assert first.face.size >= second.face.size and {first.box[0] > 300, second.box[0] > 300} == {True, False}
    for index in (2, -1):
        with pytest.raises(NoFaceError, match=rf"face_index={index}, but the photo has 2 face"):
            find_portrait(group, face_index=index)


def test_a_small_face_in_the_background_is_no_rival(photo: np.ndarray, other: np.ndarray) -> None:
    group = np.full((400, 600, 3), 128, np.uint8)
    group[:, :400] = photo
    group[100:300, 400:] = resized(other, 200, 200)
    assert find_portrait(group).box[0] < 200


def test_a_face_too_small(photo: np.ndarray) -> None:
    wide = np.full((300, 300, 3), 90, np.uint8)
    wide[100:200, 100:200] = resized(photo, 100, 100)
    with pytest.raises(FaceTooSmallError, match=r"the face is \d\d pixels large, at least 48"):
        find_portrait(wide)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, float("nan")])
def test_impossible_crop_scales(photo: np.ndarray, scale: float) -> None:
    with pytest.raises(ImageError, match="crop_scale"):
        find_portrait(photo, crop_scale=scale)


def test_the_portraits_own_crop_leaves_the_photo(portrait: Portrait, photo: np.ndarray) -> None:
    pasted = paste_back(portrait, portrait.crop[None])[0]
    assert pasted.shape == photo.shape and pasted.dtype == np.uint8
    assert psnr(pasted, photo) > 40
    x, y = portrait.landmarks.points[:, 0], portrait.landmarks.points[:, 1]
    background = np.ones(photo.shape[:2], bool)
    background[int(y.min()) - 60 : int(y.max()) + 60, int(x.min()) - 60 : int(x.max()) + 60] = False
    assert np.array_equal(pasted[background], photo[background])


def test_the_seam_is_soft_and_the_face_is_the_frames(portrait: Portrait, photo: np.ndarray) -> None:
    green = np.zeros((1, 256, 256, 3), np.uint8)
    green[..., 1] = 255
    pasted = paste_back(portrait, green)[0]
    x0, y0, side = portrait.box
    middle = pasted[int(y0 + 0.3 * side) : int(y0 + 0.7 * side), int(x0 + 0.3 * side) : int(x0 + 0.7 * side)]
    assert (middle == (0, 255, 0)).all()
    outside = np.ones(photo.shape[:2], bool)
    outside[int(y0) : int(y0 + side) + 1, int(x0) : int(x0 + side) + 1] = False
    assert np.array_equal(pasted[outside], photo[outside])
    grey = Portrait(np.zeros_like(portrait.crop), np.zeros_like(photo), portrait.box, portrait.face, portrait.landmarks)
    steps = np.abs(np.diff(paste_back(grey, green)[0][..., 1].astype(int), axis=1))
    assert steps.max() < 40, "no hard edge"


def test_places_agree_to_a_fraction_of_a_pixel(portrait: Portrait) -> None:
    """A ramp pasted into the same ramp cannot be seen."""
    y, x = np.mgrid[0:400, 0:400] + 0.5
    ramp = np.rint(np.stack([x / 2, y / 2, (x + y) / 4], -1)).astype(np.uint8)
    same = Portrait(np.zeros((256, 256, 3), np.uint8), ramp, portrait.box, portrait.face, portrait.landmarks)
    pasted = paste_back(same, crop_square(ramp, portrait.box)[None])[0]
    assert np.abs(pasted.astype(int) - ramp).max() <= 2
    assert abs((pasted.astype(float) - ramp).mean()) < 0.05


def test_squares_that_leave_the_photo(photo: np.ndarray) -> None:
    close = find_portrait(np.ascontiguousarray(photo[100:330, 90:330]))
    x0, y0, side = close.box
    assert x0 < 0 or y0 < 0
    frames = np.full((3, 256, 256, 3), 200, np.uint8)
    pasted = paste_back(close, frames)
    assert (
        pasted.shape == (3, 230, 240, 3)
        and (pasted[0] == pasted[2]).all()
        and (pasted[1][100:140, 100:140] == 200).all()
    )


def test_large_photos_are_limited_for_video(photo: np.ndarray) -> None:
    large = find_portrait(resized(photo, 1_600, 1_600))
    small = large.limited(800)
    assert small.photo.shape == (800, 800, 3) and large.limited(1_600) is large
    assert np.array_equal(small.crop, large.crop)
    assert np.allclose(np.array(small.box) * 2, large.box)
    assert np.allclose(small.landmarks.points * 2, large.landmarks.points, atol=1e-3)
    assert small.face.size * 2 == pytest.approx(large.face.size)
    assert psnr(paste_back(small, small.crop[None])[0], small.photo) > 40
