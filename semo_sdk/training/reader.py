"""Makes the face reader: the published landmark network, and a fit of what reads its landmarks.

The fit: landmarks of rendered frames -> the pose and expression that the puppet knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from semo_sdk.constants import ANGLE_UNIT, IMAGE_SIZE, OFFSET_UNIT, POSE_SIZE, SCALE_UNIT, SIZE_UNIT
from semo_sdk.files import replacing
from semo_sdk.media.face import MODELS
from semo_sdk.models.face_mesh import POINTS, FaceMesh, FaceReader, Similarity
from semo_sdk.training.data import PuppetData, reference_frames
from semo_sdk.training.puppet_driver import Driver
from semo_sdk.training.puppet_geometry import STABLE
from semo_sdk.training.teacher import directions
from semo_sdk.vino import load_openvino

CHANGE_WEIGHT = 3.0  # of how a face changes over time, against what it is: tokens are compared with each other
RIDGE = 1e-6  # of the landmarks' variance in face heights: they tremble by about a thousandth


def load_face_mesh(mesh: FaceMesh, path: str | Path | None = None) -> None:
    """Fills the network with the published weights.

    Args:
        mesh: to fill. path: ``face_landmarks_detector.tflite``; by default the package's own copy.
    """
    model = load_openvino().Core().read_model(path or MODELS / "face_landmarks_detector.tflite")
    weights: list[tuple[Any, Any]] = []
    slopes = []
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind in ("Convolution", "GroupConvolution"):
            bias = next(iter(node.output(0).get_target_inputs())).get_node()
            weights.append((_constant(node), _constant(bias)))
        elif kind == "PRelu":
            slopes.append(_constant(node))
    # the last three layers read the same features: presence of a face and of a tongue, and the landmarks
    weights = [*weights[:-3], *(pair for pair in weights[-3:] if pair[1].size == 3 * POINTS)]
    layers = [m for m in mesh.modules() if isinstance(m, nn.Conv2d)]
    acts = [m for m in mesh.modules() if isinstance(m, nn.PReLU)]
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, weights, strict=True):
            source = torch.tensor(weight).float()
            if layer.groups > 1:  # (1, 3, 3, channels)
                source = source.permute(3, 0, 1, 2)
            layer.weight.copy_(source)
            cast(Tensor, layer.bias).copy_(torch.tensor(bias).flatten())
        for act, slope in zip(acts, slopes, strict=True):
            act.weight.copy_(torch.tensor(slope).flatten())


def _constant(node: Any) -> Any:
    """The constant that a node's second input comes from."""
    source = node.input_value(1).get_node()
    while source.get_type_name() != "Constant":
        source = source.input_value(0).get_node()
    return source.get_data()


Landmarks = dict[str, np.ndarray]  # by group, (K, 11, 478, 3) of the frames that serve as references


@torch.no_grad()
def find_landmarks(reader: FaceReader, data: PuppetData, cache: Path) -> Landmarks:
    """Landmarks of all frames that serve as references, from ``cache`` (.npz) if that holds them."""
    if cache.is_file():
        with np.load(cache) as stored:
            found = {name: stored[name] for name in stored.files}
        if all(group.name in found for group in data.groups):
            return found
    found = {}
    for i in tqdm(range(len(data)), desc="landmarks", unit="group"):
        group = data.open(i)
        chosen = reference_frames(group["frames"].shape[1] - 1)
        people = zip(*(group[name][:, chosen] for name in ("frames", "points")), strict=True)
        found[data.groups[i].name] = np.stack(
            [reader.landmarks(*map(torch.from_numpy, person)).numpy() for person in people]
        )
    with replacing(cache) as temporary:
        np.savez(temporary, **found)
    return found


@torch.no_grad()
def fit_reader(reader: FaceReader, data: PuppetData, landmarks: Landmarks) -> None:
    """Fits what reads the landmarks by ridge regression in closed form.

    Args:
        reader: to fit, in place; its landmark network stays as it is. data: rendered groups.
    """
    reader.canonical.copy_(torch.from_numpy(data.canonical))
    reader.stable.zero_()[STABLE] = 1.0
    reader.directions.copy_(directions(reader.directions.shape[1]))
    reader.blink.copy_(blink_motion(data.driver))
    inputs, answers = [], []
    for i, group in enumerate(data.groups):
        motion = np.array(data.open(i)["motion"])
        chosen = reference_frames(motion.shape[1] - 1)
        for points, known in zip(landmarks[group.name], motion[:, chosen], strict=True):
            # the first frame is the portrait, whose expression is not known
            upright, similarity = reader.align(torch.from_numpy(points[1:]))
            inputs.append(upright.flatten(1))
            answers.append(relative(torch.from_numpy(known[1:]), similarity))
    weight, bias = ridge(torch.stack(inputs).double(), torch.stack(answers).double())
    reader.linear.weight.copy_(weight)
    reader.linear.bias.copy_(bias)


def blink_motion(driver: Driver) -> Tensor:
    """(30,) change of pose and expression when the eyes close."""
    return torch.from_numpy(np.concatenate([np.zeros(POSE_SIZE), driver.blink(np.ones(1))[0]])).float()


def relative(motion: Tensor, similarity: Similarity) -> Tensor:
    """What the reader's linear layer must say for :meth:`FaceReader.read` to give ``motion`` (n, 30)."""
    centre, scale, cos, sin = similarity
    offset = (motion[:, 4:6] * OFFSET_UNIT + IMAGE_SIZE / 2 - centre) / scale[:, None]
    raw = motion.clone()
    raw[:, 2] -= ANGLE_UNIT * torch.atan2(sin, cos)
    raw[:, 3] -= SIZE_UNIT * torch.log(scale / SCALE_UNIT)
    raw[:, 4] = offset[:, 0] * cos + offset[:, 1] * sin
    raw[:, 5] = offset[:, 1] * cos - offset[:, 0] * sin
    return raw


def ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (30, P) and bias (30,) from sequences (S, n, P) and (S, n, 30): changes count more than means."""
    mean_x, mean_y = x.mean((0, 1)), y.mean((0, 1))
    total_x, total_y = (x - mean_x).flatten(0, 1), (y - mean_y).flatten(0, 1)
    change_x, change_y = (z - z.mean(1, keepdim=True) for z in (x, y))
    change_x, change_y = change_x.flatten(0, 1), change_y.flatten(0, 1)
    square = total_x.T @ total_x + CHANGE_WEIGHT * change_x.T @ change_x
    product = total_x.T @ total_y + CHANGE_WEIGHT * change_x.T @ change_y
    square += RIDGE * len(total_x) * torch.eye(x.shape[-1], dtype=x.dtype)
    weight = torch.linalg.solve(square, product).T
    return weight, mean_y - weight @ mean_x
