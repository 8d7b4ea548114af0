"""Video reconstruction (the paper's Table 1): the first frame and the motion of a clip must give the clip again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from semo_sdk.animator import Animator
from semo_sdk.benchmarks import baselines, mouth
from semo_sdk.benchmarks.faces import FaceSeries, follow, landmark_error
from semo_sdk.benchmarks.footage import Footage, face_sharpness, summarise
from semo_sdk.benchmarks.learned import Distance
from semo_sdk.benchmarks.pixels import mean_squared_error, psnr, ssim

Shown = Callable[[Footage, Mapping[str, np.ndarray]], None]


def reconstruct(
    footage: Iterable[Footage],
    animator: Animator,
    *,
    vae: baselines.FramesToFrames | None,
    puppet: bool,
    distances: Sequence[type[Distance]],
    shown: Shown,
) -> dict[str, Any]:
    """Measures the model and the baselines on clips; the first frame, which is given, is not measured.

    Args:
        footage: the clips.
        animator: engines to use.
        vae: the autoencoder, None when it cannot run here.
        puppet: whether the puppet can run here; the warp by optical flow can then, too.
        distances: the learned metrics that can be computed.
        shown: gets each clip and the methods' frames, for the page.

    Returns:
        ``methods``: for each method the summary by group of clips; ``rows``: each clip's numbers.
    """
    rows: list[dict[str, Any]] = []
    learned: dict[tuple[str, str], list[Distance]] = {}
    for clip in footage:
        made = _frames_of(clip, animator, vae, puppet)
        shown(clip, made)
        for method, frames in made.items():
            rows.append({"clip": clip.name, "group": clip.group, "method": method, **_numbers(frames, clip)})
            if (method, clip.group) not in learned:
                learned[method, clip.group] = [kind() for kind in distances]
            for distance in learned[method, clip.group]:
                distance.update(frames[1:], clip.frames[1:])
    return {"methods": _methods(rows, learned), "rows": rows}


def _frames_of(
    clip: Footage, animator: Animator, vae: baselines.FramesToFrames | None, puppet: bool
) -> dict[str, np.ndarray]:
    model = animator.with_portrait(clip.portrait)
    made = {
        "model": model.reenact(clip.path, relative=False).frames,
        "copy_reference": baselines.copy_reference(clip.frames[0], len(clip.frames)),
    }
    if vae is not None:
        made["vae_round_trip"] = vae(clip.frames)
    if puppet:
        made["puppet"] = baselines.puppet_same_person(clip.frames, clip.face.mesh)
        made["flow_warp"] = baselines.flow_warp(clip.frames)
    return made


def _numbers(frames: np.ndarray, clip: Footage) -> dict[str, Any]:
    made, real = frames[1:], clip.frames[1:]
    face, true = follow(made), FaceSeries(clip.face.mesh[1:])
    best, lag = mouth.best_lag(face.track.mouth, true.track.mouth)
    return {
        "psnr": float(psnr(made, real).mean()),
        "ssim": float(ssim(made, real).mean()),
        "mse": float(mean_squared_error(made, real).mean()),
        "landmark_error": landmark_error(face, true),
        "mouth_correlation": mouth.correlation(face.track.mouth, true.track.mouth),
        "mouth_best_correlation": best,
        "mouth_best_lag_frames": lag,
        "mouth_amplitude_ratio": mouth.amplitude_ratio(face.track.mouth, true.track.mouth),
        "sharpness_ratio": face_sharpness(made, face) / max(face_sharpness(real, true), 1e-9),
        "detection_rate": face.track.detection_rate,
    }


def _methods(
    rows: Sequence[dict[str, Any]], learned: Mapping[tuple[str, str], Sequence[Distance]]
) -> dict[str, dict[str, Any]]:
    """Group -> method -> summary, with the distances over all clips and the way from floor to ceiling."""
    groups: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        of_group = [row for row in rows if row["group"] == group]
        groups[group] = {}
        for method in dict.fromkeys(row["method"] for row in of_group):
            mine = [row for row in of_group if row["method"] == method]
            values = {name: value for one in learned[method, group] for name, value in one.compute().items()}
            groups[group][method] = {"clips": len(mine), **summarise(mine), **values}
        for name, method in groups[group].items():
            method["mse_from_copy_to_ceiling"] = _way(groups[group], name)
    return groups


def _way(methods: Mapping[str, Any], name: str) -> float | None:
    """How much of the error of copying the reference is gone: 0 = none, 1 = all that the autoencoder allows."""
    if "vae_round_trip" not in methods:
        return None
    floor, ceiling = (methods[one]["mse"]["mean"] for one in ("copy_reference", "vae_round_trip"))
    return float((floor - methods[name]["mse"]["mean"]) / (floor - ceiling)) if floor > ceiling else None
