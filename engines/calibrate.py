"""What a model meets when it speaks: the inputs of every graph, recorded from the real pipeline.

Ranges of quantised graphs come from it, and the numbers that they are checked with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from semo_sdk.backends.base import Arrays, Engine, GraphSpec
from semo_sdk.config import SemoConfig
from semo_sdk.constants import FPS, IMAGE_SIZE, SAMPLES_PER_FRAME
from semo_sdk.engines.check import draw_face, draw_voice
from semo_sdk.errors import AudioError
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import encode_reference
from semo_sdk.pipeline.state import LATENCIES, StreamState
from semo_sdk.pipeline.stream import step

CYCLES = 3  # each speaks one pass of every latency; the last one is held out for the check
FRAMES = CYCLES * sum(LATENCIES.values())
GRAIN = 4  # pixels

Pair = tuple[Arrays, Arrays]  # inputs and outputs of one launch


@dataclass(frozen=True, eq=False)
class Calibration:
    """A face and speech to calibrate with.

    Attributes:
        crops: (256, 256, 3) uint8 RGB each; cycles take turns.
        speech: (FRAMES * 640,) float32 mono 16 kHz in [-1, 1].
    """

    crops: tuple[np.ndarray, ...]
    speech: np.ndarray

    @property
    def digest(self) -> str:
        """sha256 of all of it: a part of the engines' key."""
        digest = hashlib.sha256(self.speech.tobytes())
        for crop in self.crops:
            digest.update(crop.tobytes())
        return digest.hexdigest()


@dataclass
class Recording:
    """Launches by graph: those to calibrate with, and those to check with, of speech that was not calibrated on."""

    seen: dict[str, list[Pair]] = field(default_factory=dict)
    held_out: dict[str, list[Pair]] = field(default_factory=dict)


def drawn_calibration() -> Calibration:
    """Drawn faces and a synthetic voice, for when nothing real is given."""
    faces = ((0.0, 0.0), (0.03, 0.02), (-0.02, 0.01))
    # skin and hair have texture: where all is flat nobody sees a warp that is off
    grains = np.random.default_rng(0).normal(0, 12, (IMAGE_SIZE // GRAIN, IMAGE_SIZE // GRAIN, 1))
    texture = np.kron(grains, np.ones((GRAIN, GRAIN, 3)))
    crops = (draw_face(IMAGE_SIZE, shift, opening) + texture for shift, opening in faces)
    return Calibration(
        tuple(np.clip(np.rint(crop), 0, 255).astype(np.uint8) for crop in crops),
        draw_voice(FRAMES * SAMPLES_PER_FRAME),
    )


def open_calibration(photo: str | Path, speech: str | Path) -> Calibration:
    """A photo and a recording; short speech is repeated, of long speech the beginning is taken.

    Raises:
        ImageError: not a usable photo.
        AudioError: not usable speech, or silence.
    """
    from semo_sdk.media.audio import load_audio
    from semo_sdk.media.image import find_portrait, load_image

    crop = find_portrait(load_image(photo)).crop
    pcm = load_audio(speech)
    if not np.abs(pcm[: FRAMES * SAMPLES_PER_FRAME]).max() > 1e-3:
        seconds = FRAMES / FPS
        raise AudioError(f"{speech}: its first {seconds:.1f} s are silent; calibrate with somebody who speaks")
    return Calibration((crop,), np.resize(pcm, FRAMES * SAMPLES_PER_FRAME))


def record(config: SemoConfig, engines: Mapping[str, Engine], calibration: Calibration) -> Recording:
    """Lets the model speak and writes down what each graph was fed and gave.

    Args:
        config: the model's.
        engines: trusted engines of all graphs.
        calibration: who speaks, and what.

    Raises:
        EngineError: an engine failed.
    """
    made = Recording()
    speech = calibration.speech.reshape(CYCLES, -1)
    for cycle, pcm in enumerate(speech):
        log = made.held_out if cycle == CYCLES - 1 else made.seen
        graphs = Graphs({n: _Recorder(e, log) for n, e in engines.items()}, config, provenance=False)
        reference = encode_reference(graphs, calibration.crops[cycle % len(calibration.crops)])
        state = StreamState.start(config, reference.motion[0], latency="quality", seed=cycle)
        for hop in LATENCIES.values():
            sound, pcm = pcm[: hop * SAMPLES_PER_FRAME], pcm[hop * SAMPLES_PER_FRAME :]
            chunk, state = step(graphs, reference, replace(state, hop=hop, pending=sound))
            graphs("motion_encoder", {"frames": chunk.drawn[None]})
    return made


class _Recorder:
    """An engine that remembers its launches."""

    def __init__(self, engine: Engine, log: dict[str, list[Pair]]) -> None:
        self.spec: GraphSpec = engine.spec
        self._engine, self._log = engine, log

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        outputs = self._engine(feeds)
        self._log.setdefault(self.spec.name, []).append((dict(feeds), outputs))
        return outputs

    def close(self) -> None:
        """The recorded engine is its owner's to close."""
