"""Where the first stage's data comes from, and whether a run's settings make sense with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from semo_sdk.errors import ConfigError
from semo_sdk.models.semo import SemoModel
from semo_sdk.training.data import PuppetData, Source
from semo_sdk.training.reader import blink_motion, find_landmarks, fit_reader, load_face_mesh
from semo_sdk.training.teacher import set_levers
from semo_sdk.training.videos import LIST, VideoData

if TYPE_CHECKING:
    from semo_sdk.training.autoencoder import TrainConfig


def open_data(config: TrainConfig, data: str | Path) -> tuple[Source, Source]:
    """Data for training and for validation: of videos what was held out, of puppets the last groups by name."""
    if (Path(data) / LIST).is_file():
        videos = VideoData(data)
        return videos.part(held_out=False), videos.part(held_out=True)
    puppets = PuppetData(data, min_face=config.min_face)
    cut = max(1, len(puppets) - config.validation_groups)
    return puppets.part(0, cut), puppets.part(min(cut, len(puppets) - 1), None)


def learn_teacher(
    model: SemoModel, config: TrainConfig, fresh: PuppetData, held: PuppetData, landmarks: Path, *, started: bool
) -> None:
    """What the puppet teaches before training: where the warp's levers start, and how a face mesh is read."""
    if config.taught and not started and model.decoder.warp is not None:
        set_levers(model.decoder.warp, blink_motion(fresh.driver))
    if model.reader is None:
        return
    load_face_mesh(model.reader.mesh)
    everything = fresh.joined(held)
    found = find_landmarks(model.reader, everything, landmarks)
    if not started:
        fit_reader(model.reader, fresh, found)
    fresh.landmarks = held.landmarks = found


def check(config: TrainConfig, model: SemoModel, data: Source, *, started: bool) -> None:
    """Whether these settings make sense with this data.

    Raises:
        ConfigError: says what to change.
    """
    if model.decoder.warp is not None and config.flow_from <= 0 and not started:
        raise ConfigError("flow_from=0 trains the flow of an encoder and a warp that are there: give it init")
    if data.knows_motion:
        return
    if config.taught:
        raise ConfigError("real videos teach no motion tokens: set taught=false (the paper's way), or train on puppets")
    if model.reader is not None and not started:
        raise ConfigError("encoder.reader='mesh' is fitted on puppets: start from a checkpoint (init), or use 'tokens'")
    if model.decoder.warp is not None and not started:
        raise ConfigError(
            "prior='warp' learns from warp fields, which real videos lack: use prior 'noise' or 'reference', "
            "or train the flow alone, of a checkpoint (init)"
        )
    if config.targets % min(config.targets, config.model.decoder.temporal_window):
        raise ConfigError(f"targets={config.targets} is not a multiple of decoder.temporal_window")
