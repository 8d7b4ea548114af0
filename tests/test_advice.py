"""Hints about portraits: none for good ones, the right one for each defect."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from semo_sdk.animator import _find
from semo_sdk.media.advice import advise
from semo_sdk.media.image import Portrait, find_portrait, load_image

EXAMPLES = Path(__file__).parent.parent / "examples"
# over the middle of the nose, across the cheeks, along the jaw
MASK = (195, 100, 50, 123, 147, 213, 192, 214, 210, 211, 152, 431, 430, 434, 416, 433, 376, 352, 280, 329)


@pytest.fixture(scope="module")
def good() -> Portrait:
    return find_portrait(load_image(EXAMPLES / "portrait.jpg"))


@pytest.mark.parametrize("name", ["portrait.jpg", "portrait2.jpg"])
def test_good_portraits_need_none(name: str) -> None:
    assert find_portrait(load_image(EXAMPLES / name)).advice == {}


@pytest.mark.parametrize("colour", [(120, 160, 165), (20, 20, 24), (235, 238, 240)], ids=["green", "black", "white"])
def test_a_mask_is_seen(good: Portrait, colour: tuple[int, int, int]) -> None:
    points = good.mesh
    masked = Image.fromarray(good.crop)
    ImageDraw.Draw(masked).polygon([(float(x), float(y)) for x, y in points[list(MASK), :2]], fill=colour)
    assert list(advise(np.asarray(masked), points, 200.0)) == ["mouth_covered"]


def test_a_dark_or_tinted_photo_is_no_mask(good: Portrait) -> None:
    points = good.mesh
    for tint in ([0.25, 0.25, 0.25], [0.6, 0.8, 1.0], [1.0, 0.8, 0.5]):
        assert advise((good.crop * tint).astype(np.uint8), points, 200.0) == {}
    assert advise(np.repeat(good.crop.mean(-1, keepdims=True), 3, -1).astype(np.uint8), points, 200.0) == {}


def test_what_the_mesh_says(good: Portrait) -> None:
    points, crop = good.mesh, good.crop
    opened = points.copy()
    opened[14, 1] += 0.2 * np.linalg.norm(points[263, :2] - points[33, :2])
    assert list(advise(crop, opened, 200.0)) == ["mouth_open"]
    asleep = points.copy()
    asleep[[159, 386]] = asleep[[145, 374]]
    assert list(advise(crop, asleep, 200.0)) == ["eyes_closed"]
    turned = points.copy()
    turned[:, 2] += 0.6 * (points[:, 0] - 128)
    assert "turned" in advise(crop, turned, 200.0)
    assert "60 pixels" in advise(crop, points, 60.0)["small"]


def test_a_photo_that_ends_at_the_face(good: Portrait) -> None:
    low, high = good.landmarks.points[:, :2].min(0).astype(int), good.landmarks.points[:, :2].max(0).astype(int)
    close = find_portrait(np.ascontiguousarray(good.photo[low[1] - 20 : high[1] + 20, low[0] - 20 : high[0] + 20]))
    assert list(close.advice) == ["cut_off"]


def test_the_animator_says_it(caplog: pytest.LogCaptureFixture) -> None:
    photo = Image.open(EXAMPLES / "portrait.jpg").convert("RGB")
    face = find_portrait(np.asarray(photo)).face.size
    small = photo.resize([round(side * 70 / face) for side in photo.size], Image.Resampling.LANCZOS)
    with caplog.at_level(logging.WARNING, logger="semo_sdk.animator"):
        _find(small, None, 2.0)
    assert "take a larger photo" in caplog.text
    caplog.clear()
    _find(photo, None, 2.0)
    assert not caplog.records
