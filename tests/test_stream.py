"""The streaming loop: what it promises, on fake engines (every number a hash of what it was made from)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from semo_sdk.backends import fake_engines
from semo_sdk.config import SemoConfig
from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES, FEATURE_FRAMES, SAMPLES_PER_FRAME, WINDOW_SAMPLES
from semo_sdk.errors import ConfigError, EngineError, ImageError, InputError
from semo_sdk.pipeline.features import extend_window, silent_window
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.motion import encode_motion
from semo_sdk.pipeline.noise import MAX_SEED, check_seed, normal
from semo_sdk.pipeline.reference import Reference, encode_reference
from semo_sdk.pipeline.render import launch_size, render
from semo_sdk.pipeline.state import LATENCIES, StreamState
from semo_sdk.pipeline.stream import Chunk, drain, frames_in, plan, step
from tests.conftest import random_speech


def start(
    graphs: Graphs, reference: Reference, *, latency: str = "quality", seed: int = 0, guidance: float | None = None
) -> StreamState:
    return StreamState.start(graphs.config, reference.motion[0], latency=latency, seed=seed, expressiveness=guidance)


def joined(chunks: Iterable[Chunk]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames, motion and sound of consecutive chunks."""
    listed = list(chunks)
    assert [c.index for c in listed] == list(np.cumsum([0, *(len(c) for c in listed[:-1])]) + listed[0].index)
    return (
        np.concatenate([c.frames for c in listed]),
        np.concatenate([c.motion for c in listed]),
        np.concatenate([c.audio for c in listed]),
    )


