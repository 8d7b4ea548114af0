"""A session that outlasts its connection: what is told again, what is dropped, and how utterances are numbered."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest

from semo_sdk.errors import CapacityError
from semo_sdk.serving.client import Client, ConnectionLostError, LiveEvent, LiveFrame, ServerError
from semo_sdk.serving.client_journal import Journal
from semo_sdk.serving.client_lasting import LastingLive
from tests.conftest import random_speech
from tests.serving_tools import Running, play

SOUND = np.ones(1_600, np.int16)


class Told:
    """A connection that notes what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def push(self, samples: np.ndarray) -> None:
        self.said.append(f"pcm {len(samples)}")

    def end(self) -> None:
        self.said.append("end")

    def interrupt(self) -> None:
        self.said.append("interrupt")

    def listen(self, on: bool = True) -> None:
        self.said.append("listen")


def retold(journal: Journal, position: float = 1.0) -> tuple[list[str], list[LiveEvent]]:
    connection: Any = Told()
    missed = journal.retell(connection, position)
    return connection.said, missed


def done(journal: Journal, local: int, kind: str = "speech.done") -> list[tuple[str, int, float]]:
    event = LiveEvent(kind, {"utterance": local, "position": 0.0, "played": 0.0})
    return [(told.type, told.data["utterance"], told.data["played"]) for told in journal.translate(event)]


def say(journal: Journal, script: str) -> None:
    """p: a piece of speech, e: the end, i: an interruption."""
    for letter in script:
        {"p": lambda: journal.push(SOUND), "e": journal.end, "i": journal.interrupt}[letter]()


def test_everything_is_told_again_without_a_save() -> None:
    journal = Journal(16_000)
    say(journal, "pepe")
    journal.listening = True
    assert retold(journal) == (["listen", "pcm 1600", "end", "pcm 1600", "end"], [])
    assert done(journal, 0) == [("speech.done", 0, 0.1)] and done(journal, 1) == [("speech.done", 1, 0.1)]


def test_only_what_a_save_does_not_know_is_told_again() -> None:
    journal = Journal(16_000)
    say(journal, "pp")
    journal.mark(1)
    say(journal, "pe")
    journal.saved(1, waiting=0.1)
    assert retold(journal)[0] == ["pcm 1600", "end"]
    assert done(journal, 0) == [("speech.done", 0, pytest.approx(0.3))]
    assert retold(journal)[1] == []  # told already


def test_utterances_that_the_save_made_one_end_together() -> None:
    journal = Journal(16_000)
    say(journal, "pepep")
    journal.mark(1)
    say(journal, "epe")
    journal.saved(1, waiting=0.3)
    assert retold(journal)[0] == ["end", "pcm 1600", "end"]
    assert [number for _, number, _ in done(journal, 0)] == [0, 1, 2]
    assert [number for _, number, _ in done(journal, 1)] == [3]


def test_an_end_that_got_lost_with_the_server_is_told() -> None:
    journal = Journal(16_000)
    say(journal, "pe")
    journal.mark(1)
    journal.saved(1, waiting=0.0)  # spoken to its end, but nobody said so
    said, missed = retold(journal, 2.0)
    assert said == [] and [event.data for event in missed] == [{"utterance": 0, "position": 2.0, "played": 0.1}]
    say(journal, "pe")
    assert [number for _, number, _ in done(journal, 0)] == [1]


def test_an_end_after_the_save_of_all_speech_is_told() -> None:
    journal = Journal(16_000)
    say(journal, "p")
    journal.mark(1)
    journal.saved(1, waiting=0.0)
    say(journal, "e")
    assert [event.data["utterance"] for event in retold(journal)[1]] == [0]


def test_more_speech_of_an_utterance_that_is_saved_and_spoken() -> None:
    journal = Journal(16_000)
    say(journal, "p")
    journal.mark(1)
    journal.saved(1, waiting=0.0)
    say(journal, "pe")
    assert retold(journal) == (["pcm 1600", "end"], [])
    assert done(journal, 0) == [("speech.done", 0, 0.2)]


def test_what_was_interrupted_is_not_done() -> None:
    journal = Journal(16_000)
    say(journal, "pepei")
    assert done(journal, 0, "speech.interrupted")[0][:2] == ("speech.interrupted", 0)
    journal.mark(1)
    say(journal, "pe")
    journal.saved(1, waiting=0.0)
    assert retold(journal) == (["pcm 1600", "end"], [])
    assert [number for _, number, _ in done(journal, 0)] == [2]


