"""Faces in images, torch-free: detection, a 478-point mesh and its tracking through a video.

The two networks are MediaPipe's (Apache-2.0): BlazeFace short range and the face landmarker's mesh. OpenVINO reads
their ``.tflite`` files directly. Only numpy is used around them.

Conventions: images are (H, W, 3) uint8 RGB; coordinates are pixels, x right, y down, with (0, 0) the *corner* of
the first pixel (its centre is (0.5, 0.5)); "left" and "right" are the subject's, as in MediaPipe. Crops are affine
maps ``image = matrix @ (u, v, 1)`` from crop pixels to image pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.vino import load_openvino

__all__ = ["Face", "FaceDetector", "FaceMesh", "FaceTracker", "Landmarks", "mouth_opening", "warp_affine"]

MODELS = Path(__file__).parent / "models"
DETECTOR_SIZE = 128  # pixels, both sides of the detector's input
MESH_SIZE = 256  # pixels, both sides of the mesh network's input
CROP_SCALE = 1.5  # side of the mesh crop over the longer side of the face's box
RIGHT_EYE, LEFT_EYE = 33, 263  # outer eye corners in the mesh
UPPER_LIP, LOWER_LIP = 13, 14  # middle of the inner lips in the mesh
TILE_MIN_SCORE = 0.7  # 13 looks at one image find more false faces than one look: ask for more
SAME_FACE_IOU = 0.3  # boxes that overlap more are one face


@dataclass(frozen=True)
class Face:
    """One detected face.

    Attributes:
        box: x0, y0, x1, y1 in pixels: from the brows to the chin; may reach outside the image.
        score: 0 to 1.
        keypoints: (6, 2) float32 pixels: right eye, left eye, nose tip, mouth, right ear, left ear.
    """

    box: tuple[float, float, float, float]
    score: float
    keypoints: np.ndarray

    @property
    def size(self) -> float:
        """The longer side of the box in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True)
class Landmarks:
    """A face mesh.

    Attributes:
        points: (478, 3) float32; x, y in pixels of the image, z in the same scale (smaller is nearer the camera).
        presence: 0 to 1, how sure the network is that it sees a face.
    """

    points: np.ndarray
    presence: float


def mouth_opening(points: np.ndarray) -> float:
    """How far the lips are apart, in face widths: about 0 when closed, 0.1 in speech, 0.5 wide open.

    Args:
        points: (478, 2 or 3) mesh in pixels; only x and y are used.

    Returns:
        Inner-lip gap over the distance between the outer eye corners.
    """
    gap = np.linalg.norm(points[LOWER_LIP, :2] - points[UPPER_LIP, :2])
    return float(gap / np.linalg.norm(points[LEFT_EYE, :2] - points[RIGHT_EYE, :2]))


