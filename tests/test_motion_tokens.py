"""Motion: cut, joined, blended, saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semo_sdk.errors import (
    MotionError,
)
from semo_sdk.motion import Motion


def tokens(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((frames, 512)).astype(np.float32)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((0, 512), np.float32),
        np.zeros(512, np.float32),
        np.zeros((3, 512), np.int64),
        np.full((3, 512), np.nan, np.float32),
    ],
)
def test_impossible_motion_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(MotionError):
        Motion(bad, "m")


def test_motion_is_cut_and_joined_by_frames() -> None:
    one, two = Motion(tokens(10), "m"), Motion(tokens(6, 1), "m")
    assert np.array_equal(one[2:5].tokens, one.tokens[2:5])
    assert np.array_equal((one + two).tokens, np.concatenate([one.tokens, two.tokens]))
    assert np.array_equal(np.asarray(one), one.tokens)
    faded = one.then(two, fade=3)
    assert len(faded) == 13
    assert np.array_equal(faded.tokens[:7], one.tokens[:7]) and np.array_equal(faded.tokens[10:], two.tokens[3:])
    np.testing.assert_allclose(faded.tokens[8], (one.tokens[8] + two.tokens[1]) / 2, rtol=1e-5)
    with pytest.raises(MotionError, match="fade"):
        one.then(two, fade=7)
    with pytest.raises(TypeError, match="slice"):
        one[3]  # type: ignore[index]
    with pytest.raises(MotionError):
        one[5:5]


def test_blending_goes_from_one_motion_to_the_other() -> None:
    one, two = Motion(tokens(4), "m"), Motion(tokens(4, 1), "m")
    assert np.array_equal(one.blend(two, 0).tokens, one.tokens)
    assert np.array_equal(one.blend(two, 1).tokens, two.tokens)
    ramp = one.blend(two, np.array([0, 0, 1, 1]))
    assert np.array_equal(ramp.tokens, np.concatenate([one.tokens[:2], two.tokens[2:]]))
    for other, weight in ((two[:3], 0.5), (two, np.zeros(3)), (Motion(tokens(4), "other"), 0.5)):
        with pytest.raises(MotionError):
            one.blend(other, weight)


def test_retargeted_motion_starts_at_the_new_pose() -> None:
    motion, pose = Motion(tokens(4), "m"), tokens(1, 9)
    moved = motion.retarget(pose)
    assert np.array_equal(moved.tokens[:1], pose)
    np.testing.assert_allclose(np.diff(moved.tokens, axis=0), np.diff(motion.tokens, axis=0), atol=1e-6)


def test_damaged_or_foreign_motion_files_are_refused(tmp_path: Path) -> None:
    path = Motion(tokens(30), "m").save(tmp_path / "motion.npz")
    data = path.read_bytes()
    for number, content in enumerate((b"", b"nonsense", data[: len(data) // 2])):
        bad = tmp_path / f"{number}.npz"
        bad.write_bytes(content)
        with pytest.raises(MotionError, match="not a motion file"):
            Motion.load(bad)
    other = tmp_path / "other.npz"
    np.savez(other, tokens=tokens(3))
    array = tmp_path / "array.npy"
    np.save(array, tokens(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, tokens=np.array([{}]), model="m", fps=25, format=1)
    for foreign in (other, array, pickled, tmp_path):
        with pytest.raises(MotionError):
            Motion.load(foreign)
    np.savez(other, tokens=tokens(3), model="m", fps=30, format=1)
    with pytest.raises(MotionError, match="30 frames a second"):
        Motion.load(other)
    np.savez(other, tokens=tokens(3), model="m", fps=25, format=2)
    with pytest.raises(MotionError, match="format 2"):
        Motion.load(other)
    with pytest.raises(MotionError, match="does not exist"):
        Motion.load(tmp_path / "missing.npz")
