"""Does an engine compute what ONNX Runtime computes in float32? And which precision is safe when it does not?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from semo_sdk.backends.base import Arrays, Engine, GraphSpec, graph_specs
from semo_sdk.backends.compare import psnr
from semo_sdk.backends.engine_files import Attempt
from semo_sdk.config import SemoConfig
from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES, SAMPLE_RATE
from semo_sdk.engines.compile import Compiled, precision_name
from semo_sdk.engines.plan import QUANTISED, SAFER
from semo_sdk.errors import EngineError

log = logging.getLogger(__name__)

# precision -> largest mean error: of floats relative to the root mean square of ONNX Runtime's output, of frames in
# grey levels of 255. A wrong engine (outputs swapped, an overflow, a mask ignored) is off by 0.3 and more. Eight bits
# are not wrong but coarse, so their limits say what cannot be seen: frames that are off by 0.3 grey levels have 48 dB
# and more; with one layer too many in int8 semo-tiny's are off by 0.8, and outlines jump by 40 levels.
MEAN_LIMITS = {
    "fp32": (1e-3, 0.05),
    "fp16": (2e-2, 1.0),
    "bf16": (6e-2, 3.0),
    "int8": (1e-2, 0.3),
    "fp8": (1e-2, 0.3),
}


@dataclass(frozen=True)
class Samples:
    """Inputs of every graph, and what ONNX Runtime makes of them in float32."""

    feeds: Mapping[str, Arrays]
    outputs: Mapping[str, Arrays]


def make_samples(config: SemoConfig, engines: Mapping[str, Engine], batch: int = 1) -> Samples:
    """A portrait and a voice through all graphs, so that each graph meets inputs of the right size and kind.

    Args:
        config: the model's config.
        engines: trusted engines of all graphs.
        batch: sessions in one launch.
    """
    generator = np.random.default_rng(0)
    specs = graph_specs(config)
    sizes = {"B": batch, "N": min(CHUNK_FRAMES, 2 * config.decoder.temporal_window)}
    pool: Arrays = {}  # what graphs have made so far, by tensor name: inputs of those that follow
    feeds: dict[str, Arrays] = {}
    outputs: dict[str, Arrays] = {}
    for name in ("reference", "motion_encoder", "audio", "motion", "render"):
        feeds[name] = {}
        for t in specs[name].inputs:
            shape = tuple(sizes[d] if isinstance(d, str) else d for d in t.shape)
            made = pool.get(t.name)
            if made is None:
                feeds[name][t.name] = _draw(t.name, shape, generator, config)
            else:
                feeds[name][t.name] = made[:, : sizes["N"]] if "N" in t.shape else made
        outputs[name] = engines[name](feeds[name])
        if name == "motion_encoder":
            continue  # its motion is of other frames; the render graph gets the generator's
        pool |= outputs[name]
        if name == "reference":
            pool["context"] = np.repeat(outputs[name]["reference_motion"], CONTEXT_FRAMES, axis=1)
    return Samples(feeds, outputs)


def _draw(name: str, shape: tuple[int, ...], generator: np.random.Generator, config: SemoConfig) -> np.ndarray:
    if name in ("image", "frames"):  # models that look for a face amplify rounding where there is none
        faces = [draw_face(shape[-2], *generator.uniform(-0.02, 0.02, 2)) for _ in range(int(np.prod(shape[:-3])))]
        return np.stack(faces).reshape(shape)
    if name == "pcm":
        return np.broadcast_to(draw_voice(shape[-1]), shape)
    if name == "available":
        return np.full(shape, CHUNK_FRAMES, np.int64)
    if name == "guidance":
        return np.full(shape, config.generator.guidance, np.float32)
    return generator.standard_normal(shape, np.float32)


def draw_face(size: int, shift: float = 0.0, opening: float = 0.0) -> np.ndarray:
    """A drawn face from the front, good enough for the face detector and the mesh.

    Args:
        size: pixels, both sides.
        shift: to the right, in sides.
        opening: of the mouth, in sides, above its own 0.02.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    picture = np.full((size, size, 3), (120, 140, 150), np.float32)
    lips = 0.02 + max(opening, 0.0)
    ovals = [  # centre, radii, colour: hair, skin, brows, whites, pupils, nose, lips, gap
        (0.5, 0.44, 0.24, 0.31, (60, 40, 30)),
        (0.5, 0.52, 0.2, 0.27, (224, 180, 150)),
        *((0.5 + side, 0.41, 0.05, 0.012, (70, 45, 35)) for side in (-0.085, 0.085)),
        *((0.5 + side, 0.46, 0.038, 0.018, (245, 245, 245)) for side in (-0.085, 0.085)),
        *((0.5 + side, 0.46, 0.016, 0.017, (50, 35, 30)) for side in (-0.085, 0.085)),
        (0.5, 0.55, 0.018, 0.06, (205, 155, 125)),
        (0.5, 0.595, 0.035, 0.014, (190, 130, 105)),
        (0.5, 0.67, 0.07, lips, (180, 80, 80)),
        (0.5, 0.67, 0.06, lips - 0.014, (90, 30, 30)),
    ]
    for across, down, wide, high, colour in ovals:
        distance = np.hypot((x - shift - across) / wide, (y - down) / high)
        inside = np.clip((1 - distance) * min(wide, high) / 0.008 + 0.5, 0, 1)[..., None]
        picture += (np.array(colour, np.float32) - picture) * inside
    return np.rint(picture).astype(np.uint8)


