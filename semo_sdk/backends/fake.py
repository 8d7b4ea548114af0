"""A fake engine for tests of code around the models: no weights, deterministic numbers of the right shape."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec, TensorSpec
from semo_sdk.errors import EngineError


class FakeEngine:
    """Stands in for one graph.

    Each item of the batch, and each frame where the graph has a frame axis ``N``, depends only on its own inputs (and
    on the inputs that have no such axis): results do not change with who else is in the batch.

    Args:
        spec: the graph to stand in for.
        seed: another seed, other numbers.
    """

    def __init__(self, spec: GraphSpec, seed: int = 0) -> None:
        self.spec = spec
        self.seed = seed
        self.calls = 0
        self._closed = False

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Numbers drawn from the hash of the inputs: floats from N(0, 1), uint8 uniform.

        Raises:
            EngineError: closed, inputs that do not fit the spec, or a NaN among them (a value that was never written).
        """
        if self._closed:
            raise EngineError(f"graph {self.spec.name!r}: the engine is closed")
        self.spec.check(feeds)
        for name, array in feeds.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise EngineError(f"graph {self.spec.name!r}, input {name!r}: NaN")
        self.calls += 1
        sizes = {
            dim: size
            for t in self.spec.inputs
            for dim, size in zip(t.shape, feeds[t.name].shape, strict=True)
            if isinstance(dim, str)
        }
        outputs = {}
        for t in self.spec.outputs:
            out = np.empty([sizes[d] if isinstance(d, str) else d for d in t.shape], dtype=t.dtype)
            for where in _cells(t, sizes):
                key = tuple(where[axis] for axis in sorted(where))
                digest = self._digest(t.name, where, feeds)
                out[key] = _draw(np.random.default_rng(digest), out[key].shape, t.dtype)
            outputs[t.name] = out
        return outputs

    def close(self) -> None:
        """Refuses further calls."""
        self._closed = True

    def _digest(self, output: str, where: Mapping[str, int], feeds: Mapping[str, np.ndarray]) -> list[int]:
        digest = hashlib.blake2b(f"{self.seed} {self.spec.name} {output}".encode(), digest_size=16)
        for t in self.spec.inputs:
            index = tuple(where[d] if isinstance(d, str) and d in where else slice(None) for d in t.shape)
            digest.update(np.ascontiguousarray(feeds[t.name][index]).tobytes())
        return list(digest.digest())


def _cells(tensor: TensorSpec, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Each combination of the dynamic axes (they lead the shape) of ``tensor``."""
    names = [d for d in tensor.shape if isinstance(d, str)]
    for index in np.ndindex(*(sizes[n] for n in names)):
        yield dict(zip(names, index, strict=True))


def _draw(generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "uint8":
        return np.frombuffer(generator.bytes(math.prod(shape)), np.uint8).reshape(shape)
    return generator.standard_normal(shape, dtype=np.float32)
