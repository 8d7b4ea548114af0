"""Motion read from a face mesh: the published network as a part of the graphs, and what reads its landmarks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from semo_sdk.benchmarks.faces import follow  # noqa: E402
from semo_sdk.config import preset  # noqa: E402
from semo_sdk.constants import UPPER_LIDS  # noqa: E402
from semo_sdk.media.face import FaceTracker  # noqa: E402
from semo_sdk.media.image import Portrait  # noqa: E402
from semo_sdk.models.eyelids import MOST, close_eyes, eye_lines  # noqa: E402
from semo_sdk.models.face_mesh import MESH, FaceReader  # noqa: E402
from semo_sdk.models.warp import enlarge, move  # noqa: E402
from semo_sdk.training.puppet_dataset import motion_target, pose_of  # noqa: E402
from semo_sdk.training.reader import load_face_mesh, relative, ridge  # noqa: E402


@pytest.fixture(scope="module")
def reader() -> FaceReader:
    """With the published network, a face as the mean face, and a random reading of it."""
    torch.manual_seed(0)
    made = FaceReader(preset("semo-tiny")).eval()
    load_face_mesh(made.mesh)
    with torch.no_grad():
        points = made.landmarks(torch.full((1, 256, 256, 3), 128))[0, :MESH]
        made.canonical.copy_((points - points.mean(0)) / 128)
        made.linear.weight.mul_(0.1)
    return made


def test_landmarks_are_those_of_the_face_tracker(reader: FaceReader, portrait: Portrait) -> None:
    truth = FaceTracker()(portrait.crop)
    assert truth is not None
    with torch.no_grad():
        points = reader.landmarks(torch.from_numpy(portrait.crop)[None])[0].numpy()
    eyes = np.linalg.norm(truth.points[33, :2] - truth.points[263, :2])
    assert np.abs(points[:, :2] - truth.points[:, :2]).mean() < 0.01 * eyes


def test_one_look_is_enough_where_a_face_is_known_to_be(reader: FaceReader, portrait: Portrait) -> None:
    shift = 88  # the face is cut off on the left: looks from the middle miss it
    crop = np.roll(portrait.crop, -shift, 1)
    crop[:, -shift:] = crop[:, -shift - 1 : -shift]
    with torch.no_grad():
        for image, move, limit in ((portrait.crop, 0, 1.0), (crop, shift, 4.0)):
            known = torch.from_numpy(portrait.mesh - [[move, 0, 0]])[None].float()
            points = reader.landmarks(torch.from_numpy(np.ascontiguousarray(image))[None], known)
            assert float((points - known)[..., :2].norm(dim=-1).mean()) < limit  # pixels


def test_reading_follows_a_face_that_moves_in_the_image(reader: FaceReader, portrait: Portrait) -> None:
    with torch.no_grad():
        points = reader.landmarks(torch.from_numpy(portrait.crop)[None])
        angle, scale, shift = 0.2, 1.3, torch.tensor([12.0, -7.0])
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        moved = torch.cat([points[..., :2] @ turn.T * scale + shift, points[..., 2:] * scale], -1)
        before, after = reader.read(points)[0].double().numpy(), reader.read(moved)[0].double().numpy()
    np.testing.assert_allclose(after[6:], before[6:], atol=2e-3)  # an expression does not
    was, now = pose_of(before), pose_of(after)
    np.testing.assert_allclose(now[:2], was[:2], atol=1e-3)
    np.testing.assert_allclose(now[2] - was[2], angle, atol=1e-3)
    np.testing.assert_allclose(now[3] / was[3], scale, rtol=1e-3)
    np.testing.assert_allclose(now[4:6], turn.double().numpy() @ was[4:6] * scale + shift.numpy(), atol=0.05)


def test_fitted_targets_are_what_is_read(reader: FaceReader, portrait: Portrait) -> None:
    rng = np.random.default_rng(0)
    with torch.no_grad():
        points = reader.landmarks(torch.from_numpy(portrait.crop)[None]).expand(4, -1, -1)
        points = points + torch.from_numpy(rng.normal(0, 0.5, points.shape)).float()
        upright, similarity = reader.align(points)
        pose = np.tile([0.1, -0.2, 0.05, 120.0, 130.0, 128.0], (4, 1)) + rng.normal(0, 0.02, (4, 6))
        motion = torch.from_numpy(motion_target(pose, rng.normal(size=(4, 24))))
        weight, bias = ridge(upright.flatten(1)[None].double(), relative(motion, similarity)[None].double())
        copy = FaceReader(preset("semo-tiny"))
        copy.load_state_dict(reader.state_dict())
        copy.linear.weight.copy_(weight)
        copy.linear.bias.copy_(bias)
        torch.testing.assert_close(copy.read(points), motion, atol=0.02, rtol=0.01)


def test_half_precision_leaves_the_reader_alone(reader: FaceReader, portrait: Portrait) -> None:
    image = torch.from_numpy(portrait.crop)[None]
    with torch.no_grad():
        exact = reader(image)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(reader(image), exact, atol=0, rtol=0)
        state = {key: value.clone() for key, value in reader.state_dict().items()}
        half = reader.half()
        assert all(value.dtype == state[key].dtype for key, value in half.state_dict().items())
        torch.testing.assert_close(half(image), exact, atol=0, rtol=0)


def closing(lines: Any, closure: float) -> Any:
    """Offsets (1, 2, 256, 256) of eyes with these lines (1, 5, 64, 64)."""
    skin, there = (enlarge(part, 256) for part in close_eyes(lines, torch.tensor([closure])))
    return skin * there.clamp(0, 1)


def test_eyes_close_where_the_landmarks_are(reader: FaceReader, portrait: Portrait) -> None:
    image = torch.from_numpy(portrait.crop)[None]
    with torch.no_grad():
        points = reader.landmarks(image)
        offsets = closing(eye_lines(points, 64), 1.0)
        closed = move(image.float().permute(0, 3, 1, 2), offsets)[0].permute(1, 2, 0).round().clamp(0, 255)
    eyes = points[0, [*UPPER_LIDS[0], *UPPER_LIDS[1]], :2]
    line = torch.arange(256) + 0.5
    cells = torch.stack([line.expand(256, -1), line[:, None].expand(-1, 256)], -1)
    far = torch.cdist(cells.flatten(0, 1), eyes).amin(1) > 40
    assert not offsets[0].flatten(1)[:, far].any()
    assert offsets[0, 1].min() < -4 / 128 and offsets[0, 1].max() < 0.5 / 128  # skin comes from above
    aspect = follow(np.stack([portrait.crop, closed.numpy().astype(np.uint8)])).eye_aspect
    assert aspect[1] < 0.85 * aspect[0]


def test_a_lid_slides_over_an_eye_that_stays(reader: FaceReader, portrait: Portrait) -> None:
    with torch.no_grad():
        points = reader.landmarks(torch.from_numpy(portrait.crop)[None])
    lines = eye_lines(points, 64)
    below_fold, lid_skin, opening, x, y = enlarge(lines, 256).unbind(1)
    below_lid, below_eye = below_fold - lid_skin, below_fold - lid_skin - opening
    inside = (below_lid > 1) & (below_eye < -1) & (x.abs() + y.abs() > 0.9)

    shares = []
    for closure in (-1.0, 0.0, 0.25, 0.5, 0.75, 1.0):
        made = closing(lines, closure)[:, 1]
        assert not made[below_eye > 2].any(), "the lower lid and what is below it stay"
        shares.append(float((made[inside] != 0).float().mean()))
    assert shares[0] == shares[1] == 0 and shares[-1] == 1, "eyes open no wider, and close wholly"
    assert np.all(np.diff(shares[1:]) > 0) and 0.3 < shares[3] < 0.8, "the rest of the eye is as it was"
    assert torch.equal(closing(lines, 3.0), closing(lines, MOST))


def test_another_network_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        load_face_mesh(FaceReader(preset("semo-tiny")).mesh, tmp_path / "missing.tflite")
