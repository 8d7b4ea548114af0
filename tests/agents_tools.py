"""An animator on fake engines for the agents' tests, and what goes wrong with it on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from semo_sdk.animator import Animator
from semo_sdk.media.image import Portrait
from semo_sdk.serving.engine import Engine
from tests.serving_tools import LIMIT, Tap, tapped
from tests.virtual_time import now

T = TypeVar("T")

RATE = 24_000  # of the agents' voices, in Hz


def quick(portrait: Portrait) -> tuple[Animator, dict[str, Tap]]:
    """An animator whose passes take milliseconds, and its engines."""
    graphs, taps = tapped()
    return Animator.from_graphs(portrait, graphs), taps


def virtual_engine(animator: Animator) -> Engine:
    """For ``run_virtually``, whose worker is its ``step``."""
    return Engine(animator.graphs, sizes=(1,), latencies=("low",), clock=now)


def run(work: Coroutine[Any, Any, T], seconds: float = 300) -> T:
    """Runs it; a test never hangs."""
    return asyncio.run(asyncio.wait_for(work, seconds))


async def until(condition: Callable[[], Any]) -> None:
    end = now() + LIMIT
    while not condition():
        assert now() < end, "waited too long"
        await asyncio.sleep(0.01)


def voice(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """(n,) int16 of noise."""
    return np.random.default_rng(seed).integers(-9000, 9000, round(seconds * rate)).astype(np.int16)
