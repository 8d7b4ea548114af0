"""The chain in Triton: the same frames as this package's own loop, sequence by sequence, whatever shares a batch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient")
pytest.importorskip("onnx")

from semo_sdk.animator import Animator
from semo_sdk.backends import load_engines
from semo_sdk.bundle import Bundle
from semo_sdk.export.triton import write_model_repository
from semo_sdk.media.image import Portrait
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.stream import Chunk
from tests.conftest import EXAMPLES, random_speech, splits
from tests.fake_triton import Ask, Response, Triton, TritonError, TritonModelException

NAME = "face"
PHOTO = (EXAMPLES / "portrait.jpg").read_bytes()
RATE = 16_000


@pytest.fixture(scope="module")
def repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_model_repository(tiny_bundle, folder, name=NAME, max_sequences=3)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Triton:
    return Triton(repository)


@pytest.fixture
def triton(server: Triton) -> Triton:
    """That server, started again."""
    server.restart()
    return server


@pytest.fixture(scope="module")
def here(tiny_bundle: Path, portrait: Portrait) -> Iterator[Animator]:
    """The same model on ONNX Runtime in this process: what Triton's chain must agree with."""
    bundle = Bundle.open(tiny_bundle)
    engines = load_engines(bundle, backend="onnxruntime:cpu", precision="fp32", threads=1)
    graphs = Graphs(engines, bundle.config)
    yield Animator.from_graphs(portrait, graphs)
    graphs.close()


def photo(data: bytes = PHOTO) -> np.ndarray:
    return np.array([[data]], object)


def ask(pcm: np.ndarray, sequence: int = 1, *, start: bool = False, end: bool = False, **parameters: Any) -> Ask:
    inputs = {"SPEECH": pcm[None].astype(np.float32)}
    if start:
        inputs["PORTRAIT"] = photo()
    return Ask(inputs, sequence, start, end, parameters)


def speak(triton: Triton, pieces: Sequence[np.ndarray], sequence: int = 1, **settings: Any) -> list[Response]:
    """A whole sequence."""
    last = len(pieces) - 1
    return [
        triton.infer(NAME, ask(piece, sequence, start=not n, end=n == last, **({} if n else settings)))
        for n, piece in enumerate(pieces)
    ]


def joined(responses: Sequence[Response], name: str) -> np.ndarray:
    return np.concatenate([response.output(name)[0] for response in responses])


def assert_chunks(responses: Sequence[Response], chunks: Sequence[Chunk]) -> None:
    for name, attribute in (("FRAMES", "frames"), ("AUDIO", "audio"), ("MOTION", "motion")):
        expected = np.concatenate([getattr(chunk, attribute) for chunk in chunks])
        np.testing.assert_array_equal(joined(responses, name), expected, err_msg=name)


@pytest.mark.parametrize(
    "latency", ["balanced", *(pytest.param(n, marks=pytest.mark.slow) for n in ("quality", "low"))]
)
def test_streamed_in_triton_is_offline_here_bit_for_bit(triton: Triton, here: Animator, latency: str) -> None:
    speech = random_speech(8_000)
    pieces = [speech[part] for part in splits(len(speech), seed=1, largest=5_000)]
    responses = speak(triton, pieces, latency=latency, seed=7, blink=0.5)
    assert_chunks(responses, list(here.stream(speech, sample_rate=RATE, latency=latency, seed=7, blink=0.5)))
    frames = 0
    for response in responses:
        assert response.output("INDEX")[0, 0] == frames
        frames += response.output("FRAMES").shape[1]


@pytest.mark.slow
def test_speech_of_another_rate_is_what_a_session_makes_of_it(triton: Triton, here: Animator) -> None:
    speech = random_speech(18_000)
    responses = speak(triton, np.split(speech, 3), sample_rate=48_000)
    session = here.session(latency="balanced")
    assert_chunks(responses, [*session.push(speech, 48_000), *session.flush()])


def test_an_utterance_ends_and_an_interruption_forgets_as_in_a_session(triton: Triton, here: Animator) -> None:
    first, dropped, last = np.split(random_speech(3_000), 3)
    responses = [
        triton.infer(NAME, ask(first, start=True, flush=True)),
        triton.infer(NAME, ask(dropped)),
        triton.infer(NAME, ask(last, end=True, interrupt=True)),
    ]
    session = here.session(latency="balanced")
    chunks = [*session.push(first), *session.flush(), *session.push(dropped)]
    session.interrupt()
    assert_chunks(responses, [*chunks, *session.push(last), *session.flush()])


def test_sequences_share_launches_and_do_not_influence_each_other(triton: Triton) -> None:
    crowd = {1: ("low", 0), 2: ("low", 3), 3: ("balanced", 4)}
    speeches = {n: random_speech(2_640, seed=n) for n in crowd}
    alone = {
        n: speak(triton, np.split(speeches[n], 3), n, latency=latency, seed=seed)
        for n, (latency, seed) in crowd.items()
    }
    triton.calls.clear()
    together: dict[int, list[Response]] = {n: [] for n in crowd}
    for step in range(3):
        asks = [
            ask(
                np.split(speeches[n], 3)[step],
                n,
                start=step == 0,
                end=step == 2,
                **({"latency": latency, "seed": seed} if step == 0 else {}),
            )
            for n, (latency, seed) in crowd.items()
        ]
        for n, response in zip(crowd, triton.execute(NAME, asks), strict=True):
            together[n].append(response)
    assert set(triton.calls[f"{NAME}_render"]) == {1, 2}, "two of one latency in one launch"
    for n in crowd:
        np.testing.assert_array_equal(joined(together[n], "AUDIO"), joined(alone[n], "AUDIO"))
        np.testing.assert_allclose(joined(together[n], "MOTION"), joined(alone[n], "MOTION"), atol=1e-4)
        difference = joined(together[n], "FRAMES").astype(int) - joined(alone[n], "FRAMES")
        assert np.abs(difference).mean() < 0.01, "rounding only"


