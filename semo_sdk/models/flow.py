"""Rectified flow in the paper's convention (sections 3.1 and 3.3, equations 1 and 2).

``x_t = (1 - t) x + t e`` with data ``x`` at t = 0 and the prior ``e`` at t = 1; the velocity is ``v = x - e``. Going
from t to s < t therefore *adds* ``(t - s) v``. (Many code bases regress ``e - x`` and step the other way.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def interpolate(x: Tensor, prior: Tensor, t: Tensor) -> Tensor:
    """Point x_t on the straight path; ``t`` in [0, 1] broadcasts against ``x``."""
    return (1 - t) * x + t * prior


def velocity(x: Tensor, prior: Tensor) -> Tensor:
    """Velocity of the straight path, the regression target."""
    return x - prior


def step(x_t: Tensor, v: Tensor, t: float, s: float) -> Tensor:
    """Euler step from time ``t`` to ``s`` (s < t moves towards the data)."""
    return x_t + (t - s) * v


def sample(field: Callable[[Tensor, float], Tensor], prior: Tensor, steps: int) -> Tensor:
    """Integrates ``field(x_t, t)`` from t = 1 to t = 0 in equal Euler steps; the loop unrolls in an exported graph."""
    return prior + displacement(field, prior, steps)


def displacement(field: Callable[[Tensor, float], Tensor], prior: Tensor, steps: int) -> Tensor:
    """What :func:`sample` adds to the prior."""
    total = torch.zeros_like(prior)
    for i in range(steps):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        total = step(total, field(prior + total, t), t, s)
    return total
