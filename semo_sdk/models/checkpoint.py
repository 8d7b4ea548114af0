"""A checkpoint is one safetensors file: weights, and the config that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from semo_sdk.config import parse_config
from semo_sdk.errors import CheckpointError, ConfigError
from semo_sdk.files import replacing
from semo_sdk.models.semo import SemoModel


def save_checkpoint(
    path: str | Path,
    model: SemoModel,
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes weights and config; a reader never sees a half-written file.

    Args:
        path: file to write. model: what to save. metadata: further strings. dtype: storage type of floating weights.
    """
    from safetensors.torch import save_file

    path = Path(path)
    state = {
        k: v.detach().to(dtype if dtype and v.is_floating_point() else v.dtype).contiguous().clone()
        for k, v in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(state, temporary, {**(metadata or {}), "config": model.config.model_dump_json()})


def load_checkpoint(path: str | Path) -> tuple[SemoModel, dict[str, str]]:
    """Model (float32, evaluation mode) and metadata.

    Raises:
        CheckpointError: no such file, truncated, without config, or weights that do not fit the config.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors checkpoint, or is truncated: {error}") from error
    if "config" not in metadata:
        raise CheckpointError(f"{path} holds no config: it was not written by semo-sdk")
    try:
        model = SemoModel(parse_config(metadata["config"], where=f"config of {path}"))
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model.eval(), metadata