def draw_voice(samples: int) -> np.ndarray:
    """(samples,) float32 mono 16 kHz in [-1, 1]: a harmonic voice in syllables."""
    t = np.arange(samples) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12)) * np.clip(np.sin(20 * t), 0, 1)
    return (0.1 * voice).astype(np.float32)


def mean_errors(spec: GraphSpec, expected: Arrays, found: Arrays, power: int = 1) -> dict[str, float]:
    """Mean error of each output as ``MEAN_LIMITS`` counts it, with ``power`` 2 its root mean square.

    NaN or infinite where a number is.
    """
    errors = {}
    for t in spec.outputs:
        a, b = expected[t.name].astype(np.float64), found[t.name].astype(np.float64)
        scale = 1.0 if t.dtype == "uint8" else float(np.sqrt(np.mean(a**2))) or 1.0
        errors[t.name] = float(np.mean(np.abs(a - b) ** power) ** (1 / power)) / scale
    return errors


def compare(spec: GraphSpec, precision: str, expected: Arrays, found: Arrays) -> Attempt:
    """Whether every output is finite and close enough for ``precision``."""
    worst, passed = [], True
    for t in spec.outputs:
        a, b = expected[t.name], found[t.name]
        is_frames = t.dtype == "uint8"
        limit = MEAN_LIMITS[precision][is_frames]
        if a.shape != b.shape:
            passed = False
            worst.append(f"{t.name}: shape {b.shape} instead of {a.shape}")
            continue
        bad = b.size - int(np.isfinite(b).sum())
        if bad:
            passed = False
            worst.append(f"{t.name}: {bad} of {b.size} numbers are NaN or infinite")
            continue
        error = mean_errors(replace(spec, outputs=(t,)), expected, found)[t.name]
        passed &= error <= limit
        unit = f" grey levels, PSNR {psnr(a, b):.1f} dB" if is_frames else ""
        worst.append(f"{t.name}: mean error {error:.2g}{unit} (limit {limit:g})")
    return Attempt(precision=precision, passed=passed, detail="; ".join(worst))


def build_safely(
    spec: GraphSpec,
    precision: str,
    build: Callable[[str], Compiled],
    open_engine: Callable[[bytes], Engine] | None,
    samples: Samples | None,
) -> tuple[Compiled, str, tuple[Attempt, ...]]:
    """Builds a graph, checks its numbers, and builds it again in a safer precision while they are off.

    Args:
        spec: the graph.
        precision: to begin with.
        build: makes an engine in a precision.
        open_engine: runs a serialised engine; None on a machine that cannot (the numbers are then not checked, and
            the attempt says so).
        samples: inputs and trusted outputs; needed with ``open_engine``.

    Returns:
        The engine, the precision of most of its matrix products (a graph keeps in float32 what is delicate, and that
        may be most of them) or int8 or fp8 if some of them have it, and all attempts.

    Raises:
        EngineError: the network computes in less than was asked for, or the numbers are off in float32 too.
    """
    attempts: list[Attempt] = []
    while True:
        compiled = build(precision)
        found_in = set(map(precision_name, compiled.arithmetic))
        if others := sorted(found_in - {precision, "fp32", *(["fp16"] if precision in QUANTISED else [])}):
            raise EngineError(f"graph {spec.name!r} was asked for in {precision} and computes in {', '.join(others)}")
        if precision in QUANTISED and precision not in found_in:
            raise EngineError(
                f"graph {spec.name!r} was asked for in {precision}, and no product of it computes in that"
            )
        actual = precision if precision in QUANTISED or not compiled.arithmetic else compiled.precision
        if open_engine is None or samples is None:
            detail = "names, types and shapes checked; numbers not: there is no GPU for it here"
            return compiled, actual, (*attempts, Attempt(precision=precision, passed=True, detail=detail))
        engine = open_engine(compiled.data)
        try:
            found = engine(samples.feeds[spec.name])
        finally:
            engine.close()
        attempts.append(compare(spec, precision, samples.outputs[spec.name], found))
        if attempts[-1].passed:
            return compiled, actual, tuple(attempts)
        if precision not in SAFER:
            story = "; ".join(f"{a.precision}: {a.detail}" for a in attempts)
            raise EngineError(
                f"graph {spec.name!r}: the engine's numbers differ from ONNX Runtime's in every precision ({story}). "
                "Nothing was written; use backend='onnxruntime' and report this with the versions of semo doctor"
            )
        log.warning(
            "graph %s in %s is off (%s): building it in %s", spec.name, precision, attempts[-1].detail, SAFER[precision]
        )
        precision = SAFER[precision]
