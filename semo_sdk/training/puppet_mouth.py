"""Mouth interiors of the puppet: the driver's own teeth and tongue between a portrait's lips (DESIGN, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.training import puppet_geometry as geometry

__all__ = ["OPEN_MOUTH", "MouthSource", "fill_polygon", "mouth_gap", "paste_mouth"]

OPEN_MOUTH = 1.2  # pixels between the inner lips from which the interior shows


@dataclass(frozen=True)
class MouthSource:
    """An image and where its lips are: a driver's frame to take a mouth from, or the portrait to match it to.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        points: (>= 468, 2 or 3) mesh in its pixels.
    """

    image: np.ndarray
    points: np.ndarray


def mouth_gap(target: np.ndarray) -> float:
    """Pixels between the middles of the inner lips."""
    return float((target[geometry.INNER_LOWER[4:7], 1] - target[geometry.INNER_UPPER[4:7], 1]).mean())


def fill_polygon(polygon: np.ndarray, size: tuple[int, int], value: float = 1.0) -> np.ndarray:
    """(H, W) float32 anti-aliased mask of a polygon in pixels (corner convention)."""
    import cv2

    fine, zoom = 16.0, 4
    mask = np.zeros((size[0] * zoom, size[1] * zoom), np.uint8)
    vertices = np.round((polygon * zoom - 0.5) * fine).astype(np.int32)
    cv2.fillPoly(mask, [vertices], 255, shift=4)
    return np.asarray(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_AREA) * np.float32(value / 255))


def _lip_colour(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(3,) mean colour of the middle of the lips."""
    rings = np.concatenate([geometry.UPPER_LIPS[1:3, 2:9].ravel(), geometry.LOWER_LIPS[1:3, 2:9].ravel()])
    at = np.clip(points[rings, :2], 0, np.array(image.shape[1::-1]) - 1).astype(int)
    return np.asarray(image[at[:, 1], at[:, 0]].astype(np.float32).mean(0))


def _skin_saturation(image: np.ndarray, points: np.ndarray) -> float:
    """How colourful the cheeks and lips are: (max - min) / max of the mean colour."""
    places = np.concatenate([[50, 280, 205, 425, 151, 9, 101, 330], geometry.LOWER_LIPS[1, 3:8]])
    at = np.clip(points[places, :2], 0, np.array(image.shape[1::-1]) - 1).astype(int)
    colours = image[at[:, 1], at[:, 0]].astype(np.float32)
    return float((np.ptp(colours, axis=1) / np.maximum(colours.max(1), 1)).mean())


def paste_mouth(frame: np.ndarray, target: np.ndarray, portrait: MouthSource, source: MouthSource) -> None:
    """Puts the driver's mouth interior between the lips of a frame, in place."""
    import cv2

    polygon = target[geometry.INNER_LIPS]
    low = np.maximum(np.floor(polygon.min(0)).astype(int) - 4, 0)
    high = np.minimum(np.ceil(polygon.max(0)).astype(int) + 4, IMAGE_SIZE)
    width, height = (high - low).tolist()
    if width < 4 or height < 4:
        return
    ours, theirs = target[geometry.INNER_LIPS] - low, source.points[geometry.INNER_LIPS, :2]
    solved, *_ = np.linalg.lstsq(np.concatenate([ours, np.ones((len(ours), 1))], 1), theirs, rcond=None)
    matrix = solved.T.copy()
    matrix[:, 2] += matrix[:, :2] @ np.array([0.5, 0.5]) - 0.5
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    mouth = cv2.warpAffine(source.image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    mine, drivers = _lip_colour(portrait.image, portrait.points), _lip_colour(source.image, source.points)
    gain = np.clip(mine.mean() / max(float(drivers.mean()), 1.0), 0.3, 1.8) ** 0.55
    tint = np.clip((mine / mine.mean().clip(1)) / (drivers / drivers.mean().clip(1)), 0.7, 1.4) ** 0.3
    colour = mouth.astype(np.float32) * gain * tint
    ratio = _skin_saturation(portrait.image, portrait.points) / max(_skin_saturation(source.image, source.points), 0.05)
    grey = colour.mean(-1, keepdims=True)
    teeth = np.clip(grey / max(float(grey.max()), 1.0) * 3 - 1.4, 0, 1)  # bright: whiter than the film has them
    colour = (grey + (colour - grey) * np.clip(ratio, 0, 1) * (1 - 0.6 * teeth)) * (1 + 0.25 * teeth)
    mask = cv2.GaussianBlur(fill_polygon(ours, (height, width)), (0, 0), 0.8)[..., None]
    mask = mask * np.clip((mouth_gap(target) - OPEN_MOUTH) / 1.5 + 0.3, 0, 1)
    patch = frame[low[1] : high[1], low[0] : high[0]]
    patch[:] = np.clip(patch * (1 - mask) + colour * mask, 0, 255).astype(np.uint8)
