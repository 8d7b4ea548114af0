"""Faces: found where they are, not where they are not; a mesh that moves with the image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semo_sdk.media.face import FaceDetector, FaceMesh, FaceTracker, Landmarks, mouth_opening, warp_affine

EXAMPLES = Path(__file__).parent.parent / "examples"
PORTRAITS = ["portrait.jpg", "portrait2.jpg"]


def load(name: str) -> np.ndarray:
    return np.asarray(Image.open(EXAMPLES / name).convert("RGB"))


def mesh_of(image: np.ndarray) -> Landmarks:
    landmarks = FaceMesh()(image, FaceDetector()(image)[0])
    assert landmarks is not None
    return landmarks


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return load(PORTRAITS[0])


@pytest.mark.parametrize("name", PORTRAITS)
def test_finds_the_face_of_each_example(name: str) -> None:
    image = load(name)
    (face,) = FaceDetector()(image)
    x0, y0, x1, y1 = face.box
    right_eye, left_eye, nose, mouth = face.keypoints[:4]
    assert 0.2 * image.shape[1] < face.size < 0.9 * image.shape[1]
    assert all(x0 < x < x1 and y0 < y < y1 for x, y in face.keypoints[:4])
    assert right_eye[0] < nose[0] < left_eye[0] and right_eye[1] < nose[1] < mouth[1]
    landmarks = mesh_of(image)
    assert landmarks.presence > 0.9 and landmarks.points.shape == (478, 3)
    assert landmarks.points.dtype == np.float32
    assert np.linalg.norm(landmarks.points[1, :2] - nose) < 0.15 * face.size
    assert 0 <= mouth_opening(landmarks.points) < 0.15


@pytest.mark.parametrize("seed", range(4))
def test_no_face_in_noise(seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (300 + 90 * seed, 400, 3)).astype(np.uint8)
    assert FaceDetector()(noise) == []
    assert FaceDetector()(np.full_like(noise, 40 * seed)) == []


def test_two_people_are_two_faces(portrait: np.ndarray) -> None:
    small = portrait[::2, ::2]
    other = np.pad(small, ((100, 100), (0, 0), (0, 0)), mode="edge")
    faces = FaceDetector()(np.concatenate([portrait, other], axis=1))
    assert len(faces) == 2
    assert faces[0].size > faces[1].size and faces[0].box[2] <= faces[1].box[0] + 20


def test_small_face_in_a_big_photo_is_found_by_tiles(portrait: np.ndarray) -> None:
    photo = np.full((1500, 2100, 3), 120, np.uint8)
    photo[900:1300, 1500:1900] = portrait
    direct = FaceDetector()(portrait)[0]
    (face,) = FaceDetector()(photo)
    assert np.allclose(face.box, np.add(direct.box, [1500, 900, 1500, 900]), atol=0.15 * direct.size)


@pytest.mark.parametrize(("turn", "scale"), [(0.0, 0.7), (0.3, 1.0), (-0.4, 1.6)])
def test_mesh_moves_with_the_image(portrait: np.ndarray, turn: float, scale: float) -> None:
    before = mesh_of(portrait).points
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / scale
    matrix = np.concatenate([linear, (200 - linear @ np.full(2, 250.0))[:, None]], axis=1)
    moved = warp_affine(portrait, matrix, 500).round().astype(np.uint8)
    after = mesh_of(moved).points[:, :2]
    expected = (before[:, :2] - matrix[:, 2]) @ np.linalg.inv(linear).T
    face = np.linalg.norm(expected[10] - expected[152])
    assert np.linalg.norm(after - expected, axis=1).mean() < 0.02 * face


def test_tracker_follows_loses_and_finds_again(portrait: np.ndarray) -> None:
    tracker = FaceTracker()
    start = tracker(portrait)
    assert start is not None
    for step in range(1, 4):
        moved = tracker(np.roll(portrait, 5 * step, axis=1))
        assert moved is not None
        shift = (moved.points - start.points)[:, :2].mean(0)
        assert np.allclose(shift, [5 * step, 0], atol=1.5)
    assert tracker(np.zeros_like(portrait)) is None
    again = list(tracker.track([portrait]))[0]
    assert again is not None and np.abs(again.points - start.points)[:, :2].mean() < 1


def test_same_image_same_numbers(portrait: np.ndarray) -> None:
    first, second = mesh_of(portrait), mesh_of(portrait)
    assert np.array_equal(first.points, second.points) and first.presence == second.presence


def test_mouth_opening_is_gap_over_eye_distance() -> None:
    points = np.zeros((478, 3))
    points[263, 0], points[14, 1] = 80, 20
    assert mouth_opening(points) == pytest.approx(0.25)
    assert mouth_opening(points * 3 + 7) == pytest.approx(0.25)


def test_crop_identity_average_and_border() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    same = warp_affine(image, np.array([[1.0, 0, 0], [0, 1, 0]]), 64)
    assert np.array_equal(same, image)
    quarter = warp_affine(image, np.array([[4.0, 0, 0], [0, 4, 0]]), 16)
    blocks = image.reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(quarter - blocks).max() <= 1
    outside = warp_affine(image, np.array([[1.0, 0, 100], [0, 1, 100]]), 8, border=9)
    assert (outside == 9).all()


@pytest.mark.parametrize("bad", [np.zeros((8, 8)), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
def test_what_is_no_image_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        FaceDetector()(bad)


def test_needs_neither_torch_nor_opencv() -> None:
    code = (
        "import sys, numpy as np; from semo_sdk.media.face import FaceDetector;"
        "FaceDetector()(np.zeros((64, 64, 3), np.uint8));"
        "assert not {'torch', 'cv2', 'scipy', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
