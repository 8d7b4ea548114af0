"""What puppets show beside speech: faces that the crop cuts off, large ones, brows, and eyes that look away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("scipy")

from semo_sdk.constants import FPS, IMAGE_SIZE  # noqa: E402
from semo_sdk.training import puppet, puppet_assets, puppet_dataset, puppet_driver, puppet_gaze, puppet_plan  # noqa: E402
from semo_sdk.training import puppet_geometry as geometry  # noqa: E402
from semo_sdk.training.data import PuppetData  # noqa: E402
from tests.puppet_tools import (  # noqa: E402
    NAMES,
    SIZE,
    canonical,
    driver,
    load,
    mesh_of,
    meshes,
)

EYES = geometry.EYE_CORNERS.ravel()
CENTRES = np.array([468, 473])  # of the irises


def plans(assets: puppet_assets.Assets, count: int) -> list[puppet_plan.Motion]:
    return [puppet_plan.plan(assets, 6, np.random.default_rng(seed)) for seed in range(count)]


def face_of(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the mean face begins and ends in the median pose, px."""
    shown = geometry.from_canonical(canonical(), np.median(poses, axis=0))[:, :2]
    return shown.min(0), shown.max(0)


def outside(plan: puppet_plan.Motion) -> float:
    """Share of the face that lies beyond the edge that cuts it; negative: it ends before."""
    low, high = face_of(plan.poses)
    axis = int(plan.cut in ("forehead", "chin"))
    beyond = -low if plan.cut in ("left", "forehead") else high - IMAGE_SIZE
    return float(beyond[axis] / (high - low)[axis])


def test_one_sequence_in_twenty_is_cut_off(assets: puppet_assets.Assets) -> None:
    found = plans(assets, 600)
    cut = [plan for plan in found if plan.cut]
    assert 0.03 < len(cut) / len(found) < 0.075
    assert {plan.cut for plan in cut} == set(puppet_plan.CUTS) and {plan.sway for plan in cut} == {True, False}
    for plan in found:
        low, high = face_of(plan.poses)
        if plan.cut is None:
            assert low.min() > -24 and high.max() < IMAGE_SIZE + 24  # large ones may touch the edge
        assert plan.margin == puppet_plan.MARGIN if min(low.min(), (IMAGE_SIZE - high).min()) < 0 else True


