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
        real: (m, 256, 256, 3) uint8 RGB, the real speaker's face, frame by frame the same audio.
        opening: (m,) how far the real mouth is open, NaN where unknown; it chooses the moments that are shown.
    """

    title: str
    portrait: np.ndarray
    made: np.ndarray
    real: np.ndarray
    opening: np.ndarray


def contact_sheet(rows: Sequence[Row], path: Path, *, columns: int = 6, tile: int = 160) -> None:
    """Writes a PNG: for each clip the portrait, generated frames at some moments, the real frames below.

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
        picture = Image.fromarray(image).resize((tile, tile), Image.Resampling.LANCZOS)
        sheet.paste(picture, (MARGIN + column * step, top))

    for index, row in enumerate(rows):
        top = MARGIN + index * block
        draw.text((MARGIN, top), row.title, fill="black")
        top += LABEL
        paste(row.portrait, 0, top)
        draw.text(
            (MARGIN, top + step),
            "above: portrait, then\ngenerated frames\n\nright: real frames of\nthe same speech,\nmouth open, closed",
            fill="black",
        )
        count = min(len(row.made), len(row.real))
        for column, moment in enumerate(moments(row.opening[:count], columns)):
            paste(row.made[moment], column + 1, top)
            paste(row.real[moment], column + 1, top + step)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def moments(opening: np.ndarray, count: int) -> list[int]:
    """One frame of each of ``count`` equal parts: where the real mouth is most open, most closed, open, closed...

    They are chosen on the real video alone, so the generated one cannot look better than it is.
    """
    chosen = []
    for number, part in enumerate(np.array_split(np.arange(len(opening)), count)):
        values = np.nan_to_num(opening[part], nan=float(np.nanmedian(opening)) if np.isfinite(opening).any() else 0.0)
        chosen.append(int(part[values.argmin() if number % 2 else values.argmax()]))
    return chosen
