"""The quality benchmark's numbers as rows of tables, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semo_sdk.benchmarks.identity import SAME_PERSON
from semo_sdk.benchmarks.report import table

METHODS = {
    "model": "model",
    "copy_reference": "copy the first frame (floor)",
    "vae_round_trip": "autoencoder round trip (ceiling)",
    "puppet": "puppet (sees the real frames)",
    "flow_warp": "first frame, warped by optical flow (sees the real frames)",
}
GROUPS = {"held_out_clips": "held-out clips of the training speaker", "other_speakers": "other speakers"}
RECONSTRUCTION = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "mse_from_copy_to_ceiling": "error gone, from copy to ceiling",
    "landmark_error": "landmark error, eye distances",
    "mouth_correlation": "mouth opening, correlation",
    "mouth_amplitude_ratio": "mouth movement, made / real",
    "sharpness_ratio": "sharpness, made / real",
    "lpips": "LPIPS",
    "fid": "FID",
    "fvd": "FVD",
    "efficientnet_lite0_perceptual": "EfficientNet-Lite0 perceptual distance",
    "efficientnet_lite0_frechet": "EfficientNet-Lite0 Frechet distance",
}
GENERATION = {
    "correlation": "mouth opening against real, lag 0",
    "best_correlation": "mouth opening at the best lag",
    "best_lag_frames": "that lag, frames",
    "mismatched": "mouth opening against *other* clips",
    "beyond_rhythm": "mouth opening without the shared rhythm",
    "width_correlation": "mouth width against real, lag 0",
    "width_best_correlation": "mouth width at the best lag",
    "amplitude_ratio": "mouth movement, made / real",
    "sync_c": "Sync-C",
    "sync_c_real": "Sync-C, real clip",
    "sync_d": "Sync-D",
    "sync_d_real": "Sync-D, real clip",
    "grid_syncnet_distance": "GRID SyncNet distance",
    "grid_syncnet_distance_other": "the same with another clip's sound",
    "grid_syncnet_distance_real": "the same of the real clip",
    "grid_syncnet_confidence": "GRID SyncNet confidence",
    "grid_syncnet_confidence_other": "the same with another clip's sound",
    "grid_syncnet_confidence_real": "the same of the real clip",
    "grid_syncnet_offset": "GRID SyncNet offset, frames",
    "blinks_per_minute": "blinks a minute",
    "blinks_per_minute_real": "blinks a minute, real",
    "head_motion": "head motion, eye distances",
    "head_motion_real": "head motion, real",
    "head_speed": "head speed, eye distances a second",
    "head_speed_real": "head speed, real",
    "identity_cosine": "identity, cosine",
    "identity_distance": "identity, distance",
    "sharpness_ratio": "sharpness, made / portrait",
    "detection_rate": "frames with a face",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "fid": "FID",
    "fvd": "FVD",
    "efficientnet_lite0_perceptual": "EfficientNet-Lite0 perceptual distance",
    "efficientnet_lite0_frechet": "EfficientNet-Lite0 Frechet distance",
}
SILENCE = {
    "lip_range_speech": "range of the mouth's opening in speech, eye distances",
    "lip_range_silence": "the same in silence",
    "silence_to_speech": "silence / speech",
    "opening_silence": "mean opening in silence",
    "opening_portrait": "opening in the portrait",
    "head_motion_silence": "head motion in silence, eye distances",
    "head_speed_silence": "head speed in silence, eye distances a second",
    "head_speed_speech": "head speed in speech",
    "blinks_per_minute_silence": "blinks a minute in silence",
}

Table = tuple[str, list[str], list[list[str]]]  # title, head, rows


def value_of(summary: Mapping[str, Any], name: str) -> float | None:
    """A number of a summary: the mean, where there are several."""
    value = summary.get(name)
    return value["mean"] if isinstance(value, Mapping) else value


def shown(value: float | None) -> str:
    """Three or four digits; a dash for what was not computed."""
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def reconstruction_tables(result: Mapping[str, Any]) -> list[Table]:
    """One table for each group of clips: a line a measure, a column a method."""
    tables = []
    for group, methods in result["reconstruction"]["methods"].items():
        head = ["", *(METHODS[method] for method in methods)]
        rows = [
            [label, *(shown(value_of(summary, name)) for summary in methods.values())]
            for name, label in RECONSTRUCTION.items()
        ]
        clips = methods["model"]["clips"]
        tables.append((f"Reconstruction: {clips} {GROUPS[group]}, without the first frame", head, rows))
    return tables


def generation_tables(result: Mapping[str, Any]) -> list[Table]:
    """One table for each group of clips: portraits, the speaker's own first frame, the puppet."""
    labels = {
        "portraits": "held-out portraits",
        "same_person": "the clip's own first frame",
        "puppet": "puppet on the portraits (sees the real frames)",
    }
    tables = []
    for group, sets in result["generation"].items():
        columns = [name for name in labels if name in sets]
        rows = [
            [label, *(shown(value_of(sets[column]["summary"], name)) for column in columns)]
            for name, label in GENERATION.items()
        ]
        clips = sets["portraits"]["clips"]
        title = f"Audio-driven generation: speech of {clips} {GROUPS[group]}"
        tables.append((title, ["", *(labels[column] for column in columns)], rows))
    return tables


