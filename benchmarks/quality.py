"""How good are the pictures and the speech? Reconstruction, generation, long runs, silence, with baselines.

    semo bench quality --clips grid_s1 --portraits portraits --others grid_validation --out quality.html --json q.json

The protocol follows the paper (section 4): a clip's first frame and motion must give the clip again (Table 1), and a
portrait must speak with a clip's sound (Table 2). Measured are the last 60 clips and the last 50 portraits by name,
which training leaves out, and optionally people that it never saw. A metric whose network cannot be had here is
reported as *not computed*, with the reason.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from semo_sdk.animator import Animator
from semo_sdk.benchmarks import baselines, endurance, generation, identity, turning
from semo_sdk.benchmarks.baselines import puppet_runs, vae_round_trip
from semo_sdk.benchmarks.command import add_footage, deliver, make_parser
from semo_sdk.benchmarks.footage import Footage, load_footage
from semo_sdk.benchmarks.learned import DISTANCES, Distance, check_distances
from semo_sdk.benchmarks.lipsync import HELD_OUT_CLIPS, HELD_OUT_PORTRAITS, IMAGE_SUFFIXES, VIDEO_SUFFIXES, held_out
from semo_sdk.benchmarks.quality_page import Gallery, write_page
from semo_sdk.benchmarks.quality_tables import markdown, targets
from semo_sdk.benchmarks.reconstruction import reconstruct
from semo_sdk.benchmarks.sync import GridSyncNet, SyncMeter, SyncScores, load_meters
from semo_sdk.benchmarks.syncnet_v2 import PublishedSyncNet
from semo_sdk.bundle import Bundle
from semo_sdk.constants import SAMPLES_PER_FRAME
from semo_sdk.errors import InputError, MissingDependencyError
from semo_sdk.media.image import Portrait, find_portrait, load_image

Item = TypeVar("Item")

SILENT_PORTRAITS = 4  # portraits that are measured in silence
TURNED_PORTRAITS = 3  # portraits on which the controls are measured
METERS: tuple[type[SyncMeter], ...] = (PublishedSyncNet, GridSyncNet)


def run(
    clips: Path,
    portraits: Path,
    *,
    others: Path | None = None,
    bundle: str = "semo-tiny",
    backend: str = "auto",
    precision: str = "auto",
    latency: str = "quality",
    count: int = 12,
    seconds: float = 60.0,
    seed: int = 0,
    out: Path | None = None,
    videos: int = 3,
    distances: Sequence[type[Distance]] = DISTANCES,
    meters: Sequence[type[SyncMeter]] = METERS,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures a bundle.

    Args:
        clips: folder of videos with sound; ``count`` of the last 60 by name are used.
        portraits: folder of photos; ``count`` of the last 50 by name.
        others: folder of videos of other people; up to ``count`` are used.
        bundle, backend, precision, latency: as in :class:`semo_sdk.Animator`.
        count: clips and portraits, at least 2.
        seconds: length of the long run.
        seed: of the generated motion; everything else is the same in each run.
        out: HTML page to write; its videos go to a folder beside it.
        videos: how many of each kind the page shows.
        distances: learned metrics to try.
        meters: networks to try that say whether lips and sound belong together.
        progress: bars on stderr.

    Returns:
        JSON-ready: ``reconstruction``, ``generation``, ``long_run``, ``silence``, ``controls``, ``targets``,
        ``metrics`` (what each is, and whether it was computed), ``left_out``, settings and fingerprint.

    Raises:
        InputError: too few usable clips or portraits, or an impossible count or length.
    """
    from semo_sdk.doctor import fingerprint

    if count < 2 or seconds < endurance.WINDOW:
        raise InputError(f"count {count}, {seconds:g} s: at least 2 clips and {endurance.WINDOW} s are needed")
    started = time.perf_counter()
    left_out: list[dict[str, str]] = []
    paths = {"held_out_clips": held_out(clips, VIDEO_SUFFIXES, HELD_OUT_CLIPS, count)}
    if others is not None:
        found = sorted(path for path in others.glob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        paths["other_speakers"] = found[:count]
    photos = held_out(portraits, IMAGE_SUFFIXES, HELD_OUT_PORTRAITS, count)
    opened = Bundle.open(bundle)
    groups = {group: _footage(files, group, left_out, progress) for group, files in paths.items()}
    people = _people(photos, left_out)
    if len(people) < 2 or any(len(group) < 2 for group in groups.values()):
        raise InputError(f"fewer than 2 usable portraits or clips of a kind; left out: {left_out}")
    gallery = Gallery(out.with_name(f"{out.stem}_files") if out else None, videos)
    tools = _load_tools(opened, distances, meters)
    first = next(iter(people.values()))
    # what is measured is the model, not its watermark
    with Animator(first, bundle=opened, backend=backend, precision=precision, provenance=False) as animator:
        measured = _measure(animator, groups, people, tools, gallery, latency, seed, seconds, progress)
        engine = {"backend": animator.backend, "precision": animator.precision}
    names = {group: [clip.name for clip in chosen] for group, chosen in groups.items()}
    result: dict[str, Any] = {
        "benchmark": "quality",
        "model": {"name": opened.name, "fingerprint": opened.fingerprint, "provenance": opened.manifest.provenance},
        "latency": latency,
        **engine,
        "seed": seed,
        "people": {**names, "portraits": list(people)},
        **measured,
        "metrics": tools.metrics,
        "left_out": left_out,
        "seconds": round(time.perf_counter() - started, 1),
        "fingerprint": fingerprint(),
    }
    result = rounded({**result, "targets": targets(result)})
    if out is not None:
        write_page(out, result, gallery)
    return result


def _measure(
    animator: Animator,
    groups: Mapping[str, Sequence[Footage]],
    people: Mapping[str, Portrait],
    tools: Tools,
    gallery: Gallery,
    latency: str,
    seed: int,
    seconds: float,
    progress: bool,
) -> dict[str, Any]:
    footage = [clip for chosen in groups.values() for clip in chosen]
    result: dict[str, Any] = {
        "reconstruction": reconstruct(
            _bar(footage, "reconstruction", progress),
            animator,
            vae=tools.vae,
            puppet=tools.puppet,
            distances=tools.distances,
            shown=gallery.reconstruction,
        ),
        "generation": {},
    }
    judges: dict[str, Any] = {"embedder": tools.embedder, "sync": tools.sync}
    speak = functools.partial(generation.speak, animator=animator, latency=latency, seed=seed, **judges)
    for group, chosen in groups.items():
        pairs = [(clip, *person) for clip, person in zip(chosen, itertools.cycle(people.items()), strict=False)]
        own = [(clip, clip.name, clip.portrait) for clip in chosen]
        sets = {"portraits": speak(_bar(pairs, f"{group}: portraits", progress), shown=gallery.portrait)}
        bar = _bar(own, f"{group}: own first frame", progress)
        sets["same_person"] = speak(bar, compare_frames=True, distances=tools.distances)
        if tools.puppet:
            bar = _bar(pairs, f"{group}: puppet", progress)
            sets["puppet"] = generation.play_puppet(bar, **judges)
        result["generation"][group] = sets
    speech = [clip.pcm for clip in groups["held_out_clips"]]
    endless = endurance.speech_of(speech, seconds)
    first = next(iter(people.values()))
    with tqdm(total=len(endless) // SAMPLES_PER_FRAME, desc="long run", unit="frame", disable=not progress) as frames:
        result["long_run"] = endurance.long_run(
            animator, first, endless, seed=seed, embedder=tools.embedder, progress=frames.update
        )
    quiet = _bar(list(people.items())[:SILENT_PORTRAITS], "silence", progress)
    result["silence"] = endurance.silence(animator, quiet, np.concatenate(speech), seed=seed)
    turned = _bar(list(people.items())[:TURNED_PORTRAITS], "controls", progress)
    result["controls"] = turning.turn(animator, turned, np.concatenate(speech), seed=seed)
    result["identity_scale"] = generation.identity_scale(tools.embedder, people, footage) if tools.embedder else {}
    return result


@dataclass(frozen=True)
class Tools:
    """What can be measured on this machine.

    Attributes:
        distances: learned metrics.
        embedder: of faces, None when it cannot run.
        sync: says whether lips and sound belong together, with the networks that can run.
        vae: the model's autoencoder, None when it cannot run.
        puppet: whether it can run, and the warp by optical flow.
        metrics: for each name its status, ``"computed"`` or why not, and what it is.
    """

    distances: list[type[Distance]]
    embedder: identity.FaceEmbedder | None
    sync: SyncScores
    vae: baselines.FramesToFrames | None
    puppet: bool
    metrics: dict[str, dict[str, str]]


def _load_tools(bundle: Bundle, distances: Sequence[type[Distance]], kinds: Sequence[type[SyncMeter]]) -> Tools:
    usable, reasons = check_distances(distances)
    metrics = {
        name: {"status": reasons.get(name, "computed"), "definition": text}
        for kind in distances
        for name, text in kind.definitions.items()
    }
    meters, about = load_meters(kinds)
    metrics |= about

    def optional(name: str, definition: str, load: Callable[[], Item]) -> Item | None:
        metrics[name] = {"status": "computed", "definition": definition}
        try:
            return load()
        except MissingDependencyError as error:
            metrics[name]["status"] = f"not computed: {error}"
            return None

    embedder = optional("identity", f"cosine and distance of embeddings, {identity.NAME}", identity.FaceEmbedder)
    vae = optional("vae_round_trip", "real frames through the model's autoencoder", lambda: vae_round_trip(bundle))
    puppet = optional("puppet", "warp by the real landmarks, mouth interior of the real frames", puppet_runs)
    optional("flow_warp", "the first frame, warped by dense optical flow (DIS) of the real frames", puppet_runs)
    return Tools(usable, embedder, SyncScores(meters), vae, bool(puppet), metrics)


def _footage(paths: Sequence[Path], group: str, left_out: list[dict[str, str]], progress: bool) -> list[Footage]:
    footage = []
    for path in _bar(paths, f"{group}: landmarks", progress):
        try:
            footage.append(load_footage(path, group))
        except InputError as error:
            left_out.append({"file": path.name, "reason": f"{type(error).__name__}: {error}"})
    return footage


def _people(paths: Sequence[Path], left_out: list[dict[str, str]]) -> dict[str, Portrait]:
    people = {}
    for path in paths:
        try:
            portrait = find_portrait(load_image(path))
        except InputError as error:
            left_out.append({"file": path.name, "reason": f"{type(error).__name__}: {error}"})
            continue
        if hidden := portrait.advice.get("mouth_covered"):
            left_out.append({"file": path.name, "reason": hidden})
        else:
            people[path.stem] = portrait
    return people


def _bar(items: Sequence[Item], what: str, progress: bool) -> Iterable[Item]:
    return tqdm(items, desc=what, disable=not progress)


def rounded(value: Any) -> Any:
    """Five digits after the point; what is not a number becomes None, which JSON can say."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if np.isfinite(value) else None
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = make_parser(
        "quality",
        "Reconstruction, audio-driven generation, long runs and silence, with baselines: JSON and a page.",
    )
    add_footage(parser, counts="clips and portraits")
    parser.add_argument("--others", type=Path, help="folder of videos of people that training never saw")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the long run")
    parser.add_argument("--seed", type=int, default=0, help="of the generated motion")
    parser.add_argument("--videos", type=int, default=3, help="videos of each kind on the page")
    parser.add_argument("--out", type=Path, help="write a page (HTML) and its videos")
    parser.add_argument(
        "--no-learned", action="store_true", help="leave out LPIPS, FID, FVD, EfficientNet-Lite0, SyncNet"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    result = run(
        options.clips,
        options.portraits,
        others=options.others,
        bundle=options.bundle,
        backend=options.backend,
        precision=options.precision,
        latency=options.latency,
        count=options.count,
        seconds=options.seconds,
        seed=options.seed,
        out=options.out,
        videos=options.videos,
        distances=() if options.no_learned else DISTANCES,
        meters=() if options.no_learned else METERS,
        progress=not options.quiet,
    )
    deliver(result, options.json, markdown(result))


if __name__ == "__main__":
    main()
