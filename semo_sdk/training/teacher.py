"""Motion tokens of a teacher: pose and expression that the puppet knows, written into token space by a fixed rotation.

A self-supervised token stays empty for a long time on a small budget (DESIGN, section 5). ``semo-tiny`` therefore
learns from taught tokens: the decoder sees exact ones from its first step, the generator needs no encoder to learn
speech, and the encoder is trained to produce the same tokens from pixels. Directions the teacher does not
use stay free.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from semo_sdk.constants import POSE_SIZE, TAUGHT_SIZE
from semo_sdk.models.warp import WarpHead

# brings every entry to about unit deviation over the puppet's data
UNITS = (1.5, 2.0, 3.0, 2.0, 5.0, 4.0, *(1.0,) * 24)


@cache
def directions(width: int) -> Tensor:
    """(30, width) orthogonal rows, scaled so that a token of unit entries has unit mean square; always the same."""
    random = torch.randn(width, TAUGHT_SIZE, generator=torch.Generator().manual_seed(2026), dtype=torch.float64)
    rows = torch.linalg.qr(random).Q.T * (width / TAUGHT_SIZE) ** 0.5
    return (rows * torch.tensor(UNITS, dtype=torch.float64)[:, None]).float()


def teach(motion: Tensor, width: int) -> Tensor:
    """Pose and expression (..., 30), see ``motion_target`` -> token (..., width); unknown (NaN) counts as zero."""
    return motion.nan_to_num(0.0) @ directions(width).to(motion.device)


def read(token: Tensor) -> Tensor:
    """Token (..., width) -> pose and expression (..., 30): the inverse of :func:`teach` on its range."""
    rows = directions(token.shape[-1]).to(token.device)
    return token @ (rows / rows.square().sum(1, keepdim=True)).T


def taught_targets(known: Tensor, reference_motion: Tensor) -> Tensor:
    """The teacher's tokens of the targets, with the pose counted from what the encoder sees in the reference.

    A target that moves as little as the reference then has the reference's own pose in its token, however the encoder
    misjudges that pose: a head never jumps when it starts to speak.

    Args:
        known: (G, 1 + F, 30) of reference and targets. reference_motion: (G, 1, D) encoded.
    """
    pose = known[:, 1:, :POSE_SIZE] - known[:, :1, :POSE_SIZE] + read(reference_motion.float())[..., :POSE_SIZE]
    return teach(torch.cat([pose, known[:, 1:, POSE_SIZE:]], -1), reference_motion.shape[-1])


@torch.no_grad()
def set_levers(head: WarpHead, blink: Tensor) -> None:
    """Starts the levers of a warp head as what the teacher wrote, in unit deviations.

    Change of pose for the coarse warp; for the maps a constant, how far the eyes are closed, and the leading expression
    coefficients.

    Args:
        head: to set, in place. blink: (30,) change of the motion that closes the eyes.
    """
    width = head.levers.in_features // 2
    rows = directions(width)
    reading = rows / rows.square().sum(1, keepdim=True)
    unit = torch.tensor(UNITS)[:, None]
    head.pose_levers.weight.zero_()
    head.pose_levers.bias.zero_()
    head.pose_levers.weight[:, width:] = (reading * unit)[: len(head.pose_levers.weight)]
    eyes = blink / blink.square().sum()
    expression = torch.cat([eyes[None] @ reading, (reading * unit)[POSE_SIZE:]])[: len(head.levers.weight) - 1]
    head.levers.weight.zero_()
    head.levers.bias.zero_()
    head.levers.bias[0] = 1.0
    head.levers.weight[1 : 1 + len(expression)] = expression.repeat(1, 2)
