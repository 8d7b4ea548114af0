"""The load test: its arithmetic on known answers, and all of it against a real server on fake engines."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semo_sdk.benchmarks import load, load_client, load_plot, load_report, load_server, report
from semo_sdk.benchmarks.load_client import Speaker, Trace, without_zeros
from semo_sdk.doctor import fingerprint
from semo_sdk.errors import ConfigError, SemoError
from semo_sdk.serving.protocol import pack_frame
from semo_sdk.serving.speech import Frame
from tests.conftest import EXAMPLES, random_speech
from tests.serving_tools import LIGHT, LIMIT, Running, wav


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return {"sessions_per_key": 2}


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """One second of speech."""
    file = tmp_path / "speech.wav"
    file.write_bytes(wav(random_speech(16_000)))
    return file


def measured(running: Running, speech: Path, **settings: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"photo": EXAMPLES / "portrait.jpg", "speech": speech, "step": 1.0, **settings}
    return asyncio.run(load.run(running.url, [None], **arguments))


def test_lost_doubled_and_altered_samples_are_counted() -> None:
    pcm = without_zeros(random_speech(1_000))
    assert pcm.dtype == np.int16 and pcm.all()
    assert np.abs(pcm / 32767 - random_speech(1_000)).max() < 1.01 / 32767
    for heard, expected in (
        (pcm, (0, 0, 0)),
        (
            np.concatenate([pcm[:640], np.zeros(640, np.int16), pcm[640:], np.zeros(280, np.int16)]),
            (0, 0, 0),
        ),  # filling
        (pcm[:900], (100, 0, 0)),
        (np.concatenate([pcm, pcm[-7:]]), (0, 7, 0)),
        (np.where(np.arange(1_000) == 5, pcm + 1, pcm), (0, 0, 1)),
        (np.zeros(0, np.int16), (1_000, 0, 0)),
    ):
        trace = Trace()
        trace.check(pcm, heard)
        assert (trace.lost, trace.doubled, trace.altered) == expected
        assert (trace.utterances, trace.samples) == (1, 1_000)


def test_gaps_and_first_frames_are_measured_as_they_come() -> None:
    def frame(index: int, speaking: bool) -> bytes:
        return pack_frame(Frame(np.zeros((1, 1, 3), np.uint8), np.zeros(1_280, np.float32), index, speaking), b"")

    speaker = Speaker("http://127.0.0.1:9", None, {"fps": 12.5}, without_zeros(random_speech(16_000)), 0)
    speaker._frame(frame(0, False), 10.0)
    speaker._began = 10.1
    speaker._frame(frame(2, True), 10.25)
    speaker._frame(frame(6, True), 10.5)  # one is missing
    trace = speaker.trace
    assert trace.gaps == [(10.25, 0.25), (10.5, 0.25)] and trace.firsts == [(10.25, pytest.approx(0.15))]
    assert trace.frames_lost == 1 and not trace.failures
    crowd = load.Crowd("http://127.0.0.1:9", [(None, "default")], {}, without_zeros(random_speech(16_000)))
    crowd._gone.append(trace)
    found = crowd.measure(10.0, 10.4)
    assert found["gap_ms"]["count"] == 1 and found["gap_ms"]["p50"] == 250
    assert found["first_frame_ms"]["max"] == 150 and crowd.measure(11, 12)["gap_ms"] is None


def test_flat_memory_is_told_from_a_leak() -> None:
    grows = [(float(second), 500.0 + second) for second in range(100)]
    starts = [(float(second), 500.0 if second > 9 else 100.0) for second in range(1_000)]
    assert load_report.flatness([], 1) is None
    leak, warm = load_report.flatness(grows, 0), load_report.flatness(starts, 10)
    assert leak and leak["deviation_percent"] == pytest.approx(9, abs=0.1)
    assert warm and warm["deviation_percent"] == 0 and len(warm["series"]) <= load_report.MAX_POINTS
    assert warm["series"][0] == [0, 100]


def test_every_sample_comes_back_at_both_frame_rates(
    running: Running, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "MAX_GAP_FRAMES", 1e9)  # whatever else this machine does
    monkeypatch.setattr(load, "SETTLE_SECONDS", 0.2)
    result = measured(running, second, rates=(25.0, 12.5), sessions=2, hold=2.0)
    for run in result["runs"]:
        assert run["sessions"] == 2 and run["stopped"] == "2 were asked for" and not run["failures"]
        assert [level["sessions"] for level in run["ramp"]] == [1, 2]
        checked = run["checked"]
        assert checked["utterances"] >= 2 and checked["samples"] == 16_000 * checked["utterances"]
        assert not any(checked[name] for name in ("lost", "doubled", "altered", "frames_lost"))
        held = run["hold"]
        assert held["gap_ms"]["p50"] > 0
        firsts = [level["first_frame_ms"] for level in (*run["ramp"], held) if level["first_frame_ms"]]
        assert firsts and all(first["p50"] > 0 for first in firsts)
        assert held["memory"]["median_mib"] > 10 and held["memory"]["series"]
    complete = {**result, "bundle": "light", "fingerprint": fingerprint()}
    text = load.markdown(json.loads(json.dumps(complete)))
    assert "min at 12.5 | 2 |" in text and "0, 0, 0 of" in text
    page = report.update_readme("a\n<!-- load -->\nold\n<!-- end load -->\nb", [{**complete, "benchmark": "load"}])
    assert text in page and "old" not in page
    pytest.importorskip("matplotlib")
    for name in ("load.png", "load.svg"):
        load_plot.plot(complete, tmp_path / name)
        assert 5_000 < (tmp_path / name).stat().st_size < 200_000


def test_the_ramp_ends_where_the_server_refuses_and_where_frames_are_late(
    running: Running, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(load, "MAX_GAP_FRAMES", 1e9)
    (run,) = measured(running, second, sessions=5, step=0.5)["runs"]
    assert run["sessions"] == 2 and "2 live sessions already" in run["stopped"] and run["hold"] is None
    monkeypatch.setattr(load, "MAX_GAP_FRAMES", 0.1)
    (run,) = measured(running, second, sessions=5, step=0.5, hold=1)["runs"]
    assert "p99 gap was over 4 ms" in run["stopped"] and run["hold"] is None


def test_a_freeze_leaves_evidence(running: Running, second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_client, "FREEZE_SECONDS", 0.4)
    monkeypatch.setattr(load_client, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(load_client, "MAX_NOTES", 1_000)

    async def freeze() -> tuple[Trace, dict[str, Any]]:
        speaker = Speaker(running.url, None, {"latency": "low"}, without_zeros(random_speech(16_000)), 0)
        await speaker.open()
        stop, trace = asyncio.Event(), speaker.trace
        task = asyncio.create_task(speaker.run(stop))
        while not trace.gaps:
            await asyncio.sleep(0.02)
        gate = running.taps["render"].gate = threading.Event()
        notes: list[dict[str, Any]] = []  # of the server: a busy machine stops the client too
        while not notes:
            await asyncio.sleep(0.02)
            notes = [note for note in trace.freezes if note["seconds_that_the_client_stood_still"] < 0.4]
        running.taps["render"].gate = None
        gate.set()
        stop.set()
        await task
        return trace, notes[0]

    trace, note = asyncio.run(asyncio.wait_for(freeze(), 2 * LIMIT))
    assert note["seconds_without_a_frame"] >= 0.4
    assert not trace.failures and not trace.frames_lost  # it was a pause, nothing was lost
    if "ss: " not in note["sockets"][0]:
        assert len(note["sockets"]) == 2 and all(line.startswith("ESTAB") for line in note["sockets"])
        assert any("rto:" in line for line in note["sockets"]) and "127.0.0.1" not in str(note)


RESULTS = EXAMPLES.parent / "benchmarks" / "results" / "load"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_the_page_shows_the_committed_result(path: Path) -> None:
    page = (EXAMPLES.parent / "docs" / "load.md").read_text(encoding="utf-8")
    assert report.update_readme(page, [json.loads(path.read_text(encoding="utf-8"))]) == page


def test_what_cannot_be_measured_is_refused(running: Running, second: Path) -> None:
    with pytest.raises(ConfigError, match="frame rates"):
        measured(running, second, rates=(30.0,))
    with pytest.raises(SemoError, match="cannot be reached"):
        load_server.keys_and_portraits("http://127.0.0.1:9", [None], EXAMPLES / "portrait.jpg")
    engine = {"bundle": "no-such-bundle"}
    with pytest.raises(SemoError, match="did not start.*no-such-bundle"), load_server.own_server(engine, 1):
        pass


@pytest.mark.slow
def test_the_command_with_a_server_of_its_own(
    second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    from tests.toy_bundle import toy_bundle

    toy = toy_bundle(tmp_path / "toy", LIGHT)
    monkeypatch.setattr(load, "MAX_GAP_FRAMES", 1e9)
    arguments = ["--bundle", str(toy.path), "--speech", str(second), "--photo", str(EXAMPLES / "portrait.jpg")]
    arguments += ["--sessions", "2", "--step", "2", "--hold", "4", "--threads", "1", "--fps", "25,12.5"]
    load.main([*arguments, "--json", str(tmp_path / "load.json")])
    result = json.loads((tmp_path / "load.json").read_text())
    assert [run["sessions"] for run in result["runs"]] == [2, 2]
    assert all(run["hold"]["memory"]["deviation_percent"] < 20 for run in result["runs"])
    assert "| 12.5 | 2 |" in capsys.readouterr().out and result["fingerprint"]["cpu"]
