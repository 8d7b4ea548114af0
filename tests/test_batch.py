"""Batches: what a manifest may say, what is made, what is skipped, and what one bad item costs the others: nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from semo_sdk import cli
from semo_sdk.backends import fake_engines
from semo_sdk.batch import Model, Report, Workers, read_manifest, run_batch
from semo_sdk.batch import renderer as renderer_module
from semo_sdk.batch.run import sort_by_photo
from semo_sdk.errors import ConfigError, EngineError
from semo_sdk.media.audio import load_audio
from semo_sdk.media.video import read_video
from tests.conftest import EXAMPLES, random_speech
from tests.serving_tools import LIGHT, wav

Write = Callable[..., Path]


class LightBundle:
    """Stands for a bundle of a model that is quick on fake engines."""

    name, config, fingerprint = LIGHT.name, LIGHT, "light"


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fake engines; how often they were opened."""
    opened: list[Any] = []

    def load(bundle: Any, **settings: Any) -> Any:
        opened.append(settings)
        return fake_engines(bundle.config)

    monkeypatch.setattr(renderer_module.Bundle, "open", lambda source: LightBundle())
    monkeypatch.setattr(renderer_module, "load_engines", load)
    return opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of inputs: two photos, one without a face, two recordings, one that is none."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    shutil.copy(EXAMPLES / "portrait.jpg", inputs / "a.jpg")
    shutil.copy(EXAMPLES / "portrait2.jpg", inputs / "b.jpg")
    Image.fromarray(np.full((300, 300, 3), 90, np.uint8)).save(inputs / "faceless.png")
    for number in range(2):
        (inputs / f"{number}.wav").write_bytes(wav(random_speech(2_560, seed=number)))
    (inputs / "text.wav").write_text("not a recording")
    return inputs


@pytest.fixture
def write(folder: Path) -> Write:
    def make(*lines: dict[str, Any] | str) -> Path:
        path = folder / "manifest.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return path

    return make


def line(output: str, photo: str = "a.jpg", audio: str = "0.wav", **settings: Any) -> dict[str, Any]:
    return {"photo": photo, "audio": audio, "output": output, **settings}


def statuses(report: Report) -> list[str]:
    return [item.status for item in report.items]


def test_paths_start_at_the_manifest_and_lines_have_their_own_settings(write: Write, folder: Path) -> None:
    items = read_manifest(
        write(line("x/one.mp4", seed=5), "", line("two.mp4", blink=0.5)), {"seed": 3, "latency": "low"}
    )
    assert [(item.line, item.output, item.seed, item.latency, item.blink) for item in items] == [
        (1, "x/one.mp4", 5, "low", 1.0),
        (3, "two.mp4", 3, "low", 0.5),
    ]
    assert items[0].photo == folder / "a.jpg" and items[0].audio == folder / "0.wav"


def test_every_wrong_line_is_named(write: Write) -> None:
    manifest = write(
        line("fine.mp4"),
        "{",
        "[1]",
        line("fine.mp4"),
        line("../out.mp4"),
        line("/abs.mp4"),
        line("video.avi"),
        line("s.mp4", seed=-1, loud=True),
        {"photo": "a.jpg", "output": "n.mp4"},
        line(".semo-batch/x.mp4"),
    )
    with pytest.raises(ConfigError) as caught:
        read_manifest(manifest)
    told = str(caught.value)
    for number, word in ((2, "not JSON"), (3, "not a JSON object"), (4, "line 1"), (5, "inside"), (6, "inside")):
        assert any(row.startswith(f"line {number}: ") and word in row for row in told.splitlines()), (number, told)
    for number, word in ((7, ".mp4"), (8, "seed"), (8, "loud"), (9, "audio"), (10, "inside")):
        assert any(row.startswith(f"line {number}: ") and word in row for row in told.splitlines()), (number, told)