class Recorder:
    """An engine that remembers its feeds."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.spec = engine.spec
        self.feeds: list[dict[str, np.ndarray]] = []

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.feeds.append({name: array.copy() for name, array in feeds.items()})
        outputs: dict[str, np.ndarray] = self.engine(feeds)
        return outputs

    def close(self) -> None:
        self.engine.close()


def recorded(config: SemoConfig) -> tuple[Graphs, dict[str, Recorder]]:
    engines = {name: Recorder(engine) for name, engine in fake_engines(config).items()}
    return Graphs(engines, config), engines


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("samples", [1, 639, 640, 641, 16 * 640, 16 * 640 + 1, 25_000])
def test_frames_and_their_sound_have_the_length_of_the_speech(
    graphs: Graphs, reference: Reference, latency: str, samples: int
) -> None:
    pcm = random_speech(samples)
    chunks = list(drain(graphs, reference, start(graphs, reference, latency=latency).push(pcm)))
    frames, motion, audio = joined(chunks)
    assert len(frames) == len(motion) == frames_in(samples) == -(-samples // SAMPLES_PER_FRAME)
    assert len(audio) == len(frames) * SAMPLES_PER_FRAME
    assert np.array_equal(audio[:samples], pcm) and not audio[samples:].any()
    assert all(len(c.audio) == len(c) * SAMPLES_PER_FRAME and len(c) <= LATENCIES[latency] for c in chunks)
    assert frames.dtype == np.uint8 and frames.shape[1:] == (256, 256, 3)


@pytest.mark.parametrize("latency", LATENCIES)
def test_the_future_does_not_change_the_past(graphs: Graphs, reference: Reference, latency: str) -> None:
    hop = LATENCIES[latency] * SAMPLES_PER_FRAME
    pcm = random_speech(4 * hop)
    changed = pcm.copy()
    changed[2 * hop :] = random_speech(2 * hop, seed=9)
    begin = start(graphs, reference, latency=latency)
    frames, motion, _ = joined(drain(graphs, reference, begin.push(pcm)))
    others, other_motion, _ = joined(drain(graphs, reference, begin.push(changed)))
    past = 2 * LATENCIES[latency]
    assert np.array_equal(frames[:past], others[:past]) and np.array_equal(motion[:past], other_motion[:past])
    assert not np.array_equal(frames[past], others[past])  # and what is heard does change it


def test_same_seed_same_frames_other_seed_other_motion(graphs: Graphs, reference: Reference) -> None:
    pcm = random_speech(12_000)
    once, again, other = (
        joined(drain(graphs, reference, start(graphs, reference, seed=seed).push(pcm))) for seed in (7, 7, 8)
    )
    assert np.array_equal(once[0], again[0]) and np.array_equal(once[1], again[1])
    assert not np.array_equal(once[1], other[1])


@pytest.mark.parametrize("latency", LATENCIES)
def test_each_pass_gets_what_the_graphs_expect(tiny_config: SemoConfig, face_image: np.ndarray, latency: str) -> None:
    graphs, engines = recorded(tiny_config)
    reference = encode_reference(graphs, face_image)
    hop, samples = LATENCIES[latency], 50_000  # longer than the window
    pcm = random_speech(samples)
    _, motion, _ = joined(drain(graphs, reference, start(graphs, reference, latency=latency, guidance=2.5).push(pcm)))
    before = np.repeat(reference.motion[0], CONTEXT_FRAMES, axis=0)
    heard = np.concatenate([np.zeros(WINDOW_SAMPLES, np.float32), pcm, np.zeros(hop * 640, np.float32)])
    for number, feeds in enumerate(engines["motion"].feeds):
        so_far = np.concatenate([before, motion[: number * hop]])
        assert np.array_equal(feeds["context"][0], so_far[-CONTEXT_FRAMES:])
        assert np.array_equal(feeds["reference_motion"], reference.motion)
        assert feeds["available"].tolist() == [hop] and feeds["guidance"].tolist() == [2.5]
        assert feeds["features"].shape[1] == FEATURE_FRAMES
        assert np.array_equal(
            feeds["noise"][0], normal((CHUNK_FRAMES, 512), seed=0, pass_index=number, stream="motion")
        )
        end = WINDOW_SAMPLES + (number + 1) * hop * SAMPLES_PER_FRAME
        assert np.array_equal(engines["audio"].feeds[number]["pcm"][0], heard[end - WINDOW_SAMPLES : end])
    assert {feeds["motion"].shape[1] for feeds in engines["render"].feeds} == {launch_size(tiny_config, hop)}


def test_after_a_flush_the_next_utterance_follows_the_last_frame(
    tiny_config: SemoConfig, face_image: np.ndarray
) -> None:
    graphs, engines = recorded(tiny_config)
    reference = encode_reference(graphs, face_image)
    state = start(graphs, reference).push(random_speech(3 * 640 + 5))
    chunk, state = step(graphs, reference, state)
    assert len(chunk) == 4 and state.frame_index == 4
    second, state = step(graphs, reference, state.push(random_speech(640, seed=5)))
    feeds = engines["motion"].feeds[1]
    assert np.array_equal(feeds["context"][0, -4:], chunk.motion)
    assert np.array_equal(feeds["context"][0, :4], np.repeat(reference.motion[0], 4, axis=0))
    window = engines["audio"].feeds[1]["pcm"][0]
    assert np.array_equal(window[: -16 * 640][-4 * 640 :], chunk.audio)  # no padding beyond the frames is heard
    assert second.index == 4 and second.start_time == 4 / 25


def test_nothing_pending_is_an_error_not_an_empty_chunk(graphs: Graphs, reference: Reference) -> None:
    with pytest.raises(ValueError, match="pending"):
        step(graphs, reference, start(graphs, reference))
    assert list(drain(graphs, reference, start(graphs, reference))) == []


def test_states_are_values(graphs: Graphs, reference: Reference) -> None:
    first = start(graphs, reference)
    pushed = first.push(random_speech(20_000))
    step(graphs, reference, pushed)
    assert len(first.pending) == 0 and pushed.frame_index == 0 and len(pushed.pending) == 20_000
    assert pushed.push(np.zeros(0, np.float32)) is pushed
    dropped = pushed.drop()
    assert len(dropped.pending) == 0 and dropped.context is pushed.context
    with pytest.raises(AttributeError):
        first.seed = 3  # type: ignore[misc]
    assert "pending=1.250 s" in repr(pushed)


@pytest.mark.parametrize("latency", LATENCIES)
def test_a_saved_state_goes_on_with_the_same_frames(graphs: Graphs, reference: Reference, latency: str) -> None:
    state = start(graphs, reference, latency=latency, seed=MAX_SEED, guidance=1.5).push(random_speech(30_000))
    _, state = step(graphs, reference, state)
    loaded = StreamState.from_bytes(state.to_bytes())
    assert (loaded.seed, loaded.hop, loaded.guidance) == (MAX_SEED, LATENCIES[latency], 1.5)
    for mine, theirs in zip(
        joined(drain(graphs, reference, state)), joined(drain(graphs, reference, loaded)), strict=True
    ):
        assert np.array_equal(mine, theirs)


def test_damaged_or_foreign_states_are_refused(graphs: Graphs, reference: Reference) -> None:
    state = start(graphs, reference)
    data = state.to_bytes()
    for bad in (b"", b"nonsense", data[: len(data) // 2], data[:-30]):
        with pytest.raises(InputError):
            StreamState.from_bytes(bad)
    nan = replace(state, context=np.full_like(state.context, np.nan))
    with pytest.raises(InputError, match="NaN"):
        StreamState.from_bytes(nan.to_bytes())
    with pytest.raises(InputError, match="hop is 5"):
        StreamState.from_bytes(replace(state, hop=5).to_bytes())
    with pytest.raises(InputError, match="heard"):
        StreamState.from_bytes(replace(state, heard=state.heard[1:]).to_bytes())
    with pytest.raises(InputError, match="inlet"):
        StreamState.from_bytes(replace(state, inlet=np.zeros(3, np.float32)).to_bytes())
    with pytest.raises(InputError, match="another model"):
        replace(state, context=np.zeros((8, 64), np.float32)).check(graphs.config)


@pytest.mark.parametrize(
    "settings",
    [{"latency": "lowest"}, {"seed": -1}, {"seed": 2**64}, {"seed": 1.5}, {"guidance": -1}, {"guidance": np.nan}],
)
def test_impossible_settings_are_refused(graphs: Graphs, reference: Reference, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        start(graphs, reference, **settings)


def test_noise_depends_on_seed_pass_and_stream_alone() -> None:
    def draw(**changes: Any) -> np.ndarray:
        settings: dict[str, Any] = {"seed": 1, "pass_index": 2, "stream": "motion"} | changes
        return normal((16, 512), **settings)

    assert np.array_equal(draw(), draw())
    others = [
        draw(seed=MAX_SEED),
        draw(seed=MAX_SEED - 1),
        draw(pass_index=3),
        draw(stream="render"),
        draw(seed=2, pass_index=1),
    ]
    assert all(abs(np.corrcoef(draw().ravel(), other.ravel())[0, 1]) < 0.05 for other in others)
    assert draw().dtype == np.float32
    assert abs(draw().mean()) < 0.05 and abs(draw().std() - 1) < 0.05
    assert check_seed(np.int64(3)) == 3


def test_noise_is_the_same_on_every_machine() -> None:
    # Written down once: if numpy ever changes its stream, seeds would change meaning silently.
    drawn = normal((4,), seed=1, pass_index=2, stream="motion")
    np.testing.assert_allclose(drawn, [-0.36082658, -0.20863281, -0.12069435, -0.87194580], rtol=1e-6)


def test_the_window_always_ends_with_the_newest_sample() -> None:
    window = extend_window(silent_window(), np.arange(1, 4, dtype=np.float32))
    assert window.shape == (WINDOW_SAMPLES,) and window[-3:].tolist() == [1, 2, 3] and not window[:-3].any()
    long = np.arange(2 * WINDOW_SAMPLES, dtype=np.float32)
    assert np.array_equal(extend_window(window, long), long[-WINDOW_SAMPLES:])


@pytest.mark.parametrize("window", [1, 3, 4, 5, 16])
@pytest.mark.parametrize("count", [1, 4, 8, 15, 16, 17, 40])
def test_any_number_of_frames_can_be_rendered(
    tiny_config: SemoConfig, face_image: np.ndarray, window: int, count: int
) -> None:
    config = tiny_config.model_copy(
        update={"decoder": tiny_config.decoder.model_copy(update={"temporal_window": window})}
    )
    graphs, engines = recorded(config)
    reference = encode_reference(graphs, face_image)
    motion = np.random.default_rng(2).standard_normal((1, count, 512)).astype(np.float32)
    frames = render(graphs, reference, motion, seed=0, pass_index=0)
    assert frames.shape == (1, count, 256, 256, 3)
    sizes = [feeds["motion"].shape[1] for feeds in engines["render"].feeds]
    assert all(size % window == 0 and size <= CHUNK_FRAMES for size in sizes)
    assert sum(sizes) - count < max(sizes)
    seen = np.concatenate([feeds["motion"][0] for feeds in engines["render"].feeds])
    assert np.array_equal(seen[:count], motion[0])


def test_models_that_start_from_noise_get_noise_of_their_own(tiny_config: SemoConfig, face_image: np.ndarray) -> None:
    noisy = tiny_config.decoder.model_copy(update={"prior": "noise", "prior_noise": 1.0, "warp_layers": 0})
    config = tiny_config.model_copy(update={"decoder": noisy})
    graphs, engines = recorded(config)
    reference = encode_reference(graphs, face_image)
    list(drain(graphs, reference, start(graphs, reference).push(random_speech(20_000))))
    noise = [feeds["noise"] for feeds in engines["render"].feeds]
    assert len(noise) == 2 and not np.array_equal(noise[0], noise[1])
    assert abs(float(noise[0].std()) - 1) < 0.01


def test_the_motion_encoder_takes_any_number_of_frames(graphs: Graphs) -> None:
    frames = np.random.default_rng(3).integers(0, 256, (1, 18, 256, 256, 3), dtype=np.uint8)
    tokens = encode_motion(graphs, frames)
    assert tokens.shape == (1, 18, 512)
    assert np.array_equal(tokens[:, :3], encode_motion(graphs, frames[:, :3]))


def test_a_wrong_crop_is_refused(graphs: Graphs) -> None:
    for bad in (np.zeros((256, 255, 3), np.uint8), np.zeros((256, 256, 3), np.float32), np.zeros((256, 256), np.uint8)):
        with pytest.raises(ImageError, match="256, 256, 3"):
            encode_reference(graphs, bad)


def test_nan_tokens_are_an_error_that_says_what_to_try(tiny_config: SemoConfig, face_image: np.ndarray) -> None:
    class Broken(Recorder):
        def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: np.full_like(array, np.nan) for name, array in super().__call__(feeds).items()}

    engines: dict[str, Any] = dict(fake_engines(tiny_config))
    engines["motion"] = Broken(engines["motion"])
    graphs = Graphs(engines, tiny_config)
    reference = encode_reference(graphs, face_image)
    with pytest.raises(EngineError, match="NaN.*precision='fp32'"):
        plan(graphs, reference, start(graphs, reference).push(random_speech(640)))


def test_graphs_count_their_launches_and_refuse_after_close(graphs: Graphs, reference: Reference) -> None:
    graphs.reset_stats()
    list(drain(graphs, reference, start(graphs, reference, latency="low").push(random_speech(3000))))
    launches = {name: stats.launches for name, stats in graphs.stats.items()}
    assert launches == {"audio": 2, "motion": 2, "render": 2}
    assert all(stats.seconds > 0 for stats in graphs.stats.values())
    assert "fake" in repr(graphs)
    graphs.close()
    graphs.close()
    with pytest.raises(EngineError, match="closed"):
        encode_reference(graphs, np.zeros((256, 256, 3), np.uint8))
