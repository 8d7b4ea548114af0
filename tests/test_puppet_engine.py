"""What the data engine covers: turned heads, blinks, brows, closed lips, tinted mouths, filmed frames, many cores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("scipy")

from semo_sdk.benchmarks import puppets  # noqa: E402
from semo_sdk.constants import ANGLE_UNIT, FPS, IMAGE_SIZE  # noqa: E402
from semo_sdk.errors import ConfigError  # noqa: E402
from semo_sdk.media.face import mouth_opening  # noqa: E402
from semo_sdk.training import puppet, puppet_assets, puppet_dataset, puppet_driver, puppet_mouth, puppet_plan  # noqa: E402
from semo_sdk.training import puppet_geometry as geometry  # noqa: E402
from semo_sdk.training.puppet_mouth import MouthSource  # noqa: E402
from tests.puppet_tools import (  # noqa: E402
    EXAMPLES,
    NAMES,
    SIZE,
    canonical,
    driver,
    film,
    load,
    mesh_of,
    meshes,
)

TURNED = np.radians(20.0)  # how far the portraits are turned that the engine still takes


@pytest.fixture(scope="module")
def groups(assets: puppet_assets.Assets, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two groups of two people: with head sway, and with the filmed driver."""
    out = tmp_path_factory.mktemp("groups")
    made: dict[bool, Path] = {}
    for index in range(8):
        group = puppet_dataset.render_group(assets, out, index=index, identities=2, frames=3, seed=3)
        made.setdefault(json.loads((group / "meta.json").read_text())["sway"], group)
        if len(made) == 2:
            return [made[True], made[False]]
    raise AssertionError("eight groups of one kind")


