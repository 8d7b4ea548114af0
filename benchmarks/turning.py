"""What the controls do: each at several strengths, measured on the generated frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from semo_sdk.animator import Animator
from semo_sdk.benchmarks.endurance import speech_of
from semo_sdk.benchmarks.faces import FaceSeries, follow, lip_range
from semo_sdk.media.image import Portrait

SPEECH = 8.0  # seconds
STRENGTHS: dict[str, tuple[float, ...]] = {
    "expressiveness": (0.5, 1.0, 2.0, 4.0),
    "head_motion": (0.0, 0.5, 1.0, 2.0),
    "blink": (0.0, 0.5, 1.0),
}


def eye_closing(face: FaceSeries) -> float:
    """How far the eyes close at most: 1 - least / median opening, the least being the 2nd percentile."""
    aspect = face.eye_aspect[np.isfinite(face.eye_aspect)]
    return float(1 - np.percentile(aspect, 2) / np.median(aspect)) if len(aspect) else 0.0


def head_span(face: FaceSeries) -> float:
    """How far the point between the eyes strays, root mean square, in eye distances."""
    return float(face.track.head_motion)


EFFECTS: dict[str, tuple[str, Callable[[FaceSeries], float]]] = {
    "expressiveness": ("range of the mouth's opening, eye distances", lambda face: lip_range(face.track.mouth)),
    "head_motion": ("head motion, eye distances", head_span),
    "blink": ("how far the eyes close, share of their opening", eye_closing),
}


def turn(
    animator: Animator, portraits: Iterable[tuple[str, Portrait]], speech: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """Each portrait speaks the same 8 s with each control at each strength, the others as they are by default.

    Args:
        speech: (n,) float32 mono 16 kHz, repeated as needed.

    Returns:
        For each control ``effect`` (what is measured), ``strengths``, ``values`` (mean over portraits, one a strength)
        and ``monotone``: whether each is larger than the one before. A model whose tokens are its own has the first
        control only.
    """
    pcm = speech_of([speech], SPEECH)
    names = list(STRENGTHS) if animator.config.has_controls else ["expressiveness"]
    values: dict[str, list[list[float]]] = {name: [] for name in names}
    for _, portrait in portraits:
        speaker = animator.with_portrait(portrait)
        for name in names:
            strengths = STRENGTHS[name]
            measure = EFFECTS[name][1]
            settings: list[dict[str, Any]] = [{name: strength} for strength in strengths]
            values[name].append([measure(follow(speaker.from_audio(pcm, seed=seed, **s).frames)) for s in settings])
    result = {}
    for name, rows in values.items():
        means = np.mean(rows, axis=0)
        result[name] = {
            "effect": EFFECTS[name][0],
            "strengths": list(STRENGTHS[name]),
            "values": [float(value) for value in means],
            "monotone": bool((np.diff(means) > 0).all()),
        }
    return result
