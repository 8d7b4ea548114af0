"""What to build for which GPU: one small JSON file each, in ``recipes/``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from semo_sdk.backends.engine_files import Device
from semo_sdk.backends.tensorrt_api import Flavour, Gpu
from semo_sdk.errors import BackendUnavailableError, ConfigError, EngineMismatchError

PRECISIONS = ("fp16", "bf16", "fp32", "int8", "fp8")
FP8_SINCE = (8, 9)  # compute capability of Ada; Hopper and Blackwell are newer


class Recipe(BaseModel):
    """How to build for one kind of GPU.

    Attributes:
        name: of its file, and of ``semo build --target``.
        about: what it is for.
        flavour: "tensorrt" or "tensorrt_rtx".
        gpus: words of the GPUs' names that it is for; empty = any GPU.
        compute_capabilities: of those GPUs; with no ``gpus`` the engines are portable among them, and no GPU is needed
            to build.
        precision: arithmetic unless asked otherwise.
        max_sessions: largest batch unless asked otherwise.
        optimization_level: how long TensorRT searches for kernels, 0 to 5; None = the library's default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str
    flavour: Literal["tensorrt", "tensorrt_rtx"]
    gpus: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    precision: Literal["fp16", "bf16", "fp32"]
    max_sessions: int = Field(ge=1)
    optimization_level: int | None = Field(ge=0, le=5)

    @property
    def is_portable(self) -> bool:
        """Whether the engines are for more than this machine's GPU."""
        return not self.gpus and bool(self.compute_capabilities)

    def fits(self, gpu: Gpu) -> bool:
        """Whether this recipe is for that GPU."""
        if self.is_portable:
            return gpu.compute_capability in self.compute_capabilities
        words = gpu.name.replace("-", " ").split()
        return not self.gpus or any(name in words for name in self.gpus)

    def device(self, gpu: Gpu | None, precision: str = "") -> Device:
        """What the engines will be for. Portable ones in fp8 are for those of the recipe's GPUs that have it.

        Raises:
            BackendUnavailableError: a GPU is needed and there is none.
            ConfigError: the GPU has no fp8, and that was asked for.
            EngineMismatchError: the recipe is for another GPU.
        """
        if self.is_portable:
            able = tuple(c for c in self.compute_capabilities if precision != "fp8" or has_fp8(c))
            if not able:
                raise _no_fp8(f"target {self.name!r} is for {', '.join(self.compute_capabilities)}")
            return Device(gpu="", driver="", compute_capabilities=able)
        if gpu is None:
            raise BackendUnavailableError(
                f"target {self.name!r} is built on the GPU that it is for, and this machine has no NVIDIA GPU: run "
                "semo build there, or use --target rtx-portable, which builds anywhere"
            )
        if not self.fits(gpu):
            raise EngineMismatchError(
                f"target {self.name!r} is for {', '.join(self.gpus)}, this machine has {gpu.name}; use --target auto"
            )
        if precision == "fp8" and not has_fp8(gpu.compute_capability):
            raise _no_fp8(f"{gpu.name} has {gpu.compute_capability}")
        return Device(gpu=gpu.name, driver=gpu.driver, compute_capabilities=(gpu.compute_capability,))


def has_fp8(capability: str) -> bool:
    """Whether GPUs of a compute capability ("8.9") multiply in float8."""
    return tuple(int(part) for part in capability.split(".")) >= FP8_SINCE


def _no_fp8(what: str) -> ConfigError:
    return ConfigError(f"fp8 needs compute capability 8.9 or newer (Ada, Hopper, Blackwell), {what}; choose int8")


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    import json

    files = sorted((Path(__file__).parent / "recipes").glob("*.json"))
    return {f.stem: Recipe(name=f.stem, **json.loads(f.read_text(encoding="utf-8"))) for f in files}


def choose_recipe(target: str, gpu: Gpu | None, flavours: dict[str, Flavour]) -> Recipe:
    """The recipe of a target; for "auto" the most particular one for this GPU whose TensorRT is installed.

    Raises:
        ConfigError: no such target.
        BackendUnavailableError: "auto" without a GPU, or without any TensorRT.
    """
    if target != "auto":
        if target not in recipes():
            raise ConfigError(f"no target {target!r}; choose auto, {', '.join(recipes())}")
        return recipes()[target]
    if gpu is None:
        raise BackendUnavailableError(
            "this machine has no NVIDIA GPU, so there is nothing to choose a target by: run semo build on the GPU's "
            "machine, or name --target rtx-portable, which builds anywhere"
        )
    if not flavours:
        raise BackendUnavailableError(
            "no TensorRT is installed: pip install 'semo-sdk[tensorrt]' (data-centre GPUs) or 'semo-sdk[rtx]' (RTX)"
        )
    fitting = [r for r in recipes().values() if r.flavour in flavours and not r.is_portable and r.fits(gpu)]
    return min(fitting, key=lambda r: (not r.gpus, r.flavour != "tensorrt"))
