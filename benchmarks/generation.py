"""Audio-driven generation (the paper's Table 2): lips, blinks, head, identity and sharpness of generated speech.

Twice: on held-out portraits, and on the first frame of the clip whose speech it is, where the frames themselves can be
compared. The head of a speaker is free, so there PSNR and SSIM say more about head motion than about quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semo_sdk.animator import Animator
from semo_sdk.benchmarks import baselines, identity, lipsync, mouth
from semo_sdk.benchmarks.faces import FaceSeries, blinks, follow, head_speed
from semo_sdk.benchmarks.footage import (
    Footage,
    embeddings,
    face_sharpness,
    portrait_sharpness,
    summarise,
)
from semo_sdk.benchmarks.learned import Distance
from semo_sdk.benchmarks.pixels import psnr, ssim
from semo_sdk.benchmarks.sync import SyncScores
from semo_sdk.constants import FPS, SAMPLES_PER_FRAME
from semo_sdk.media.image import Portrait

Shown = Callable[[Footage, Portrait, np.ndarray, FaceSeries], None]


@dataclass(frozen=True, eq=False)
class Spoken:
    """What is kept of a portrait that says what a clip says.

    Attributes:
        clip: the real clip.
        name: of the portrait.
        face: landmarks of the generated frames.
        numbers: what was measured on the frames.
        lips: embeddings of the mouth, one array for each SyncNet.
    """

    clip: Footage
    name: str
    face: FaceSeries
    numbers: dict[str, Any]
    lips: Sequence[np.ndarray] = ()


def speak(
    pairs: Iterable[tuple[Footage, str, Portrait]],
    animator: Animator,
    *,
    latency: str,
    seed: int,
    embedder: identity.FaceEmbedder | None,
    sync: SyncScores,
    compare_frames: bool = False,
    distances: Sequence[type[Distance]] = (),
    shown: Shown | None = None,
) -> dict[str, Any]:
    """Each portrait speaks with the sound of a clip.

    Args:
        pairs: clip, the portrait's name, the portrait; at least two.
        animator: engines to use.
        latency: as in :meth:`semo_sdk.Animator.from_audio`.
        seed: of the first video; each further one has the next, or all would blink in the same moments.
        embedder: measures identity; None when it cannot run here.
        sync: measures whether lips and sound belong together.
        compare_frames: whether the portrait is the clip's own first frame, so that frames can be compared.
        distances: learned metrics for that.
        shown: gets each clip, portrait and frames, for the page.

    Returns:
        ``summary`` and ``rows``; with ``compare_frames`` the learned distances over all clips in ``summary``.
    """
    spoken = []
    learned = [kind() for kind in distances]
    for number, (clip, name, portrait) in enumerate(pairs):
        speaker = animator.with_portrait(portrait)
        frames = speaker.from_audio(clip.pcm, latency=latency, seed=seed + number).frames
        face = follow(frames)
        numbers = _appearance(frames, face, portrait, embedder)
        if compare_frames:
            count = min(len(frames), len(clip.frames))
            made, real = frames[1:count], clip.frames[1:count]
            numbers |= {"psnr": float(psnr(made, real).mean()), "ssim": float(ssim(made, real).mean())}
            for distance in learned:
                distance.update(made, real)
        if shown is not None:
            shown(clip, portrait, frames, face)
        spoken.append(Spoken(clip, name, face, numbers, sync.lips(frames, face)))
    rows = motion_rows(spoken, sync)
    values = {name: value for one in learned for name, value in one.compute().items()}
    return {"clips": len(rows), "summary": {**summarise(rows), **values}, "rows": rows}


def play_puppet(
    pairs: Iterable[tuple[Footage, str, Portrait]], *, embedder: identity.FaceEmbedder | None, sync: SyncScores
) -> dict[str, Any]:
    """The same rows for the puppet, which moves each portrait by the *real* clip's landmarks, not by its sound."""
    spoken = []
    for clip, name, portrait in pairs:
        own = portrait.mesh
        frames = baselines.puppet_other_person(portrait.crop, own, clip.frames, clip.face.mesh)
        face = follow(frames)
        lips = sync.lips(frames, face)
        spoken.append(Spoken(clip, name, face, _appearance(frames, face, portrait, embedder), lips))
    rows = motion_rows(spoken, sync)
    return {"clips": len(rows), "summary": summarise(rows), "rows": rows}


def motion_rows(spoken: Sequence[Spoken], sync: SyncScores) -> list[dict[str, Any]]:
    """Numbers of lips, lids and head for each of at least two videos, the lip-sync benchmark's among them.

    What is measured against another clip's sound takes that of the next video.
    """
    pairs = [
        lipsync.Pair(
            one.clip.name,
            one.name,
            one.face.track,
            one.clip.face.track,
            mouth.loudness(one.clip.pcm, SAMPLES_PER_FRAME),
        )
        for one in spoken
    ]
    rows = zip(lipsync.compare(pairs), spoken, [*spoken[1:], spoken[0]], strict=True)
    return [
        row | _motion(one) | one.numbers | sync.numbers(one.lips, len(one.face.mesh), one.clip, other.clip)
        for row, one, other in rows
    ]


def _motion(one: Spoken) -> dict[str, Any]:
    made, real = one.face, one.clip.face
    best, lag = mouth.best_lag(made.width, real.width)
    return {
        "group": one.clip.group,
        "width_correlation": mouth.correlation(made.width, real.width),
        "width_best_correlation": best,
        "width_best_lag_frames": lag,
        "width_amplitude_ratio": mouth.amplitude_ratio(made.width, real.width),
        "blinks_per_minute": blinks(made.eye_aspect) * 60 * FPS / max(len(made.mesh), 1),
        "blinks_per_minute_real": blinks(real.eye_aspect) * 60 * FPS / max(len(real.mesh), 1),
        "head_speed": head_speed(made.track),
        "head_speed_real": head_speed(real.track),
    }


def _appearance(
    frames: np.ndarray, face: FaceSeries, portrait: Portrait, embedder: identity.FaceEmbedder | None
) -> dict[str, Any]:
    """Sharpness and identity against the portrait."""
    numbers = {"sharpness_ratio": face_sharpness(frames, face) / max(portrait_sharpness(portrait), 1e-9)}
    if embedder is not None:
        own = embedder(portrait.crop, portrait.mesh)
        found = embeddings(embedder, frames, face)
        if len(found):
            numbers["identity_cosine"] = float(np.mean([identity.cosine(one, own) for one in found]))
            numbers["identity_distance"] = float(np.mean([identity.distance(one, own) for one in found]))
    return numbers


def identity_scale(
    embedder: identity.FaceEmbedder, portraits: Mapping[str, Portrait], footage: Sequence[Footage]
) -> dict[str, float]:
    """What identity numbers are worth: different portraits (the floor), a real clip's own frames (the ceiling)."""
    faces = [embedder(one.crop, one.mesh) for one in portraits.values()]
    others = [(a, b) for i, a in enumerate(faces) for b in faces[:i]]
    same = [
        (one, embedder(clip.portrait.crop, clip.portrait.mesh))
        for clip in footage
        for one in embeddings(embedder, clip.frames, clip.face, 1)
    ]
    scale = {"same_person_threshold_distance": identity.SAME_PERSON}
    for name, pairs in (("different_people", others), ("same_person_real_clip", same)):
        if pairs:
            scale[f"{name}_cosine"] = float(np.mean([identity.cosine(*pair) for pair in pairs]))
            scale[f"{name}_distance"] = float(np.mean([identity.distance(*pair) for pair in pairs]))
    return scale
