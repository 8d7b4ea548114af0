"""The picture does not jump when a live session of the embedded model is interrupted: measured in grey levels."""

from __future__ import annotations

import numpy as np
import pytest

from semo_sdk.backends import load_engines
from semo_sdk.bundle import Bundle
from semo_sdk.constants import FPS
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import Portrait
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.serving.engine import Engine
from semo_sdk.serving.session import LiveSession
from semo_sdk.serving.speech import Frame
from tests.conftest import EXAMPLES
from tests.serving_world import Clock

pytestmark = pytest.mark.slow


def played(engine: Engine, session: LiveSession, clock: Clock, count: int) -> list[Frame]:
    taken: list[Frame] = []
    while len(taken) < count:
        while engine.step():
            pass
        item = session.take()
        if isinstance(item, Frame):
            taken.append(item)
            clock.now += 1 / FPS
    return taken


def test_the_step_at_an_interruption_is_no_larger_than_those_of_speech(portrait: Portrait) -> None:
    pytest.importorskip("openvino")
    bundle, clock = Bundle.open("semo-tiny"), Clock()
    graphs = Graphs(load_engines(bundle, backend="openvino", threads=1), bundle.config)
    engine = Engine(graphs, sizes=(1,), latencies=("low",), clock=clock)
    session = engine.open(engine.encode(portrait))
    speech, frames = load_audio(EXAMPLES / "speech.wav"), played(engine, session, clock, 5)
    interruptions = []
    for start in range(0, 48_000, 12_000):
        session.push(speech[start : start + 32_000])
        frames += played(engine, session, clock, 24)
        session.interrupt()
        interruptions.append(len(frames))
        frames += played(engine, session, clock, 8)
    graphs.close()
    images = np.stack([frame.image for frame in frames]).astype(np.float32)
    steps = np.abs(np.diff(images, axis=0)).mean((1, 2, 3))
    at = np.array(interruptions) - 1  # from the last frame of speech to the first after it
    assert all(frames[i].speaking and not frames[i + 1].speaking for i in at)
    within = np.array([s for i, s in enumerate(steps) if frames[i].speaking and frames[i + 1].speaking])
    # Four steps against a hundred: their middle lies among the usual ones, their largest is no outlier.
    assert np.median(steps[at]) <= np.percentile(within, 95) and steps[at].max() <= 1.5 * within.max()
    # A cut that forgets where the face was can be seen in the same numbers.
    cuts = np.array([np.abs(images[i] - images[0]).mean() for i in at])
    assert np.median(steps[at]) < np.median(cuts)
