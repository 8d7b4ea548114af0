"""The README tells the truth: its Python runs, its commands exist, its numbers are the measured ones."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semo_sdk.benchmarks import report
from semo_sdk.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def shell(text: str) -> list[str]:
    """The lines of a document's shell blocks."""
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).splitlines()


SHELL = shell(README)
COMMANDS = [
    command
    for line in SHELL + shell(CONTRIBUTING)
    for command in line.partition("  #")[0].split(" && ")
    if command.startswith("semo ")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example inputs, shared by the blocks: a later one may read what an earlier one wrote."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_run_as_they_stand(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    code = PYTHON[number]
    exec(compile(code, f"README.md, python block {number}", "exec"), {"__name__": "__main__"})
    for name in re.findall(r'save\("(.+?)"', code):
        assert (folder / name).stat().st_size > 1000, name


def test_there_are_python_blocks_and_commands() -> None:
    assert len(PYTHON) >= 4 and len(COMMANDS) >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options_exist(command: str) -> None:
    _, *words = command.split()
    name = words[:2] if words[0] in ("bench", "train", "data") else words[:1]
    shown = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    options = re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", " ".join(words))
    assert not [option for option in options if option not in shown], shown


def test_set_up_is_two_commands() -> None:
    assert [line for line in SHELL if line.startswith("pip install")] == [
        "pip install . && semo animate examples/portrait.jpg examples/speech.wav -o talking.mp4",
        "pip install -e '.[dev]' && pytest",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.name)
def test_tables_are_those_of_the_committed_results(path: Path) -> None:
    assert report.update_readme(README, [json.loads(path.read_text(encoding="utf-8"))]) == README


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_into_the_repository_lead_somewhere(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()
