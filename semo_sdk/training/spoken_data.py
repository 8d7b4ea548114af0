"""More speech than was filmed: the films at other speeds, and synthetic voices that say any words.

One speaker with 51 words teaches his words, not lips. A film played faster or slower is another voice with the real
motion. A synthetic voice brings new words; its lips come from :class:`~semo_sdk.training.visemes.Visemes` learned from
the films, its head and all that phones do not explain from a film, played to and fro.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from semo_sdk.constants import POSE_SIZE, SAMPLE_RATE, SAMPLES_PER_FRAME
from semo_sdk.errors import InputError
from semo_sdk.media.audio import load_audio
from semo_sdk.training.puppet_driver import Driver
from semo_sdk.training.spoken import HELD_OUT_VOICE, PAUSE, VOICES, Phone, Utterance, faster, say, sentences, transcript
from semo_sdk.training.visemes import LIPS, Visemes, align, fit_visemes

__all__ = ["Recording", "recordings"]

SPEEDS = (0.85, 1.18)  # of films; pitch and formants go with it
STRETCH = (0.85, 1.3)  # of synthetic speech
PITCH = (0.9, 1.12)
HELD_OUT_SENTENCES = 12  # the last ones
SILENT = 12  # every twelfth synthetic recording says nothing: lips learn to rest for longer than a pause
SILENCE = 8.0  # seconds of that


@dataclass(frozen=True)
class Recording:
    """Speech and the motion that belongs to it.

    Attributes:
        pcm: (n,) float32 at 16 kHz. motion: (T, 30) relative pose and expression, see ``taught_motion``.
        spoken: by a synthetic voice.
    """

    pcm: np.ndarray
    motion: np.ndarray
    held_out: bool
    spoken: bool


def recordings(
    clips: Path, puppets: Path, motion: Mapping[str, np.ndarray], rng: np.random.Generator, count: int
) -> Iterator[Recording]:
    """Every clip at another speed, ``count`` synthetic recordings, and held-out ones of another voice and text.

    Args:
        clips: folder of the films. puppets: folder with ``driver.npz``. motion: of the films to learn from.

    Raises:
        InputError: clips without transcripts. MissingDependencyError: no flite.
    """
    driver = Driver.load(puppets / "driver.npz")
    phones: dict[str, list[Phone]] = {}
    for name, moved in tqdm(motion.items(), desc="films at other speeds", unit="clip"):
        pcm = load_audio(clips / f"{name}.mp4")
        words = transcript(clips / f"{name}.mp4")
        if words is not None:
            said = say(words, HELD_OUT_VOICE)
            phones[name] = align(pcm, said.pcm, said.phones)
        speed = float(rng.uniform(*SPEEDS))
        yield Recording(faster(pcm, speed), at_speed(moved, speed), held_out=False, spoken=False)
    if not phones:
        raise InputError(
            f"{clips} has no transcripts: put a .txt with the words beside each clip, or leave out --spoken"
        )
    visemes = fit_visemes([(heard, motion[name][:, POSE_SIZE:]) for name, heard in phones.items()], driver)
    names = list(phones)
    text = sentences()
    for number in tqdm(range(count + HELD_OUT_SENTENCES), desc="synthetic speech", unit="recording"):
        held_out = number >= count
        if held_out:
            said = say(text[number - count - HELD_OUT_SENTENCES], HELD_OUT_VOICE)
        elif number % SILENT == SILENT - 1:
            nothing = np.zeros(int(SILENCE * SAMPLE_RATE), np.float32)
            said = Utterance(nothing, (Phone(PAUSE, 0.0, SILENCE),))
        else:
            pair = rng.choice(len(text) - HELD_OUT_SENTENCES, 2, replace=False)
            words = " ".join(text[i] for i in pair)
            voice = VOICES[number % len(VOICES)]
            said = say(words, voice, stretch=float(rng.uniform(*STRETCH))).faster(float(rng.uniform(*PITCH)))
        name = names[int(rng.integers(len(names)))]
        yield Recording(said.pcm, lend(visemes, said, phones[name], motion[name]), held_out, spoken=True)


def at_speed(motion: np.ndarray, speed: float) -> np.ndarray:
    """(T, n) -> (T / speed, n), linear between frames."""
    at = np.arange(int(len(motion) / speed)) * speed
    low = np.minimum(at.astype(int), len(motion) - 2)
    share = (at - low)[:, None]
    return np.asarray(motion[low] * (1 - share) + motion[low + 1] * share)


def lend(visemes: Visemes, said: Utterance, heard: list[Phone], filmed: np.ndarray) -> np.ndarray:
    """Motion (T, 30) of synthetic speech.

    Args:
        said: the speech. heard: phones of a film. filmed: (L, 30) its motion: lends pose, and of the expression what
            its own phones do not explain, lips excepted.
    """
    frames = len(said.pcm) // SAMPLES_PER_FRAME
    lent = filmed.copy()
    lent[:, POSE_SIZE:] -= visemes(heard, len(filmed))
    lent[:, POSE_SIZE : POSE_SIZE + LIPS] = 0
    there_and_back = np.concatenate([lent, lent[-2:0:-1]])
    motion = there_and_back[np.arange(frames) % len(there_and_back)]
    motion[:, POSE_SIZE:] += visemes(said.phones, frames)
    motion[:, POSE_SIZE:] = visemes.close(motion[:, POSE_SIZE:], said.phones)
    return motion
