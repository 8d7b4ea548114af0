"""Lips of a photo are closed: nothing between them stays, nothing far from them moves, and the mesh says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semo_sdk import Animator
from semo_sdk.media.audio import load_audio
from semo_sdk.media.face import FaceDetector, FaceMesh
from semo_sdk.media.image import Portrait, find_portrait, load_image
from semo_sdk.media.lips import INNER_LOWER, INNER_UPPER, OUTER_LOWER, OUTER_UPPER, WIDE, _Mouth, close_lips, lip_gap

RED, WHITE, SKIN = (160, 60, 60), (250, 250, 250), (200, 160, 140)


def turned(points: np.ndarray, degrees: float, about: np.ndarray) -> np.ndarray:
    angle = np.radians(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    out = points.copy()
    out[:, :2] = (points[:, :2] - about) @ matrix.T + about
    return out


@pytest.fixture(scope="module")
def mesh(portrait: Portrait) -> np.ndarray:
    """A mesh with closed lips whose mouth is level, at (256, 300) in a picture of 512 pixels."""
    points = portrait.mesh.astype(np.float64) * [2, 2, 2]
    corners = points[[INNER_UPPER[0], INNER_UPPER[-1]], :2]
    across = corners[1] - corners[0]
    points = turned(points, -float(np.degrees(np.arctan2(across[1], across[0]))), corners.mean(0))
    points[:, :2] += [256, 300] - corners.mean(0)
    return points


def opened(mesh: np.ndarray, gap: float) -> np.ndarray:
    """The mesh with its lips apart by ``gap`` face heights in the middle, as a smile has them."""
    points = mesh.copy()
    arch = gap * float(np.ptp(mesh[:, 1])) * (1 - np.linspace(-1, 1, 11) ** 2)
    line = (mesh[list(INNER_UPPER), 1] + mesh[list(INNER_LOWER), 1]) / 2
    for inner, outer, side in ((INNER_UPPER, OUTER_UPPER, -0.3), (INNER_LOWER, OUTER_LOWER, 0.7)):
        points[list(inner), 1] = line + side * arch
        points[list(outer), 1] += side * arch
    return points


def drawn(points: np.ndarray) -> np.ndarray:
    """(512, 512, 3) lips and teeth on skin with stripes."""
    from PIL import Image, ImageDraw

    skin = np.full((512, 512, 3), SKIN, np.uint8)
    skin[:, ::16] -= 20
    picture = Image.fromarray(skin)
    for upper, lower, colour in ((OUTER_UPPER, OUTER_LOWER, RED), (INNER_UPPER, INNER_LOWER, WHITE)):
        ring = [*upper, *lower[::-1]]
        ImageDraw.Draw(picture).polygon([tuple(map(float, p)) for p in points[ring, :2]], fill=colour)
    return np.asarray(picture)


def teeth(image: np.ndarray) -> int:
    return int((image.min(-1) > 225).sum())


@pytest.mark.parametrize("gap", [0.02, 0.06, 0.11])
@pytest.mark.parametrize("roll", [0.0, 20.0, -35.0])
def test_teeth_disappear_and_lips_stay(mesh: np.ndarray, gap: float, roll: float) -> None:
    points = turned(opened(mesh, gap), roll, np.array([256.0, 256.0]))
    photo = drawn(points)
    closed, moved = close_lips(photo, points)
    assert teeth(photo) > 10_000 * gap and teeth(closed) < 8
    assert abs(lip_gap(moved)) < 0.004 < gap * 0.9 < lip_gap(points)
    lips = int((closed[..., 0].astype(int) - closed[..., 1] > 80).sum())
    assert 0.7 < lips / int((photo[..., 0].astype(int) - photo[..., 1] > 80).sum()) < 1.3


def test_what_is_far_from_the_mouth_stays_bit_for_bit(mesh: np.ndarray) -> None:
    points = opened(mesh, 0.05)
    photo = drawn(points)
    before = photo.copy()
    closed, moved = close_lips(photo, points)
    assert np.array_equal(photo, before)
    low, high = points[list(OUTER_UPPER), 0].min(), points[list(OUTER_UPPER), 0].max()
    rows, columns = np.nonzero((closed != photo).any(-1))
    assert columns.min() >= np.floor(low) and columns.max() <= np.ceil(high)
    assert np.abs(rows - points[list(INNER_LOWER), 1].mean()).max() < 0.4 * np.ptp(points[:, 1])
    far = np.abs(moved - points).max(1) < 1e-3
    assert far[[33, 263, 10, 168]].all()  # eyes, forehead, bridge of the nose


def test_places_go_where_they_come_from(mesh: np.ndarray) -> None:
    points = opened(mesh, 0.1)
    mouth = _Mouth(points)
    places = np.stack(np.meshgrid(np.linspace(180, 330, 40), np.linspace(220, 400, 60)), -1)
    assert np.abs(mouth.target(mouth.source(places)) - places).max() < 0.02
    heights = mouth.source(places)[..., 1]
    assert (np.diff(heights, axis=0) > 0).all()  # nothing folds


@pytest.mark.parametrize("gap", [0.0, 0.005, WIDE + 0.05])
def test_closed_lips_and_yawns_are_left_alone(mesh: np.ndarray, gap: float) -> None:
    points = opened(mesh, gap)
    photo = drawn(points)
    closed, moved = close_lips(photo, points)
    assert closed is photo and moved is points


def test_a_mouth_at_the_edge_of_the_photo(mesh: np.ndarray) -> None:
    points = opened(mesh, 0.08)
    points[:, 0] -= 250
    closed, _ = close_lips(drawn(points), points)
    assert teeth(closed) < 8


def test_a_speaking_portrait_is_found_with_closed_lips(portrait_path: Path, speech_path: Path) -> None:
    with Animator(portrait_path) as animator:
        frames = animator.from_audio(load_audio(speech_path)[:20_000]).frames[::2]
    detector, mesh = FaceDetector(), FaceMesh()
    gaps = []
    for frame in frames:
        landmarks = mesh(frame, detector(frame)[0])
        assert landmarks is not None
        gaps.append(lip_gap(landmarks.points))
    widest = frames[int(np.argmax(gaps))]
    found = find_portrait(widest)
    again = mesh(found.photo, detector(found.photo)[0])
    assert again is not None and max(gaps) > 0.03
    assert lip_gap(again.points) < 0.35 * max(gaps) and abs(lip_gap(found.landmarks.points)) < 0.01
    assert not np.array_equal(found.photo, widest)
    shut = frames[int(np.argmin(gaps))]
    assert np.array_equal(find_portrait(shut).photo, shut)


def test_an_example_keeps_its_photo(portrait_path: Path) -> None:
    photo = load_image(portrait_path)
    assert find_portrait(photo).photo is photo