@pytest.mark.parametrize(("text", "word"), [("\n\n", "no lines"), (None, "cannot be read"), ("\xff", "cannot be read")])
def test_no_manifest_at_all(tmp_path: Path, text: str | None, word: str) -> None:
    path = tmp_path / "m.jsonl"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=word):
        read_manifest(path)


def test_impossible_defaults_are_named(write: Write) -> None:
    with pytest.raises(ConfigError, match="blink"):
        read_manifest(write(line("a.mp4")), {"blink": 7})


def test_a_batch_and_the_same_again(write: Write, tmp_path: Path, engines: list[Any]) -> None:
    out = tmp_path / "out"
    manifest = write(
        line("one.mp4"),
        line("bad/face.mp4", photo="faceless.png"),
        line("two.mp4", photo="b.jpg", audio="1.wav", latency="low"),
        line("sub/three.mp4", audio="1.wav", seed=2),
        line("bad/sound.mp4", audio="text.wav"),
        line("bad/none.mp4", photo="nowhere.jpg"),
    )
    seen: list[str] = []
    report = run_batch(manifest, out, progress=lambda result: seen.append(result.output))
    assert statuses(report) == ["made", "failed", "made", "made", "failed", "failed"] and not report.ok
    assert (report.made, report.failed, report.skipped, report.frames) == (3, 3, 0, 12)
    assert [item.error.type for item in report.items if item.error] == ["NoFaceError", "AudioError", "ImageError"]
    assert seen[:2] == ["one.mp4", "sub/three.mp4"]  # one photo after the other
    assert len(engines) == 1
    assert len(list(read_video(out / "one.mp4"))) == 4 and len(load_audio(out / "two.mp4")) >= 2_560
    assert json.loads((out / "report.json").read_text())["items"][1]["error"]["type"] == "NoFaceError"
    assert sorted(p.name for p in out.rglob("*.mp4")) == ["one.mp4", "three.mp4", "two.mp4"]
    assert not list((out / ".semo-batch" / "work").iterdir())

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    again = run_batch(manifest, out)
    assert statuses(again) == ["skipped", "failed", "skipped", "skipped", "failed", "failed"]
    assert len(engines) == 2  # for the photo that might have got a face
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}


def test_what_changed_is_made_again(write: Write, folder: Path, tmp_path: Path, engines: list[Any]) -> None:
    out = tmp_path / "out"

    def run(*lines: dict[str, Any], **settings: Any) -> list[str]:
        return statuses(run_batch(write(*lines), out, **settings))

    lines = [line("one.mp4"), line("two.mp4", photo="b.jpg", audio="1.wav")]
    assert run(*lines) == ["made", "made"]
    assert run(*reversed(lines)) == ["skipped", "skipped"] and len(engines) == 1
    (folder / "1.wav").write_bytes(wav(random_speech(640, seed=9)))
    assert run(line("one.mp4", seed=1), lines[1]) == ["made", "made"]
    assert run(lines[0], lines[1], defaults={"seed": 1}) == ["skipped", "made"]
    (out / "one.mp4").write_bytes((out / "one.mp4").read_bytes()[:-1])  # half a copy
    assert run(*lines, defaults={"seed": 1}) == ["made", "skipped"]
    (out / ".semo-batch" / "one.mp4.json").write_text("{")
    (out / "two.mp4").unlink()
    assert run(*lines, defaults={"seed": 1}) == ["made", "made"]
    assert run(lines[0], defaults={"seed": 1}, model=Model(precision="fp32")) == ["made"]


