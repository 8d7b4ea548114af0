"""The command line: results, one JSON object, clear errors with their exit codes, no half files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from pydantic import BaseModel, ConfigDict
from typer.testing import CliRunner, Result

from semo_sdk import __version__, cli, errors
from semo_sdk.cli.outcome import exit_code, need, outcome
from semo_sdk.training.settings import parse_settings

ROOT = Path(__file__).parent.parent
PHOTO, SPEECH = str(ROOT / "examples" / "portrait.jpg"), str(ROOT / "examples" / "grid.wav")
SEMO = str(Path(sys.executable).parent / "semo")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


def error_of(result: Result) -> dict[str, Any]:
    """The one JSON object of a failure."""
    found: dict[str, Any] = json.loads(result.stdout)["error"]
    assert result.exit_code == found["code"]
    return found


def test_version_is_the_same_everywhere() -> None:
    assert run("--version").stdout == f"semo-sdk {__version__}\n"
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_command_has_help() -> None:
    for command in (
        "animate",
        "reenact",
        "export",
        "doctor",
        "train",
        "data",
        "bench",
        "train autoencoder",
        "bench latency",
    ):
        result = run(*command.split(), "--help")
        assert result.exit_code == 0 and "usage" in result.output.lower(), command


def test_animate_writes_a_video_and_says_so_in_json(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    result = run("animate", PHOTO, SPEECH, "-o", str(output), "--json", "--latency", "low", "--seed", "7")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["output"] == str(output) and output.stat().st_size > 1000
    assert told["frames"] == 75 and told["duration"] == 3.0
    assert told["fps"] == pytest.approx(told["frames"] / told["seconds"], rel=0.01)
    assert told["real_time_factor"] == pytest.approx(told["seconds"] / told["duration"], rel=0.01)
    assert told["seconds_with_start"] > told["seconds"]
    assert told["backend"] == "openvino" and told["precision"] in ("bf16", "fp32")
    assert list(tmp_path.iterdir()) == [output]


def test_animate_for_people_reports_on_stderr_and_quiet_says_nothing(tmp_path: Path) -> None:
    output = str(tmp_path / "out.mp4")
    told = run("animate", PHOTO, SPEECH, "-o", output)
    assert told.stdout == "" and re.search(r"75 frames, 3\.00 s.*real-time factor", told.stderr)
    assert "frame/s" in told.stderr
    quiet = run("animate", PHOTO, SPEECH, "-o", output, "--quiet", "--paste-back")
    assert quiet.exit_code == 0 and quiet.output == ""


def test_reenact_follows_a_video(tmp_path: Path) -> None:
    driving, output = str(tmp_path / "driving.mp4"), tmp_path / "out.mp4"
    assert run("animate", PHOTO, SPEECH, "-o", driving, "-q").exit_code == 0
    result = run("reenact", str(ROOT / "examples" / "portrait2.jpg"), driving, "-o", str(output), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["frames"] == 75 and output.is_file()


def noise_picture(path: Path) -> str:
    from PIL import Image

    Image.fromarray(np.full((300, 300, 3), 90, np.uint8)).save(path)
    return str(path)


def test_bad_input_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a photo")
    faceless = noise_picture(tmp_path / "faceless.png")
    output = str(tmp_path / "out.mp4")
    cases = {
        "ImageError": (str(tmp_path / "text.jpg"), SPEECH),
        "NoFaceError": (faceless, SPEECH),
        "AudioError": (PHOTO, faceless),
    }
    for kind, (photo, speech) in cases.items():
        told = error_of(run("animate", photo, speech, "-o", output, "--json"))
        assert (told["type"], told["code"]) == (kind, 3) and told["message"]
        plain = run("animate", photo, speech, "-o", output)
        assert plain.exit_code == 3 and plain.stdout == ""
        assert plain.stderr.startswith("semo: ") and "Traceback" not in plain.stderr
    missing = error_of(run("animate", "nowhere.jpg", SPEECH, "-o", output, "--json"))
    assert missing["type"] == "ImageError" and "nowhere.jpg" in missing["message"]
    assert not Path(output).exists()


def test_settings_bundle_and_backend_have_their_own_codes(tmp_path: Path) -> None:
    base = ("animate", PHOTO, SPEECH, "-o", str(tmp_path / "out.mp4"), "--json")
    assert error_of(run(*base, "--latency", "instant"))["code"] == 2
    assert error_of(run(*base, "--backend", "magic"))["code"] == 2
    assert error_of(run(*base, "--seed", "-1"))["code"] == 2
    assert error_of(run(*base, "--bundle", str(tmp_path)))["code"] == 4
    assert run("animate", PHOTO).exit_code == 2  # an argument is missing
    assert run("animate", PHOTO, SPEECH, "--loud").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    told = error_of(run("animate", PHOTO, SPEECH, "-o", str(tmp_path / "no" / "out.mp4"), "--json"))
    assert told["code"] == 1 and "no" in told["message"]


@pytest.mark.parametrize("name", sorted(errors.__all__))
def test_every_error_has_an_exit_code_of_the_documented_ones(name: str) -> None:
    code = exit_code(getattr(errors, name)("x"))
    assert code in range(1, 7)
    assert f"{code} " in (cli.__doc__ or "")


def test_a_defect_shows_its_place_and_still_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exit, outcome(as_json=True):
        raise RuntimeError("a defect")
    out, err = capsys.readouterr()
    assert exit.value.exit_code == 1
    assert json.loads(out)["error"] == {"type": "RuntimeError", "message": "a defect", "code": 1}
    assert "Traceback" in err


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(errors.MissingDependencyError, match=r"semo-sdk\[train\]"):
        need("train", "json", "no_such_package")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_with_130_and_leaves_no_half_file(tmp_path: Path) -> None:
    import wave

    speech, output = tmp_path / "long.wav", tmp_path / "out.mp4"
    noise = np.random.default_rng(0).integers(-9000, 9000, 60 * 16_000).astype(np.int16)
    with wave.open(str(speech), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(noise.tobytes())
    process = subprocess.Popen(
        [SEMO, "animate", PHOTO, str(speech), "-o", str(output)],
        stderr=subprocess.PIPE,
        start_new_session=True,
        # a shell that starts us in the background lets its children ignore the signal, and theirs
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    shown = b""
    while not re.search(rb"[1-9]\d*/1500", shown):  # the bar: frames are being made
        assert process.poll() is None, shown
        shown += os.read(process.stderr.fileno(), 4096)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the encoder gets it too
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 130
    assert rest.decode().rstrip().endswith("semo: interrupted")
    assert list(tmp_path.iterdir()) == [speech]


def test_doctor_knows_this_machine_and_tells_nothing_private() -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["ok"] and told["ffmpeg"]["ok"] and told["bundle"]["ok"]
    backends = {backend["name"]: backend for backend in told["backends"]}
    assert set(backends) == {"openvino", "onnxruntime", "torch", "tensorrt"} and backends["openvino"]["ok"]
    assert told["cpu"]["usable_cores"] >= 1
    assert os.uname().nodename not in result.stdout and str(Path.home()) not in result.stdout
    text = run("doctor").stdout
    assert "works here" in text and told["cpu"]["model"] in text


def test_doctor_says_why_it_cannot_animate(monkeypatch: pytest.MonkeyPatch) -> None:
    from semo_sdk import doctor

    monkeypatch.setattr(doctor, "_ffmpeg", lambda: {"ok": False, "detail": "ffmpeg does not run: gone"})
    result = run("doctor")
    assert result.exit_code == 1
    assert re.search(r"no +ffmpeg +ffmpeg does not run: gone", result.stdout)


class Loop(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: int = 10
    rate: float = 0.1
    other: float = 0.2


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    loop: Loop = Loop(other=0.7)  # a group's default stays where nothing else is said
    name: str = "x"


def test_training_settings_come_from_file_then_key_value(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"name": "file", "loop": {"rate": 0.5}}')
    made = parse_settings(Settings, file, ["loop.steps=3", "name=semo tiny"])
    assert made == Settings(loop=Loop(steps=3, rate=0.5, other=0.7), name="semo tiny")


@pytest.mark.parametrize("setting", ["loop.stepz=3", "loop.steps=many", "steps", "name.deep=1"])
def test_impossible_training_settings_are_named(setting: str) -> None:
    with pytest.raises(errors.ConfigError, match=re.escape(setting.split("=")[0].split(".")[0])):
        parse_settings(Settings, None, [setting])


def test_a_broken_settings_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(errors.ConfigError, match="broken.json"):
        parse_settings(Settings, tmp_path / "broken.json")


def test_train_without_data_fails_with_one_line(tmp_path: Path) -> None:
    result = run("train", "autoencoder", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert result.exit_code == 3 and result.stderr.startswith("semo: no rendered groups")


def test_export_of_nothing_is_a_checkpoint_error(tmp_path: Path) -> None:
    told = error_of(
        run("export", "--checkpoint", str(tmp_path / "no.safetensors"), "--out", str(tmp_path / "b"), "--json")
    )
    assert told["type"] == "CheckpointError"
    assert not (tmp_path / "b").exists()
