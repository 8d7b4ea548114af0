"""What a backend says about itself."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from semo_sdk.backends.base import GraphSpec
from semo_sdk.errors import ConfigError, EngineMismatchError

# Computed in float32 also where the rest runs in bf16: the logarithm of small spectral differences does not survive it
# (features of real speech are 4 % off, and on a CPU it saves 10 ms a pass).
FLOAT32_GRAPHS = frozenset({"audio"})
# The same where a runtime takes no heed of what a graph keeps in float32 (OpenVINO's bf16, the TensorRT provider's
# fp16): the place of a landmark does not survive it.
EXACT_GRAPHS = FLOAT32_GRAPHS | {"reference", "motion_encoder"}


@dataclass(frozen=True)
class BackendInfo:
    """Whether one backend can run here.

    Attributes:
        name: "openvino", "onnxruntime", "torch" or "tensorrt".
        available: it is installed and has a device.
        reason: version and arithmetic when available, else what is missing and which extra brings it.
        devices: what it can run on.
    """

    name: str
    available: bool
    reason: str
    devices: tuple[str, ...]


def check_precision(precision: str, allowed: Sequence[str], backend: str) -> None:
    """Refuses a precision that a backend does not have.

    Raises:
        ConfigError: the message lists the choices.
    """
    if precision != "auto" and precision not in allowed:
        raise ConfigError(f"backend {backend!r} has no precision {precision!r}; choose auto, {', '.join(allowed)}")


def check_names(spec: GraphSpec, path: Path, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Refuses a graph file whose tensors are not those of the spec: it was exported by another version.

    Raises:
        EngineMismatchError: the message names what is there and what is expected.
    """
    for kind, found, tensors in (("inputs", set(inputs), spec.inputs), ("outputs", set(outputs), spec.outputs)):
        expected = {t.name for t in tensors}
        if not expected <= found:
            raise EngineMismatchError(
                f"{path} has {kind} {sorted(found)}, this semo-sdk expects {sorted(expected)}; export the bundle again"
            )


def cuda_device_count() -> int:
    """NVIDIA GPUs that the driver offers; 0 without a driver. Needs no CUDA library."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value
