"""Speech in: the resampler is exact, aligned, alias-free and blind to how a stream is cut; bad audio is refused."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.errors import AudioError
from semo_sdk.media.audio import MAX_RATE, MIN_RATE, Resampler, load_audio, to_mono
from semo_sdk.media.video import VideoWriter

RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 44_101, 48_000, 96_000, 192_000)
EDGE = 1_600  # outputs at both ends where the filter sees the silence around the signal


def tone(frequency: float, rate: int, seconds: float = 0.5, level: float = 0.8) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def decibels(pcm: np.ndarray, level: float = 0.8) -> float:
    return float(20 * np.log10(np.sqrt(2 * np.mean(np.square(pcm, dtype=np.float64))) / level + 1e-15))


def streamed(pcm: np.ndarray, rate: int, cuts: np.ndarray) -> np.ndarray:
    resampler = Resampler(rate)
    return np.concatenate([*(resampler.push(part) for part in np.split(pcm, cuts)), resampler.flush()])


@pytest.mark.parametrize("rate", RATES)
def test_any_split_gives_the_same_samples_bit_for_bit(rate: int) -> None:
    generator = np.random.default_rng(rate)
    pcm = generator.uniform(-1, 1, rate // 4 + 7).astype(np.float32)
    whole = load_audio(pcm, rate)
    for pieces in (1, 7, 500):
        cuts = np.sort(generator.integers(0, len(pcm) + 1, pieces))
        assert np.array_equal(streamed(pcm, rate, cuts), whole)
    assert np.array_equal(streamed(pcm[:300], rate, np.arange(1, 300)), load_audio(pcm[:300], rate))


@pytest.mark.parametrize("rate", RATES)
def test_output_sample_k_is_the_input_at_time_k_over_16000(rate: int) -> None:
    pcm = load_audio(tone(997, rate), rate)
    assert len(pcm) == -(-int(rate * 0.5) * SAMPLE_RATE // rate)
    expected = tone(997, SAMPLE_RATE)[: len(pcm)]
    assert np.abs(pcm[EDGE:-EDGE] - expected[EDGE:-EDGE]).max() < 2e-5


@pytest.mark.parametrize("rate", [22_050, 24_000, 44_100, 48_000, 96_000, 192_000])
def test_what_16_khz_cannot_hold_is_removed_by_60_db(rate: int) -> None:
    for frequency in (8_200, 9_000, 11_000, 15_900, 16_400, 20_000, 40_000, 90_000):
        if frequency < rate / 2:
            assert decibels(load_audio(tone(frequency, rate), rate)[EDGE:-EDGE]) < -80, frequency


@pytest.mark.parametrize("rate", RATES)
def test_speech_frequencies_pass_unchanged(rate: int) -> None:
    for frequency in (0.0001, 100, 1_000, 3_500, 7_200):
        if frequency < 0.45 * rate:
            pcm = load_audio(np.full(rate // 2, 0.8) if frequency < 1 else tone(frequency, rate), rate)
            level = 0.8 * np.sqrt(2) if frequency < 1 else 0.8
            assert abs(decibels(pcm[EDGE:-EDGE], level)) < 0.01, frequency


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_it_answers_within_some_milliseconds(rate: int) -> None:
    resampler = Resampler(rate)
    ready = sum(len(resampler.push(np.zeros(rate // 50, np.float32))) for _ in range(50))  # 1 s in 20 ms pieces
    assert SAMPLE_RATE - ready <= 0.0085 * SAMPLE_RATE


def test_flush_starts_anew() -> None:
    resampler = Resampler(44_100)
    pcm = tone(500, 44_100, 0.1)
    first = np.concatenate([resampler.push(pcm), resampler.flush()])
    second = np.concatenate([resampler.push(pcm), resampler.flush()])
    assert np.array_equal(first, second)
    assert len(resampler.flush()) == 0


def test_hours_later_nothing_has_drifted_or_grown() -> None:
    early, late = Resampler(44_100), Resampler(44_100)
    hours = 1_000 * 3_600
    late._received += hours * 44_100
    late._produced += hours * SAMPLE_RATE
    for _ in range(20):
        pcm = tone(1_000, 44_100, 0.1)
        assert np.array_equal(early.push(pcm), late.push(pcm))
    assert len(late._history) < 1_000


def test_16_khz_passes_unchanged_and_loud_samples_are_clipped() -> None:
    pcm = np.array([0.5, -1.2, 3.0, -0.25], np.float32)
    assert load_audio(pcm).tolist() == [0.5, -1.0, 1.0, -0.25]
    assert np.abs(load_audio(np.full(4_800, 1.5), 48_000)).max() == 1


@pytest.mark.parametrize(
    "pcm",
    [
        np.array([16_384, -32_768, 8_192], np.int16),
        np.array([16_384, -32_768, 8_192], np.int32) << 16,
        np.array([64, -128, 32], np.int8),
        np.array([192, 0, 160], np.uint8),
        np.array([0.5, -1, 0.25], np.float16),
        np.array([0.5, -1, 0.25], np.float64),
        np.array([[0.5, 0.5], [-0.5, -1.5], [0, 0.5]]),
    ],
    ids=lambda pcm: f"{pcm.dtype}{pcm.shape}",
)
def test_kinds_of_samples(pcm: np.ndarray) -> None:
    mono = to_mono(pcm)
    assert mono.dtype == np.float32 and mono.tolist() == [0.5, -1.0, 0.25]


def test_arrays_are_not_changed_and_not_shared() -> None:
    pcm = np.linspace(-1, 1, 100, dtype=np.float32)
    out = load_audio(pcm)
    out[:] = 9
    assert pcm[0] == -1 and pcm[-1] == 1


BAD_ARRAYS: list[tuple[Any, str]] = [
    (np.array([0.0, np.nan, 0.1]), "first at sample 1"),
    (np.array([0.0, np.inf]), "NaN or infinite"),
    (np.zeros(0, np.float32), "no samples"),
    (np.zeros((0, 2), np.float32), "no samples"),
    (np.zeros((2, 48_000), np.float32), "transpose"),
    (np.zeros((3, 4, 5)), "shape"),
    (np.array(0.5), "shape"),
    (np.arange(5), "int64"),
    (np.array([0.0, 20_000.0]), r"\[-1, 1\]"),
    (np.zeros(5, np.complex64), "complex64"),
    (np.array(["a"]), "type"),
]


@pytest.mark.parametrize(("pcm", "message"), BAD_ARRAYS)
def test_bad_arrays(pcm: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load_audio(pcm)


@pytest.mark.parametrize("rate", [0, -16_000, MIN_RATE - 1, MAX_RATE + 1, 44_100.5, float("nan"), True, "16000", None])
def test_bad_rates(rate: Any) -> None:
    with pytest.raises(AudioError, match="rate"):
        Resampler(rate)


def test_whole_rates_of_other_number_types() -> None:
    assert Resampler(np.int64(48_000)).from_rate == 48_000 and Resampler(44_100.0).from_rate == 44_100  # type: ignore[arg-type]


def wav(pcm: np.ndarray, rate: int, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.rint(pcm * 32_767).astype("<i2").tobytes())
    return file.getvalue()


def test_file_bytes_and_array_agree(tmp_path: Path) -> None:
    pcm = tone(440, 44_100)
    data = wav(pcm, 44_100)
    path = tmp_path / "a speech; 'quoted' $name.wav"
    path.write_bytes(data)
    samples = np.rint(pcm * 32_767).astype(np.int16)
    expected = load_audio(samples, 44_100)
    assert np.array_equal(load_audio(path), expected)
    assert np.array_equal(load_audio(str(path)), expected)
    assert np.array_equal(load_audio(data), expected)
    stereo = np.stack([samples, np.zeros_like(samples)], 1)
    path.write_bytes(wav(stereo / 32_767, 44_100, 2))
    assert np.abs(load_audio(path) - load_audio(stereo, 44_100)).max() < 2e-5


def test_example_speech(speech_path: Path) -> None:
    pcm = load_audio(speech_path)
    assert pcm.shape == (5 * SAMPLE_RATE,) and pcm.dtype == np.float32 and 0.5 < np.abs(pcm).max() <= 1


def test_a_name_that_looks_like_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-i.wav").write_bytes(wav(tone(440, 16_000), 16_000))
    assert len(load_audio("-i.wav")) == 8_000


def test_bad_files(tmp_path: Path, portrait_path: Path) -> None:
    text = tmp_path / "speech.wav"
    text.write_text("this is no audio\n" * 100)
    empty = tmp_path / "empty.wav"
    empty.touch()
    silent = tmp_path / "silent.mp4"
    with VideoWriter(silent, (64, 64)) as writer:
        writer.write(np.zeros((3, 64, 64, 3), np.uint8))
    header_only = tmp_path / "header.wav"
    header_only.write_bytes(wav(np.zeros(0), 16_000))
    low = tmp_path / "low.wav"
    low.write_bytes(wav(np.zeros(4_000), 4_000))
    missing = tmp_path / "missing.wav"
    cases: list[tuple[Any, str]] = [
        (text, "not an audio file"),
        (empty, "empty file"),
        (silent, "no sound"),
        (portrait_path, "no sound"),
        (header_only, "header.wav|no samples"),
        (low, "4000 Hz"),
        (missing, "no such file"),
        (tmp_path, "folder"),
        ("nul\0byte", "no such file|not the name of a file"),
        (b"", "empty file"),
        (b"nonsense" * 100, "800 bytes: not an audio file"),
        (None, "NoneType"),
        ([0.0, 0.1], "list"),
    ]
    for source, message in cases:
        with pytest.raises(AudioError, match=message) as caught:
            load_audio(source)
        if isinstance(source, Path) and source not in (low, header_only):
            assert str(source) in str(caught.value)


def test_a_rate_for_a_file_is_refused(speech_path: Path) -> None:
    with pytest.raises(AudioError, match="knows its own rate"):
        load_audio(speech_path, 48_000)


def test_nan_in_a_file(tmp_path: Path) -> None:
    pcm = np.zeros(1_000, "<f4")
    pcm[10] = np.nan
    data = wav(np.zeros(2_000), 16_000)
    chunk = b"fmt " + (16).to_bytes(4, "little") + bytes.fromhex("0300010080 3e0000 00fa0000 0400 2000")
    body = b"WAVE" + chunk + b"data" + (4_000).to_bytes(4, "little") + pcm.tobytes()
    assert data[:4] == b"RIFF"
    with pytest.raises(AudioError, match="first at sample 10"):
        load_audio(b"RIFF" + len(body).to_bytes(4, "little") + body)


def test_a_truncated_file_gives_what_is_there(tmp_path: Path) -> None:
    data = wav(tone(440, 16_000), 16_000)
    assert len(load_audio(data[: len(data) // 2])) == pytest.approx(4_000, abs=100)


def test_too_long(speech_path: Path) -> None:
    with pytest.raises(AudioError, match="longer than 1 second"):
        load_audio(speech_path, max_seconds=1)
