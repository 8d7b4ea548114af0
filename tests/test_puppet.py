"""The puppet: what is stored is what was rendered, poses are shared, and the same seed gives the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.errors import ConfigError, VideoError
from semo_sdk.media.face import mouth_opening

cv2 = pytest.importorskip("cv2")
pytest.importorskip("scipy")

from semo_sdk.training import puppet, puppet_driver, puppet_geometry, puppet_mouth  # noqa: E402
from semo_sdk.training.puppet_assets import Assets, prepare_assets  # noqa: E402
from semo_sdk.training.puppet_dataset import main, motion_target, render_group  # noqa: E402
from tests import puppet_tools  # noqa: E402
from tests.puppet_tools import FRAMES, mesh_of, procedural_clip  # noqa: E402


@pytest.fixture(scope="module")
def meshes() -> np.ndarray:
    return puppet_tools.meshes()


@pytest.fixture(scope="module")
def canonical() -> np.ndarray:
    return puppet_tools.canonical()


@pytest.fixture(scope="module")
def driver() -> puppet_driver.Driver:
    return puppet_tools.driver()


def test_pose_round_trip(canonical: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    poses = rng.uniform([-0.6, -0.5, -0.5, 60, 0, 0], [0.6, 0.5, 0.5, 200, 256, 256], (20, 6))
    seen = puppet_geometry.from_canonical(np.broadcast_to(canonical, (20, *canonical.shape)), poses)
    assert np.allclose(puppet_geometry.fit_pose(seen, canonical), poses, atol=1e-6)
    assert np.allclose(puppet_geometry.to_canonical(seen, poses), canonical, atol=1e-9)
    seen[..., 2] += 30  # depth has no origin
    assert np.allclose(puppet_geometry.frontal(seen, poses, canonical), canonical, atol=1e-6)


def test_canonical_face_is_symmetric_and_of_height_one(canonical: np.ndarray) -> None:
    twins = puppet_geometry.mirror_pairs(canonical)
    assert np.allclose(canonical[twins] * np.array([-1, 1, 1]), canonical, atol=1e-6)
    assert np.array_equal(twins[twins], np.arange(len(twins)))
    assert np.linalg.norm(canonical[10] - canonical[152]) == pytest.approx(1, abs=1e-3)


def test_basis_explains_the_driver(meshes: np.ndarray, canonical: np.ndarray, driver: puppet_driver.Driver) -> None:
    _, shapes = puppet_driver.smooth_clip(procedural_clip(meshes[0], canonical, 5, frames=40), canonical)
    moves = (shapes - driver.neutral)[:, puppet_geometry.LIPS]
    seen = driver.decode(driver.encode(shapes - driver.neutral))[:, puppet_geometry.LIPS]
    assert np.abs(seen - moves).mean() < 0.1 * np.abs(moves).mean()
    assert np.abs(driver.opening[14, 1] - driver.opening[13, 1] - 1) < 0.2


def test_lips_close(canonical: np.ndarray, driver: puppet_driver.Driver) -> None:
    apart = canonical + 0.05 * driver.opening
    closed = puppet_geometry.close_lips(apart, driver.opening)
    gap = closed[puppet_geometry.INNER_LOWER] - closed[puppet_geometry.INNER_UPPER]
    assert np.abs(gap[1:-1]).max() < 1e-9
    assert np.allclose(closed[puppet_geometry.STABLE], apart[puppet_geometry.STABLE], atol=2e-3)


def test_transfer_opens_closes_and_never_crosses_lips(
    identities: list[puppet.Identity], driver: puppet_driver.Driver
) -> None:
    for identity in identities:
        for opening in (-0.05, 0.0, 0.08):
            shape = puppet_geometry.transfer(identity.neutral, driver.neutral, opening * driver.opening)
            gap = (shape[puppet_geometry.INNER_LOWER] - shape[puppet_geometry.INNER_UPPER])[:, 1]
            assert (gap >= -1e-9).all()
            assert (gap[5] > 0.03) == (opening > 0)


def test_blink_closes_any_eye(identities: list[puppet.Identity], driver: puppet_driver.Driver) -> None:
    blink = driver.decode(driver.blink(np.array([0.0, 1.0])) + driver.encode(np.zeros((468, 3))))
    for identity in identities:
        opened, closed = (puppet_geometry.transfer(identity.neutral, driver.neutral, one) for one in blink)
        lids = puppet_geometry.UPPER_LIDS[:, 3], puppet_geometry.LOWER_LIDS[:, 3]
        before, after = (np.linalg.norm(face[lids[0]] - face[lids[1]], axis=1) for face in (opened, closed))
        assert (after < 0.3 * before).all()


def test_no_motion_gives_the_portrait_back(identities: list[puppet.Identity]) -> None:
    for identity in identities:
        target = puppet.target_points(identity, identity.pose, identity.neutral)
        frame, _ = puppet.render(identity, target)
        error = np.abs(frame.astype(float) - identity.image)
        assert error.mean() < 1.5
        still, _ = puppet.render(identity, identity.points)
        assert np.abs(still.astype(int) - identity.image).mean() < 0.2


def test_stored_field_is_the_rendered_warp(identities: list[puppet.Identity], driver: puppet_driver.Driver) -> None:
    identity = identities[0]
    pose = identity.pose + np.array([0.15, -0.1, 0.1, 4, 5, -3])
    target = puppet.target_points(identity, pose, identity.neutral)
    frame, warp = puppet.render(identity, target)
    half = puppet.Warp(warp.triangles, warp.weights.astype(np.float16).astype(np.float32))
    field = puppet.field_of(half, identity.points)
    assert np.array_equal(puppet.warp_image(identity.image, field), frame)
    assert field.shape == (puppet.CELLS, puppet.CELLS, 2) and len(target) == puppet.POINTS
    own = puppet.field_of(warp, target)  # the frame is its own reference: every cell stays where it is
    line = (np.arange(puppet.CELLS) + 0.5) * IMAGE_SIZE / puppet.CELLS
    assert np.abs(own - np.stack(np.meshgrid(line, line), -1)).max() < 0.1


def test_two_people_take_the_same_pose(
    identities: list[puppet.Identity], canonical: np.ndarray, driver: puppet_driver.Driver
) -> None:
    wanted = np.array([0.12, -0.05, 0.1, 128.0, 132.0, 126.0])
    for identity in identities:
        shape = puppet_geometry.transfer(identity.neutral, driver.neutral, 0.05 * driver.opening)
        frame, _ = puppet.render(identity, puppet.target_points(identity, wanted, shape))
        points = mesh_of(frame)
        seen = puppet_geometry.fit_pose(points, canonical)
        assert np.degrees(np.abs(seen - wanted)[:3]).max() < 3.5
        assert np.abs(seen - wanted)[4:6].max() < 3 and abs(seen[3] / wanted[3] - 1) < 0.04
        assert mouth_opening(points) > 0.05


def test_mouth_interior_fills_open_lips_only(identities: list[puppet.Identity], driver: puppet_driver.Driver) -> None:
    identity = identities[0]
    red = puppet_mouth.MouthSource(np.full((256, 256, 3), (250, 20, 20), np.uint8), identity.points)
    shape = puppet_geometry.transfer(identity.neutral, driver.neutral, 0.08 * driver.opening)
    target = puppet.target_points(identity, identity.pose, shape)
    plain, pasted = (puppet.render(identity, target, source)[0] for source in (None, red))
    changed = (plain != pasted).any(-1)
    inside = puppet_mouth.fill_polygon(target[puppet_geometry.INNER_LIPS], (IMAGE_SIZE, IMAGE_SIZE))
    assert changed[inside > 0.99].mean() > 0.9
    assert not changed[cv2.dilate(inside, np.ones((11, 11))) == 0].any()
    weights = puppet.region_weights(target)
    assert set(np.unique(weights)) == {0, 1, 2, 3}
    closed = puppet.target_points(identity, identity.pose, identity.neutral)
    assert puppet.region_weights(closed).max() == 2
    shut = [puppet.render(identity, closed, source)[0] for source in (None, red)]
    assert np.array_equal(shut[0], shut[1])


def test_crop_outside_the_photo_has_no_black_bars() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    assert puppet.square_crop(image, np.array([10.0, 90.0]), 160).min() >= 198


def test_groups_are_complete_and_repeatable(assets: Assets, tmp_path: Path) -> None:
    shapes = {
        "frames": (2, 1 + FRAMES // 4, 256, 256, 3),
        "points": (2, 1 + FRAMES // 4, puppet.POINTS, 2),
        "triangles": (2, FRAMES // 4, 4096, 3),
        "barycentric": (2, FRAMES // 4, 4096, 2),
        "weight": (2, FRAMES // 4, 64, 64),
        "motion": (2, 1 + FRAMES // 4, 30),
    }
    kinds = set()
    for index in range(4):
        arguments: dict[str, Any] = {"index": index, "identities": 2, "frames": FRAMES // 4, "seed": 3}
        first, second = (render_group(assets, tmp_path / run, **arguments) for run in ("a", "b"))
        meta = json.loads((first / "meta.json").read_text())
        kinds.add(meta["sway"])
        assert (meta["identities"][-1] == "driver") != meta["sway"] and len(meta["identities"]) == 2
        for name, shape in shapes.items():
            data = np.load(first / f"{name}.npy", mmap_mode="r")
            assert data.shape == shape
            assert (first / f"{name}.npy").read_bytes() == (second / f"{name}.npy").read_bytes()
        motion = np.load(first / "motion.npy")
        assert np.isfinite(motion[:, 1:]).all() and np.array_equal(motion[0, 1:], motion[1, 1:])
        assert np.isnan(motion[0, 0, 6:]).all() and np.isfinite(motion[:, 0, :6]).all()
        assert np.isnan(motion[-1, 0, 6:]).all() == meta["sway"]
    assert kinds == {True, False}
    assert not list((tmp_path / "a").glob(".partial*"))


def test_motion_target_units() -> None:
    at_rest = motion_target(np.array([0, 0, 0, 128.0, 128, 128]), np.zeros(24))
    assert at_rest.shape == (30,) and not at_rest.any()
    moved = motion_target(np.array([0.2, 0, 0, 128.0, 192, 128]), np.arange(24.0))
    assert moved[0] == pytest.approx(1) and moved[4] == pytest.approx(1) and moved[-1] == 23


def test_what_cannot_be_used_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="0 clips and 0 portraits"):
        prepare_assets(tmp_path, tmp_path, tmp_path / "out", workers=1)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        list(puppet_driver.read_frames(tmp_path / "broken.mp4"))
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "--groups" in capsys.readouterr().out
