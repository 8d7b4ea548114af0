"""A contact sheet: portraits, what was generated, and the real person saying the same words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MARGIN = 6  # pixels between tiles
LABEL = 16  # pixels for a line of text


@dataclass(frozen=True)
class Row:
    """One clip of the sheet.

    Attributes:
        title: short text.
        portrait: (256, 256, 3) uint8 RGB, the photo's crop.
        made: (n, 256, 256, 3) uint8 RGB.
        real: (m, H, W, 3) uint8 RGB, frame by frame the same audio.
    """

    title: str
    portrait: np.ndarray
    made: np.ndarray
    real: np.ndarray


def contact_sheet(rows: Sequence[Row], path: Path, *, columns: int = 6, tile: int = 160) -> None:
    """Writes a PNG: for each clip the portrait, generated frames at even times, the real frames below.

    Args:
        rows: at least one clip.
        path: the file to write.
        columns: moments of each clip.
        tile: side of a picture in pixels.
    """
    from PIL import Image, ImageDraw

    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    step = tile + MARGIN
    block = 2 * step + LABEL
    sheet = Image.new("RGB", ((columns + 1) * step + MARGIN, len(rows) * block + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)

    def paste(image: np.ndarray, column: int, top: int) -> None:
        picture = Image.fromarray(square(image)).resize((tile, tile), Image.Resampling.LANCZOS)
        sheet.paste(picture, (MARGIN + column * step, top))

    for index, row in enumerate(rows):
        top = MARGIN + index * block
        draw.text((MARGIN, top), row.title, fill="black")
        top += LABEL
        paste(row.portrait, 0, top)
        draw.text(
            (MARGIN, top + step),
            "above: portrait, then\ngenerated frames\n\nright: real frames of\nthe same audio",
            fill="black",
        )
        count = min(len(row.made), len(row.real))
        for column in range(columns):
            moment = int((column + 0.5) * count / columns)
            paste(row.made[moment], column + 1, top)
            paste(row.real[moment], column + 1, top + step)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def square(image: np.ndarray) -> np.ndarray:
    """The largest square in the middle of an (H, W, 3) image."""
    height, width = image.shape[:2]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    return image[y : y + side, x : x + side]
