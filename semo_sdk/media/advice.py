"""What makes a portrait speak badly, seen before anything is drawn: hints, not errors.

The limits were set on 947 portraits of SFHQ-T2I. Of these 67 count as turned, 32 as asleep, 20 as small; 247 have their
lips apart, which :mod:`~semo_sdk.media.lips` closes in all but 13; three wear a mask or a scarf, and these three count
as covered.
"""

from __future__ import annotations

import numpy as np

from semo_sdk.media.face import LEFT_EYE, RIGHT_EYE, mouth_opening

SOFT_BELOW = 96.0  # pixels of the photo from the brows to the chin
TURNED_FROM = 22.0  # degrees
OPEN_FROM = 0.15  # gap between the lips over the distance of the eyes' outer corners
BEYOND_FROM = 0.05  # how far the crop reaches beyond the photo, over its side
SHUT_BELOW = 0.12  # height of an eye over its width
COVERED_FROM = 17.0  # colour difference between what is below and what is above the middle of the nose
ALIKE_BELOW = 6.0  # colour difference between lips and chin under a mask
LIGHTNESS = 0.3  # its weight in a colour difference: faces are lit from one side, beards are dark

UPPER_FACE = (
    (6, 197, 168, 9),
    (151, 108, 337, 9),
    (118, 347, 119, 348),
)  # bridge of the nose, forehead, under the eyes
LOWER_FACE = ((4, 5, 1, 19), (199, 200, 175), (0, 17, 37, 267, 84, 314))  # tip of the nose, chin, lips
EYES = ((159, 145, 33, 133), (386, 374, 263, 362))  # middle of the upper and the lower lid, corners


def advise(image: np.ndarray, points: np.ndarray, size: float, beyond: float = 0.0) -> dict[str, str]:
    """What would make a better portrait, nothing for a good one.

    Args:
        image: (256, 256, 3) uint8 RGB crop.
        points: (478, 3) mesh of the face in the crop's pixels.
        size: the face in the photo, pixels from the brows to the chin.
        beyond: how far the crop reaches beyond the photo, over its side.

    Returns:
        A sentence each for ``small``, ``cut_off``, ``turned``, ``mouth_open``, ``eyes_closed``, ``mouth_covered``, if
        it applies.
    """
    found = {}
    if size < SOFT_BELOW:
        found["small"] = f"the face has {size:.0f} pixels in the photo, and the video will be soft: take a larger photo"
    if beyond > BEYOND_FROM:
        found["cut_off"] = (
            "the photo ends near the face, and what is beyond it will be a blur: leave room around the head"
        )
    if (turn := _turn(points)) > TURNED_FROM:
        found["turned"] = f"the face is turned by about {turn:.0f} degrees: one from the front moves better"
    if mouth_opening(points) > OPEN_FROM:
        found["mouth_open"] = "the mouth is wide open, and cannot be closed: closed lips speak better"
    if _eye_height(points) < SHUT_BELOW:
        found["eyes_closed"] = "the eyes are closed, and will stay closed"
    if _covered(image, points):
        found["mouth_covered"] = "the mouth seems to be covered: it will open on what covers it"
    return found


def _turn(points: np.ndarray) -> float:
    """Degrees by which the face looks to a side."""
    x, y, z = points[LEFT_EYE] - points[RIGHT_EYE]
    return float(np.degrees(np.arctan2(abs(z), np.hypot(x, y))))


def _eye_height(points: np.ndarray) -> float:
    """Mean of both eyes, over their widths."""
    flat = points[:, :2]
    heights = [
        np.linalg.norm(flat[top] - flat[bottom]) / np.linalg.norm(flat[a] - flat[b]) for top, bottom, a, b in EYES
    ]
    return float(np.mean(heights))


def _covered(image: np.ndarray, points: np.ndarray) -> bool:
    """Whether nose, lips and chin have one colour, and that one is nowhere above them: a mask, a scarf."""
    upper, lower = (
        np.stack([_colour(image, points, place) for place in places]) for places in (UPPER_FACE, LOWER_FACE)
    )
    apart = np.linalg.norm(upper[:, None] - lower[None], axis=-1).min()
    return bool(apart > COVERED_FROM and np.linalg.norm(lower[2] - lower[1]) < ALIKE_BELOW)


def _colour(image: np.ndarray, points: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
    """CIE Lab (D65) around landmarks: lightness, weighted, and the two colour axes; the median over them."""
    colours = []
    for x, y in points[list(place), :2]:
        column, row = (
            int(np.clip(round(float(value)), 2, side - 3))
            for value, side in zip((x, y), image.shape[1::-1], strict=True)
        )
        colours.append(image[row - 2 : row + 3, column - 2 : column + 3].mean((0, 1)) / 255)
    encoded = np.asarray(colours)
    linear = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    xyz = linear @ np.array([[0.4339, 0.2126, 0.0177], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8728]])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.median(np.stack([LIGHTNESS * (116 * y - 16), 500 * (x - y), 200 * (y - z)], -1), axis=0)
