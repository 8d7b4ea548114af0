"""Pictures of what the model does badly, for its card.

    python -m semo_sdk.benchmarks.failures docs/failures.jpg

Each row is an example portrait (changed where that is the point), and how it turns or speaks. What is shown are the
limits, not typical results.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from semo_sdk import Animator
from semo_sdk.benchmarks import mouth
from semo_sdk.constants import ANGLE_UNIT
from semo_sdk.media.image import load_image

TILE = 176  # pixels on a side of a picture
SHOWN = 5  # frames in a row
EXAMPLES = Path("examples")
COVER = (195, 100, 50, 123, 147, 213, 192, 214, 210, 211, 152, 431, 430, 434, 416, 433, 376, 352, 280, 329)


def cases(first: Animator, second: Animator, speech: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """A title, the portrait's crop and frames (n, 256, 256, 3) of each case."""
    sideways = np.radians(np.linspace(-40, 40, SHOWN)) * ANGLE_UNIT
    yield "turned by 40, 20, 0 degrees: the photo knows no profile", first.portrait.crop, _posed(first, 0, sideways)
    nod = np.radians(np.linspace(-30, 30, SHOWN)) * ANGLE_UNIT
    yield "nodding by 30, 15, 0 degrees", second.portrait.crop, _posed(second, 1, nod)

    loud = first.from_audio(speech, expressiveness=4.0).frames
    widest = loud[np.nanargmax(mouth.track_face(loud).mouth)]
    yield "expressiveness 4, twice as much as usual", first.portrait.crop, _moments(loud)
    gaping = first.with_portrait(widest)
    title = "a portrait with an open mouth (a frame of the row above): its lips are closed first"
    yield title, widest, _moments(gaping.from_audio(speech).frames)

    covered = _covered(second)
    masked = first.with_portrait(covered)
    yield "a covered mouth", masked.portrait.crop, _moments(masked.from_audio(speech).frames)
    tiny = first.with_portrait(_reduced(second, 52))
    yield "a face of 52 pixels", tiny.portrait.crop, _moments(tiny.from_audio(speech).frames)


def _posed(animator: Animator, axis: int, amounts: np.ndarray) -> np.ndarray:
    """Frames of the portrait with its pose changed along one direction."""
    reference = animator.reference
    if reference.controls is None:
        raise SystemExit("this model's motion tokens are its own: heads cannot be turned at will")
    tokens = reference.motion[0] + amounts[:, None].astype(np.float32) * reference.controls[0, axis]
    return animator.render_motion(tokens).frames


def _moments(frames: np.ndarray) -> np.ndarray:
    """The frame with the widest mouth in each of some stretches."""
    opening = np.nan_to_num(mouth.track_face(frames).mouth)
    return frames[[stretch[opening[stretch].argmax()] for stretch in np.array_split(np.arange(len(frames)), SHOWN)]]


def _covered(animator: Animator) -> np.ndarray:
    """The portrait's crop with a mask painted over nose and mouth."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(animator.portrait.crop)
    outline = [(float(x), float(y)) for x, y in animator.portrait.mesh[list(COVER), :2]]
    ImageDraw.Draw(image).polygon(outline, fill=(150, 185, 190))
    return np.asarray(image)


def _reduced(animator: Animator, size: float) -> np.ndarray:
    """The photo, so small that its face has ``size`` pixels."""
    from PIL import Image

    photo = Image.fromarray(animator.portrait.photo)
    scale = size / animator.portrait.face.size
    return np.asarray(photo.resize([round(side * scale) for side in photo.size], Image.Resampling.LANCZOS))


def draw(rows: Sequence[tuple[str, np.ndarray, np.ndarray]], path: Path) -> None:
    """Writes the sheet (JPEG or PNG): portrait and frames of each row under its title."""
    from PIL import Image, ImageDraw, ImageFont

    label, gap = 20, 4
    font = ImageFont.load_default(size=14)
    step = TILE + gap
    sheet = Image.new("RGB", ((SHOWN + 1) * step + gap, len(rows) * (step + label) + gap), "white")
    for index, (title, portrait, frames) in enumerate(rows):
        top = gap + index * (step + label)
        ImageDraw.Draw(sheet).text((gap, top), title, fill="black", font=font)
        for column, image in enumerate([portrait, *frames]):
            tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (gap + column * step, top + label))
    sheet.save(path, quality=80)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Pictures of what the model does badly.")
    parser.add_argument("out", type=Path, help="the sheet to write: .jpg or .png")
    parser.add_argument("--bundle", default="semo-tiny")
    options = parser.parse_args(arguments)
    with Animator(load_image(EXAMPLES / "portrait.jpg"), bundle=options.bundle, provenance=False) as first:
        second = first.with_portrait(EXAMPLES / "portrait2.jpg")
        draw(list(cases(first, second, EXAMPLES / "speech.wav")), options.out)


if __name__ == "__main__":
    main()