def silence_table(result: Mapping[str, Any]) -> Table:
    """The numbers of speech followed by silence."""
    summary = result["silence"]["summary"]
    rows = [
        [label, *(shown(summary[name][column]) for column in ("mean", "min", "max"))]
        for name, label in SILENCE.items()
        if name in summary
    ]
    return f"Silence after speech: {len(result['silence']['rows'])} portraits", ["", "mean", "min", "max"], rows


def controls_table(result: Mapping[str, Any]) -> Table:
    """What each control does at each strength."""
    rows = [
        [
            f"`{name}`",
            one["effect"],
            ", ".join(
                f"{strength:g}: {shown(value)}" for strength, value in zip(one["strengths"], one["values"], strict=True)
            ),
            "yes" if one["monotone"] else "no",
        ]
        for name, one in result["controls"].items()
    ]
    return "Controls", ["", "effect", "strength: value", "monotone"], rows


def target_table(result: Mapping[str, Any]) -> Table:
    """The project's aims beside what was measured."""
    rows = [
        [one["what"], one["target"], shown(one["measured"]), {True: "yes", False: "no", None: "-"}[one["reached"]]]
        for one in result["targets"]
    ]
    return "Aims", ["", "aim", "measured", "reached"], rows


def targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each aim, what was measured, and whether it is reached. People unknown to the training decide, where given."""
    groups = result["reconstruction"]["methods"]
    group = "other_speakers" if "other_speakers" in groups else "held_out_clips"
    model, people = groups[group]["model"], GROUPS[group]
    spoken = result["generation"]["held_out_clips"]["portraits"]
    lags = [abs(row["best_lag_frames"]) for row in spoken["rows"]]
    silence = result["silence"]["summary"].get("silence_to_speech", {}).get("mean")
    long_run = result["long_run"]
    strangers = result["identity_scale"].get("different_people_cosine")
    floor = "" if strangers is None else f"; different people reach {strangers:.2f}"
    aims: Sequence[tuple[str, float | None, str, float]] = (
        (f"reconstruction PSNR, dB ({people})", value_of(model, "psnr"), ">=", 29.0),
        (f"reconstruction SSIM ({people})", value_of(model, "ssim"), ">=", 0.90),
        (f"landmark error, eye distances ({people})", value_of(model, "landmark_error"), "<=", 0.015),
        (f"error gone, from copy to ceiling ({people})", value_of(model, "mse_from_copy_to_ceiling"), ">=", 0.80),
        ("mouth opening correlation (portraits)", value_of(spoken["summary"], "correlation"), ">=", 0.75),
        ("mean absolute lag, frames (portraits)", sum(lags) / len(lags), "<=", 1.0),
        ("mouth range in silence / in speech", silence, "<=", 0.10),
        (f"identity cosine (portraits{floor})", value_of(spoken["summary"], "identity_cosine"), ">=", 0.85),
        ("identity distance (portraits)", value_of(spoken["summary"], "identity_distance"), "<=", SAME_PERSON),
        (f"sharpness after {long_run['seconds']:.0f} s / first 10 s", long_run["last_to_first"], ">=", 0.90),
    )
    return [
        {
            "what": what,
            "target": f"{sign} {aim:g}",
            "measured": measured,
            "reached": None if measured is None else bool(measured >= aim if sign == ">=" else measured <= aim),
        }
        for what, measured, sign, aim in aims
    ]


def readme(result: Mapping[str, Any]) -> str:
    """The aims and what was measured, as a Markdown table."""
    _, head, rows = target_table(result)
    return table(head, rows)


def details(result: Mapping[str, Any]) -> str:
    """Every table but that of the aims, without the rows that hold nothing, and the names of what was not computed."""
    tables = [
        *reconstruction_tables(result),
        *generation_tables(result),
        silence_table(result),
        controls_table(result),
    ]
    filled = ((title, head, [row for row in rows if {*row[1:]} != {"-"}]) for title, head, rows in tables)
    parts = [f"**{title}**\n\n{table(head, rows)}" for title, head, rows in filled]
    names = [name for name, one in result["metrics"].items() if one["status"] != "computed"]
    return "\n\n".join([*parts, *([f"Not computed on that machine: {', '.join(names)}."] if names else [])])


def markdown(result: Mapping[str, Any]) -> str:
    """All tables, and what was not computed and why."""
    tables = [
        *reconstruction_tables(result),
        *generation_tables(result),
        silence_table(result),
        controls_table(result),
        target_table(result),
    ]
    parts = [f"{title}\n\n{table(head, rows)}" for title, head, rows in tables]
    missing = [f"- {name}: {one['status']}" for name, one in result["metrics"].items() if one["status"] != "computed"]
    return "\n\n".join([*parts, *(["\n".join(missing)] if missing else [])])
