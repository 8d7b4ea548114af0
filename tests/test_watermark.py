"""The watermark: the same everywhere, hardly there, found again after what videos go through, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from semo_sdk.media.image import Portrait
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import Reference, stack_references
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import step, step_batch
from semo_sdk.provenance.code import BITS, Payload, all_symbols, model_number
from semo_sdk.provenance.detect import average, detect, search
from semo_sdk.provenance.watermark import SIZES, Watermark
from tests.conftest import Open, random_speech

MODEL = "semo-tiny"
OURS = model_number(MODEL)


@pytest.fixture(scope="module")
def frames(portrait: Portrait) -> np.ndarray:
    """(4, 256, 256, 3) a face that moves a little."""
    return np.stack([np.roll(portrait.crop, shift, axis=1) for shift in (0, 1, 2, 1)])


@pytest.fixture(scope="module")
def marked(frames: np.ndarray) -> np.ndarray:
    return Watermark(MODEL)(frames)


def resized(frames: np.ndarray, width: int, height: int, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    images = [Image.fromarray(frame).crop(box or (0, 0, frame.shape[1], frame.shape[0])) for frame in frames]
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images])


def jpeg(frames: np.ndarray, quality: int) -> np.ndarray:
    import io

    out = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file)))
    return np.stack(out)


def test_a_payload_is_what_its_symbols_say_and_two_differ_twice() -> None:
    table = all_symbols()
    assert table.shape == (65_536, 3) and table.min() >= 0 and table.max() < 2 ** (BITS // 3)
    assert tuple(table[OURS]) == Payload(OURS).symbols
    for first, second in ((0, 1), (0, 2), (1, 2)):  # two symbols determine the third
        assert len(np.unique(table[:, first] << 10 | table[:, second])) == len(table)


def test_the_mark_is_weak(frames: np.ndarray, marked: np.ndarray) -> None:
    difference = marked.astype(int) - frames
    assert 10 * np.log10(255**2 / np.mean(np.square(difference))) >= 42
    assert abs(difference).max() <= 8  # grey levels
    flat = np.full((64, 64, 3), 120, np.uint8)
    assert np.square(Watermark(MODEL)(flat).astype(int) - 120).mean() < 0.8  # smooth skin gets less than hair
    assert np.ptp(Watermark(MODEL)(flat).astype(int), axis=2).max() == 0  # brightness alone


def test_each_frame_is_marked_by_itself(frames: np.ndarray, marked: np.ndarray) -> None:
    mark, before = Watermark(MODEL), frames.copy()
    assert np.array_equal(mark(frames[2]), marked[2]) and np.array_equal(mark(frames[1:3]), marked[1:3])
    assert np.array_equal(mark(frames[:, :, ::-1])[:, :, ::-1].shape, frames.shape)  # any memory layout
    assert np.array_equal(frames, before)
    extremes = np.stack([np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)])
    assert mark(extremes)[0].max() < 10 and mark(extremes)[1].min() > 245  # cut, not wrapped around


@pytest.mark.parametrize("size", [(256, 256), (2, 3), (90, 131), (1080, 607)])
def test_frames_may_have_any_size(size: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(100, 140, (1, *size, 3)).astype(np.uint8)
    made = Watermark(MODEL)(grey)
    assert made.shape == grey.shape and made.dtype == np.uint8
    assert abs(made.astype(int) - grey).max() < 10


def test_photos_of_many_sizes_do_not_fill_the_memory() -> None:
    mark = Watermark(MODEL)
    for side in range(40, 40 + 3 * SIZES):
        mark(np.zeros((1, side, side, 3), np.uint8))
    assert mark._plan.cache_info().currsize == SIZES


ATTACKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nothing": lambda frames: frames,
    "half": lambda frames: resized(frames, 128, 128),
    "double": lambda frames: resized(frames, 512, 512),
    "cropped to 80 %": lambda frames: frames[:, 17:222, 31:236],
    "cropped and enlarged": lambda frames: resized(frames, 256, 256, (20, 30, 225, 235)),
    "cut at one side": lambda frames: frames[:, :, 51:],
    "compressed": lambda frames: jpeg(frames, 60),
    "brighter": lambda frames: np.clip(frames.astype(int) * 1.1 + 10, 0, 255).astype(np.uint8),
    "with a border": lambda frames: np.pad(frames, ((0, 0), (20, 20), (20, 20), (0, 0))),
}


SEARCHED = ("cropped and enlarged", "cut at one side", "with a border")  # like the other crop, which always runs


@pytest.mark.parametrize(
    "attack", [pytest.param(name, marks=pytest.mark.slow if name in SEARCHED else ()) for name in ATTACKS]
)
def test_the_mark_is_found_and_read_after(attack: str, marked: np.ndarray) -> None:
    found = detect(ATTACKS[attack](marked))
    assert found is not None and found.found
    assert found.payload == Payload(OURS) and found.false_alarm < 1e-6


def test_a_large_picture_that_was_marked_as_a_whole_is_found_when_it_is_small(portrait: Portrait) -> None:
    photo = np.asarray(Image.fromarray(portrait.photo).resize((720, 960)))
    small = resized(Watermark(MODEL)(photo[None]), 270, 360)
    found = detect(small)
    assert found is not None and found.payload == Payload(OURS)


def null_pictures(frames: np.ndarray) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(3)
    yield frames[0]
    yield rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    yield np.zeros((120, 200, 3), np.uint8)
    yield np.repeat(np.repeat(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), 16, 0), 16, 1)


def test_nothing_is_found_where_nothing_is(frames: np.ndarray, marked: np.ndarray) -> None:
    for picture in null_pictures(frames):
        found = detect([picture])
        assert found is not None and not found.found and found.payload is None
    stranger = search(average(marked), key=b"another key")
    assert not stranger.found
    assert detect([]) is None


def test_a_score_says_how_likely_chance_is(marked: np.ndarray) -> None:
    found = search(average(marked))
    assert found.score > 10 and found.found
    assert not replace(found, false_alarm=2e-6).found
    assert search(average(marked), windows=9).false_alarm == pytest.approx(9 * found.false_alarm)


def test_sessions_batches_and_files_show_the_same_marked_frames(
    graphs: Graphs, reference: Reference, begin: Callable[..., StreamState], open_session: Open
) -> None:
    state = begin("balanced").push(random_speech(5_120))
    chunk, _ = step(graphs, reference, state)
    assert graphs.provenance is not None
    assert np.array_equal(chunk.frames, graphs.provenance.watermark(chunk.drawn))
    assert not np.array_equal(chunk.frames, chunk.drawn)
    assert np.array_equal(chunk.frame(3), chunk.frames[3])
    pair = step_batch(graphs, stack_references([reference, reference]), [state, state])
    assert all(np.array_equal(other.frames, graphs.provenance.watermark(other.drawn)) for other, _ in pair)
    assert np.array_equal(np.concatenate([c.frames for c in open_session().push(random_speech(5_120))]), chunk.frames)


def test_without_provenance_frames_are_as_they_were_drawn(
    graphs: Graphs, reference: Reference, begin: Callable[..., StreamState]
) -> None:
    plain = Graphs(graphs.engines, graphs.config, provenance=False)
    chunk, _ = step(plain, reference, begin().push(random_speech(5_120)))
    assert plain.provenance is None and chunk.frames is chunk.drawn and np.array_equal(chunk.frame(0), chunk.drawn[0])
