"""speech -> features: one trailing window of sound, always of the same length, never a look ahead.

The window policy lives here and is the same offline, live and in training: the last ``WINDOW_SAMPLES`` samples that
end with the pass, zeros before the start. That is why streamed and offline output are the same.
"""

from __future__ import annotations

import numpy as np

from semo_sdk.backends.device import Tensor
from semo_sdk.constants import WINDOW_SAMPLES
from semo_sdk.pipeline.graphs import Graphs

__all__ = ["encode_audio", "extend_window", "silent_window"]


def silent_window() -> np.ndarray:
    """(WINDOW_SAMPLES,) float32 zeros: what was heard before the start."""
    return np.zeros(WINDOW_SAMPLES, np.float32)


def extend_window(window: np.ndarray, pcm: np.ndarray) -> np.ndarray:
    """The window moved on so that it ends with ``pcm``.

    Args:
        window: (WINDOW_SAMPLES,) float32 heard so far.
        pcm: (n,) float32 mono 16 kHz in [-1, 1], newer sound of any length.

    Returns:
        (WINDOW_SAMPLES,) float32, a new array.
    """
    return np.concatenate([window, pcm])[-WINDOW_SAMPLES:]


def encode_audio(graphs: Graphs, windows: np.ndarray) -> Tensor:
    """Runs the ``audio`` graph.

    Args:
        graphs: the model.
        windows: (B, WINDOW_SAMPLES) float32 mono 16 kHz in [-1, 1]; each ends with the last sample of its pass.

    Returns:
        (B, 24, 2 x width) float32: features of the last 24 video frames of each window, where the engine
        has them.
    """
    return graphs.on_device("audio", {"pcm": windows})["features"]
