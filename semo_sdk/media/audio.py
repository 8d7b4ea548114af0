"""Speech: read anything, at any rate, into mono float32 at 16 kHz. Numpy only; files are decoded by ffmpeg.

One resampler serves files, arrays and live streams, so a stream gives bit for bit the samples of the whole
file however it is cut.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import struct
from collections.abc import Iterator

import numpy as np

from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.errors import AudioError
from semo_sdk.media.ffmpeg import Ffmpeg, local_file

__all__ = ["MAX_RATE", "MIN_RATE", "Resampler", "load_audio", "to_mono"]

logger = logging.getLogger(__name__)

MIN_RATE, MAX_RATE = 8_000, 192_000  # samples per second that can be resampled
MAX_CHANNELS = 8
MAX_SECONDS = 4.0 * 3600  # of a file: longer speech should be streamed
MAX_PEAK = 16.0  # a float sample beyond this is not in [-1, 1] but in the range of integers

CROSSINGS = 64  # zero crossings of the sinc on each side: 4 ms at 16 kHz
KAISER_BETA = 8.0  # window: about 80 dB of stop band
ROLLOFF = 0.96  # middle of the transition band over the lower Nyquist frequency: all of it lies below
MAX_PHASES = 640  # exact filters up to here (44.1 kHz needs 160); above, neighbouring ones are interpolated
BLOCK = 2048  # outputs computed at once: bounds memory, never changes a result
READ_BYTES = 1 << 20


def load_audio(
    source: str | os.PathLike[str] | bytes | np.ndarray,
    sample_rate: int | None = None,
    *,
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray:
    """Speech as the models want it.

    Args:
        source: the path or the bytes of any file with sound that ffmpeg reads (its first audio stream), or an
            array as for :func:`to_mono`.
        sample_rate: of an array, in Hz (default 16 000). Files know theirs.
        max_seconds: of a file; decoding stops there, so that a small file cannot fill the memory.

    Returns:
        (n,) float32 mono at 16 kHz in [-1, 1]; sample k is at time k / 16 000 s of the source.

    Raises:
        AudioError: not audio, no sound in it, empty, NaN, too long, or an unusable rate.
    """
    if isinstance(source, np.ndarray):
        resampler = Resampler(SAMPLE_RATE if sample_rate is None else sample_rate)
        pieces = [resampler.push(to_mono(source)), resampler.flush()]
    elif sample_rate is not None:
        raise AudioError("sample_rate belongs to arrays of samples; a file knows its own rate: leave it out")
    else:
        pieces = list(_decode(source, max_seconds))
    pcm = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not len(pcm):
        raise AudioError("the audio has no samples")
    return pcm


def to_mono(pcm: np.ndarray) -> np.ndarray:
    """Samples of any usual kind as mono float32.

    Args:
        pcm: (n,) or (n, channels), at most 8 channels, which are averaged; float in [-1, 1] (a little more is
            fine), int16, int32, int8, or uint8 around 128. May be empty.

    Returns:
        (n,) float32, full scale 1.

    Raises:
        AudioError: another shape or type, NaN or infinite values, floats in the range of integers.
    """
    pcm = np.asarray(pcm)
    if pcm.ndim not in (1, 2) or (pcm.ndim == 2 and not 1 <= pcm.shape[1] <= MAX_CHANNELS):
        raise AudioError(
            f"audio of shape {pcm.shape}: expected (samples,) or (samples, channels) with at most "
            f"{MAX_CHANNELS} channels; transpose an array that has its channels first"
        )
    if pcm.dtype == np.uint8:
        samples = (pcm.astype(np.float64) - 128) / 128
    elif pcm.dtype in (np.int8, np.int16, np.int32):
        samples = pcm.astype(np.float64) / -float(np.iinfo(pcm.dtype).min)
    elif np.issubdtype(pcm.dtype, np.floating):
        samples = pcm.astype(np.float64)
        _check_floats(samples)
    else:
        raise AudioError(f"audio of type {pcm.dtype}: expected float, int16, int32, int8 or uint8")
    if samples.ndim == 2:
        samples = functools.reduce(np.add, samples.T) / samples.shape[1]
    return samples.astype(np.float32)


def _check_floats(samples: np.ndarray) -> None:
    bad = ~np.isfinite(samples)
    if bad.any():
        first = int(np.argwhere(bad)[0][0])
        raise AudioError(f"the audio has {int(bad.sum())} NaN or infinite values, the first at sample {first}")
    peak = float(np.abs(samples).max(initial=0))
    if peak > MAX_PEAK:
        raise AudioError(
            f"float audio with a peak of {peak:.0f}: floats must be in [-1, 1]; "
            "give integers as integers, or divide int16 values by 32768"
        )


def _decode(source: str | os.PathLike[str] | bytes, max_seconds: float) -> Iterator[np.ndarray]:
    """Pieces of a file's sound at 16 kHz, while ffmpeg decodes it."""
    with local_file(source, AudioError) as (arguments, name):
        mono = "aresample=out_chlayout=mono:out_sample_fmt=flt:rematrix_maxval=1"  # the mean of stereo, not the sum
        output = ["-map", "0:a:0", "-af", mono, "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
        ffmpeg = Ffmpeg([*arguments, *output], write=False)
        try:
            header = ffmpeg.stdout.read(24)
            if len(header) < 24:
                ffmpeg.wait()
                raise AudioError(_no_sound(name, ffmpeg.complaint()))
            offset, rate = struct.unpack(">4xI8xI", header[:20])
            ffmpeg.stdout.read(offset - 24)
            resampler = Resampler(rate)
            samples = 0
            while data := ffmpeg.stdout.read(READ_BYTES):
                piece = np.frombuffer(data[: len(data) // 4 * 4], ">f4").astype(np.float32)
                samples += len(piece)
                if samples > max_seconds * rate:
                    raise AudioError(f"{name}: longer than {max_seconds:g} seconds; push it to a session in pieces")
                _check_floats(piece)
                yield resampler.push(piece)
            yield resampler.flush()
            status, complaint = ffmpeg.wait(), ffmpeg.complaint()
            if status and not samples:
                raise AudioError(f"{name}: cannot be decoded ({complaint})")
            if status or complaint:
                logger.warning("%s: damaged; %.2f s could be decoded (%s)", name, samples / rate, complaint)
        finally:
            ffmpeg.stop()


def _no_sound(name: str, complaint: str) -> str:
    if "matches no streams" in complaint:
        return f"{name}: has no sound in it"
    return f"{name}: not an audio file that ffmpeg can read ({complaint})"


class Resampler:
    """Streaming conversion of mono samples to 16 kHz: a windowed sinc, delay-compensated.

    Output sample k is the band-limited input at time k / 16 000 s, so nothing shifts in time; to know the
    future that the filter needs, output lags by 4 ms (8 ms from 8 kHz) until :meth:`flush`. Any split of the
    input gives the same output, bit for bit: every sample is one sum over the same taps in the same order.

    >>> resampler = Resampler(48_000)
    >>> pieces = [resampler.push(piece) for piece in stream]
    >>> pcm = np.concatenate([*pieces, resampler.flush()])

    Args:
        from_rate: input samples per second, a whole number from 8 000 to 192 000. At 16 000 samples pass
            unchanged.

    Raises:
        AudioError: for another rate.
    """

    def __init__(self, from_rate: int) -> None:
        self.from_rate = check_rate(from_rate)
        common = math.gcd(self.from_rate, SAMPLE_RATE)
        self._up, self._down = SAMPLE_RATE // common, self.from_rate // common
        self._half = _half_taps(self.from_rate)
        self.reset()

    def reset(self) -> None:
        """Forgets everything: the next sample is at time 0."""
        self._history = np.zeros(self._half)  # inputs from number _received - len(_history) on
        self._received = 0
        self._produced = 0

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Takes the next samples, gives those that are ready.

        Args:
            pcm: (n,) float32, any n; see :func:`to_mono`.

        Returns:
            (m,) float32 at 16 kHz in [-1, 1] (louder input is clipped); m may be 0.
        """
        if self._up == self._down:
            return np.clip(pcm, -1, 1).astype(np.float32)
        self._history = np.concatenate([self._history, pcm.astype(np.float64)])
        self._received += len(pcm)
        # Output k needs the inputs up to number floor(k * down / up) + half.
        return self._emit(((self._received - self._half) * self._up - 1) // self._down + 1)

    def flush(self) -> np.ndarray:
        """The last samples, (m,) float32; starts anew. In all, n inputs give ceil(n * 16 000 / from_rate)."""
        total = -(-self._received * self._up // self._down)
        self._history = np.concatenate([self._history, np.zeros(self._half)])
        self._received += self._half
        tail = self._emit(total) if self._up != self._down else np.zeros(0, np.float32)
        self.reset()
        return tail

    def save(self) -> np.ndarray:
        """What :meth:`restore` goes on from, (k,) float64: rate, inputs taken, outputs given, inputs still needed."""
        return np.concatenate([[self.from_rate, self._received, self._produced], self._history])

    @classmethod
    def restore(cls, saved: np.ndarray) -> Resampler:
        """A resampler that goes on where another one was saved.

        Raises:
            AudioError: not what :meth:`save` gave.
        """
        if saved.ndim != 1 or len(saved) < 3 or saved.dtype != np.float64 or not np.isfinite(saved).all():
            raise AudioError(f"not a saved resampler: {saved.shape} {saved.dtype}")
        resampler = cls(check_rate(saved[0]))
        resampler._received, resampler._produced = int(saved[1]), int(saved[2])
        resampler._history = saved[3:].copy()
        return resampler

    def _emit(self, end: int) -> np.ndarray:
        """Outputs from the next one up to number ``end``, and forgets the inputs that only they needed."""
        if end <= self._produced:
            return np.zeros(0, np.float32)
        out = np.empty(end - self._produced, np.float32)
        first = self._received - len(self._history)
        windows = np.lib.stride_tricks.sliding_window_view(self._history, 2 * self._half)
        for start in range(self._produced, end, BLOCK):
            position = np.arange(start, min(start + BLOCK, end)) * self._down
            taken = windows[position // self._up - self._half + 1 - first]
            taken *= self._filters(position % self._up)
            out[start - self._produced : start - self._produced + len(position)] = taken.sum(1)
        self._produced = end
        needed = end * self._down // self._up - self._half + 1  # first input of the next output
        self._history = self._history[max(needed - first, 0) :].copy()
        return np.clip(out, -1, 1)

    def _filters(self, phase: np.ndarray) -> np.ndarray:
        """(n, taps) coefficients for outputs that lie phase / up input samples after an input."""
        phases = min(self._up, MAX_PHASES)
        bank = _filter_bank(self.from_rate, phases)
        if phases == self._up:
            return np.asarray(bank[phase])
        whole, rest = np.divmod(phase * phases, self._up)
        return np.asarray(bank[whole] + (bank[whole + 1] - bank[whole]) * (rest / self._up)[:, None])


def check_rate(rate: int) -> int:
    """The rate, if it is a whole number of Hz that can be resampled; AudioError if not."""
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or rate != rate or int(rate) != rate:
        raise AudioError(f"sample rate {rate!r}: expected a whole number of Hz")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"sample rate {rate} Hz: rates from {MIN_RATE} to {MAX_RATE} Hz can be used")
    return int(rate)


def _half_taps(rate: int) -> int:
    """Input samples on each side of an output that it depends on."""
    return math.ceil(CROSSINGS * max(rate, SAMPLE_RATE) / SAMPLE_RATE)


@functools.lru_cache(maxsize=4)
def _filter_bank(rate: int, phases: int) -> np.ndarray:
    """(phases + 1, taps) float64: row p filters for an output that lies p / phases samples after an input."""
    half = _half_taps(rate)
    cutoff = ROLLOFF * min(1.0, SAMPLE_RATE / rate)  # over the input's Nyquist frequency
    distance = np.arange(1 - half, half + 1) - np.arange(phases + 1)[:, None] / phases
    window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (distance / half) ** 2, 0, None)))
    bank = np.sinc(distance * cutoff) * window
    return np.asarray(bank / bank.sum(1, keepdims=True))
