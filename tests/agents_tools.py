"""An animator on fake engines for the agents' tests, and what goes wrong with it on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np

from semo_sdk.animator import Animator
from semo_sdk.media.image import Portrait
from tests.serving_tools import Tap, tapped

T = TypeVar("T")

RATE = 24_000  # of the agents' voices, in Hz


def quick(portrait: Portrait) -> tuple[Animator, dict[str, Tap]]:
    """An animator whose passes take milliseconds, and its engines."""
    graphs, taps = tapped()
    return Animator.from_graphs(portrait, graphs), taps


def run(work: Coroutine[Any, Any, T], seconds: float = 60) -> T:
    """Runs it; a test never hangs."""
    return asyncio.run(asyncio.wait_for(work, seconds))


def voice(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """(n,) int16 of noise."""
    return np.random.default_rng(seed).integers(-9000, 9000, round(seconds * rate)).astype(np.int16)
