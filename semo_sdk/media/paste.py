"""Moving 256 x 256 faces, put back into a photo of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semo_sdk.constants import IMAGE_SIZE

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Paster"]

FEATHER = 0.14  # width of the seam, in half sides of the square
FACE_MARGIN = 1.25  # the ellipse that always shows the frame, over the mesh's bounding box
FACE_FEATHER = 0.3  # width of the ellipse's rim, in its radii
SIMILAR = 10.0  # grey levels: outside the face, where frame and crop differ by less, the photo stays


def _smooth_mask(x: np.ndarray) -> Image.Image:
    """0 where x is below 0, 255 above 1, without a kink between."""
    from PIL import Image

    x = np.clip(x, 0, 1)
    return Image.fromarray(np.rint(255 * x * x * (3 - 2 * x)).astype(np.uint8))


class Paster:
    """Pastes frames of one portrait into its photo.

    A frame has 256 pixels a side, its place in the photo often more: enlarged, it is softer than the photo. So where
    a frame equals the portrait's own crop (background, clothes) the photo itself stays. Inside the face the frame
    always shows: detail that comes and goes with the movement would flicker. Towards the border of the square the
    frame fades into the photo.

    Args:
        photo: (H, W, 3) uint8.
        crop: (256, 256, 3) uint8, the square of the photo.
        box: x0, y0, side of the square in the photo's pixels; may reach outside.
        points: (n, 2 or 3) face mesh in the photo's pixels.
    """

    def __init__(
        self, photo: np.ndarray, crop: np.ndarray, box: tuple[float, float, float], points: np.ndarray
    ) -> None:
        from PIL import Image

        height, width = photo.shape[:2]
        x0, y0, side = box
        left, right = max(int(np.ceil(x0)), 0), min(int(np.floor(x0 + side)), width)
        top, bottom = max(int(np.ceil(y0)), 0), min(int(np.floor(y0 + side)), height)
        self._photo, self._crop = photo, Image.fromarray(crop)
        self._place = np.s_[top:bottom, left:right]  # whole pixels of the square inside the photo
        self._size = (right - left, bottom - top)
        corner, scale = np.array([x0, y0]), IMAGE_SIZE / side
        visible = np.array([[left, top], [right, bottom]]) - corner
        self._source = tuple(np.clip(visible * scale, 0, IMAGE_SIZE).ravel().tolist())  # the same part in the crop
        line = (np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 - 1
        square = (line**4 + line[:, None] ** 4) ** 0.25  # a rounded square (superellipse): 1 on its border
        self._weight = _smooth_mask((1 - square) / FEATHER)
        low, high = points[:, :2].min(0) - corner, points[:, :2].max(0) - corner
        x, y = (low + high) / side - 1
        a, b = (high - low) / side * FACE_MARGIN
        ellipse = np.hypot((line - x) / a, (line[:, None] - y) / b)
        self._outside = _smooth_mask((ellipse - 1) / FACE_FEATHER)
        self._same = np.rint(255 * np.exp(-np.square(np.arange(256) / SIMILAR))).astype(int).tolist()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """(n, 256, 256, 3) uint8 frames -> (n, H, W, 3) uint8 photos."""
        from PIL import Image

        out = np.repeat(self._photo[None], len(frames), axis=0)
        under = Image.fromarray(np.ascontiguousarray(self._photo[self._place]))
        for frame, photo in zip(frames, out, strict=True):
            top = Image.fromarray(np.ascontiguousarray(frame))
            mask = self._mask(top).resize(self._size, Image.Resampling.BILINEAR, box=self._source)
            top = top.resize(self._size, Image.Resampling.BICUBIC, box=self._source)
            photo[self._place] = np.asarray(Image.composite(top, under, mask))
        return out

    def _mask(self, frame: Image.Image) -> Image.Image:
        """How much of the frame shows, 0 to 255."""
        from PIL import ImageChops, ImageFilter

        red, green, blue = ImageChops.difference(frame, self._crop).split()
        difference = ImageChops.lighter(ImageChops.lighter(red, green), blue).filter(ImageFilter.GaussianBlur(2))
        same = ImageChops.multiply(difference.point(self._same), self._outside)
        return ImageChops.multiply(self._weight, ImageChops.invert(same))
