"""Does the mouth of a held-out portrait follow held-out speech?

    python -m semo_sdk.benchmarks.lipsync --clips grid_s1 --portraits portraits --json lipsync.json

For each of the last clips by name and one of the last portraits by name (those that training leaves out): the
portrait is animated with the clip's audio, the mouth opening is measured by MediaPipe landmarks in the
generated and in the real frames, and the two series are compared (Pearson). Beside them stand rows that say
what a number is worth: the same videos against *other* clips (GRID's sentences share their rhythm, so this is
far from 0), what is left of both when that rhythm is taken out, the loudness of the speech, a still picture.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks import mouth
from semo_sdk.benchmarks.command import add_footage, deliver, make_parser
from semo_sdk.benchmarks.report import table
from semo_sdk.benchmarks.sheet import Row, contact_sheet
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.errors import InputError

HELD_OUT_CLIPS = 60  # the last ones by name are in no training set
HELD_OUT_PORTRAITS = 50
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Pair:
    """One clip, one portrait, and what was measured on them."""

    clip: str
    portrait: str
    made: mouth.Track
    real: mouth.Track
    loudness: np.ndarray


def held_out(folder: Path, suffixes: Sequence[str], last: int, count: int) -> list[Path]:
    """``count`` files spread evenly over the last ``last`` ones by name.

    Raises:
        InputError: the folder has fewer than ``count`` such files.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in suffixes)[-last:]
    if len(files) < count:
        raise InputError(f"{folder.name} has {len(files)} files of the kinds {' '.join(suffixes)}, {count} are needed")
    return [files[i] for i in np.linspace(0, len(files) - 1, count).round().astype(int)]


