"""The documentation runs: its Python with the model that ships, its cheap commands, and the site's build."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from semo_sdk.animator import Animator
from semo_sdk.bundle import embedded_bundles
from semo_sdk.cli import app
from semo_sdk.hub import save_pretrained
from semo_sdk.media.audio import Resampler
from semo_sdk.media.image import Portrait
from semo_sdk.media.video import VideoWriter, read_video
from tests.docs_tools import ROOT, blocks, commands, examples
from tests.serving_tools import serving

pytestmark = pytest.mark.slow

# Pages whose Python has a test of its own, because it needs more than a folder with example inputs.
ELSEWHERE = {
    "README.md": "test_readme.py",
    "docs/agents.md": "test_agents_docs.py",
    "docs/training.md": "test_training_videos.py",
}
PAGES = sorted({block.page for block in blocks("python")} - set(ELSEWHERE))

# Commands that are run as they stand. The others are read by the real parsers only (test_docs): they run until they are
# stopped (serve), take minutes or hours (train, export, build, bench), or need data sets or a cluster (test_ray).
CHEAP = {"animate", "reenact", "verify", "doctor", "keys add"}
COMMANDS = sorted({tuple(words[1:]) for b in blocks("sh") for words in commands(b.code) if words[0] == "semo"})
ALONE = [words for words in COMMANDS if any(" ".join(words).startswith(c) for c in CHEAP) and "--ray" not in words]


def stage(folder: Path) -> Path:
    """A folder with everything that pages take for granted."""
    (folder / "secrets").mkdir()
    shutil.copytree(ROOT / "examples", folder / "examples")
    for name, source in (
        ("photo.jpg", "examples/portrait.jpg"),
        ("portrait.jpg", "examples/portrait.jpg"),
        ("speech.wav", "examples/grid.wav"),
        ("speech.mp3", "semo_sdk/serving/page/speech.mp3"),
        ("driving.mp4", "docs/talking.mp4"),
        ("talking.mp4", "docs/talking.mp4"),
        ("before.json", "benchmarks/results/latency.json"),
        ("after.json", "benchmarks/results/latency.json"),
    ):
        shutil.copyfile(ROOT / source, folder / name)
    (manifest,) = (block.code for block in blocks("text") if block.page == "docs/cluster.md")
    (folder / "manifest.jsonl").write_text(manifest, encoding="utf-8")
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_python_runs_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stage(tmp_path))
    (tmp_path / "THIS FOLDER").symlink_to(embedded_bundles()["semo-tiny"])
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks("python"):
        if block.page == page:
            exec(compile("\n" * block.line + block.code, page, "exec"), names)
    for name in re.findall(r'\.save\("(.+?)"', "".join(b.code for b in blocks("python") if b.page == page)):
        assert (tmp_path / name).stat().st_size > 1000, name


@pytest.mark.parametrize("module", ["__init__", "animator", "session", "clip", "media/audio", "media/video"])
def test_examples_in_docstrings_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stage(tmp_path))
    monkeypatch.setattr("semo_sdk.Animator", partial(Animator, backend="fake"))
    pieces = [np.zeros(24_000, np.float32)] * 2
    with Animator("portrait.jpg", backend="fake") as animator:
        names: dict[str, Any] = {
            "animator": animator,
            "Animator": partial(Animator, backend="fake"),
            "show": lambda *shown: None,
        }
        names |= {"microphone": pieces, "stream": pieces, "chunks": animator.stream(pieces[0]), "np": np}
        names |= {"Resampler": Resampler, "VideoWriter": VideoWriter}
        for line, code in examples(ROOT / "semo_sdk" / f"{module}.py"):
            exec(compile(code, f"{module}.py:{line}", "exec"), names)


def test_pages_with_a_test_of_their_own_have_it() -> None:
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / "tests" / test).read_text(encoding="utf-8")


def test_the_client_talks_to_a_server(portrait: Portrait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stage(tmp_path))
    (page,) = (b for b in blocks("py") if b.page == "docs/serving.md" and "serving.client import" in b.code)
    (states,) = (b for b in blocks("py") if b.page == "docs/load.md" and "live.save()" in b.code)
    shown: list[np.ndarray] = []
    names = {"pcm": np.zeros(24_000, np.int16), "show": lambda image, audio: shown.append(image)}
    with serving(tmp_path / "data", portrait) as running:
        exec(compile(page.code.replace("http://127.0.0.1:8000", running.url), str(page), "exec"), names)
        assert sum(1 for _ in read_video("talking.mp4")) == 75 and len(shown) >= 25
        with running.client() as client:
            exec(compile(states.code, str(states), "exec"), {**names, "client": client, "portrait": "default"})


@pytest.mark.parametrize("words", ALONE, ids=" ".join)
def test_cheap_commands_run(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stage(tmp_path))
    if "my-bundle" in words:
        save_pretrained("semo-tiny", "my-bundle")
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    for i, word in enumerate(words):
        if word in ("-o", "--output"):
            assert sum(1 for _ in read_video(words[i + 1])) > 50


def test_results_can_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stage(tmp_path))
    (words,) = {w for w in COMMANDS if w[:2] == ("bench", "--compare")}
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0 and "| " in result.output


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as a contributor builds it; each warning is an error (not with --quiet, which hides them)."""
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_links_of_the_site_lead_somewhere(site: Path) -> None:
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 25
    anchors = {page: set(re.findall(r'\b(?:id|name)="?([^"\s>]+)', text)) for page, text in pages.items()}
    for page, text in pages.items():
        for link in re.findall(r'<(?:a|img|video|source)\b[^>]*?\b(?:href|src)="([^"]*)"', text):
            path, anchor = urldefrag(html.unescape(link))
            if re.match(r"[a-z]+:", path):
                continue
            target = Path(os.path.normpath(page.parent / unquote(path))) if path else page
            assert target.is_file() or (target / "index.html").is_file(), f"{page.relative_to(site)}: {link}"
            if anchor and target in anchors:
                assert unquote(anchor) in anchors[target] | {"__codelineno"}, f"{page.relative_to(site)}: {link}"


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|video|source|iframe)\b[^>]*?\bsrc=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link\b[^>]*?\bhref=\"([^\"]+)\"", text)
        assert not [url for url in loaded if re.match(r"(?:https?:)?//", url)], page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)", sheet.read_text(encoding="utf-8")), sheet


def test_the_site_has_every_command_and_every_table(site: Path) -> None:
    shown = (site / "cli.html").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    names = [f"semo {name}" for name in group.commands]  # type: ignore[attr-defined]
    names += [f"semo bench {name}" for name in group.commands["bench"].commands]  # type: ignore[attr-defined]
    assert not [name for name in names if f">{name}" not in shown] and "--photo" in shown
    assert "mouth opening, generated against real" in (site / "evaluation.html").read_text(encoding="utf-8")
    assert "Google Fonts" not in shown and (site / "talking.mp4").is_file()


def test_docstrings_are_rendered(site: Path) -> None:
    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert ":class:" not in text and "&gt;&gt;&gt;" not in text and "from_pretrained" in text
