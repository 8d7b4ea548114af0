"""The README tells the truth: its Python runs, its numbers are the measured ones. Its commands and links: test_docs."""

from __future__ import annotations

import json
import re
import shutil
import wave
from pathlib import Path

import pytest

from semo_sdk.benchmarks import report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)).splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example inputs, shared by the blocks: a later one may read what an earlier one wrote."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    speech = str(folder / "examples" / "speech.wav")
    with wave.open(speech) as file:  # a shorter speech: it is heard five times
        parameters, begin = file.getparams(), file.readframes(5 * file.getframerate() // 2)
    with wave.open(speech, "wb") as file:
        file.setparams(parameters)
        file.writeframes(begin)
    return folder


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_run_as_they_stand(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    code = PYTHON[number]
    exec(compile(code, f"README.md, python block {number}", "exec"), {"__name__": "__main__"})
    for name in re.findall(r'save\("(.+?)"', code):
        assert (folder / name).stat().st_size > 1000, name


def test_there_are_python_blocks_and_commands() -> None:
    assert len(PYTHON) >= 3 and sum(line.startswith("semo ") for line in SHELL) >= 8


def test_set_up_is_two_commands() -> None:
    assert [line for line in SHELL if line.startswith("pip install")] == [
        "pip install . && semo animate examples/portrait.jpg examples/speech.wav -o talking.mp4",
        "pip install -e '.[dev]' && pytest",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.name)
def test_tables_are_those_of_the_committed_results(path: Path) -> None:
    assert report.update_readme(README, [json.loads(path.read_text(encoding="utf-8"))]) == README
