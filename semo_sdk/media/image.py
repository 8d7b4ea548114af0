"""Portraits: read any photo, find and crop its face, paste moving faces back into it.

Images are (H, W, 3) uint8 RGB. Squares are (x0, y0, side) in pixels, x right, y down, where (0, 0) is the corner of
the first pixel; they may reach outside the image.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.errors import AmbiguousFaceError, FaceTooSmallError, ImageError, NoFaceError
from semo_sdk.media.advice import advise
from semo_sdk.media.face import Face, FaceDetector, FaceMesh, Landmarks
from semo_sdk.media.lips import close_lips
from semo_sdk.media.paste import Paster
from semo_sdk.media.photo import load_image

__all__ = ["Portrait", "crop_square", "face_square", "find_portrait", "load_image", "paste_back", "square_inside"]

MIN_FACE = 48  # pixels: the longer side of the box from the brows to the chin
LEAST_CROP = 1.6  # face heights: no tighter square for want of room, training had none
MOST_SHIFT = 1 / 16  # of its side: no further off the face for want of room, nor had training
RIVAL_AREA = 0.6  # a second face with more than this share of the first one's area makes the choice ambiguous


@dataclass(frozen=True, eq=False)
class Portrait:
    """A photo with a face that can be animated.

    Attributes:
        crop: (256, 256, 3) uint8 RGB: what the models see.
        photo: (H, W, 3) uint8 RGB, lips closed as in the crop.
        box: x0, y0, side of the crop in the photo's pixels.
        face: what the detector found.
        landmarks: the mesh of the face, in the photo's pixels.
    """

    crop: np.ndarray
    photo: np.ndarray
    box: tuple[float, float, float]
    face: Face
    landmarks: Landmarks

    def limited(self, max_side: int) -> Portrait:
        """The same crop in a photo of at most ``max_side`` pixels on its longer side, for pasting into a video."""
        from PIL import Image

        height, width = self.photo.shape[:2]
        scale = max_side / max(width, height)
        if scale >= 1:
            return self
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        photo = np.asarray(Image.fromarray(self.photo).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
        x0, y0, x1, y1 = (value * scale for value in self.face.box)
        face = Face((x0, y0, x1, y1), self.face.score, self.face.keypoints * np.float32(scale))
        landmarks = Landmarks(self.landmarks.points * np.float32(scale), self.landmarks.presence)
        x, y, side = (value * scale for value in self.box)
        return dataclasses.replace(self, photo=photo, box=(x, y, side), face=face, landmarks=landmarks)

    @cached_property
    def mesh(self) -> np.ndarray:
        """(478, 3) float32 landmarks in the crop's pixels."""
        x, y, side = self.box
        return (self.landmarks.points - np.array([x, y, 0], np.float32)) * np.float32(IMAGE_SIZE / side)

    @cached_property
    def advice(self) -> dict[str, str]:
        """What would make a better portrait, see :func:`~semo_sdk.media.advice.advise`; empty for a good one."""
        height, width = self.photo.shape[:2]
        x, y, side = self.box
        beyond = max(-x, -y, x + side - width, y + side - height) / side
        return advise(self.crop, self.mesh, self.face.size, beyond)

    @cached_property
    def paster(self) -> Paster:
        """What pastes frames of this portrait back, prepared once."""
        return Paster(self.photo, self.crop, self.box, self.landmarks.points)


def paste_back(portrait: Portrait, frames: np.ndarray) -> np.ndarray:
    """Frames of the crop, put back into the photo with a soft seam.

    Args:
        portrait: whose crop the frames show.
        frames: (n, 256, 256, 3) uint8 RGB.

    Returns:
        (n, H, W, 3) uint8 RGB, of the photo's size.
    """
    return portrait.paster(frames)


def face_square(points: np.ndarray, scale: float) -> tuple[float, float, float]:
    """The square crop around a face.

    Args:
        points: (n, 2 or 3) face mesh in pixels.
        scale: side of the square in face heights.

    Returns:
        x0, y0, side: centred on the mesh's bounding box, ``scale`` times as high as that box.
    """
    low, high = points[:, :2].min(0).astype(float), points[:, :2].max(0).astype(float)
    side = scale * float(high[1] - low[1])
    x, y = (low + high) / 2 - side / 2
    return float(x), float(y), side


def square_inside(points: np.ndarray, scale: float, size: tuple[int, int]) -> tuple[float, float, float]:
    """:func:`face_square`, inside the photo as far as the models allow: what is beyond its edges is made up.

    A photo without room makes the square smaller, down to 1.6 face heights, and moves it, by up to a sixteenth of its
    side.

    Args:
        points: (n, 2 or 3) face mesh in pixels.
        scale: side of the square in face heights.
        size: width and height of the photo in pixels.

    Returns:
        x0, y0, side.
    """
    wanted = face_square(points, scale)
    least = min(LEAST_CROP / scale, 1) * wanted[2]
    side = min(wanted[2], max(least, float(min(size))))
    corner = np.array(wanted[:2]) + (wanted[2] - side) / 2
    room = np.array(size) - side
    inside = np.clip(corner, np.minimum(room, 0) / 2, np.maximum(room, room / 2))
    x, y = corner + np.clip(inside - corner, -MOST_SHIFT * side, MOST_SHIFT * side)
    return float(x), float(y), side