def test_only_wanted_outputs_are_sent(triton: Triton) -> None:
    wanted = ask(random_speech(5_120), start=True, end=True)
    wanted.outputs = ["MOTION"]
    (tensor,) = triton.infer(NAME, wanted).tensors
    assert tensor.label == "MOTION" and tensor.array.shape == (1, 8, 512)


@pytest.mark.parametrize(
    ("inputs", "parameters", "says"),
    [
        ({"PORTRAIT": None}, {}, "has the bytes of a JPEG, PNG or WebP photo as PORTRAIT"),
        ({"PORTRAIT": photo(b"GIF89a")}, {}, "none of JPEG, PNG, WebP"),
        ({"PORTRAIT": photo(PHOTO[:2000])}, {}, "damaged"),
        ({}, {"latency": "fast"}, "no latency 'fast'"),
        ({}, {"latenzy": "low"}, "latenzy.*there are latency, seed"),
        ({}, {"expressiveness": 99.0}, "from 0 to 10"),
        ({}, {"sample_rate": 5}, "rate"),
        ({}, {"face_index": 3}, "the photo has 1 face"),
    ],
)
def test_bad_starts_get_typed_errors_and_leave_no_sequence(
    triton: Triton, inputs: dict[str, Any], parameters: dict[str, Any], says: str
) -> None:
    given = {**ask(random_speech(100), start=True).inputs, **inputs}
    bad = Ask({k: v for k, v in given.items() if v is not None}, 1, start=True, parameters=parameters)
    for request, code, words in (
        (bad, "INVALID_ARG", says),
        (ask(random_speech(100)), "NOT_FOUND", "sequence 1 is not known"),
    ):
        with pytest.raises(TritonError) as caught:
            triton.infer(NAME, request).output("FRAMES")
        assert caught.value.code == code and re.search(words, caught.value.text), caught.value.text


@pytest.mark.parametrize(
    ("speech", "says"), [(np.full(9, np.nan), "NaN"), (np.zeros(61 * RATE), "more than 60 s: send shorter ones")]
)
def test_bad_speech_is_refused_and_the_sequence_goes_on(triton: Triton, speech: np.ndarray, says: str) -> None:
    triton.infer(NAME, ask(random_speech(100), start=True)).output("FRAMES")
    with pytest.raises(TritonError) as caught:
        triton.infer(NAME, ask(speech)).output("FRAMES")
    assert caught.value.code == "INVALID_ARG" and says in caught.value.text
    assert triton.infer(NAME, ask(random_speech(100), end=True)).output("FRAMES").shape[1] == 1


def test_settings_belong_to_the_start_and_commands_to_any_request(triton: Triton) -> None:
    triton.infer(NAME, ask(random_speech(100), start=True, triton_trace="x")).output("FRAMES")
    with pytest.raises(TritonError) as caught:
        triton.infer(NAME, ask(random_speech(100), seed=3)).output("FRAMES")
    assert "seed: only a sequence's first request" in caught.value.text
    assert triton.infer(NAME, ask(random_speech(100), flush=True)).output("FRAMES").shape[1] == 1


def test_a_failure_hits_only_who_is_to_blame_and_can_be_tried_again(triton: Triton) -> None:
    for n in (1, 2):
        triton.infer(NAME, ask(random_speech(0), n, start=True, latency="low")).output("FRAMES")
    speech = {1: random_speech(2_560, seed=1), 2: random_speech(2_560, seed=2)}

    def broken(model: str, inputs: Any) -> bool:
        return model.endswith("_audio") and any((row[-2_560:] == speech[2]).all() for row in inputs["pcm"])

    triton.broken = broken
    fine, failed = triton.execute(NAME, [ask(speech[n], n) for n in (1, 2)])
    assert fine.output("FRAMES").shape[1] == 4
    with pytest.raises(TritonError) as caught:
        failed.output("FRAMES")
    assert caught.value.code == "INTERNAL" and "face_audio' failed: out of memory" in caught.value.text
    triton.broken = lambda model, inputs: False
    assert triton.infer(NAME, ask(random_speech(0), 2)).output("FRAMES").shape[1] == 4, "its speech is still there"


def test_sequences_end_are_forgotten_when_idle_and_are_never_too_many(
    triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = triton.python[NAME]

    def known() -> list[int]:
        return list(model._speakers)

    for n in range(1, 5):
        triton.infer(NAME, ask(random_speech(10), n, start=True)).output("FRAMES")
    assert known() == [2, 3, 4], "max_candidate_sequences is 3"
    triton.infer(NAME, ask(random_speech(10), 3, end=True)).output("FRAMES")
    assert known() == [2, 4]
    for speaker in model._speakers.values():
        speaker.used -= 301
    triton.infer(NAME, ask(random_speech(10), 9, start=True)).output("FRAMES")
    assert known() == [9]
    model.finalize()
    assert not known()


def test_a_damaged_repository_is_said_at_the_start(repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(repository, tmp_path / "models")
    (copy / NAME / "1" / "config.json").write_text("{}x")
    with pytest.raises(TritonModelException, match=f"{NAME}: .*config.json.*export again"):
        Triton(copy)