def test_a_save_that_failed_is_not_taken_for_another() -> None:
    journal = Journal(16_000)
    say(journal, "p")
    journal.mark(1)  # never confirmed
    say(journal, "p")
    journal.mark(2)
    say(journal, "p")
    journal.saved(2, waiting=0.2)
    journal.saved(7, waiting=9.0)  # of nobody
    assert retold(journal)[0] == ["pcm 1600"]


def cut(items: list[Any]) -> list[LiveFrame]:
    """A recording that is cut where a resumed session says."""
    frames: list[LiveFrame] = []
    for item in items:
        if isinstance(item, LiveFrame):
            frames.append(item)
        elif item.type == "session.resumed":
            frames = [frame for frame in frames if frame.index < round(item.data["position"] * 25)]
    return frames


@pytest.mark.parametrize("save_seconds", [0.2, 60.0])
def test_a_session_whose_connection_breaks_goes_on(running: Running, save_seconds: float) -> None:
    pcm = (random_speech(32_000, seed=4) * 20_000).astype(np.int16)
    broken = False
    with running.client() as client, client.lasting(save_seconds=save_seconds) as live:

        def cut_off(items: list[Any]) -> None:
            nonlocal broken
            if not broken and sum(isinstance(item, LiveFrame) and item.speaking for item in items) > 20:
                broken = True
                live._live._socket.socket.shutdown(socket.SHUT_RDWR)  # no farewell

        items = play(live, pcm, cut_off, pause=0.05)
        states = client.request("GET", "/v1/states")["data"]
        assert len(states) <= 2
    with running.client() as client:
        assert client.request("GET", "/v1/states")["data"] == []
    assert sum(isinstance(item, LiveEvent) and item.type == "session.resumed" for item in items) == 1
    frames = cut(items)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    heard = np.concatenate([frame.audio for frame in frames if frame.speaking])
    assert np.array_equal(heard[: len(pcm)], pcm) and not heard[len(pcm) :].any()
    assert items[-1].data["utterance"] == 0 and items[-1].data["played"] == 2.0


def test_a_broken_connection_is_an_error_without_that(running: Running) -> None:
    with running.client() as client, client.live() as live:
        live._socket.socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(ConnectionLostError):
            for _ in live:
                pass
        with pytest.raises(ConnectionLostError):
            live.push(SOUND)


class Refusing:
    """Connects once; then refuses."""

    def __init__(self, error: Exception) -> None:
        self.error, self.first = error, True

    def __call__(self, state: str | None) -> Any:
        if self.first:
            self.first = False
            return Broken()
        raise self.error


class Broken(Told):
    started = {"sample_rate": 16_000}

    def receive(self) -> Any:
        raise ConnectionLostError

    def close(self) -> None:
        self.said.append("close")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CapacityError("full", 30.0), CapacityError),
        (OSError("unreachable"), ConnectionLostError),
        (ServerError("starting", "unknown", 503), ServerError),
        (ServerError("gone", "state_not_found", 404), ServerError),
    ],
)
def test_it_gives_up_with_the_reason(error: Exception, expected: type[Exception]) -> None:
    live = LastingLive(Refusing(error), print, rate=16_000, save_seconds=1.0, give_up_seconds=0.3)
    with pytest.raises(expected) as caught:
        for _ in live:
            pass
    if isinstance(caught.value, CapacityError):
        assert caught.value.retry_after == 30.0


def test_a_save_may_take_the_place_of_another(running: Running) -> None:
    with running.client() as client, client.live() as live:

        def saved(**wish: Any) -> dict[str, Any]:
            live.save(**wish)
            return next(item.data for item in live if isinstance(item, LiveEvent) and item.type == "session.saved")

        first = saved(tag=7)
        assert first["tag"] == 7 and first["waiting"] == 0
        second = saved(replaces=first["state_id"])
        assert [state["id"] for state in client.request("GET", "/v1/states")["data"]] == [second["state_id"]]
        saved(replaces="nobody's")
        assert len(client.request("GET", "/v1/states")["data"]) == 2


def test_all_requests_of_a_client_name_one_session(running: Running) -> None:
    with running.client() as one, Client(running.url) as other:
        assert one._http.headers["X-Session-Id"] != other._http.headers["X-Session-Id"]