def crop_square(image: np.ndarray, box: tuple[float, float, float], size: int = IMAGE_SIZE) -> np.ndarray:
    """A square of an image, averaged or interpolated to another size.

    Where it reaches outside, the image's edge is repeated and blurred, as in training.

    Args:
        image: (H, W, 3) uint8.
        box: x0, y0, side in the image's pixels, side > 0.
        size: side of the result in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    from PIL import Image, ImageFilter

    x0, y0, side = box
    shrink = int(side / (2 * size))
    if shrink > 1:  # whole blocks first: as good, and fast for large photos
        image = np.asarray(Image.fromarray(image).reduce(shrink))
        x0, y0, side = x0 / shrink, y0 / shrink, side / shrink
    height, width = image.shape[:2]
    margin = int(np.ceil(3 * max(side / size, 1))) + 1  # reach of the filter
    columns = np.arange(int(np.floor(x0)) - margin, int(np.ceil(x0 + side)) + margin)
    rows = np.arange(int(np.floor(y0)) - margin, int(np.ceil(y0 + side)) + margin)
    beyond_x = np.maximum(np.maximum(-columns, columns - (width - 1)), 0)
    beyond_y = np.maximum(np.maximum(-rows, rows - (height - 1)), 0)
    if beyond_x.any() or beyond_y.any():
        part = image[np.clip(rows, 0, height - 1)][:, np.clip(columns, 0, width - 1)]
        soft = np.asarray(Image.fromarray(part).filter(ImageFilter.GaussianBlur(max(side / 100, 1))))
        distance = np.hypot(beyond_x[None, :], beyond_y[:, None]).astype(np.float32)
        share = np.clip(distance / (side / 40), 0, 1)[..., None]
        part = np.rint(part + (soft.astype(np.float32) - part) * share).astype(np.uint8)
    else:
        part = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    x, y = x0 - columns[0], y0 - rows[0]
    square = Image.fromarray(np.ascontiguousarray(part))
    return np.array(square.resize((size, size), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side)))


def find_portrait(photo: np.ndarray, face_index: int | None = None, crop_scale: float = 2.0) -> Portrait:
    """Finds the face to animate, closes its lips and crops around it.

    Args:
        photo: (H, W, 3) uint8 RGB, as :func:`load_image` gives it.
        face_index: which face when there are several: 0 is the largest. None takes the largest one if no other is
            nearly as large.
        crop_scale: side of the square crop in face heights, 1.2 to 4; less where the photo has no room for that, see
            :func:`square_inside`.

    Returns:
        The portrait. Where its lips were apart they are together now, in the photo as well
        (:func:`~semo_sdk.media.lips.close_lips`).

    Raises:
        NoFaceError: no face, or no face of that number.
        AmbiguousFaceError: several faces of similar size and no ``face_index``.
        FaceTooSmallError: the face has fewer than 48 pixels.
        ImageError: an impossible ``crop_scale``.
    """
    if not 1.2 <= crop_scale <= 4:
        raise ImageError(f"crop_scale={crop_scale}: the crop's side is 1.2 to 4 face heights")
    height, width = photo.shape[:2]
    faces = FaceDetector()(photo)
    if not faces:
        raise NoFaceError(
            f"no face was found in the photo ({width} x {height} pixels): give one that shows a face from the front, "
            "upright and uncovered"
        )
    if face_index is None:
        face, landmarks = _only_face(photo, faces)
    elif not 0 <= face_index < len(faces):
        raise NoFaceError(f"face_index={face_index}, but the photo has {len(faces)} face(s):\n{_list(faces)}")
    else:
        face, landmarks = faces[face_index], FaceMesh()(photo, faces[face_index])
    if face.size < MIN_FACE:
        raise FaceTooSmallError(
            f"the face is {face.size:.0f} pixels large, at least {MIN_FACE} are needed: "
            "give a larger photo, or one taken nearer"
        )
    if landmarks is None:
        raise NoFaceError(
            "what looks like a face is too turned, covered or blurred to be measured: give a photo that shows the "
            f"face from the front\n{_list([face])}"
        )
    photo, points = close_lips(photo, landmarks.points)
    landmarks = Landmarks(points, landmarks.presence)
    box = square_inside(points, crop_scale, (width, height))
    return Portrait(crop_square(photo, box), photo, box, face, landmarks)


def _only_face(photo: np.ndarray, faces: list[Face]) -> tuple[Face, Landmarks | None]:
    """The largest face and its mesh, if no other real face is nearly as large."""
    areas = [(face.box[2] - face.box[0]) * (face.box[3] - face.box[1]) for face in faces]
    large = [face for face, area in zip(faces, areas, strict=True) if area > RIVAL_AREA * max(areas)]
    fit = FaceMesh()
    meshes = [fit(photo, face) for face in large]
    real = [(face, mesh) for face, mesh in zip(large, meshes, strict=True) if mesh is not None]
    if len(real) > 1:
        raise AmbiguousFaceError(
            f"{len(real)} faces of similar size: choose one with face_index= (0 is the largest), or crop the photo\n"
            + _list(faces)
        )
    return real[0] if real else (faces[0], None)


def _list(faces: list[Face]) -> str:
    """The faces, a line each: index and box."""
    lines = []
    for index, face in enumerate(faces):
        x0, y0, x1, y1 = (round(value) for value in face.box)
        lines.append(f"  {index}: x {x0} to {x1}, y {y0} to {y1} pixels, score {face.score:.2f}")
    return "\n".join(lines)
