"""The right face is cropped as in training, inside the photo where it can be, and frames go back without a trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semo_sdk.errors import AmbiguousFaceError, FaceTooSmallError, ImageError, NoFaceError
from semo_sdk.media.image import (
    LEAST_CROP,
    MOST_SHIFT,
    Portrait,
    crop_square,
    face_square,
    find_portrait,
    load_image,
    paste_back,
    square_inside,
)
from tests.picture_tools import psnr, resized


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


def test_the_crop_is_the_square_around_the_mesh(portrait: Portrait, photo: np.ndarray) -> None:
    x0, y0, side = portrait.box
    points = portrait.landmarks.points[:, :2]
    low, high = points.min(0), points.max(0)
    assert side == pytest.approx(2 * (high[1] - low[1]), rel=1e-5)
    assert np.allclose([x0 + side / 2, y0 + side / 2], (low + high) / 2, atol=1e-2)
    assert face_square(portrait.landmarks.points, 2.0) == portrait.box
    assert portrait.crop.shape == (256, 256, 3) and np.array_equal(portrait.photo, photo)
    assert find_portrait(photo, crop_scale=1.6).box[2] == pytest.approx(0.8 * side)


@pytest.mark.parametrize("scale", [1.2, 1.6, 2.0, 3.0])
def test_the_crop_stays_inside_the_photo_as_far_as_training_goes(scale: float) -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        width, height = (int(side) for side in rng.integers(100, 600, 2))
        tall = float(rng.uniform(48, height))
        centre = rng.uniform(0.35, 0.65, 2) * (width, height)
        face = centre + np.array([[-0.4, -0.5], [0.4, 0.5]]) * tall
        x, y, side = square_inside(face, scale, (width, height))
        wanted = face_square(face, scale)
        assert min(scale, LEAST_CROP) * tall * (1 - 1e-9) <= side <= wanted[2]
        shift = np.abs(np.array([x, y]) + side / 2 - centre)
        assert (shift <= MOST_SHIFT * side + 1e-6).all()
        beyond = max(-x, -y, x + side - width, y + side - height)
        before = max(-wanted[0], -wanted[1], wanted[0] + wanted[2] - width, wanted[1] + wanted[2] - height)
        if before <= 0:
            assert (x, y, side) == pytest.approx(wanted), "nothing to mend"
        if beyond > 1e-6:  # then one of the two limits is reached
            assert side == pytest.approx(min(scale, LEAST_CROP) * tall) or shift.max() == pytest.approx(
                MOST_SHIFT * side
            )
            assert beyond <= before
        inside += beyond <= 1e-6
    assert inside > 30


def test_a_tight_photo_is_filled_by_the_crop(photo: np.ndarray, portrait: Portrait) -> None:
    x, y, side = portrait.box
    tight = np.ascontiguousarray(
        photo[int(y + 0.1 * side) : int(y + 0.93 * side), int(x + 0.1 * side) : int(x + 0.93 * side)]
    )
    found = find_portrait(tight)
    x, y, side = found.box
    assert min(x, y) >= 0 and x + side <= tight.shape[1] and y + side <= tight.shape[0]
    assert side == pytest.approx(min(tight.shape[:2])) and found.advice == {}


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
    close = find_portrait(np.ascontiguousarray(photo[135:290, 130:285]))
    x0, y0, side = close.box
    assert x0 < 0 or y0 < 0
    frames = np.full((3, 256, 256, 3), 200, np.uint8)
    pasted = paste_back(close, frames)
    assert (
        pasted.shape == (3, 155, 155, 3) and (pasted[0] == pasted[2]).all() and (pasted[1][60:100, 60:100] == 200).all()
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
