"""Text to speech with known phone times: Festival Lite (``flite``), five free voices in Debian and Ubuntu.

A film of one speaker has few words; a synthetic voice says any, and tells when it says which phone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semo_sdk.errors import InputError, MissingDependencyError
from semo_sdk.media.audio import load_audio

__all__ = ["HELD_OUT_VOICE", "PAUSE", "VOICES", "Phone", "Utterance", "faster", "say", "sentences", "transcript"]

VOICES = ("slt", "kal16", "awb")  # a woman and a man of the United States, a man of Scotland
HELD_OUT_VOICE = "rms"  # another man of the United States: for validation, and to find phones in films
PAUSE = "pau"  # flite's name of silence

# what the six characters of a GRID clip's name stand for
GRID = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},
    dict(zip("z123456789", "zero one two three four five six seven eight nine".split(), strict=True)),
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)


@dataclass(frozen=True)
class Phone:
    """One sound of speech, in the names of the CMU lexicon, small letters; times in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """Synthetic speech.

    Attributes:
        pcm: (n,) float32 at 16 kHz. phones: without gaps from 0 to the end, pauses included.
    """

    pcm: np.ndarray
    phones: tuple[Phone, ...]

    def faster(self, factor: float) -> Utterance:
        """Played faster and so higher, by ``factor``: another speaker, as far as a network can tell."""
        phones = tuple(Phone(p.name, p.start / factor, p.end / factor) for p in self.phones)
        return Utterance(faster(self.pcm, factor), phones)


def faster(pcm: np.ndarray, factor: float) -> np.ndarray:
    """(n,) float32 -> (n / factor,) float32: played faster and higher."""
    from scipy.signal import resample

    return np.asarray(resample(pcm, max(1, round(len(pcm) / factor))), np.float32)


def say(text: str, voice: str, *, stretch: float = 1.0) -> Utterance:
    """Speaks.

    Args:
        text: English. voice: one of ``VOICES`` or the held-out one. stretch: of all durations; 1.3 is slow.

    Raises:
        MissingDependencyError: flite is not installed.
        InputError: no words, no such voice, or flite fails.
    """
    if not text.strip():
        raise InputError("a text without words cannot be said")
    if voice not in (*VOICES, HELD_OUT_VOICE):  # flite would take another one
        raise InputError(f"no voice {voice!r}; there are {', '.join((*VOICES, HELD_OUT_VOICE))}")
    flite = shutil.which("flite")
    if flite is None:
        raise MissingDependencyError("synthetic speech needs flite: apt-get install flite", name="flite")
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "speech.wav"
        command = [flite, "-voice", voice, "-psdur", "--setf", f"duration_stretch={stretch}", "-t", text, "-o"]
        done = subprocess.run([*command, str(sound)], capture_output=True, text=True)
        if done.returncode or not sound.is_file():
            raise InputError(f"flite could not say {text!r}: {done.stderr.strip()}")
        pcm = load_audio(sound)
    phones, start = [], 0.0
    for word in done.stdout.split():
        name, end = word.split(":")
        phones.append(Phone(name, start, float(end)))
        start = float(end)
    return Utterance(pcm, tuple(phones))


def transcript(clip: Path) -> str | None:
    """What is said in a clip: the ``.txt`` beside it, or a GRID corpus name such as ``bbaf2n.mp4``; else None."""
    text = clip.with_suffix(".txt")
    if text.is_file():
        return " ".join(text.read_text(encoding="utf-8").split())
    if not re.fullmatch("[a-z]{4}[a-z0-9][a-z]", clip.stem):
        return None
    words = [meaning.get(letter) for meaning, letter in zip(GRID, clip.stem, strict=True)]
    return None if None in words else " ".join(str(word) for word in words)


def sentences() -> Sequence[str]:
    """Everyday English sentences that hold all its phones; the last ones are for validation."""
    text = (Path(__file__).parent / "sentences.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]
