"""Weights that training starts from and leaves as they are: the image autoencoder's."""

from __future__ import annotations

from pathlib import Path

from semo_sdk.errors import CheckpointError, ConfigError
from semo_sdk.models.vae import PatchVae, SdVae, Vae, load_sd_weights


def load_vae(vae: Vae, source: str | Path | None) -> None:
    """Fills an image autoencoder with its published weights.

    Args:
        vae: to fill, in place. ``patch`` has none.
        source: for ``sd`` a diffusers folder or hub name (``stabilityai/sd-vae-ft-mse``), for ``taef2`` a folder
            with ``taef2_encoder.safetensors`` and ``taef2_decoder.safetensors``; None for ``patch``.

    Raises:
        ConfigError: no source where one is needed, or one where none is.
        CheckpointError: the weights cannot be read, or are of another autoencoder.
    """
    if isinstance(vae, PatchVae):
        if source is not None:
            raise ConfigError("vae='patch' has no weights: leave --vae out")
        return
    if source is None:
        example = "stabilityai/sd-vae-ft-mse" if isinstance(vae, SdVae) else "the folder of taef2_*.safetensors"
        raise ConfigError(f"the image autoencoder has no weights yet: give them with --vae, for example {example}")
    from safetensors import SafetensorError

    try:
        if isinstance(vae, SdVae):
            load_sd_weights(vae, str(source))
        else:
            from safetensors.torch import load_file

            for part in ("encoder", "decoder"):
                getattr(vae, part).load_state_dict(load_file(Path(source) / f"taef2_{part}.safetensors"))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"weights of the image autoencoder, {source}: {error}") from error
