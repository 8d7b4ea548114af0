"""Reference + motion tokens -> frames (the paper's motion decoder, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from semo_sdk.backends.device import Tensor, to_host
from semo_sdk.config import SemoConfig
from semo_sdk.constants import CHUNK_FRAMES
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.noise import normal
from semo_sdk.pipeline.reference import Reference

__all__ = ["launch_size", "render"]


def launch_size(config: SemoConfig, frames: int) -> int:
    """Frames in the launch that makes ``frames`` (at most 16) frames: a whole number of temporal windows."""
    window = config.decoder.temporal_window
    return min(-(-frames // window), CHUNK_FRAMES // window) * window


def render(
    graphs: Graphs,
    reference: Reference,
    motion: Tensor,
    *,
    seed: int | Sequence[int],
    pass_index: int | Sequence[int],
) -> Tensor:
    """Runs the ``render`` graph, in as many launches as it takes.

    Args:
        graphs: the model.
        reference: of B portraits.
        motion: (B, n, D) float32 tokens, any n >= 1. Frames attend to each other within the decoder's temporal
            window, counted from the first token here; the last window is filled up with the last token.
        seed: of the noise, for models that start from noise; one for all, or B of them.
        pass_index: number of the pass, for that noise; one for all, or B of them.

    Returns:
        (B, n, 256, 256, 3) uint8 RGB; where the engine has them if one launch makes them all.

    Raises:
        EngineError: the engine failed.
    """
    config, (batch, count, _) = graphs.config, motion.shape
    size = launch_size(config, min(count, CHUNK_FRAMES))
    short = -count % size
    filled = motion
    if short or count > size:
        host = to_host(motion)
        filled = np.concatenate([host, np.repeat(host[:, -1:], short, axis=1)], axis=1)
    noise = None
    if config.needs_noise:
        shape = (1, count + short, config.latent_channels, config.latent_size, config.latent_size)
        seeds, passes = ([value] * batch if isinstance(value, int) else value for value in (seed, pass_index))
        drawn = [normal(shape, seed=s, pass_index=p, stream="render") for s, p in zip(seeds, passes, strict=True)]
        noise = np.concatenate(drawn)
    pieces = []
    for start in range(0, count + short, size):
        part = slice(start, start + size)
        tokens = np.ascontiguousarray(filled[:, part]) if isinstance(filled, np.ndarray) else filled
        feeds: dict[str, Tensor] = {**reference.drawn, "motion": tokens}
        if noise is not None:
            feeds["noise"] = np.ascontiguousarray(noise[:, part])
        pieces.append(graphs.on_device("render", feeds)["frames"])
    if len(pieces) == 1 and not short:
        return pieces[0]
    return np.concatenate([to_host(piece) for piece in pieces], axis=1)[:, :count]
