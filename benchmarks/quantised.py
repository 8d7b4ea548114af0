"""What int8 and fp8 cost in pictures: a photo speaks, quantised graphs beside float32, all on ONNX Runtime (CPU).

python -m semo_sdk.benchmarks.quantised PHOTO SPEECH --calibrate PHOTO SPEECH
python -m semo_sdk.benchmarks.quantised PHOTO SPEECH --whole motion     # all its large layers, and nothing else

The same seeds and sound: whatever differs comes from arithmetic. Speed is not measured, a CPU says nothing about it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.backends.base import Arrays, Engine, GraphSpec, graph_specs
from semo_sdk.backends.compare import psnr
from semo_sdk.backends.onnxruntime import OnnxRuntimeEngine
from semo_sdk.bundle import Bundle
from semo_sdk.engines.calibrate import Calibration, drawn_calibration, open_calibration
from semo_sdk.engines.draft import draft_graphs, read_graph, record_bundle
from semo_sdk.engines.quantize import FEWEST_ROWS, linear_layers, observe, open_session, quantize, run
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import find_portrait, load_image
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import encode_reference
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import drain


class QuantisedEngine:
    """A quantised graph on ONNX Runtime, computed as its nodes stand."""

    def __init__(self, spec: GraphSpec, model: Any, folder: Path) -> None:
        self.spec = spec
        self._session = open_session(model, folder)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self.spec.check(feeds)
        return run(self._session, [t.name for t in self.spec.outputs], dict(feeds))

    def close(self) -> None:
        """ONNX Runtime frees it with the object."""


def engines_in(bundle: Bundle, precision: str) -> dict[str, Engine]:
    """Engines of a bundle's own graphs."""
    return {
        name: OnnxRuntimeEngine(spec, bundle.graph_path(name, precision))
        for name, spec in graph_specs(bundle.config).items()
    }


def quantised(bundle: Bundle, precision: str, calibration: Calibration) -> dict[str, Engine]:
    """Engines of what ``semo build`` would build; graphs that it keeps in float16 are the bundle's."""
    import onnx

    specs, engines = graph_specs(bundle.config), engines_in(bundle, "fp16")
    for name, draft in draft_graphs(bundle, precision, calibration).items():
        print(f"{name} {precision}: {draft.attempt.detail}", file=sys.stderr)
        if draft.model is not None:
            engines[name] = QuantisedEngine(specs[name], onnx.load_from_string(draft.model), bundle.path)
    return engines


def whole(bundle: Bundle, graph: str, precision: str, calibration: Calibration) -> dict[str, Engine]:
    """Engines in float32, but one graph in float16 with all its large linear layers quantised."""
    model, folder = read_graph(bundle, graph)
    feeds = [feeds for feeds, _ in record_bundle(bundle, calibration).seen[graph]]
    candidates = linear_layers(model)
    observed = observe(model, folder, candidates, feeds)
    layers = [layer for layer in candidates if observed.rows[layer.activation] >= FEWEST_ROWS]
    made = quantize(model, folder, layers, observed.peaks, precision)
    return {**engines_in(bundle, "fp32"), graph: QuantisedEngine(graph_specs(bundle.config)[graph], made, folder)}


def speak(bundle: Bundle, engines: Mapping[str, Engine], photo: str, speech: str, seconds: float) -> np.ndarray:
    """(n, 256, 256, 3) uint8: the first seconds, without a watermark."""
    graphs = Graphs(engines, bundle.config, provenance=False)
    reference = encode_reference(graphs, find_portrait(load_image(photo)).crop)
    state = StreamState.start(bundle.config, reference.motion[0], latency="quality", seed=0)
    chunks = drain(graphs, reference, state.push(load_audio(speech)[: round(seconds * 16_000)]))
    frames = np.concatenate([chunk.drawn for chunk in chunks])
    graphs.close()
    return frames


def difference(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How far frames are off."""
    off = np.abs(exact.astype(np.int16) - found)
    return {
        "mean_grey_levels": float(off.mean()),
        "largest_grey_levels": float(off.max()),
        "psnr_db": psnr(exact, found),
        "worst_frame_psnr_db": min(psnr(a, b) for a, b in zip(exact, found, strict=True)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("speech")
    parser.add_argument("--bundle", default="semo-tiny")
    parser.add_argument("--calibrate", nargs=2, metavar=("PHOTO", "SPEECH"))
    parser.add_argument("--whole", metavar="GRAPH", help="this graph's large layers alone, all of them")
    parser.add_argument("--precisions", nargs="+", default=["fp16", "int8", "fp8"])
    parser.add_argument("--seconds", type=float, default=2.56)
    asked = parser.parse_args(arguments)
    bundle = Bundle.open(asked.bundle)
    calibration = open_calibration(*asked.calibrate) if asked.calibrate else drawn_calibration()
    exact = speak(bundle, engines_in(bundle, "fp32"), asked.photo, asked.speech, asked.seconds)
    for precision in asked.precisions:
        if precision == "fp16":
            engines = engines_in(bundle, "fp16")
        elif asked.whole:
            engines = whole(bundle, asked.whole, precision, calibration)
        else:
            engines = quantised(bundle, precision, calibration)
        found = speak(bundle, engines, asked.photo, asked.speech, asked.seconds)
        row = {"precision": precision, "graph": asked.whole or "as built", "frames": len(found)}
        print(json.dumps({**row, **difference(exact, found)}), flush=True)


if __name__ == "__main__":
    main()