def test_a_defect_costs_one_item(
    write: Write, tmp_path: Path, engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = renderer_module.Animator.from_audio

    def fails(self: Any, audio: Path, **settings: Any) -> Any:
        if settings["seed"] == 1:
            raise RuntimeError("a defect")
        return save(self, audio, **settings)

    monkeypatch.setattr(renderer_module.Animator, "from_audio", fails)
    report = run_batch(write(line("one.mp4", seed=1), line("two.mp4")), tmp_path / "out")
    assert statuses(report) == ["failed", "made"]
    assert report.items[0].error is not None and report.items[0].error.type == "RuntimeError"


def test_an_interruption_leaves_a_report_and_no_half_video(
    write: Write, tmp_path: Path, engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    manifest = write(line("one.mp4"), line("two.mp4"), line("three.mp4"))

    def stop(result: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(manifest, out, progress=stop)
    report = Report.model_validate_json((out / "report.json").read_text())
    assert statuses(report) == ["made", "not_run", "not_run"]
    remains = out / ".semo-batch" / "work" / "remains"  # of a batch that was killed
    remains.mkdir(parents=True)
    assert statuses(run_batch(manifest, out)) == ["skipped", "made", "made"]


def test_two_batches_do_not_share_a_folder(write: Write, tmp_path: Path, engines: list[Any]) -> None:
    out, manifest = tmp_path / "out", write(line("one.mp4"))

    def second(result: Any) -> None:
        with pytest.raises(ConfigError, match="another batch"):
            run_batch(manifest, out)

    assert run_batch(manifest, out, progress=second).ok


def test_a_model_that_does_not_open_ends_the_batch(
    write: Write, tmp_path: Path, engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bundle: Any, **settings: Any) -> Any:
        raise EngineError("no engine")

    monkeypatch.setattr(renderer_module, "load_engines", broken)
    with pytest.raises(EngineError, match="no engine"):
        run_batch(write(line("one.mp4"), line("two.mp4")), tmp_path / "out")


def test_a_photo_is_encoded_once(
    write: Write, tmp_path: Path, engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    find = renderer_module.find_portrait

    def counted(photo: Any, **settings: Any) -> Any:
        found.append(photo)
        return find(photo, **settings)

    monkeypatch.setattr(renderer_module, "find_portrait", counted)
    lines = [line(f"{n}.mp4", photo="ab"[n % 2] + ".jpg", audio=f"{n % 2}.wav") for n in range(3)]
    manifest = write(*lines)
    assert [item.output for item in sort_by_photo(read_manifest(manifest))] == ["0.mp4", "2.mp4", "1.mp4"]
    report = run_batch(manifest, tmp_path / "out")
    assert statuses(report) == ["made"] * 3 and len(found) == 2
    assert [item.output for item in report.items] == ["0.mp4", "1.mp4", "2.mp4"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["animate", *arguments], env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_command(write: Write, tmp_path: Path, engines: list[Any]) -> None:
    out = str(tmp_path / "out")
    manifest = str(write(line("one.mp4"), line("two.mp4", photo="faceless.png")))
    told = run("--batch", manifest, "--out-dir", out, "--seed", "4")
    assert told.exit_code == 1 and told.stdout == ""
    assert "1 made, 0 were there, 1 failed, of 2" in told.stderr and "line 2, two.mp4: NoFaceError: " in told.stderr
    assert "2/2" in told.stderr
    as_json = run("--batch", manifest, "--out-dir", out, "--seed", "4", "--json")
    assert as_json.exit_code == 1 and json.loads(as_json.stdout)["skipped"] == 1
    fine = str(write(line("one.mp4")))
    quiet = run("--batch", fine, "--out-dir", out, "--seed", "4", "--quiet")
    assert quiet.exit_code == 0 and quiet.output == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.jpg", "a.wav", "--batch", "m.jsonl", "--out-dir", "out"],
        ["-o", "x.mp4", "--batch", "m.jsonl", "--out-dir", "out"],
        ["--batch", "m.jsonl"],
        ["--batch", "nowhere.jsonl", "--out-dir", "out"],
        ["--batch", "m.jsonl", "--out-dir", "out", "--workers", "2"],
        ["a.jpg", "a.wav", "--ray"],
        ["a.jpg"],
        [],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments).exit_code == 2
    assert not list(tmp_path.iterdir())


def test_impossible_workers_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="impossible workers"):
        run_batch(write(line("one.mp4")), tmp_path / "out", workers=Workers(count=0))
