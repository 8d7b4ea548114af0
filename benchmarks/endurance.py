"""Long speech, and silence: does the face stay sharp and itself, does the mouth close while the head goes on moving?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from semo_sdk.animator import Animator
from semo_sdk.benchmarks import identity
from semo_sdk.benchmarks.faces import FaceSeries, blinks, follow, head_speed, lip_range
from semo_sdk.benchmarks.footage import portrait_sharpness, summarise
from semo_sdk.benchmarks.pixels import sharpness
from semo_sdk.constants import FPS, SAMPLE_RATE
from semo_sdk.media.face import FaceTracker
from semo_sdk.media.image import Portrait

WINDOW = 10  # seconds that are one point of the curve
IDENTITY_EVERY = 5  # seconds
SILENCE = 10.0  # seconds of digital silence after speech
SETTLE = 1.0  # seconds that a mouth may take to close
SPEECH = 6.0  # seconds of speech before the silence


def speech_of(pieces: Sequence[np.ndarray], seconds: float) -> np.ndarray:
    """(seconds * 16 000,) float32: pieces of speech one after the other, again from the first one when they end."""
    joined = np.concatenate(pieces)
    return np.resize(joined, int(round(seconds * SAMPLE_RATE))).astype(np.float32)


def long_run(
    animator: Animator,
    portrait: Portrait,
    pcm: np.ndarray,
    *,
    seed: int,
    embedder: identity.FaceEmbedder | None,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """One portrait speaks for long; one frame a second is measured, frames are not kept.

    Args:
        pcm: (n,) float32 mono 16 kHz.
        progress: called with the number of frames that were just made.

    Returns:
        ``windows`` of 10 s each with ``start`` in seconds, ``sharpness_ratio`` to the portrait, ``identity_cosine``,
        ``detection_rate`` and ``head_offset`` (eye distances from the first window's place); and ``last_to_first`` of
        the sharpness.
    """
    clip = animator.with_portrait(portrait).from_audio(pcm, seed=seed)
    own_sharpness = max(portrait_sharpness(portrait), 1e-9)
    own = embedder(portrait.crop, portrait.mesh) if embedder else None
    tracker = FaceTracker()
    seconds: list[dict[str, Any]] = []
    for chunk in clip:
        for offset in range(-chunk.index % FPS, len(chunk), FPS):
            frame, second = chunk.frames[offset], (chunk.index + offset) // FPS
            landmarks = tracker(frame)
            row: dict[str, Any] = {"second": second, "seen": landmarks is not None}
            if landmarks is not None:
                face = FaceSeries(landmarks.points[None].astype(np.float64))
                row["sharpness_ratio"] = sharpness(frame, tuple(face.boxes()[0])) / own_sharpness
                row["head"] = face.track.head[0]
                if embedder is not None and own is not None and second % IDENTITY_EVERY == 0:
                    row["identity_cosine"] = identity.cosine(embedder(frame, landmarks.points), own)
            seconds.append(row)
        if progress is not None:
            progress(len(chunk))
    windows = _windows(seconds)
    first, last = (windows[place].get("sharpness_ratio") for place in (0, -1))
    ratio = last / first if first and last is not None else None
    return {"seconds": len(pcm) / SAMPLE_RATE, "windows": windows, "last_to_first": ratio}


def _windows(seconds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    windows: list[dict[str, Any]] = []
    home: np.ndarray | None = None
    for start in range(0, len(seconds), WINDOW):
        part = seconds[start : start + WINDOW]
        window: dict[str, Any] = {"start": start, "detection_rate": float(np.mean([row["seen"] for row in part]))}
        for name in ("sharpness_ratio", "identity_cosine"):
            values = [row[name] for row in part if name in row]
            if values:
                window[name] = float(np.mean(values))
        places = [row["head"] for row in part if "head" in row]
        if places:
            place = np.mean(places, axis=0)
            home = place if home is None else home
            window["head_offset"] = float(np.linalg.norm(place - home))
        windows.append(window)
    return windows


def silence(
    animator: Animator, portraits: Iterable[tuple[str, Portrait]], speech: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """Each portrait speaks for 6 s, then hears 10 s of digital silence, of which the first second is not measured.

    Args:
        seed: of the first portrait; each further one has the next, or all would blink in the same moments.

    Returns:
        ``summary`` and ``rows``: the range of the mouth's opening (5th to 95th percentile, eye distances) in speech and
        in silence and the ratio, its mean opening in silence and in the portrait, head motion and blinks; ``series``,
        the first portrait's opening frame by frame.
    """
    pcm = np.concatenate([speech_of([speech], SPEECH), np.zeros(int(SILENCE * SAMPLE_RATE), np.float32)])
    begin, settled = int(SPEECH * FPS), int((SPEECH + SETTLE) * FPS)
    rows: list[dict[str, Any]] = []
    series: list[float | None] = []
    for number, (name, portrait) in enumerate(portraits):
        face = follow(animator.with_portrait(portrait).from_audio(pcm, seed=seed + number).frames)
        opening = face.track.mouth
        series = series or [None if np.isnan(value) else round(float(value), 4) for value in opening]
        spoken, quiet = opening[:begin], opening[settled:]
        still = FaceSeries(portrait.mesh[None].astype(np.float64)).track.mouth[0]
        rest = FaceSeries(face.mesh[settled:])
        ranges = lip_range(quiet), lip_range(spoken)
        rows.append(
            {
                "portrait": name,
                "lip_range_silence": ranges[0],
                "lip_range_speech": ranges[1],
                "silence_to_speech": ranges[0] / ranges[1] if ranges[1] else None,
                "opening_silence": float(np.nanmean(quiet)) if np.isfinite(quiet).any() else None,
                "opening_portrait": float(still),
                "head_motion_silence": rest.track.head_motion,
                "head_speed_silence": head_speed(rest.track),
                "head_speed_speech": head_speed(FaceSeries(face.mesh[:begin]).track),
                "blinks_per_minute_silence": blinks(rest.eye_aspect) * 60 * FPS / len(rest.mesh),
                "detection_rate": rest.track.detection_rate,
            }
        )
    return {"summary": summarise(rows), "rows": rows, "series": series, "silence_from_second": SPEECH}
