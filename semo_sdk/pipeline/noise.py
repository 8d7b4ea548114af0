"""Counter-based noise: the same numbers for the same (seed, pass), whoever asks, in whatever order.

A session's noise depends on nothing but its seed and how many passes it has made, so it is the same alone or in a
crowd, and after saving and resuming.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from semo_sdk.errors import ConfigError

__all__ = ["MAX_SEED", "Stream", "check_seed", "generator", "normal"]

MAX_SEED = 2**64 - 1
Stream = Literal["motion", "render", "blink"]
STREAMS: dict[Stream, int] = {"motion": 0, "render": 1, "blink": 2}


def check_seed(seed: int | np.integer) -> int:
    """``seed`` as a plain int.

    Raises:
        ConfigError: not a whole number from 0 to 2**64 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}")
    return int(seed)


def generator(*, seed: int, pass_index: int, stream: Stream) -> np.random.Generator:
    """Random numbers for one purpose of one pass.

    Args:
        seed: 0 to 2**64 - 1.
        pass_index: number of the generator's pass, from 0.
        stream: what they are for; the streams of one pass are independent.
    """
    # Philox counts in the first words of its counter; the last word keeps the streams apart.
    bits = np.random.Philox(counter=[0, 0, 0, STREAMS[stream]], key=np.array([seed, pass_index], np.uint64))
    return np.random.Generator(bits)


def normal(shape: tuple[int, ...], *, seed: int, pass_index: int, stream: Stream) -> np.ndarray:
    """Standard normal noise, float32, of a shape; the rest as :func:`generator`."""
    return generator(seed=seed, pass_index=pass_index, stream=stream).standard_normal(shape, dtype=np.float32)