def shown(identity: puppet.Identity, pose: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A rendered frame and the landmarks that are found in it."""
    frame, _ = puppet.render(identity, puppet.target_points(identity, pose, shape))
    return frame, mesh_of(frame)


@pytest.mark.parametrize("side", [-1, 1])
def test_heads_turn_by_25_degrees(identities: list[puppet.Identity], side: int) -> None:
    """A warp shows nothing of what the photo hides: the mesh network sees about three quarters of the turn."""
    for identity in identities:
        seen = []
        for degrees in (12, 25):
            wanted = identity.pose.copy()
            wanted[0] = side * np.radians(degrees)
            seen.append(geometry.fit_pose(shown(identity, wanted, identity.neutral)[1], canonical()))
        slight, strong = (side * np.degrees(pose[0]) for pose in seen)
        assert 6 < slight < 15 and 15 < strong < 28 and strong > slight + 6
        assert np.abs(np.degrees(seen[1][1:3] - identity.pose[1:3])).max() < 5  # pitch and roll stay


def test_plans_cover_weak_and_strong_motion_of_turned_portraits(assets: puppet_assets.Assets) -> None:
    turned = assets.poses.copy()
    turned[:, 0] = [-TURNED, -TURNED / 2, TURNED / 2, TURNED]
    plans = [puppet_plan.plan(replace(assets, poses=turned), 12, np.random.default_rng(seed)) for seed in range(200)]
    swaying = np.stack([plan.poses for plan in plans if plan.sway])
    calm = np.stack([plan.poses for plan in plans if not plan.sway])
    assert 0.4 < len(swaying) / len(plans) < 0.6
    angles = np.degrees(swaying[..., :3])
    assert angles[..., 0].max() > 25 and angles[..., 0].min() < -25 and np.abs(angles[..., 0]).max() < 36
    span = np.ptp(angles, axis=1)
    assert (span[:, 0].min() < 2.5) and (np.median(span, 0) < span.max(0) / 2).all() and span.max(0)[0] > 8
    heights = IMAGE_SIZE / np.concatenate([swaying, calm])[..., 3]  # of the crop, in face heights
    assert heights.min() < 1.42 and heights.max() > 2.58
    centres = np.concatenate([p.poses for p in plans if p.sway and not p.cut])[..., 4:6] / IMAGE_SIZE - 0.5
    assert np.abs(centres).max() > 0.08 and np.abs(centres).max() < 0.25
    assert np.ptp(calm[..., :3], axis=1).max() < np.radians(8)  # nothing is added to the film


def test_sway_is_smooth_and_within_its_limits() -> None:
    waves = np.stack([puppet_plan.sway_offsets(50, np.random.default_rng(seed)) for seed in range(200)])
    assert (np.abs(waves) <= puppet_plan.SWAY).all() and (np.abs(waves).max((0, 1)) > 0.6 * puppet_plan.SWAY).all()
    speed = np.abs(np.diff(waves, axis=1)).max((0, 1)) * FPS  # in units a second: at most 0.9 turns of the wave
    assert (speed <= puppet_plan.SWAY * 2 * np.pi * 0.9 + 1e-9).all()


def test_blinks_come_every_few_seconds_and_are_short() -> None:
    starts, lengths, peaks = [], [], []
    for seed in range(20):
        closure = puppet_driver.blink_closures(60 * FPS, np.random.default_rng(seed))
        assert closure.min() == 0 and closure.max() == 1
        edges = np.diff(np.concatenate([[0], (closure > 0).astype(int), [0]]))
        begin, end = np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)
        starts += np.diff(begin).tolist()
        lengths += (end - begin)[1:-1].tolist()
        peaks += [closure[a:b].max() for a, b in zip(begin[1:-1], end[1:-1], strict=True)]
    assert min(starts) >= 2 * FPS and max(starts) <= 4 * FPS + 1 and np.std(starts) > 5  # not a metronome
    assert set(lengths) <= {5, 6, 7} and set(peaks) == {1.0}


def test_lids_blink_in_groups_that_sway_and_only_there(assets: puppet_assets.Assets) -> None:
    blink = driver().blink(np.ones(1))[0]
    closed = {True: 0.0, False: 0.0}
    for seed in range(40):
        plan = puppet_plan.plan(assets, 12, np.random.default_rng(seed))
        filmed = plan.clip.coefficients[plan.first : plan.first + 12]
        added = (plan.coefficients - filmed) @ blink / np.square(blink).sum()
        closed[plan.sway] = max(closed[plan.sway], float(np.abs(added).max()))
    assert closed[True] > 0.9 and closed[False] == 0


def test_brows_follow_the_driver(identities: list[puppet.Identity]) -> None:
    raised = np.zeros((geometry.MESH, 3))
    raised[geometry.BROWS.ravel(), 1] = -0.04  # face heights, upwards
    for identity in identities:
        calm, up = (
            shown(identity, identity.pose, geometry.transfer(identity.neutral, driver().neutral, move))[1]
            for move in (0 * raised, raised)
        )
        brows, eyes = geometry.BROWS.ravel(), geometry.EYE_CORNERS.ravel()
        lifted = (calm - up)[brows, 1].mean() - (calm - up)[eyes, 1].mean()
        assert lifted > 0.4 * 0.04 * identity.pose[3]


def test_lips_of_a_smiling_portrait_are_closed_before_it_speaks(identities: list[puppet.Identity]) -> None:
    for identity in identities:
        teeth = MouthSource(np.full((256, 256, 3), 230, np.uint8), identity.points)
        smile = geometry.transfer(identity.neutral, driver().neutral, 0.03 * driver().opening)
        photo, _ = puppet.render(identity, puppet.target_points(identity, identity.pose, smile), teeth)
        found = mesh_of(photo)
        closed = puppet.make_identity(photo, found, canonical(), driver().opening)
        gap = closed.points[geometry.INNER_LOWER[3:8], 1] - closed.points[geometry.INNER_UPPER[3:8], 1]
        assert np.abs(gap).max() < 0.5  # pixels
        assert mouth_opening(mesh_of(closed.image)) < 0.4 * mouth_opening(found)
        white = []
        for image, points in ((photo, found), (closed.image, closed.points)):
            mouth = image[puppet_mouth.fill_polygon(points[geometry.OUTER_LIPS, :2], (256, 256)) > 0.5].astype(float)
            white.append(int((np.ptp(mouth, axis=1) < 0.12 * mouth.max(1)).sum()))
        assert white[0] > 20 and white[1] < 0.5 * white[0]  # lips are red: what was not is gone


@pytest.mark.parametrize("tint", [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_a_mouth_is_as_colourful_as_its_portrait(identities: list[puppet.Identity], tint: tuple[float, ...]) -> None:
    """A grey photo gets a grey mouth, a coloured one keeps the film's colours."""
    identity = identities[0]
    grey = identity.image.mean(-1, keepdims=True)
    image = (grey + (identity.image - grey) * np.array(tint)).astype(np.uint8)
    portrait = replace(identity, image=image)
    film_of = MouthSource(identities[1].image, identities[1].points)
    red = film_of.image.copy()
    red[..., 1:] //= 2  # a warm film
    shape = geometry.transfer(identity.neutral, driver().neutral, 0.08 * driver().opening)
    target = puppet.target_points(identity, identity.pose, shape)
    frame, _ = puppet.render(portrait, target, MouthSource(red, film_of.points))
    inside = puppet.region_weights(target).repeat(4, 0).repeat(4, 1) == 3
    colours = frame[inside].astype(float)
    colourful = np.ptp(colours, axis=1).mean() / colours.max(1).mean()
    assert colourful < 0.02 if not any(tint) else colourful > 0.1


def test_dark_portraits_get_darker_mouths(identities: list[puppet.Identity]) -> None:
    identity = identities[0]
    shape = geometry.transfer(identity.neutral, driver().neutral, 0.08 * driver().opening)
    target = puppet.target_points(identity, identity.pose, shape)
    inside = puppet.region_weights(target).repeat(4, 0).repeat(4, 1) == 3
    levels = []
    for light in (0.4, 0.7, 1.0):
        portrait = replace(identity, image=(identity.image * light).astype(np.uint8))
        frame, _ = puppet.render(portrait, target, MouthSource(identities[1].image, identities[1].points))
        levels.append(float(frame[inside].mean()))
    assert levels == sorted(levels) and levels[0] < 0.8 * levels[-1]


def test_points_lie_where_the_face_is_also_in_shifted_references(groups: list[Path]) -> None:
    for group in groups:
        frames, points = (np.load(group / f"{name}.npy", mmap_mode="r") for name in ("frames", "points"))
        for person in range(2):
            for step in (0, 2):  # the photo in another crop, and a frame
                found = mesh_of(np.array(frames[person, step]))[geometry.STABLE, :2]
                assert np.abs(found - points[person, step][geometry.STABLE]).mean() < 2.5
    moved = [np.load(group / "motion.npy")[:, 0, 3:6] for group in groups]
    assert len({round(float(x), 3) for x in np.concatenate(moved)[:, 1]}) == 4  # every reference has its own crop


def test_groups_without_sway_hold_filmed_frames(groups: list[Path], assets: puppet_assets.Assets) -> None:
    frames, points = (np.load(groups[1] / f"{name}.npy", mmap_mode="r") for name in ("frames", "points"))
    meta = json.loads((groups[1] / "meta.json").read_text())
    video = assets.video("clip")[meta["first"]]
    track = assets.landmarks("clip")[meta["first"]][: geometry.MESH, :2]
    scale, shift = np.polyfit(track[:, 0], points[-1, 1, : geometry.MESH, 0], 1)
    side = IMAGE_SIZE / scale
    low = track.mean(0) - points[-1, 1, : geometry.MESH].mean(0) / scale
    filmed = puppet.square_crop(video, low + side / 2, side)
    assert np.abs(filmed.astype(float) - frames[-1, 1]).mean() < 1.5
    assert np.isfinite(shift) and meta["identities"][-1] == "driver"


def test_portraits_that_cannot_play_are_left_out() -> None:
    flesh = meshes()[:1, : geometry.MESH]
    pose = geometry.fit_pose(flesh, canonical())
    shape = geometry.frontal(flesh, pose, canonical())

    def usable(*degrees: float, height: float = 150.0, x: float = SIZE / 2, gap: float = 0.0) -> bool:
        placed = np.array([[*np.radians(degrees or (0, 0, 0)), height, x, SIZE / 2]])
        moved = geometry.from_canonical(shape + gap * driver().opening, placed)
        fitted = geometry.fit_pose(moved, canonical())
        return bool(puppet_assets._usable(moved, fitted, np.array([[SIZE, SIZE]]), canonical())[0])

    assert usable() and usable(15, 12, 15)
    for turned in ((26, 0, 0), (0, 26, 0), (0, 0, -26)):
        assert not usable(*turned)
    assert not usable(height=100)
    assert not usable(x=SIZE - 30)  # reaches out of the photo
    assert usable(gap=0.08) and not usable(gap=0.2)  # a smile can be closed, a yawn cannot


def test_a_mirrored_mesh_is_that_of_the_mirrored_photo() -> None:
    flipped = puppet_assets._mirror(meshes()[:, : geometry.MESH], np.full((2, 2), SIZE), canonical())
    for name, mesh in zip(NAMES, flipped, strict=True):
        found = mesh_of(np.ascontiguousarray(load(name)[:, ::-1]))[: geometry.MESH, :2]
        assert np.abs(found - mesh[:, :2]).mean() < 0.02 * SIZE


def test_what_puppets_cover_is_read_from_their_motion(groups: list[Path]) -> None:
    folder = groups[0].parent
    driver().save(folder / "driver.npz")
    result = puppets.cover(folder)
    count = len(list(folder.glob("group_*")))
    assert result["groups"] == count >= 2 and result["people"] == 2 and result["frames"] == 2 * 3 * count
    motion = np.concatenate([np.load(group / "motion.npy")[0, 1:] for group in sorted(folder.glob("group_*"))])
    yaw = np.abs(np.degrees(motion[:, 0] / ANGLE_UNIT))
    assert result["turned"]["10"] == pytest.approx((yaw > 10).mean(), abs=1e-4)
    for kind in ("sway", "film", "references"):
        ranges = result["frames_of"][kind]
        assert all(values == sorted(values) for values in ranges.values())
        assert 1.3 < ranges["crop"][0] <= ranges["crop"][-1] < 2.8 and 0.3 < ranges["x"][0] <= ranges["x"][-1] < 0.7
    assert f"| {puppets.ROWS['yaw']} |" in puppets.markdown(result)


def test_nobody_plays_twice_in_a_group(assets: puppet_assets.Assets) -> None:
    plan = puppet_plan.plan(assets, 6, np.random.default_rng(0))
    for seed in range(5):
        chosen = puppet_plan.cast(assets, plan, 2, np.random.default_rng(seed))
        assert len(set(assets.names[chosen])) == 2
    with pytest.raises(ConfigError, match="fewer than 3 portraits fit"):
        puppet_plan.cast(assets, plan, 3, np.random.default_rng(0))


@pytest.mark.slow
def test_one_or_two_processes_render_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From folders of clips and photos to groups: whatever the number of processes, and however often it is called."""
    for name in ("HELD_OUT_CLIPS", "HELD_OUT_PORTRAITS"):
        monkeypatch.setattr(puppet_assets, name, 1)
    grid, portraits = tmp_path / "grid", tmp_path / "portraits"
    grid.mkdir()
    portraits.mkdir()
    for number in range(3):
        film(grid, f"c{number}", seed=number)
    for copy, name in enumerate([*NAMES, NAMES[0]]):
        shutil.copy(EXAMPLES / name, portraits / f"{copy}.jpg")
    made: list[dict[str, bytes]] = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        shutil.copytree(grid / "driver", out / "driver")
        options: dict[str, Any] = {"groups": 3, "identities": 2, "frames": 4, "seed": 5, "workers": workers}
        found = list(puppet_dataset.render_dataset(grid, portraits, out, **options))
        assert [group.name for group in found] == [f"group_{i:05d}" for i in range(3)]
        made.append({str(p.relative_to(out)): p.read_bytes() for g in found for p in sorted(g.iterdir())})
        (found[1] / "meta.json").touch()
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")}
        assert list(puppet_dataset.render_dataset(grid, portraits, out, **options)) == found
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")} == before  # nothing is made twice
    assert made[0] == made[1]
    metas = [json.loads(made[0][f"group_{i:05d}/meta.json"]) for i in range(3)]
    assert {meta["clip"] for meta in metas} <= {"c0", "c1"}  # the last clip and the last photo are never rendered
    assert not any(name.startswith("2.jpg") for meta in metas for name in meta["identities"])
