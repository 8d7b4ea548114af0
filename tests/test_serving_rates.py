"""Half the frame rate, and a session saved for another one: on fake engines and a clock that the test turns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from semo_sdk.constants import FPS, SAMPLES_PER_FRAME
from semo_sdk.errors import ConfigError, InputError, SessionClosedError
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import step_batch
from semo_sdk.serving.capacity import Capacity
from semo_sdk.serving.session import LiveSession
from semo_sdk.serving.speech import Event, Frame, Interrupted, Kind, SpeechDone
from tests.conftest import random_speech
from tests.serving_tools import LIGHT
from tests.serving_world import World, events, frames, sound


@pytest.fixture
def world() -> World:
    return World()


def play_slowly(world: World, seconds: float, session: LiveSession) -> list[Frame | Event]:
    """As ``World.play``, with 12.5 frames a second."""
    items: list[Frame | Event] = []
    for _ in range(round(seconds * FPS / 2)):
        items += [*world.play(1 / FPS, session)[0]]
        world.clock.now += 1 / FPS
    return items


@pytest.mark.parametrize("latency", ["low", "balanced", "quality"])
@pytest.mark.parametrize("samples", [16_000, 16_001, 8_300, 100])
def test_at_half_the_frame_rate_no_sample_is_lost(world: World, latency: str, samples: int) -> None:
    session = world.open(latency=latency, fps=12.5)
    items = play_slowly(world, 0.4, session)
    pcm = random_speech(samples)
    session.push(pcm)
    session.end()
    items += play_slowly(world, 3, session)
    indices = [frame.index for frame in frames(items)]
    assert indices == list(range(0, 2 * len(indices), 2)) and 40 <= len(indices) <= 43
    assert all(frame.audio.shape == (2 * SAMPLES_PER_FRAME,) for frame in frames(items))
    spoken = sound(items)
    np.testing.assert_array_equal(spoken[:samples], pcm)
    assert not spoken[samples:].any() and len(spoken) - samples < 2 * SAMPLES_PER_FRAME
    (done,) = events(items, SpeechDone)
    last = [frame for frame in frames(items) if frame.speaking][-1]
    assert done == SpeechDone(0, (last.index + 2) / FPS, samples / 16_000)


@pytest.mark.parametrize("latency", ["low", "balanced", "quality"])
def test_every_second_frame_of_the_same_motion_is_drawn(world: World, latency: str) -> None:
    start = StreamState.start(LIGHT, world.reference.motion[0], latency=latency, seed=1)
    state = start.push(random_speech(start.hop * SAMPLES_PER_FRAME))
    drawn: list[np.ndarray] = []
    render = world.taps["render"].engine

    def note(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        drawn.append(feeds["motion"])
        outputs: dict[str, np.ndarray] = render(feeds)
        return outputs

    world.taps["render"].engine = note
    [(whole, after)] = step_batch(world.graphs, world.reference, [state])
    [(half, after_half)] = step_batch(world.graphs, world.reference, [state], every=2)
    assert len(half.frames) == len(whole.frames) / 2 and half.duration == whole.duration
    np.testing.assert_array_equal(half.motion, whole.motion)
    np.testing.assert_array_equal(after_half.context, after.context)
    np.testing.assert_array_equal(drawn[1][:, : len(half.frames)], drawn[0][:, : start.hop : 2])
    window = LIGHT.decoder.temporal_window
    assert drawn[1].shape[1] == max(start.hop // 2, window)  # half the work, down to one window


def test_all_of_the_motion_is_made_at_half_the_frame_rate(world: World) -> None:
    slow, fast = world.open(latency="quality", seed=2, fps=12.5), World()
    whole = fast.open(latency="quality", seed=2)
    pcm = random_speech(32_000)
    for session in (slow, whole):
        session.push(pcm)
        session.end()
    some = [frame for frame in frames(play_slowly(world, 2, slow)) if frame.speaking]
    every = [frame for frame in frames(fast.play(2.2, whole)[0]) if frame.speaking]
    assert [frame.index for frame in every][::2] == [frame.index for frame in some]
    motions = [np.concatenate(w.taps["motion"].contexts) for w in (world, fast)]
    np.testing.assert_array_equal(motions[0][:3], motions[1][:3])  # the passes begin from the same motion


def test_an_interruption_at_half_the_frame_rate_goes_on_where_it_was(world: World) -> None:
    session = world.open(latency="quality", fps=12.5)
    session.push(random_speech(80_000))
    seen = frames(play_slowly(world, 1, session))[-1].index + 2
    session.interrupt()
    interrupted = session.take()
    assert isinstance(interrupted, Interrupted) and interrupted.position == seen / FPS
    later = play_slowly(world, 1, session)
    assert frames(later)[0].index == seen and not sound(later, speaking=False).any()


def test_frame_rates_do_not_share_a_batch_and_have_their_own_share_of_the_machine() -> None:
    capacity = Capacity(utilisation=0.8)
    capacity.seconds = {(Kind(16), 1): 0.4, (Kind(16, 2), 1): 0.2}
    assert (capacity.sessions(Kind(16)), capacity.sessions(Kind(16, 2))) == (1, 2)
    world = World(capacity=capacity)
    pair = [world.open(latency="quality", fps=12.5) for _ in range(2)]
    world.play(0.5, *pair)
    assert max(world.notes.sizes) == 2
    capacity.seconds.clear()
    world.open(latency="quality")
    before = len(world.notes.sizes)
    world.play(1, *pair)
    assert max(world.notes.sizes[before:]) == 2  # three would be a mixed batch
    for rate in (0.0, 30.0, 24.0):
        with pytest.raises(ConfigError, match="25 or 12.5"):
            world.open(fps=rate)


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("fps", [25, 12.5])
def test_a_session_that_is_saved_goes_on_elsewhere_without_losing_a_sample(world: World, rate: int, fps: float) -> None:
    pcm = random_speech(3 * rate)
    session = world.open(seed=4, fps=fps)
    play = world.play if fps == FPS else lambda seconds, session: [play_slowly(world, seconds, session)]
    items = play(0.3, session)[0]
    for part in np.array_split(pcm, 3)[:2]:  # speech that waits, is drawn, and was taken
        session.push(part, rate)
        items += play(0.3, session)[0]
    saved = StreamState.from_bytes(session.save().to_bytes())
    assert saved.frame_index == frames(items)[-1].index + round(FPS / fps)
    go_on = [frame.index for frame in frames(play(0.3, session)[0])]
    assert go_on[0] == saved.frame_index  # saving changes nothing
    session.close()
    with pytest.raises(SessionClosedError):
        session.save()
    resumed = world.open(state=saved, fps=fps)
    resumed.push(np.array_split(pcm, 3)[2], rate)
    resumed.end()
    rest = play(4, resumed)[0]
    assert frames(rest)[0].index == saved.frame_index
    spoken = np.concatenate([sound(items), sound(rest)])
    if rate == 16_000:
        np.testing.assert_array_equal(spoken[: len(pcm)], pcm)
        assert not spoken[len(pcm) :].any()
    assert len(spoken) == -(-48_000 // round(SAMPLES_PER_FRAME * FPS / fps)) * round(SAMPLES_PER_FRAME * FPS / fps)


def test_a_state_with_too_much_speech_is_refused(world: World) -> None:
    saved = world.open().save().push(np.zeros(16_000 * 61, np.float32))
    with pytest.raises(InputError, match="60 s"):
        world.open(state=saved)