@pytest.mark.parametrize("cut", puppet_plan.CUTS)
def test_a_cut_takes_its_part_of_the_face(
    assets: puppet_assets.Assets, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = puppet_plan.CUTS[cut]
    monkeypatch.setattr(puppet_plan, "CUT_SHARE", 1.0)
    monkeypatch.setattr(puppet_plan, "CUTS", {cut: most})
    found = plans(assets, 60)
    shares = {kind: [outside(plan) for plan in found if plan.sway is kind and plan.cut] for kind in (True, False)}
    assert min(shares[True]) > -1e-6 and max(shares[True]) < most + 1e-6
    assert max(shares[True]) > 0.8 * most and np.ptp(shares[True]) > 0.6 * most
    assert not shares[False] or (min(shares[False]) > -1e-6 and max(shares[False]) < most + 1e-6)
    for plan in plans(assets, 20):  # his crop lies inside his picture, wherever that ends
        corner = plan.centre - plan.side / 2
        assert plan.sway or (corner.min() >= 0 and (corner + plan.side).max() <= SIZE)


@pytest.mark.parametrize("shift", [(88, 0), (-88, 0), (0, 64), (0, -60), (64, -64)])
def test_what_is_cut_off_does_not_change_what_is_shown(shift: tuple[int, int]) -> None:
    """The same face moves alike in a crop that shows it whole and in one that does not, to the bit but for warping."""
    away = np.array(shift, float)  # whole cells
    pose = geometry.fit_pose(meshes()[0], canonical())
    side = 1.7 * pose[3]
    scale = IMAGE_SIZE / side
    seen = []
    for offset in (np.zeros(2), away):
        centre = pose[4:6] - offset / scale
        crop = puppet.square_crop(load(NAMES[0]), centre, side, 128)
        mesh = (meshes()[0] - np.array([*(centre - side / 2), 0])) * scale
        identity = puppet.make_identity(crop, mesh, canonical(), driver().opening, margin=128)
        shape = geometry.transfer(identity.neutral, driver().neutral, 0.05 * driver().opening)
        moved = identity.pose + np.array([0.1, -0.05, 0.05, 3, 4, -3])
        target = puppet.target_points(identity, moved, shape)
        frame, warp = puppet.render(identity, target)
        field = puppet.field_of(warp, identity.points)
        seen.append((target, frame, puppet.region_weights(target), field))
    (points, frame, weight, field), (cut_points, cut_frame, cut_weight, cut_field) = seen
    assert np.allclose(cut_points[: geometry.MESH], points[: geometry.MESH] + away, atol=1e-3)
    assert cut_points[: geometry.MESH].min() < 0 or cut_points[: geometry.MESH].max() > IMAGE_SIZE
    x, y = shift
    ours = np.s_[max(0, y) : IMAGE_SIZE + min(0, y), max(0, x) : IMAGE_SIZE + min(0, x)]
    whole = np.s_[max(0, -y) : IMAGE_SIZE + min(0, -y), max(0, -x) : IMAGE_SIZE + min(0, -x)]
    cells = [tuple(slice(one.start // 4, one.stop // 4) for one in part) for part in (ours, whole)]
    assert np.mean(cut_weight[cells[0]] != weight[cells[1]]) < 0.002
    flesh = weight[cells[1]] > 0
    difference = np.abs(cut_field[cells[0]] - away - field[cells[1]])[flesh]
    assert flesh.sum() > 300 and difference.mean() < 0.05 and np.quantile(difference, 0.99) < 0.5  # pixels
    pixels = np.abs(cut_frame[ours].astype(float) - frame[whole])[flesh.repeat(4, 0).repeat(4, 1)]
    assert pixels.mean() < 1.5


def test_groups_that_are_cut_off_are_whole_groups(
    assets: puppet_assets.Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored field brings every frame out of every other one, as far as that shows it."""
    monkeypatch.setattr(puppet_plan, "CUT_SHARE", 1.0)
    monkeypatch.setattr(puppet_plan, "CUT_FILM", 1.45)
    monkeypatch.setattr(puppet_plan, "CUTS", {"left": 0.4, "forehead": 0.35})
    monkeypatch.setattr(puppet_plan, "INSIDE_CUT", 0.0)  # there are few photos here
    kinds = set()
    for index in range(8):
        group = puppet_dataset.render_group(assets, tmp_path, index=index, identities=2, frames=4, seed=1)
        meta = json.loads((group / "meta.json").read_text())
        if meta["cut"] is None or meta["sway"] in kinds:
            continue
        kinds.add(meta["sway"])
        data = {name: np.load(group / f"{name}.npy") for name in ("frames", "points", "triangles", "weight")}
        barycentric = np.load(group / "barycentric.npy").astype(np.float32)
        assert data["points"][:, :, : geometry.MESH].min() < -2 and data["frames"].min((2, 3, 4)).max() < 200
        for person in range(2 if meta["sway"] else 1):  # the film of these tests does not move
            warp = puppet.Warp(data["triangles"][person, 3], barycentric[person, 3])
            field = puppet.field_of(warp, data["points"][person, 0])
            made = puppet.warp_image(data["frames"][person, 0], field).astype(float)
            known = (data["weight"][person, 3] == 1) & (field > 2).all(-1) & (field < IMAGE_SIZE - 2).all(-1)
            known = cv2.erode(known.astype(np.uint8), np.ones((3, 3))).repeat(4, 0).repeat(4, 1) > 0
            truth = data["frames"][person, 4].astype(float)
            copied = np.abs(data["frames"][person, 0] - truth)[known].mean()
            assert known.sum() > 500 and np.abs(made - truth)[known].mean() < min(8.0, 0.6 * copied)
        older = {name: meta[name] for name in meta if name not in ("cut", "gaze")}
        (group / "meta.json").write_text(json.dumps(older))  # as versions wrote it that cut nothing off
    assert kinds == {True, False}
    driver().save(tmp_path / "driver.npz")
    batch = PuppetData(tmp_path).batch(np.random.default_rng(0), groups=2, identities=2, frames=2)
    for known in (batch.field, batch.coarse, batch.opening, batch.mouth):
        assert known.isfinite().all()
    assert batch.field.abs().max() < 4  # halves of the image: points outside it stay near


def test_large_faces_do_not_fold_at_the_edge(identities: list[puppet.Identity]) -> None:
    """A face that fills the crop moves over its edge and takes its surroundings along."""
    for identity in identities:
        large = np.array([0.0, 0.0, 0.0, IMAGE_SIZE / 1.4, 128.0, 122.0])
        pose = identity.pose
        zoomed = (identity.points[: geometry.MESH] - pose[4:6]) * large[3] / pose[3] + large[4:6]
        depth = geometry.from_canonical(identity.neutral, pose)[:, 2:] * large[3] / pose[3]
        image = puppet.square_crop(
            identity.image, pose[4:6] + (128 - large[4:6]) * pose[3] / large[3], 256 * pose[3] / large[3], 128
        )
        mesh = np.concatenate([zoomed, depth], 1)
        close = puppet.make_identity(image, mesh, canonical(), driver().opening, margin=128)
        moved = close.pose + np.array([0.1, 0.05, 0, 4, 0, -10])
        frame, _ = puppet.render(close, puppet.target_points(close, moved, close.neutral))
        assert np.abs(geometry.fit_pose(mesh_of(frame), canonical()) - moved)[3:].max() < 5


def test_brows_are_in_the_basis() -> None:
    strength = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    added = driver().brows(strength)
    moves = np.tensordot(added, driver().basis, axes=1)
    wanted = np.tensordot(strength, geometry.brow_moves(driver().neutral), axes=1)
    assert np.abs(moves - wanted).max() < 1e-4  # the taught tokens say exactly what brows do
    others = np.delete(added, [puppet_driver.BROWS_AT, puppet_driver.BROWS_AT + 1], axis=1)
    assert np.abs(others).max() < 1e-3 and 1 < np.abs(added).max() < 4  # of order one, like the others
    assert np.abs(moves[:, geometry.LIPS]).max() < 1e-4
    older = replace(driver(), basis=np.delete(driver().basis, puppet_driver.BROWS_AT, axis=0).repeat(2, 0)[:24])
    assert not older.brows(strength).any()


def test_brows_rise_and_frown_in_the_picture(identities: list[puppet.Identity]) -> None:
    calm, up, frown = driver().brows(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    inner = geometry.BROWS[:, [4, 9]]
    for identity in identities:
        found = []
        for one in (calm, up, frown):
            expression = np.tensordot(one, driver().basis, axes=1)
            shape = geometry.transfer(identity.neutral, driver().neutral, expression)
            frame, _ = puppet.render(identity, puppet.target_points(identity, identity.pose, shape))
            mesh = mesh_of(frame)
            found.append((mesh - mesh[EYES].mean(0)) / identity.pose[3])
        still, raised, frowning = found
        rise = (still - raised)[geometry.BROWS.ravel(), 1].mean()
        assert 0.4 < rise / geometry.BROW_RAISE.mean() < 1.5
        assert (frowning - still)[inner, 1].mean() > 0.2 * geometry.BROW_FROWN[0, -1]
        gaps = [float(np.abs(np.subtract(*mesh[inner, 0].mean(1)))) for mesh in (frowning, still)]
        assert gaps[0] < gaps[1]  # the network says so, but hardly


def test_brows_move_now_and_then_where_heads_sway(assets: puppet_assets.Assets) -> None:
    strengths = np.concatenate([puppet_driver.brow_strengths(500, np.random.default_rng(seed)) for seed in range(20)])
    active = strengths.max(1) > 0.05
    assert 0.1 < active.mean() < 0.4 and strengths.min() == 0 and 0.9 < strengths.max() <= 1
    raised, frowning = ((strengths > 0.05).sum(0) / active.sum()).tolist()
    assert raised > 1.4 * frowning > 0.2
    smooth = np.concatenate([np.abs(np.diff(part, axis=0)) for part in strengths.reshape(20, 500, 2)])
    assert smooth.max() < np.pi / 2 / puppet_driver.BROW_EASE / FPS
    seen = {True: 0.0, False: 0.0}
    at = slice(puppet_driver.BROWS_AT, puppet_driver.BROWS_AT + 2)
    for plan in plans(assets, 30):
        added = plan.coefficients - plan.clip.coefficients[plan.first : plan.first + 6]
        seen[plan.sway] = max(seen[plan.sway], float(np.abs(added[:, at]).max()))
    assert seen[True] > 1 and seen[False] == 0


def test_gaze_jumps_and_holds() -> None:
    holds, far = [], []
    for seed in range(40):
        path = puppet_gaze.gaze_path(20 * FPS, np.random.default_rng(seed))
        assert (np.abs(path) <= puppet_gaze.REACH).all()
        moving = np.concatenate([[0], np.abs(np.diff(path, axis=0)).max(1) > 0, [0]]).astype(int)
        edges = np.diff(moving)
        begin, end = np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)
        assert set(end - begin) <= {1, 2}  # a jump takes one frame or two
        holds += (begin[1:] - end[:-1]).tolist()
        far.append(path)
    assert min(holds) >= puppet_gaze.HOLD[0] * FPS and np.median(holds) < 2 * FPS
    places = np.concatenate(far)
    assert 0.3 < (places == 0).all(1).mean() < 0.55  # at the camera, mostly
    assert (np.abs(places).max(0) == puppet_gaze.REACH).all()


def test_irises_move_and_nothing_else(identities: list[puppet.Identity]) -> None:
    for identity in identities:
        target = puppet.target_points(identity, identity.pose + np.array([0.05, 0, 0.1, 0, 2, 1]), identity.neutral)
        lids = sum(puppet.fill_polygon(target[eye], (IMAGE_SIZE, IMAGE_SIZE)) for eye in puppet_gaze.LIDS)
        ahead, _ = puppet.render(identity, target)
        widths = [np.linalg.norm(np.subtract(*target[eye])) for eye in geometry.EYE_CORNERS]
        places = {}
        for side in (-1, 0, 1):
            frame, _ = puppet.render(identity, target, gaze=np.array([side * puppet_gaze.REACH[0], 0.0]))
            assert np.array_equal(frame[lids == 0], ahead[lids == 0])  # not a pixel outside the lids
            mesh = mesh_of(cv2.resize(frame, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))[:, :2] / 2
            middle = mesh[geometry.EYE_CORNERS].mean(1)
            places[side] = (mesh[CENTRES] - middle)[:, 0] / widths
            assert side or np.abs(frame.astype(int) - ahead)[lids == 1].mean() < 2
        if identity is identities[1]:
            continue  # his eyes are in the shade: no network finds his irises
        left, right = places[0] - places[-1], places[1] - places[0]
        assert (left > 0.3 * puppet_gaze.REACH[0]).all() and (right > 0.3 * puppet_gaze.REACH[0]).all()
        total = left + right
        assert (total < 2.5 * puppet_gaze.REACH[0]).all() and abs(total[0] - total[1]) < 0.3 * total.mean()  # alike


def test_gaze_is_a_setting(assets: puppet_assets.Assets, tmp_path: Path) -> None:
    """On, it changes eyes of rendered frames where heads sway; off, nothing knows of it."""
    changed = set()
    for index in range(4):
        options = {"index": index, "identities": 2, "frames": 3, "seed": 3}
        off, on, again = (
            puppet_dataset.render_group(assets, tmp_path / name, gaze=gaze, **options)
            for name, gaze in (("off", False), ("on", True), ("again", True))
        )
        for name in ("points", "triangles", "barycentric", "weight", "motion"):
            assert (off / f"{name}.npy").read_bytes() == (on / f"{name}.npy").read_bytes()
        assert (on / "frames.npy").read_bytes() == (again / "frames.npy").read_bytes()
        metas = [json.loads((group / "meta.json").read_text()) for group in (off, on)]
        frames = [np.load(group / "frames.npy").astype(int) for group in (off, on)]
        where = np.abs(frames[0] - frames[1]).max(-1)
        assert metas[0]["gaze"] is None and not where[:, 0].any()  # the photo itself looks where it looks
        if not metas[1]["sway"]:
            assert metas[1]["gaze"] is None and not where.any()
            continue
        assert np.shape(metas[1]["gaze"]) == (3, 2)
        features = np.load(on / "weight.npy").repeat(4, 2).repeat(4, 3) == 2  # mouth, eyes and brows
        near = [
            cv2.dilate(one.astype(np.uint8), np.ones((9, 9))) for one in features.reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
        ]
        assert not where[:, 1:].reshape(-1, IMAGE_SIZE, IMAGE_SIZE)[np.stack(near) == 0].any()
        changed.add(bool(where.any()))
    assert True in changed


def test_mirrored_irises_change_sides(assets: puppet_assets.Assets) -> None:
    for number, name in enumerate(NAMES):
        flipped = np.ascontiguousarray(load(name)[:, ::-1])
        found, mirrored = mesh_of(flipped)[468:, :2], assets.meshes[number + 2, 468:, :2]
        assert np.abs(found - mirrored).max() < 0.015 * SIZE
