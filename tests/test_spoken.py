"""Synthetic speech as training data: phones and times are true, films are aligned with it, lips close at b, m and p."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from semo_sdk.constants import FPS, POSE_SIZE, SAMPLE_RATE
from semo_sdk.errors import InputError, MissingDependencyError
from semo_sdk.media.audio import load_audio
from semo_sdk.training import spoken, spoken_data, visemes
from semo_sdk.training.puppet_driver import Driver
from semo_sdk.training.puppet_geometry import INNER_LOWER, INNER_UPPER, MESH
from semo_sdk.training.spoken import Phone, say, sentences, transcript

pytest.importorskip("scipy")
needs_flite = pytest.mark.skipif(spoken.shutil.which("flite") is None, reason="needs flite")


@needs_flite
def test_phones_fill_the_whole_utterance() -> None:
    said = say("Bob may pop by.", "slt")
    assert said.pcm.dtype == np.float32 and 0.05 < np.abs(said.pcm).max() <= 1
    assert said.phones[0].start == 0 and all(a.end == b.start for a, b in itertools.pairwise(said.phones))
    assert said.phones[-1].end == pytest.approx(len(said.pcm) / SAMPLE_RATE, abs=0.1)
    assert [p.name for p in said.phones if p.name != spoken.PAUSE] == "b aa b m ey p aa p b ay".split()
    loud = [said.pcm[int(p.start * SAMPLE_RATE) : int(p.end * SAMPLE_RATE)].std() for p in said.phones]
    assert max(loud[0], loud[-1]) < 0.2 * max(loud)  # the pauses are where it is silent


@needs_flite
def test_speed_changes_sound_and_times_alike() -> None:
    said = say("one two three", "kal16")
    slow, quick = say("one two three", "kal16", stretch=1.5), said.faster(1.25)
    assert len(slow.pcm) > 1.3 * len(said.pcm)
    assert len(quick.pcm) == pytest.approx(len(said.pcm) / 1.25, abs=1)
    assert quick.phones[-1].end == pytest.approx(said.phones[-1].end / 1.25)


@needs_flite
@pytest.mark.parametrize(("text", "voice"), [("hello", "nobody"), (" ", "slt")])
def test_what_cannot_be_said_is_named(text: str, voice: str) -> None:
    with pytest.raises(InputError, match="nobody|without words"):
        say(text, voice)


def test_without_flite_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoken.shutil, "which", lambda name: None)
    with pytest.raises(MissingDependencyError, match="apt-get install flite"):
        say("hello", "slt")


def test_transcripts_stand_beside_a_clip_or_in_its_name(tmp_path: Path) -> None:
    assert transcript(tmp_path / "bbaf2n.mp4") == "bin blue at f two now"
    assert transcript(tmp_path / "swwzzs.mp4") == "set white with z zero soon"
    assert transcript(tmp_path / "interview.mp4") is None and transcript(tmp_path / "xbaf2n.mp4") is None
    (tmp_path / "interview.txt").write_text("Well,\n yes.\n")
    assert transcript(tmp_path / "interview.mp4") == "Well, yes."


@needs_flite
def test_the_sentences_hold_every_phone_often() -> None:
    phones = [p.name for p in say(" ".join(sentences()), "kal16").phones]
    assert {*phones, "ah"} == set(visemes.PHONES)  # this voice has ax for ah
    assert min(phones.count(name) for name in set(phones)) >= 8


@needs_flite
@pytest.mark.parametrize("voice", ["slt", "awb"])
def test_aligned_phones_are_where_another_voice_says_them(voice: str) -> None:
    words = "place the purple mushrooms by the window now"
    truth, known = say(words, voice, stretch=1.2), say(words, spoken.HELD_OUT_VOICE)
    noise = 0.002 * np.random.default_rng(0).standard_normal(len(truth.pcm)).astype(np.float32)
    found = visemes.align(truth.pcm + noise, known.pcm, known.phones)
    here, there = ([p for p in phones if p.name != spoken.PAUSE] for phones in (found, truth.phones))
    assert [p.name for p in here] == [p.name for p in there]
    errors = [abs(a.start - b.start) for a, b in zip(here, there, strict=True)]
    assert np.median(errors) < 0.04 and np.quantile(errors, 0.9) < 0.1
    assert all(a.start <= a.end <= b.start + 1e-6 for a, b in itertools.pairwise(found))


@pytest.fixture(scope="module")
def driver() -> Driver:
    """The first coefficient opens the lips, the others move points at random."""
    rng = np.random.default_rng(0)
    basis = 0.01 * rng.standard_normal((24, MESH, 3))
    basis[:, INNER_LOWER] = basis[:, INNER_UPPER] = 0
    basis[0, INNER_LOWER, 1] = 0.03
    basis[1, INNER_LOWER, 1] = 0.01
    neutral = rng.standard_normal((MESH, 3))
    neutral[INNER_LOWER] = neutral[INNER_UPPER]
    zero = np.zeros((MESH, 3))
    return Driver(neutral, neutral, basis, basis, zero + 0.02 * np.isin(np.arange(MESH), INNER_LOWER)[:, None], zero)


def speech(rng: np.random.Generator, count: int = 14) -> list[Phone]:
    names = [*rng.choice(["aa", "iy", "uw", "s", "t", "n", "k", "l", "ow", "b"], count)]
    ends = np.cumsum([0.3, *rng.uniform(0.06, 0.2, count), 0.3])
    return [Phone(n, float(a), float(b)) for n, a, b in zip(["pau", *names, "pau"], [0, *ends], ends, strict=False)]


@pytest.fixture(scope="module")
def learned(driver: Driver) -> visemes.Visemes:
    rng = np.random.default_rng(1)
    effect = {name: rng.standard_normal(24) for name in ("aa", "iy", "uw", "s", "t", "n", "k", "l", "ow", "b", "pau")}
    clips = []
    for _ in range(60):
        phones = speech(rng)
        times = (np.arange(int(phones[-1].end * FPS)) + 0.5) / FPS
        shown = np.stack([next(effect[p.name] for p in phones if p.end >= t) for t in times])
        clips.append((phones, shown + 0.3 * rng.standard_normal(shown.shape)))
    model = visemes.fit_visemes(clips, driver)
    phones, shown = clips[0]
    made = model(phones, len(shown))
    scores = [np.corrcoef(made[:, k], shown[:, k])[0, 1] for k in range(2, 24)]
    assert np.mean(scores) > 0.75  # it has learned what a phone looks like
    return model


def test_lips_close_at_each_b_m_and_p_whatever_is_beside_it(learned: visemes.Visemes) -> None:
    rng = np.random.default_rng(2)
    for name in ("b", "m", "p"):  # the films here have no m and p
        phones = [Phone("pau", 0, 0.2), Phone("aa", 0.2, 0.4), Phone(name, 0.4, 0.44), Phone("aa", 0.44, 0.8)]
        gap = learned.gap(learned(phones, 25))
        assert gap[int(0.42 * FPS)] <= visemes.CLOSED_GAP + 1e-9
        open_lips = 3 * rng.standard_normal((25, 24)) + 5 * learned.opening / np.square(learned.opening).sum()
        closed = learned.close(open_lips, phones)
        assert learned.gap(closed)[int(0.42 * FPS)] <= visemes.CLOSED_GAP + 1e-9
        assert np.array_equal(closed[:8], open_lips[:8])  # and nothing happens elsewhere


def test_lips_rest_in_silence(learned: visemes.Visemes) -> None:
    open_lips = np.tile(5 * learned.opening / np.square(learned.opening).sum(), (100, 1))
    phones = [Phone("aa", 0, 1), Phone("pau", 1, 1.2), Phone("aa", 1.2, 2), Phone("pau", 2, 4)]
    gap = learned.gap(learned.close(open_lips, phones))
    assert (gap[52:] <= visemes.CLOSED_GAP + 1e-9).all()  # two seconds of it
    assert (gap[:48] > 4).all()  # not in a short pause


def test_what_opens_the_lips_is_read_off_the_driver(learned: visemes.Visemes, driver: Driver) -> None:
    expression = np.random.default_rng(3).standard_normal((7, 24))
    shape = driver.neutral + driver.decode(expression)
    real = (shape[:, INNER_LOWER[4:7], 1] - shape[:, INNER_UPPER[4:7], 1]).mean(1)
    assert np.allclose(learned.gap(expression), real)


def test_phones_that_no_film_has_borrow_their_likes(learned: visemes.Visemes) -> None:
    def lips(name: str) -> np.ndarray:
        return learned([Phone("pau", 0, 0.2), Phone(name, 0.2, 0.6), Phone("pau", 0.6, 1)], 25)

    assert np.array_equal(lips("ng"), lips("n")) and not np.array_equal(lips("ng"), lips("k"))
    assert np.array_equal(lips("zh"), lips("jh"))  # neither was ever filmed: the mean face


def test_too_few_words_are_refused(driver: Driver) -> None:
    with pytest.raises(InputError, match="transcripts"):
        visemes.fit_visemes([(speech(np.random.default_rng(0)), np.zeros((40, 24)))], driver)


def test_motion_at_another_speed_is_the_same_motion() -> None:
    motion = np.stack([np.sin(np.arange(75) / 9), np.arange(75.0)], 1)
    quick = spoken_data.at_speed(motion, 1.25)
    assert len(quick) == 60 and np.allclose(quick[:, 1], np.arange(60) * 1.25)
    assert np.abs(quick[:, 0] - np.sin(np.arange(60) * 1.25 / 9)).max() < 0.01
    assert np.array_equal(spoken_data.at_speed(motion, 1.0), motion)


def test_synthetic_speech_borrows_its_head_from_a_film(learned: visemes.Visemes) -> None:
    rng = np.random.default_rng(4)
    heard, new = speech(rng), speech(rng, 40)
    filmed = np.concatenate([np.cumsum(rng.standard_normal((60, POSE_SIZE)), 0), rng.standard_normal((60, 24))], 1)
    said = spoken.Utterance(np.zeros(int(new[-1].end * SAMPLE_RATE), np.float32), tuple(new))
    motion = spoken_data.lend(learned, said, heard, filmed)
    assert motion.shape == (int(new[-1].end * FPS), 30)
    assert np.array_equal(motion[:60, :POSE_SIZE], filmed[:, :POSE_SIZE])
    steps = np.abs(np.diff(motion[:, :POSE_SIZE], axis=0))
    assert steps.max() <= np.abs(np.diff(filmed[:, :POSE_SIZE], axis=0)).max() + 1e-9  # to and fro, without a jump
    shut = [p for p in new if p.name == "b"]
    assert shut
    for phone in shut:
        assert learned.gap(motion[:, POSE_SIZE:])[int(FPS * (phone.start + phone.end) / 2)] <= visemes.CLOSED_GAP + 1e-9


@needs_flite
def test_recordings_are_films_at_other_speeds_then_synthetic_speech(
    tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.io import wavfile

    rng = np.random.default_rng(5)
    driver.save(tmp_path / "driver.npz")
    names = ["bbaf2n", "lwiz8p", "prwm5s", "sgby1a"]
    motion = {}
    for name in names:
        said = say(str(transcript(tmp_path / name)), "awb")
        wavfile.write(tmp_path / f"{name}.mp4", SAMPLE_RATE, said.pcm)
        frames = int(len(said.pcm) / SAMPLE_RATE * FPS)
        motion[name] = rng.standard_normal((frames, 30))
    monkeypatch.setattr(visemes, "FEW", 2)

    def made(seed: int) -> list[spoken_data.Recording]:
        return list(spoken_data.recordings(tmp_path, tmp_path, motion, np.random.default_rng(seed), 3))

    monkeypatch.setattr(spoken_data, "SILENT", 3)
    all_ = made(0)
    assert [bool(r.pcm.any()) for r in all_[4:7]] == [True, True, False]  # every third is silent here
    assert [r.spoken for r in all_] == [False] * 4 + [True] * (3 + spoken_data.HELD_OUT_SENTENCES)
    assert [r.held_out for r in all_] == [False] * 7 + [True] * spoken_data.HELD_OUT_SENTENCES
    for name, r in zip(names, all_, strict=False):
        speed = len(load_audio(tmp_path / f"{name}.mp4")) / len(r.pcm)
        assert spoken_data.SPEEDS[0] <= speed <= spoken_data.SPEEDS[1]
        assert len(r.motion) == pytest.approx(len(motion[name]) / speed, abs=1)
    for r in all_:
        assert len(r.motion) / FPS == pytest.approx(len(r.pcm) / SAMPLE_RATE, abs=0.2)
    for a, b in zip(all_, made(0), strict=True):
        assert np.array_equal(a.motion, b.motion) and np.array_equal(a.pcm, b.pcm)
    for name in names:
        (tmp_path / f"{name}.mp4").rename(tmp_path / f"{name}0.mp4")
    renamed = {f"{name}0": moved for name, moved in motion.items()}
    with pytest.raises(InputError, match="no transcripts"):
        list(spoken_data.recordings(tmp_path, tmp_path, renamed, np.random.default_rng(0), 3))