@functools.cache
def _compiled(name: str, threads: int) -> Any:
    """The compiled network, once per process."""
    core = load_openvino().Core()
    model = core.read_model(MODELS / f"{name}.tflite")
    if model.inputs[0].partial_shape.is_dynamic:
        model.reshape([1, *[dim.get_length() for dim in list(model.inputs[0].partial_shape)[1:]]])
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return core.compile_model(model, "CPU", options)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -50, 50))))


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an image (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")


def warp_affine(image: np.ndarray, matrix: np.ndarray, size: int, *, border: int | None = None) -> np.ndarray:
    """A square crop of an image, bilinear, averaged first where it shrinks by two or more.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3) from crop pixels to image pixels.
        size: side of the crop in pixels.
        border: value outside the image; None repeats the edge.

    Returns:
        (size, size, 3) float32 in [0, 255].
    """
    shrink = int(np.sqrt(abs(np.linalg.det(matrix[:, :2]))) + 1e-6)
    if shrink >= 2:
        image, offset = _shrunk_region(image, matrix, size, shrink)
        matrix = matrix.copy()
        matrix[:, 2] -= offset
        matrix = matrix / shrink
    height, width = image.shape[:2]
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    columns, rows = matrix.astype(np.float32).T[0], matrix.astype(np.float32).T[1]
    shift = matrix[:, 2].astype(np.float32) - np.float32(0.5)
    x = centres[None, :] * columns[0] + centres[:, None] * rows[0] + shift[0]
    y = centres[None, :] * columns[1] + centres[:, None] * rows[1] + shift[1]
    left, top = np.floor(x), np.floor(y)
    dx, dy = (x - left).ravel()[:, None], (y - top).ravel()[:, None]
    x0 = np.clip(left, 0, width - 1).astype(np.int32)
    x1 = np.clip(left + 1, 0, width - 1).astype(np.int32)
    y0 = np.clip(top, 0, height - 1).astype(np.int32) * width
    y1 = np.clip(top + 1, 0, height - 1).astype(np.int32) * width
    # One 32-bit gather a tap instead of three 8-bit ones: four times faster.
    packed = np.zeros((height, width, 4), np.uint8)
    packed[..., :3] = image
    pixels = packed.view(np.uint32).ravel()

    def tap(index: np.ndarray) -> np.ndarray:
        return pixels[index.ravel()].view(np.uint8).reshape(-1, 4).astype(np.float32)

    upper, lower = tap(y0 + x0), tap(y1 + x0)
    upper += (tap(y0 + x1) - upper) * dx
    lower += (tap(y1 + x1) - lower) * dx
    upper += (lower - upper) * dy
    out = upper.reshape(size, size, 4)[..., :3]
    if border is not None:
        outside = (x < -0.5) | (y < -0.5) | (x > width - 0.5) | (y > height - 0.5)
        out[outside] = border
    return np.ascontiguousarray(out)


def _shrunk_region(image: np.ndarray, matrix: np.ndarray, size: int, by: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the image under the crop, averaged over ``by`` x ``by`` blocks, and its corner in pixels."""
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]]) @ matrix.T
    limit = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor(corners.min(0)) - 2 * by, 0, np.maximum(limit - by, 0)).astype(int)
    high = np.minimum(np.maximum(np.ceil(corners.max(0)) + 2 * by, low + by), limit).astype(int)
    columns, rows = np.maximum((high - low) // by, 1)
    part = image[low[1] : low[1] + rows * by, low[0] : low[0] + columns * by]
    rows_of = np.add.reduceat(part, np.arange(0, part.shape[0], by), axis=0, dtype=np.uint32)
    sums = np.add.reduceat(rows_of, np.arange(0, part.shape[1], by), axis=1, dtype=np.uint32)
    return (sums / (by * by)).round().astype(np.uint8), low.astype(np.float64)


@functools.cache
def _anchors() -> np.ndarray:
    """(896, 2) centres in [0, 1]: two a cell of a 16 x 16 grid, then six a cell of an 8 x 8 one."""
    centres = []
    for cells, count in ((16, 2), (8, 6)):
        line = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
        centres.append(np.repeat(grid, count, axis=0))
    return np.concatenate(centres).astype(np.float32)


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:4], boxes[:, 2:4])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1)
    return np.asarray(shared / (np.prod(box[2:4] - box[:2]) + areas - shared + 1e-9))


def _merge(found: np.ndarray, scores: np.ndarray) -> list[Face]:
    """Weighted non-maximum suppression of (n, 16) boxes and keypoints: overlapping ones are averaged by score."""
    faces = []
    order = np.argsort(-scores, kind="stable")
    found, scores = found[order], scores[order]
    while len(found):
        same = _iou(found[0], found) > SAME_FACE_IOU
        same[0] = True
        mean = np.average(found[same], axis=0, weights=scores[same]).astype(np.float32)
        x0, y0, x1, y1 = (float(value) for value in mean[:4])
        faces.append(Face((x0, y0, x1, y1), float(scores[0]), mean[4:].reshape(6, 2)))
        found, scores = found[~same], scores[~same]
    return sorted(faces, key=lambda face: -face.size)


class FaceDetector:
    """Finds faces (BlazeFace). One instance serves one thread; instances share the compiled network.

    Args:
        min_score: 0 to 1; detections below are dropped.
        threads: CPU threads of the network.
    """

    def __init__(self, *, min_score: float = 0.5, threads: int = 1) -> None:
        self.min_score = min_score
        self._request = _compiled("face_detector", threads).create_infer_request()

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Faces of an image, the largest first; empty when there is none.

        A photo is looked at as a whole; when nothing is found, on 2 x 2 and then 3 x 3 overlapping tiles, for faces
        that fill little of it.

        Args:
            image: (H, W, 3) uint8 RGB.

        Raises:
            ValueError: if the array is not such an image.
        """
        _check_image(image)
        height, width = image.shape[:2]
        for count in (1, 2, 3):
            if count > 1 and max(height, width) < count * DETECTOR_SIZE:
                break  # tiles would only be enlarged
            tile = 2 / (count + 1)  # neighbours overlap by half
            starts = np.linspace(0, 1 - tile, count)
            parts = [
                self._detect(image, x * width, y * height, tile * width, tile * height) for y in starts for x in starts
            ]
            found, scores = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
            sure = scores >= (self.min_score if count == 1 else max(self.min_score, TILE_MIN_SCORE))
            if sure.any():
                faces = _merge(found[sure], scores[sure])
                return faces if count == 1 else [self._look_closer(image, face) for face in faces]
        return []

    def _look_closer(self, image: np.ndarray, face: Face) -> Face:
        """The same face from a crop around it, where it is large enough for a precise box."""
        side = 2.5 * face.size
        x, y = ((face.box[i] + face.box[i + 2] - side) / 2 for i in (0, 1))
        again = _merge(*self._detect(image, x, y, side, side))
        return again[0] if again else face

    def _detect(
        self, image: np.ndarray, x: float, y: float, width: float, height: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raw detections in one letterboxed tile: (n, 16) in image pixels and (n,) scores."""
        side = max(width, height)
        scale = side / DETECTOR_SIZE
        corner = np.array([x - (side - width) / 2, y - (side - height) / 2])
        crop = warp_affine(image, np.array([[scale, 0, corner[0]], [0, scale, corner[1]]]), DETECTOR_SIZE, border=0)
        outputs = self._request.infer([crop[None] / 127.5 - 1])
        values, logits = sorted((outputs[i][0] for i in range(2)), key=lambda array: -array.shape[-1])
        scores = _sigmoid(logits[:, 0])
        keep = scores >= self.min_score
        values = values[keep] / DETECTOR_SIZE
        centres = _anchors()[keep]
        middle, half = values[:, :2] + centres, values[:, 2:4] / 2
        keypoints = values[:, 4:] + np.tile(centres, 6)
        found = np.concatenate([middle - half, middle + half, keypoints], axis=1) * side + np.tile(corner, 8)
        return found, scores[keep]


def _crop_matrix(centre: np.ndarray, side: float, axis: np.ndarray) -> np.ndarray:
    """(2, 3) map from the mesh crop to the image: a square whose x runs along ``axis`` (right eye to left eye)."""
    direction = axis / max(float(np.linalg.norm(axis)), 1e-6)
    linear = np.array([[direction[0], -direction[1]], [direction[1], direction[0]]]) * (side / MESH_SIZE)
    return np.concatenate([linear, (centre - linear @ np.full(2, MESH_SIZE / 2))[:, None]], axis=1)


def _crop_of_landmarks(points: np.ndarray) -> np.ndarray:
    axis = points[LEFT_EYE, :2] - points[RIGHT_EYE, :2]
    direction = axis / max(float(np.linalg.norm(axis)), 1e-6)
    turn = np.array([[direction[0], direction[1]], [-direction[1], direction[0]]])
    turned = points[:, :2] @ turn.T
    low, high = turned.min(0), turned.max(0)
    return _crop_matrix(turn.T @ ((low + high) / 2), CROP_SCALE * float((high - low).max()), axis)


class FaceMesh:
    """Fits the 478-point mesh to a face. One instance serves one thread; instances share the compiled network."""

    def __init__(self, *, min_presence: float = 0.5, threads: int = 1) -> None:
        self.min_presence = min_presence
        self._request = _compiled("face_landmarks_detector", threads).create_infer_request()

    def __call__(self, image: np.ndarray, face: Face) -> Landmarks | None:
        """The mesh of a detected face, or None when the network sees no face there.

        Two passes: the crop of the second one comes from the first one's landmarks, which makes the result
        independent of the detector's small errors.

        Args:
            image: (H, W, 3) uint8 RGB.
            face: where the face is, in the image's pixels.
        """
        x0, y0, x1, y1 = face.box
        centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        axis = face.keypoints[1] - face.keypoints[0]
        first = self._fit(image, _crop_matrix(centre, CROP_SCALE * face.size, axis))
        return first and self.refine(image, first)

    def refine(self, image: np.ndarray, previous: Landmarks) -> Landmarks | None:
        """One pass on the crop around known landmarks: those of the frame before, in a video."""
        return self._fit(image, _crop_of_landmarks(previous.points))

    def _fit(self, image: np.ndarray, matrix: np.ndarray) -> Landmarks | None:
        _check_image(image)
        crop = warp_affine(image, matrix, MESH_SIZE)
        outputs = self._request.infer([crop[None] / 255])
        presence = float(_sigmoid(outputs[1].ravel())[0])
        if presence < self.min_presence:
            return None
        points = outputs[0].reshape(478, 3).astype(np.float64)
        scale = float(np.linalg.norm(matrix[:, 0]))
        flat = np.concatenate([points[:, :2], np.ones((478, 1))], axis=1) @ matrix.T
        return Landmarks(np.concatenate([flat, points[:, 2:] * scale], axis=1).astype(np.float32), presence)


class FaceTracker:
    """Follows the largest face through a video: detector once, then each crop from the landmarks before.

    The detector runs again when the face is lost. Feed frames in order; a tracker belongs to one video.
    """

    def __init__(self, *, threads: int = 1) -> None:
        self._detector = FaceDetector(threads=threads)
        self._mesh = FaceMesh(threads=threads)
        self._last: Landmarks | None = None

    def __call__(self, image: np.ndarray) -> Landmarks | None:
        """Landmarks of the next frame, (H, W, 3) uint8 RGB; None when no face is seen in it."""
        if self._last is not None:
            self._last = self._mesh.refine(image, self._last)
        if self._last is None:
            faces = self._detector(image)
            self._last = self._mesh(image, faces[0]) if faces else None
        return self._last

    def track(self, frames: Iterable[np.ndarray]) -> Iterator[Landmarks | None]:
        """Landmarks of each frame of a video, in order."""
        return (self(frame) for frame in frames)
