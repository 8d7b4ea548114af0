"""Does an exported graph compute what torch computes? Numbers, limits, and a table to read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.backends import openvino
from semo_sdk.backends.base import Arrays, Engine, GraphSpec, graph_specs
from semo_sdk.backends.compare import psnr
from semo_sdk.backends.onnxruntime import OnnxRuntimeEngine
from semo_sdk.backends.openvino import OpenVinoEngine
from semo_sdk.bundle import graph_file
from semo_sdk.config import SemoConfig
from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES, IMAGE_SIZE, SAMPLE_RATE, WINDOW_SAMPLES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How far a runtime's numbers may be from torch in float32.

    Attributes:
        mean: mean absolute error of an output, relative to the root mean square of torch's output; for uint8 frames in
            grey levels of 255.
        max: largest absolute error, in the same units.
        psnr: of the final frames of the whole chain against torch's, in dB.
    """

    mean: float
    max: float
    psnr: float


# (kind of output, arithmetic) -> limits. One rounding step of a uint8 frame is one grey level.
FLOAT_LIMITS = {
    "fp32": Limits(mean=1e-4, max=5e-3, psnr=50.0),
    "fp16": Limits(mean=1e-2, max=0.2, psnr=40.0),
    "bf16": Limits(mean=5e-2, max=1.0, psnr=32.0),
}
FRAME_LIMITS = {
    "fp32": Limits(mean=0.02, max=3.0, psnr=50.0),
    "fp16": Limits(mean=0.5, max=24.0, psnr=40.0),
    "bf16": Limits(mean=2.0, max=96.0, psnr=32.0),
}


@dataclass(frozen=True)
class GraphParity:
    """One output of one graph on one runtime, fed with torch's inputs. Units of the errors: see :class:`Limits`."""

    graph: str
    output: str
    runtime: str
    precision: str
    mean_error: float
    max_error: float
    mean_limit: float
    max_limit: float

    @property
    def passed(self) -> bool:
        return self.mean_error <= self.mean_limit and self.max_error <= self.max_limit  # False for NaN


@dataclass(frozen=True)
class ChainParity:
    """Frames of the whole chain (portrait and speech to frames) on one runtime against torch's, PSNR in dB."""

    runtime: str
    precision: str
    psnr: float
    psnr_limit: float

    @property
    def passed(self) -> bool:
        return self.psnr >= self.psnr_limit


