"""head_motion and blink: what they do to the tokens, whoever splits the stream."""

from __future__ import annotations

import numpy as np
import pytest

from semo_sdk.errors import ConfigError
from semo_sdk.pipeline.controls import BLINK_EVERY, CLOSED, adjust, check_controls, eye_closure
from semo_sdk.pipeline.reference import Reference

WIDTH = 32


@pytest.fixture
def reference() -> Reference:
    rng = np.random.default_rng(0)
    rows = np.linalg.qr(rng.normal(size=(WIDTH, 7)))[0].T * np.array([3, 2, 2, 1, 1, 1, 4])[:, None]
    arrays = {"reference_motion": rng.normal(size=(2, 1, WIDTH)), "controls": np.stack([rows, rows[::-1]])}
    return Reference({name: array.astype(np.float32) for name, array in arrays.items()})


def controls(reference: Reference) -> np.ndarray:
    assert reference.controls is not None
    return np.asarray(reference.controls[0])


def shown(tokens: np.ndarray, reference: Reference, **settings: float) -> np.ndarray:
    options = {"head_motion": 1.0, "blink": 0.0, **settings}
    return adjust(tokens, reference, 0, index=0, seed=3, **options)


def test_head_motion_scales_the_distance_from_the_portrait(reference: Reference) -> None:
    tokens = np.random.default_rng(1).normal(size=(16, WIDTH)).astype(np.float32)
    rows = controls(reference)[:6]

    def pose(x: np.ndarray) -> np.ndarray:
        return (x - reference.motion[0]) @ rows.T

    for strength in (0.0, 0.5, 1.0, 2.0):
        made = shown(tokens, reference, head_motion=strength)
        np.testing.assert_allclose(pose(made), strength * pose(tokens), atol=2e-5)
        rest = np.linalg.svd(rows)[2][6:]  # everything else stays
        np.testing.assert_allclose((made - tokens) @ rest.T, 0, atol=1e-5)
    np.testing.assert_array_equal(shown(tokens, reference), tokens)


def test_a_blink_closes_the_eyes_and_opens_them_again(reference: Reference) -> None:
    tokens = np.repeat(reference.motion[0], BLINK_EVERY, 0)
    eyes = controls(reference)[6]

    def closed(tokens: np.ndarray, blink: float) -> np.ndarray:
        made = shown(tokens, reference, blink=blink) - reference.motion[0]
        return np.asarray(made @ eyes / np.square(eyes).sum())

    closure = closed(tokens, 1.0)
    assert closure.min() == 0 and abs(closure.max() - CLOSED) < 1e-5 and closure[0] == closure[-1] == 0
    np.testing.assert_allclose(closed(tokens, 0.4), 0.4 * closure, atol=1e-6)
    wide = closed(tokens - 0.3 * eyes, 1.0)
    np.testing.assert_allclose(wide[closure == closure.max()], CLOSED, atol=1e-5)  # however wide they were open


def test_blinks_depend_on_seed_and_frame_alone() -> None:
    whole = eye_closure(5, 0, 3000)
    parts = np.concatenate([eye_closure(5, first, 7) for first in range(0, 2996, 7)])
    np.testing.assert_array_equal(parts, whole[: len(parts)])
    starts = np.flatnonzero((whole[1:] > 0) & (whole[:-1] == 0))
    assert len(starts) == pytest.approx(3000 / BLINK_EVERY, abs=1)  # two minutes, 16 blinks each
    assert len(set(np.diff(starts))) > 10  # not a metronome
    assert not np.array_equal(whole, eye_closure(6, 0, 3000))


def test_tokens_of_a_model_without_controls_stay(reference: Reference) -> None:
    plain = Reference({"reference_motion": reference.motion})
    tokens = np.ones((4, WIDTH), np.float32)
    assert adjust(tokens, plain, 0, head_motion=1.0, blink=1.0, index=0, seed=0) is tokens


@pytest.mark.parametrize(
    ("settings", "available"), [((2.1, 1.0), True), ((-0.1, 1.0), True), ((1.0, 1.1), True), ((0.5, 1.0), False)]
)
def test_impossible_strengths_are_refused(settings: tuple[float, float], available: bool) -> None:
    with pytest.raises(ConfigError, match=r"head_motion|blink"):
        check_controls(*settings, available=available)
