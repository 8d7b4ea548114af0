"""A bundle to a set of engines for one target: planned, built, checked, and written only when all of it is right."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from semo_sdk.backends.base import Engine, GraphSpec, graph_specs
from semo_sdk.backends.engine_files import (
    ENGINES_FOLDER,
    MANIFEST_FILE,
    EngineFile,
    EngineManifest,
    cache_folder,
    parts_key,
    sdk_version,
    set_key,
    verify,
)
from semo_sdk.backends.tensorrt_api import Flavour, Gpu, gpu, installed_flavours, load_flavour
from semo_sdk.bundle import Bundle
from semo_sdk.engines.calibrate import Calibration, drawn_calibration, open_calibration
from semo_sdk.engines.check import Samples, build_safely, make_samples
from semo_sdk.engines.compile import compile_graph
from semo_sdk.engines.draft import Draft, draft_graphs
from semo_sdk.engines.plan import QUANTISED, SAFER, STORED, GraphPlan, plan_graph
from semo_sdk.engines.precision import graph_bytes
from semo_sdk.engines.recipes import PRECISIONS, Recipe, choose_recipe
from semo_sdk.errors import ConfigError, EngineMismatchError
from semo_sdk.files import replacing_folder

log = logging.getLogger(__name__)

MAX_SESSIONS = 64
Opener = Callable[[GraphSpec, bytes], Engine]


@dataclass(frozen=True)
class BuildReport:
    """What :func:`build_engines` did.

    Attributes:
        folder: where the engines are.
        manifest: what they are.
        reused: they were there already and every byte was right.
    """

    folder: Path
    manifest: EngineManifest
    reused: bool

    def table(self) -> str:
        """The engines as text, one line each; below it, every precision that was tried and not kept."""
        m = self.manifest
        lines = [
            f"{m.flavour} {m.version} for {m.device}, up to {m.max_sessions} sessions a launch",
            f"{'graph':<16}{'precision':<11}{'MB':>8}{'seconds':>9}  matrix products",
        ]
        for name, e in m.engines.items():
            counts = ", ".join(f"{count} {dtype}" for dtype, count in e.arithmetic.items())
            lines.append(f"{name:<16}{e.precision:<11}{e.size / 1e6:>8.1f}{e.seconds:>9.1f}  {counts}")
        for name, e in m.engines.items():
            for attempt in e.attempts:
                verdict = "" if attempt.passed else "NOT KEPT, "
                lines.append(f"{name} {attempt.precision}: {verdict}{attempt.detail}")
        return "\n".join(lines)


def build_engines(
    bundle: Bundle | str | Path,
    out: str | Path | None = None,
    *,
    target: str = "auto",
    precision: str = "auto",
    max_sessions: int | None = None,
    force: bool = False,
    progress: bool = False,
    calibrate: tuple[str | Path, str | Path] | None = None,
) -> BuildReport:
    """Builds a bundle's graphs with TensorRT or TensorRT-RTX.

    On a machine with the target's GPU every engine is run beside ONNX Runtime; a graph whose numbers are off is built
    again in a safer precision. Engines that were built before, from and for exactly the same things, are kept.
    Quantised graphs (int8, fp8) are checked on ONNX Runtime before, on every machine.

    Args:
        bundle: an open bundle, its folder, or the name of an embedded one.
        out: the engines go to ``out/engines/<key>``; None = the user's cache, where backend "tensorrt" finds them.
        target: a recipe ("rtx-portable", "rtx", "h100", "l4"...), or "auto" for this machine's GPU.
        precision: "fp16", "bf16", "fp32", "int8", "fp8", or "auto" for the recipe's.
        max_sessions: largest batch of live sessions in one launch; None = the recipe's.
        force: build also what is there already.
        progress: show a bar on stderr.
        calibrate: a photo and speech that int8 and fp8 take the ranges of activations from; None = drawn faces and a
            synthetic voice; what is real is safer.

    Raises:
        ConfigError: unknown target or precision, impossible ``max_sessions``, fp8 for a GPU without it, or
            ``calibrate`` for a precision without ranges.
        ImageError, AudioError: a photo or speech to calibrate with that cannot be used.
        MissingDependencyError: what bf16, int8 or fp8 are made with is not installed.
        BackendUnavailableError: TensorRT or the GPU that the target needs is missing; the message says what to do.
        EngineMismatchError: the target is for another GPU, or a graph does not fit this semo-sdk.
        EngineError: TensorRT refuses a graph, or its numbers are wrong in every precision.
        BundleError: the bundle is damaged or lacks a graph.
    """
    bundle = Bundle.open(bundle)
    specs = graph_specs(bundle.config)
    device_here = gpu()
    recipe = choose_recipe(target, device_here, installed_flavours())
    precision = check_precision(precision, recipe)
    sessions = recipe.max_sessions if max_sessions is None else max_sessions
    if not 1 <= sessions <= MAX_SESSIONS:
        raise ConfigError(f"max_sessions is {sessions}; give 1 to {MAX_SESSIONS}")
    device = recipe.device(device_here, precision)
    flavour = load_flavour(recipe.flavour)
    calibration = _calibration(precision, calibrate)
    plan = partial(
        plan_graph,
        bundle,
        recipe=recipe,
        flavour=flavour,
        device=device,
        precision=precision,
        sessions=sessions,
        calibration=calibration.digest if calibration else None,
    )
    plans = {name: plan(spec) for name, spec in specs.items()}
    key = set_key({name: parts_key(plan.parts) for name, plan in plans.items()})
    folder = Path(out if out is not None else cache_folder()) / ENGINES_FOLDER / key
    if not force:
        found = _built_before(folder, bundle, flavour, device_here, list(specs))
        if found is not None:
            return BuildReport(folder, found, reused=True)
    started = perf_counter()
    drafts = draft_graphs(bundle, precision, calibration, progress=progress) if calibration else {}
    runs_here = device_here is not None and device_here.compute_capability in device.compute_capabilities
    samples = _samples(bundle, min(2, sessions)) if runs_here else None
    timings = folder.parent / f"timing-{re.sub('[^A-Za-z0-9.]+', '-', f'{flavour.version}-{device.gpu}')}.cache"
    with replacing_folder(folder) as work:
        open_engine = partial(_open, flavour) if runs_here else None
        engines = {
            name: _build(bundle, plan, flavour, work, open_engine, samples, timings, progress, drafts.get(name))
            for name, plan in plans.items()
        }
        manifest = EngineManifest(
            key=key,
            bundle=bundle.name,
            target=recipe.name,
            flavour=flavour.name,
            version=flavour.version,
            device=device,
            precision=precision,
            max_sessions=sessions,
            sdk_version=sdk_version(),
            seconds=round(perf_counter() - started, 3),
            engines=engines,
        )
        (work / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return BuildReport(folder, manifest, reused=False)


def check_precision(precision: str, recipe: Recipe) -> str:
    """The precision to build in.

    Raises:
        ConfigError: one that is not implemented; the message lists those that are.
    """
    if precision == "auto":
        return recipe.precision
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is unknown; choose auto, {', '.join(PRECISIONS)}")
    return precision


def _calibration(precision: str, given: tuple[str | Path, str | Path] | None) -> Calibration | None:
    """What to calibrate with, for precisions that need it."""
    if precision in QUANTISED:
        return open_calibration(*given) if given else drawn_calibration()
    if given:
        raise ConfigError(f"precision {precision!r} needs no calibration; it is for {', '.join(sorted(QUANTISED))}")
    return None


def _build(
    bundle: Bundle,
    plan: GraphPlan,
    flavour: Flavour,
    work: Path,
    open_engine: Opener | None,
    samples: Samples | None,
    timings: Path,
    progress: bool,
    draft: Draft | None,
) -> EngineFile:
    """Builds and writes one engine; ``draft`` is the quantised graph, if that is what was asked for."""
    from tqdm import tqdm

    started, name = perf_counter(), plan.spec.name

    def build(precision: str) -> Any:
        onnx, path = graph_bytes(bundle, name, STORED[precision] if precision in QUANTISED else precision)
        if draft is not None and draft.model is not None and precision in QUANTISED:
            onnx = draft.model
        with tqdm(desc=f"{name} {precision}", total=0, unit="step", leave=False, disable=not progress) as bar:
            return compile_graph(flavour, plan, onnx, path, bar=bar, timing_cache=timings)

    opener = None if open_engine is None else partial(open_engine, plan.spec)
    first = plan.precision if draft is None or draft.model is not None else SAFER[plan.precision]
    compiled, precision, attempts = build_safely(plan.spec, first, build, opener, samples)
    if draft is not None:
        attempts = (draft.attempt, *attempts)
    file = f"{name}.engine"
    (work / file).write_bytes(compiled.data)
    return EngineFile(
        file=file,
        sha256=hashlib.sha256(compiled.data).hexdigest(),
        size=len(compiled.data),
        key=parts_key(plan.parts),
        parts=json.loads(json.dumps(plan.parts)),
        stored_precision=STORED[plan.precision],
        precision=precision,
        arithmetic=compiled.arithmetic,
        attempts=attempts,
        seconds=round(perf_counter() - started, 3),
    )


def _open(flavour: Flavour, spec: GraphSpec, data: bytes) -> Engine:
    from semo_sdk.backends.cuda_memory import CudaDevice, open_memory
    from semo_sdk.backends.tensorrt import TensorRtEngine

    device = CudaDevice(open_memory())
    return TensorRtEngine(spec, data, flavour=flavour, device=device, where=f"the engine of {spec.name!r}")


def _samples(bundle: Bundle, batch: int) -> Samples:
    """Trusted numbers: ONNX Runtime on the CPU, in float32 where the bundle has it."""
    from semo_sdk.backends.onnxruntime import OnnxRuntimeEngine

    stored = "fp32" if "fp32" in bundle.precisions else "fp16"
    engines = {
        name: OnnxRuntimeEngine(spec, bundle.graph_path(name, stored))
        for name, spec in graph_specs(bundle.config).items()
    }
    try:
        return make_samples(bundle.config, engines, batch)
    finally:
        for engine in engines.values():
            engine.close()


def _built_before(
    folder: Path, bundle: Bundle, flavour: Flavour, device: Gpu | None, graphs: list[str]
) -> EngineManifest | None:
    """The manifest at ``folder`` if it is right; None when there is nothing, or something else."""
    if not (folder / MANIFEST_FILE).is_file():
        return None
    flavours = {flavour.name: flavour}
    try:
        return verify(folder, bundle, flavours=flavours, gpu=device, graphs=graphs, must_run=False)
    except EngineMismatchError as error:
        log.warning("%s: building again", error)
        return None