@dataclass(frozen=True)
class ParityReport:
    """Everything that was compared. Errors are relative for floats, in grey levels for frames."""

    model: str
    graphs: tuple[GraphParity, ...]
    chains: tuple[ChainParity, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(g.passed for g in self.graphs) and all(c.passed for c in self.chains)

    @property
    def failures(self) -> list[str]:
        """One line for each comparison beyond its limits."""
        lines = [
            f"{r.graph}.{r.output} on {r.runtime} {r.precision}: mean {r.mean_error:.2g} (limit {r.mean_limit:g}), "
            f"max {r.max_error:.2g} (limit {r.max_limit:g})"
            for r in self.graphs
            if not r.passed
        ]
        return lines + [
            f"frames of the whole chain on {r.runtime} {r.precision}: {r.psnr:.1f} dB (limit {r.psnr_limit:g})"
            for r in self.chains
            if not r.passed
        ]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready contents."""
        return {
            "model": self.model,
            "passed": self.passed,
            "versions": dict(self.versions),
            "graphs": [_row(row) for row in self.graphs],
            "chains": [_row(row) for row in self.chains],
        }

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"

    def table(self) -> str:
        """The report for people: one line a comparison."""
        lines = [f"{'graph':<15}{'output':<18}{'runtime':<13}{'precision':<11}{'mean':>10}{'max':>10}  ok"]
        for g in self.graphs:
            numbers = f"{g.mean_error:>10.1e}{g.max_error:>10.1e}"
            lines.append(f"{g.graph:<15}{g.output:<18}{g.runtime:<13}{g.precision:<11}{numbers}  {_yes(g.passed)}")
        lines.append(f"{'whole chain':<15}{'frames':<18}{'runtime':<13}{'precision':<11}{'PSNR dB':>20}  ok")
        for c in self.chains:
            lines.append(f"{'':<33}{c.runtime:<13}{c.precision:<11}{c.psnr:>20.1f}  {_yes(c.passed)}")
        return "\n".join(lines)


def check_parity(
    config: SemoConfig,
    folder: Path,
    modules: Callable[[str], Mapping[str, Any]],
    *,
    precisions: Sequence[str],
    progress: Callable[[str], None] = log.info,
) -> ParityReport:
    """Compares every graph file in ``folder`` on every runtime with torch in float32.

    Args:
        config: the model's config.
        folder: where the graphs and their weights lie.
        modules: torch graph modules of a precision ("fp32" is the reference).
        precisions: precisions of the graph files.
        progress: told what is being compared.
    """
    from semo_sdk.backends.torch import TorchEngine

    specs = graph_specs(config)
    feeds, outputs = _chain(config, _engines(specs, lambda s: TorchEngine(s, modules("fp32")[s.name])))
    graphs: list[GraphParity] = []
    chains: list[ChainParity] = []
    for runtime, precision, open_graph in _runs(folder, modules, precisions):
        progress(f"parity: {runtime} {precision}")
        engines = _engines(specs, open_graph)
        for name, spec in specs.items():
            found = engines[name](feeds[name])
            graphs += [
                _compare(name, t.name, runtime, precision, outputs[name][t.name], found[t.name]) for t in spec.outputs
            ]
        frames = _chain(config, engines)[1]["render"]["frames"]
        quality = psnr(outputs["render"]["frames"], frames)
        chains.append(ChainParity(runtime, precision, quality, FRAME_LIMITS[precision].psnr))
        for engine in engines.values():
            engine.close()
    return ParityReport(config.name, tuple(graphs), tuple(chains), _versions())


def _runs(
    folder: Path, modules: Callable[[str], Mapping[str, Any]], precisions: Iterable[str]
) -> Iterable[tuple[str, str, Callable[[GraphSpec], Engine]]]:
    """Runtime, arithmetic, and how to open a graph with it.

    torch itself is compared in float16: CPUs run the float16 graphs in float32, so this is what shows their rounding.
    """
    from semo_sdk.backends.torch import TorchEngine

    def torch(spec: GraphSpec) -> Engine:
        return TorchEngine(spec, modules("fp16")[spec.name])

    def onnxruntime(stored: str, spec: GraphSpec) -> Engine:
        return OnnxRuntimeEngine(spec, folder / graph_file(spec.name, stored))

    def openvino_cpu(stored: str, arithmetic: str, spec: GraphSpec) -> Engine:
        return OpenVinoEngine(spec, folder / graph_file(spec.name, stored), precision=arithmetic)

    for stored in precisions:
        if stored == "fp16":
            yield "torch", stored, torch
        yield "onnxruntime", stored, partial(onnxruntime, stored)
        yield "openvino", stored, partial(openvino_cpu, stored, stored)
        if stored == "fp32" and "BF16" in openvino.capabilities():
            yield "openvino", "bf16", partial(openvino_cpu, stored, "bf16")


def _engines(specs: Mapping[str, GraphSpec], open_graph: Callable[[GraphSpec], Engine]) -> dict[str, Engine]:
    return {name: open_graph(spec) for name, spec in specs.items()}


def _chain(config: SemoConfig, engines: Mapping[str, Engine]) -> tuple[dict[str, Arrays], dict[str, Arrays]]:
    """Two portraits and two voices through all graphs: inputs and outputs of each graph."""
    batch, window = 2, config.decoder.temporal_window
    frames = min(CHUNK_FRAMES, 2 * window)
    generator = np.random.default_rng(0)
    feeds: dict[str, Arrays] = {"reference": {"image": _portraits(batch)}}
    outputs = {"reference": engines["reference"](feeds["reference"])}
    motion = outputs["reference"]["reference_motion"]
    driving = np.stack([np.roll(_portraits(batch), shift, axis=2) for shift in (0, 4)], 1)
    feeds["motion_encoder"] = {"frames": driving}
    feeds["audio"] = {"pcm": _speech(batch)}
    outputs["audio"] = engines["audio"](feeds["audio"])
    feeds["motion"] = {
        "noise": generator.standard_normal((batch, CHUNK_FRAMES, config.motion_dim), np.float32),
        "context": np.repeat(motion, CONTEXT_FRAMES, axis=1),
        "reference_motion": motion,
        "features": outputs["audio"]["features"],
        "available": np.array([CHUNK_FRAMES, CHUNK_FRAMES // 4], np.int64),
        "guidance": np.full(batch, config.generator.guidance, np.float32),
    }
    outputs["motion"] = engines["motion"](feeds["motion"])
    taken = {t.name for t in engines["render"].spec.inputs}
    feeds["render"] = {name: array for name, array in outputs["reference"].items() if name in taken}
    feeds["render"]["motion"] = outputs["motion"]["motion"][:, :frames]
    if config.needs_noise:
        shape = (batch, frames, config.latent_channels, config.latent_size, config.latent_size)
        feeds["render"]["noise"] = generator.standard_normal(shape, np.float32)
    for name in ("motion_encoder", "render"):
        outputs[name] = engines[name](feeds[name])
    return feeds, outputs


def _portraits(batch: int) -> np.ndarray:
    """(batch, 256, 256, 3) uint8: smooth shapes with a few edges, as in a photo."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] / IMAGE_SIZE
    images = []
    for i in range(batch):
        head = ((x - 0.5) / 0.25) ** 2 + ((y - 0.5 - 0.05 * i) / 0.35) ** 2 < 1
        eyes = ((np.abs(x - 0.5) - 0.1) / 0.03) ** 2 + ((y - 0.42) / 0.02) ** 2 < 1
        grey = np.where(eyes, 0.1, np.where(head, 0.75 - 0.3 * x, 0.2 + 0.3 * y))
        images.append(np.stack([grey, grey * (0.8 + 0.1 * i), grey * 0.7], axis=-1))
    return np.asarray(np.stack(images) * 255, dtype=np.uint8)


def _speech(batch: int) -> np.ndarray:
    """(batch, WINDOW_SAMPLES) float32: a harmonic voice with syllables, and a little noise."""
    t = np.arange(WINDOW_SAMPLES) / SAMPLE_RATE
    noise = np.random.default_rng(1).standard_normal((batch, WINDOW_SAMPLES)) * 0.003
    voices = [sum(np.sin(2 * np.pi * (110 + 40 * i) * k * t) / k for k in range(1, 12)) for i in range(batch)]
    loudness = 0.1 * np.clip(np.sin(2 * np.pi * 3 * t), 0, 1)
    return np.asarray(np.stack(voices) * loudness + noise, dtype=np.float32)


def _compare(
    graph: str, output: str, runtime: str, precision: str, expected: np.ndarray, found: np.ndarray
) -> GraphParity:
    a, b = expected.astype(np.float64), found.astype(np.float64)
    is_frames = expected.dtype == np.uint8
    limits = (FRAME_LIMITS if is_frames else FLOAT_LIMITS)[precision]
    scale = 1.0 if is_frames else float(np.sqrt(np.mean(a**2))) or 1.0
    error = np.abs(a - b) / scale
    return GraphParity(
        graph, output, runtime, precision, float(error.mean()), float(error.max()), limits.mean, limits.max
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "onnx", "onnxruntime", "openvino")}


def _row(row: GraphParity | ChainParity) -> dict[str, Any]:
    """Fields of a row; JSON has no NaN and no infinity, so they become null."""
    fields = {**asdict(row), "passed": row.passed}
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in fields.items()}


def _yes(passed: bool) -> str:
    return "yes" if passed else "NO"
