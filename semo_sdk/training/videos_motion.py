"""Data of the second stage from prepared videos: motion tokens of every frame, and what Whisper hears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from semo_sdk.errors import InputError
from semo_sdk.media.audio import load_audio
from semo_sdk.models.semo import SemoModel
from semo_sdk.training.motion_prepare import Collection, encode
from semo_sdk.training.videos import VideoData, read_frames

VALIDATION_CLIPS = 48  # generated freely at each save: more take long and say no more


@torch.no_grad()
def prepare_motion(model: SemoModel, videos: Path, out: Path, *, windows: int = 24, seed: int = 0) -> None:
    """Encodes the clips that have clear speech, without masking (paper, section 3.2).

    Args:
        model: of the first stage, on the device to use. videos: what ``semo data videos`` wrote. out: folder to write.
        windows: speech windows of each clip. seed: of their places and loudness.

    Raises:
        InputError: no clip with speech to train on, or none held out.
    """
    rng = np.random.default_rng(seed)
    spoken = [clip for clip in VideoData(videos).clips if clip.speech]
    training = [clip for clip in spoken if not clip.held_out]
    held = [clip for clip in spoken if clip.held_out][:VALIDATION_CLIPS]
    if not training or not held:
        raise InputError(
            f"{videos} has {len(training)} clips of clear speech to train on and {len(held)} held out; both need one: "
            "report.json says what was wrong with the others' sound"
        )
    collection = Collection(model, windows, rng)
    for clip in tqdm([*training, *held], desc="motion and speech", unit="clip"):
        tokens = encode(model, read_frames(clip.path, range(clip.frames))).numpy()
        number = collection.hear(load_audio(clip.path / "sound.wav"), every_pass=clip.held_out)
        collection.move(tokens, number, held_out=clip.held_out)
    collection.write(out, taught=False)
