"""Gaze of the puppet: irises move between the lids of a frame (DESIGN, section 5).

A gaze is (x, y): how far both irises move from where they are in the portrait, to the right and down, in widths of the
eye. One unit is far out: an eyeball is about 0.8 widths of the eye wide, so 0.1 is a turn of 15 degrees. Both eyes look
at one distant point, so they move alike.

Neither pose nor expression holds the gaze, and so taught motion tokens cannot: a model trained on those would see eyes
that move for no reason, and learn to blur or to shake them. It is therefore off unless it is asked for; tokens that are
encoded from pixels can hold it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semo_sdk import constants
from semo_sdk.constants import FPS
from semo_sdk.training import puppet_geometry as geometry
from semo_sdk.training.puppet_mouth import fill_polygon

__all__ = ["gaze_path", "place_irises", "shift_gaze"]

REACH = np.array([0.1, 0.04])  # farthest gaze
SPREAD = 0.6  # deviation of a new place, in reaches
HOME = 0.4  # share of the looks that are at the camera again
HOLD = (0.5, 2.0)  # seconds between two jumps
ROOM = 0.5  # of the way to the corner, and to where the picture would fold, that an iris moves at most
LID_LINES = constants.UPPER_LIDS, constants.LOWER_LIDS
LIDS = np.concatenate([constants.UPPER_LIDS, np.array(constants.LOWER_LIDS)[:, -2:0:-1]], 1)  # (2, 16) closed polygons


def gaze_path(frames: int, rng: np.random.Generator) -> np.ndarray:
    """(frames, 2) gaze: holds of half a second to two seconds, jumps of one or two frames between them."""
    path = np.zeros((frames, 2))
    now = int(rng.integers(-int(HOLD[1] * FPS), 1))
    while now < frames:
        place = np.clip(rng.normal(0, SPREAD, 2), -1, 1) * REACH * (rng.random() > HOME)
        slow = now > 0 and rng.random() < 0.5  # takes two frames
        if slow:
            path[now] = (path[now - 1] + place) / 2
        path[max(0, now + slow) :] = place
        now += 1 + slow + int(rng.integers(round(HOLD[0] * FPS) + 1, round(HOLD[1] * FPS) + 1))
    return path


@dataclass(frozen=True)
class _Eye:
    """An eye in an image: its polygon, left corner, axes as long as the eye is wide, and lids from left to right."""

    polygon: np.ndarray  # (16, 2) px
    left: np.ndarray  # (2,) px
    axes: np.ndarray  # (2, 2) rows, px
    upper: np.ndarray  # (2, 9) x and y in widths of the eye
    lower: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, eye: int) -> _Eye:
        corners = points[geometry.EYE_CORNERS[eye], :2]
        left, right = corners[np.argsort(corners[:, 0])]
        along = right - left
        axes = np.stack([along, [-along[1], along[0]]])
        lines = [_local(points[np.array(line[eye]), :2], left, axes) for line in LID_LINES]
        upper, lower = (line[np.argsort(line[:, 0])].T for line in lines)
        return cls(points[LIDS[eye], :2], left, axes, upper, lower)

    def lids(self, x: np.ndarray) -> np.ndarray:
        """(2, ...) y of upper and lower lid at x, in widths of the eye."""
        return np.stack([np.interp(x, *self.upper), np.interp(x, *self.lower)])

    def room(self, iris: np.ndarray) -> float:
        """Of an iris to the nearer corner, in widths of the eye."""
        return max(0.0, float(min(iris[0], 1 - iris[0]) - iris[2]))


def _local(places: np.ndarray, left: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.asarray((places - left) @ axes.T / np.square(axes[0]).sum())


def place_irises(mesh: np.ndarray) -> np.ndarray:
    """Irises of a mesh (478, 2 or 3) in their eyes: (2, 3) x, y of the centre from the left corner, and the radius.

    Everything in widths of the eye.
    """
    out = []
    for eye in (0, 1):
        first = geometry.MESH + 5 * eye
        seen = _Eye.of(mesh, eye)
        centre, *rim = _local(mesh[first : first + 5, :2], seen.left, seen.axes)
        out.append([*centre, np.linalg.norm(np.array(rim) - centre, axis=1).mean()])
    return np.array(out)


def _ease(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 0, 1)
    return np.asarray(share * share * (3 - 2 * share))


def shift_gaze(frame: np.ndarray, target: np.ndarray, irises: np.ndarray, gaze: np.ndarray) -> None:
    """Moves the irises of a frame, in place; nothing outside the lids changes.

    Args:
        frame: (H, W, 3) uint8 RGB.
        target: (>= 468, 2) where the mesh is in it.
        irises: (2, 3) from :func:`place_irises`.
        gaze: (2,) see above; less where one of the eyes has no room for it.
    """
    import cv2

    size = np.array(frame.shape[1::-1])
    eyes = [_Eye.of(target, eye) for eye in (0, 1)]
    room = min(eye.room(iris) for eye, iris in zip(eyes, irises, strict=True))
    opening = min(float(np.diff(eye.lids(iris[0]))[0]) for eye, iris in zip(eyes, irises, strict=True))
    limit = ROOM * np.array([room, max(0.0, opening) / 4])  # a quarter of the opening is where the fall-off would fold
    aside, down = np.clip(gaze, -limit, limit)
    for eye, (centre, _, radius) in zip(eyes, irises, strict=True):
        low = np.clip(np.floor(eye.polygon.min(0)).astype(int) - 2, 0, size)
        high = np.clip(np.ceil(eye.polygon.max(0)).astype(int) + 2, 0, size)
        width, height = (high - low).tolist()
        if width < 4 or height < 4:
            continue
        pixels = np.stack(np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5), -1)
        x, y = np.moveaxis(_local(pixels, eye.left, eye.axes), -1, 0)
        top, bottom = eye.lids(x)
        near = np.where(x < centre, x / max(centre - radius, 0.05), (1 - x) / max(1 - centre - radius, 0.05))
        from_x = x - aside * _ease(near)
        height_in = np.clip((y - top) / np.maximum(bottom - top, 1e-6), 0, 1)
        from_y = y - down * 4 * height_in * (1 - height_in)
        inset = 0.5 / np.linalg.norm(eye.axes[0])  # half a pixel inside the lids there
        above, below = eye.lids(from_x)
        middle = (above + below) / 2
        from_y = np.clip(from_y, np.minimum(above + inset, middle), np.maximum(below - inset, middle))
        source = eye.left + from_x[..., None] * eye.axes[0] + from_y[..., None] * eye.axes[1] - 0.5
        x_map, y_map = np.moveaxis(source.astype(np.float32), -1, 0)
        moved = cv2.remap(frame, x_map, y_map, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        mask = fill_polygon(eye.polygon - low, (height, width))[..., None]
        patch = frame[low[1] : high[1], low[0] : high[0]]
        patch[:] = np.round(patch * (1 - mask) + moved * mask).astype(np.uint8)