def compare(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """One row of numbers for each pair; the baselines compare it with all the others."""
    made = [pair.made.mouth for pair in pairs]
    real = [pair.real.mouth for pair in pairs]
    own_made, own_real = mouth.without_rhythm(made), mouth.without_rhythm(real)
    rows = []
    for index, pair in enumerate(pairs):
        others = [other for other in range(len(pairs)) if other != index]
        row = {
            **_numbers(pair),
            "mismatched": _mean_correlation(made[index], [real[other] for other in others]),
            "beyond_rhythm": mouth.correlation(own_made[index], own_real[index]),
            "beyond_rhythm_mismatched": _mean_correlation(own_made[index], [own_real[other] for other in others]),
        }
        rows.append(row)
    return rows


def _mean_correlation(series: np.ndarray, others: Sequence[np.ndarray]) -> float:
    return float(np.mean([mouth.correlation(series, other) for other in others]))


def _numbers(pair: Pair) -> dict[str, Any]:
    made, real = pair.made.mouth, pair.real.mouth
    best, lag = mouth.best_lag(made, real)
    return {
        "clip": pair.clip,
        "portrait": pair.portrait,
        "correlation": mouth.correlation(made, real),
        "best_correlation": best,
        "best_lag_frames": lag,
        "amplitude_ratio": mouth.amplitude_ratio(made, real),
        "head_motion": pair.made.head_motion,
        "head_motion_real": pair.real.head_motion,
        "head_roll_degrees": pair.made.roll_deviation,
        "head_roll_degrees_real": pair.real.roll_deviation,
        "detection_rate": pair.made.detection_rate,
        "detection_rate_real": pair.real.detection_rate,
        "loudness": mouth.correlation(pair.loudness, real),
    }


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, smallest and largest of each number over the rows."""
    names = [name for name, value in rows[0].items() if not isinstance(value, str)]
    columns = {name: np.asarray([row[name] for row in rows], dtype=float) for name in names}
    return {
        name: {"mean": float(values.mean()), "min": float(values.min()), "max": float(values.max())}
        for name, values in columns.items()
    }


def run(
    clips: Path,
    portraits: Path,
    *,
    bundle: str = "semo-tiny",
    backend: str = "auto",
    precision: str = "auto",
    latency: str = "quality",
    count: int = 12,
    sheet: Path | None = None,
    sheet_rows: int = 4,
) -> dict[str, Any]:
    """Animates ``count`` held-out portraits with held-out clips and compares the mouths.

    Args:
        clips: folder of videos with sound; the last 60 by name are used.
        portraits: folder of photos; the last 50 by name. One without a usable face, or with a covered mouth, is left
            out and listed.
        bundle, backend, precision, latency: as in :class:`semo_sdk.Animator`.
        count: pairs, at least 2.
        sheet: PNG for a contact sheet.
        sheet_rows: clips on the sheet.

    Returns:
        JSON-ready: ``summary``, ``pairs``, ``left_out``, settings and fingerprint.

    Raises:
        InputError: too few files, or no usable portrait.
    """
    from semo_sdk import Animator
    from semo_sdk.doctor import fingerprint
    from semo_sdk.media.audio import load_audio
    from semo_sdk.media.image import crop_square, find_portrait
    from semo_sdk.media.video import read_video

    if count < 2:
        raise InputError(f"count is {count}: the comparison with other clips needs at least 2")
    pairs: list[Pair] = []
    rows: list[Row] = []
    left_out: list[dict[str, str]] = []
    engines: Animator | None = None
    started = time.perf_counter()
    clip_paths = held_out(clips, VIDEO_SUFFIXES, HELD_OUT_CLIPS, count)
    for clip, photo in zip(clip_paths, held_out(portraits, IMAGE_SUFFIXES, HELD_OUT_PORTRAITS, count), strict=True):
        try:
            if engines is None:
                animator = engines = Animator(
                    photo, bundle=bundle, backend=backend, precision=precision, provenance=False
                )
            else:
                animator = engines.with_portrait(photo)
        except InputError as error:
            left_out.append({"portrait": photo.stem, "reason": f"{type(error).__name__}: {error}"})
            continue
        if hidden := animator.portrait.advice.get("mouth_covered"):
            left_out.append({"portrait": photo.stem, "reason": hidden})
            continue
        pcm = load_audio(clip)
        made = animator.from_audio(pcm, latency=latency).frames
        real = np.stack(list(read_video(clip)))
        loud = mouth.loudness(pcm, SAMPLES_PER_FRAME)
        pairs.append(Pair(clip.stem, photo.stem, mouth.track_face(made), mouth.track_face(real), loud))
        if sheet is not None and len(rows) < sheet_rows:
            score = mouth.correlation(pairs[-1].made.mouth, pairs[-1].real.mouth)
            title = f"portrait {photo.stem}, speech {clip.stem}: mouth correlation {score:.2f}"
            box = find_portrait(real[0]).box
            face = np.stack([crop_square(frame, box) for frame in real])
            rows.append(Row(title, animator.portrait.crop, made, face, pairs[-1].real.mouth))
    if engines is None or len(pairs) < 2:
        raise InputError(f"only {len(pairs)} of {count} portraits can be used: {left_out}")
    chosen = {"backend": engines.backend, "precision": engines.precision}
    engines.close()
    if sheet is not None:
        contact_sheet(rows, sheet)
    table_rows = compare(pairs)
    return {
        "benchmark": "lipsync",
        "bundle": bundle if not Path(bundle).exists() else Path(bundle).name,
        "latency": latency,
        **chosen,
        "pairs_measured": len(pairs),
        "seconds": round(time.perf_counter() - started, 1),
        "summary": _rounded(summarise(table_rows)),
        "pairs": [_rounded(row) for row in table_rows],
        "left_out": left_out,
        "fingerprint": fingerprint(),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def markdown(result: dict[str, Any]) -> str:
    """The result as a Markdown table, one line a measure."""
    labels = {
        "correlation": "mouth opening, generated against real, lag 0",
        "best_correlation": f"the same at the best lag within {mouth.MAX_LAG} frames",
        "mismatched": "generated against the real frames of *other* clips",
        "beyond_rhythm": "the same, after the rhythm that all sentences share is taken out",
        "beyond_rhythm_mismatched": "that, against other clips",
        "loudness": "loudness of the speech against real (no model)",
        "amplitude_ratio": "mouth movement, generated / real (standard deviations)",
        "head_motion": "head motion of the generated video (eye distances)",
        "head_motion_real": "head motion of the real video",
        "detection_rate": "frames in which a face is found",
    }
    summary = result["summary"]
    rows = [
        [label, *(f"{summary[name][column]:.2f}" for column in ("mean", "min", "max"))]
        for name, label in labels.items()
    ]
    rows.append(["a still picture against real", "0.00", "0.00", "0.00"])
    return table([f"{result['pairs_measured']} held-out pairs", "mean", "min", "max"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = make_parser("lipsync", "Mouth opening of generated videos against the real ones of the same audio.")
    add_footage(parser, counts="pairs of clip and portrait")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG)")
    options = parser.parse_args(arguments)
    result = run(
        options.clips,
        options.portraits,
        bundle=options.bundle,
        backend=options.backend,
        precision=options.precision,
        latency=options.latency,
        count=options.count,
        sheet=options.sheet,
    )
    deliver(result, options.json, markdown(result))


if __name__ == "__main__":
    main()
