"""The documentation agrees with the code: commands, options, links, errors, names. test_docs_run runs it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import semo_sdk
from semo_sdk import errors
from semo_sdk.cli.outcome import exit_code
from tests.docs_tools import (
    ROOT,
    Block,
    anchors,
    blocks,
    commands,
    examples,
    links,
    name_of,
    pages,
    parse_module,
    parse_semo,
)

PAGES = {name_of(page): page.read_text(encoding="utf-8") for page in pages()}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MKDOCS = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

# Languages of blocks and what is done with them. python: test_docs_run runs it. py: a part of a program that needs
# something which is not there (a server, a GPU, a repository of the hub); FRAGMENTS says who tests it.
LANGUAGES = {"python", "py", "sh", "js", "json", "yaml", "text"}

# Programs that are not ours: their arguments are not checked here, and why.
FOREIGN = {
    ".": "activates the virtual environment",
    "accelerate": "its own options; what it starts is checked",
    "cd": "changes the folder",
    "cp": "copies",
    "docker": "no daemon is here; test_deploy checks what it is given",
    "mkdocs": "serves the site until it is stopped; test_docs_run builds it",
    "hf": "uploads to the hub, which needs an account",
    "kubectl": "no cluster is here; test_deploy checks what it is given",
    "mkdir": "makes a folder",
    "python3": "makes the virtual environment",
    "serve": "Ray's own command, which runs until it is stopped; test_ray deploys the same application",
    "sudo": "gives a folder to the container's user",
    "tensorboard": "shows the logs of a run until it is stopped",
}

# (page, a line of the block) -> why the block does not run by itself, and which test covers what it shows.
FRAGMENTS = {
    ("docs/agents.md", "runner = AvatarRunner("): "needs a LiveKit server; test_livekit runs the same without one",
    ("docs/cluster.md", "serve.run(build({"): "needs a Ray cluster; test_ray has one",
    ("docs/cluster.md", "client.lasting(portrait"): "test_serving_lasting and test_ray break its connection",
    ("docs/engines.md", "report = build_engines("): "minutes of TensorRT; test_real_engines builds this target",
    (
        "docs/models.md",
        'Animator.from_pretrained("owner/model"',
    ): "needs a repository; test_hub has one in a cache",
    ("docs/models.md", 'save_pretrained(load_pretrained("owner'): "the same; test_hub saves one from a cache",
    ("docs/serving.md", "from semo_sdk.serving.client import"): "test_docs_run runs it against a real server",
    ("docs/load.md", "with client.live(portrait, state_id=state)"): "test_docs_run runs it against a real server",
    ("docs/triton.md", "import tritonclient.grpc as grpc"): "test_triton_export runs it, Triton's protocol behind it",
}


def ids(block: Block) -> str:
    return str(block)


def test_every_block_has_a_language_that_is_checked() -> None:
    assert len(blocks("python")) > 30 and len(blocks("sh")) > 20
    unknown = [str(block) for block in blocks() if block.language not in LANGUAGES]
    assert not unknown, "say in tests/test_docs.py how blocks of this language are checked"


@pytest.mark.parametrize("block", blocks("python", "py"), ids=ids)
def test_python_is_python(block: Block) -> None:
    compile(block.code, str(block), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_fragment_says_why_it_does_not_run() -> None:
    named = [(page, line) for page, line in FRAGMENTS for b in blocks("py") if b.page == page and line in b.code]
    assert sorted(named) == sorted(FRAGMENTS), "a line of the table that fits no block, or several"
    alone = [b for b in blocks("py") if not any(b.page == page and line in b.code for page, line in FRAGMENTS)]
    assert not alone, f"{alone[0]}: say in FRAGMENTS who tests it, or make it a python block that runs"


@pytest.mark.parametrize("block", blocks("json"), ids=ids)
def test_json_is_json(block: Block) -> None:
    json.loads(block.code)


@pytest.mark.parametrize("block", blocks("js"), ids=ids)
def test_javascript_is_javascript(block: Block, tmp_path: Path) -> None:
    """Its syntax; what it does, test_page does in a browser."""
    if (node := shutil.which("node")) is None:
        pytest.skip("needs node")
    (tmp_path / "block.mjs").write_text(block.code, encoding="utf-8")
    done = subprocess.run([node, "--check", str(tmp_path / "block.mjs")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", blocks("sh"), ids=ids)
def test_shell_commands_and_their_options_exist(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in commands(block.code):
        check_command(words, monkeypatch)


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One command of a page, as far as it can be checked without running it."""
    program, *rest = words
    if program == "semo":
        parse_semo(rest, monkeypatch)
    elif program == "pip":
        extras = PYPROJECT["project"]["optional-dependencies"]
        wanted = [name for word in rest for part in re.findall(r"\[(.+?)\]", word) for name in part.split(",")]
        assert rest[0] == "install" and not set(wanted) - set(extras), words
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest if word.endswith(".py")), words
    elif program == "python" or (program == "python3" and rest[0].endswith(".py")):
        check_python(rest, monkeypatch)
    else:
        assert program in FOREIGN, f"{program}: say in tests/test_docs.py why it is not checked"
        if "semo_sdk.cli" in rest:
            parse_semo(rest[rest.index("semo_sdk.cli") + 1 :], monkeypatch)


def check_python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m MODULE`` or ``python FILE``, of ours."""
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file(), words
        if not words[0].startswith("benchmarks/"):
            return
        words = ["-m", f"semo_sdk.benchmarks.{Path(words[0]).stem}", *words[1:]]  # has a command line of its own
    assert importlib.util.find_spec(words[1]) is not None, words
    module = importlib.import_module(words[1])
    if "argparse" in vars(module):
        parse_module(lambda: module.main(words[2:]), monkeypatch)


def test_commands_with_a_typo_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ("semo animat a b", "semo animate a b --late low", "semo bench latency --jsn x", "semo train x"):
        with pytest.raises(Exception, match=r"(?i)no such|unrecognized|refuses"):
            check_command(line.split(), monkeypatch)
    assert parse_semo("bench latency --json x".split(), monkeypatch) == ["bench", "latency"]
    assert list(commands("for a in b; do\n  A=1 semo x | tee y > z && b\ndone")) == [["semo", "x"], ["tee", "y"], ["b"]]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for link in links(PAGES[page]):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            assert path.startswith(("https://", "mailto:")) or "//127.0.0.1" in path, link
            continue
        target = (folder / path).resolve() if path else ROOT / page
        made = {ROOT / "docs" / "cli.md"}  # by docs/mkdocs_hooks.py
        assert target.exists() or target in made, f"{page}: {link}"
        if anchor and target.suffix == ".md" and target not in made:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


def test_every_page_is_in_the_navigation_once() -> None:
    named = re.findall(r": ([\w./-]+\.md)$", MKDOCS, re.MULTILINE)
    assert len(named) == len(set(named))
    there = {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")} | {"cli.md"}
    assert {name for name in named if not name.startswith("repository/")} == there, "put the page into mkdocs.yml"
    assert all((ROOT / name.removeprefix("repository/")).is_file() for name in named if "repository/" in name)


def test_every_public_name_is_in_the_api_reference() -> None:
    shown = set(
        re.findall(r"^::: (\S+)", "\n".join(PAGES[name] for name in PAGES if "docs/api/" in name), re.MULTILINE)
    )
    named = {name.rpartition(".")[2] for name in shown} | {"__version__", *errors.__all__}
    assert "semo_sdk.errors" in shown and set(semo_sdk.__all__) <= named
    for path in shown - {"semo_sdk.errors"}:
        module, _, name = path.rpartition(".")
        if module.startswith(("semo_sdk.serving", "semo_sdk.testing")):  # would import frameworks, which takes seconds
            source = ROOT.joinpath(*module.split("."))
            file = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
            assert re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")), path
        else:
            assert getattr(importlib.import_module(module), name).__doc__, f"{path} has no docstring"


TROUBLE = PAGES["docs/troubleshooting.md"]


def test_every_error_is_in_troubleshooting() -> None:
    headings = re.findall(r"^## (\w+Error)$", TROUBLE, re.MULTILINE)
    assert sorted(headings) == sorted(errors.__all__)


def test_errors_of_single_modules_are_there_too() -> None:
    for folder in ("semo_sdk", "export", "engines"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"^class (\w+Error)\b", path.read_text(encoding="utf-8"), re.MULTILINE):
                assert f"`{name}`" in TROUBLE or name in errors.__all__, f"{name} ({path.name}): describe it there"


def test_exit_codes_and_http_statuses_are_those_of_the_code() -> None:
    from semo_sdk.serving.problems import problem

    rows = re.findall(r"^\| (.*`\w+Error`.*?) \| raised.*? \| (\d+) \| (.*?) \|$", TROUBLE, re.MULTILINE)
    every: dict[str, type[errors.SemoError]] = {name: getattr(errors, name) for name in errors.__all__}
    named = set()
    for cell, code, status in rows:
        for name in re.findall(r"`(\w+Error)`", cell):
            kinds = [kind for kind in every.values() if issubclass(kind, every[name])]
            for kind in kinds if "and below" in cell else [every[name]]:
                named.add(kind.__name__)
                assert exit_code(kind("x")) == int(code), kind
                if status != "-":
                    assert str(problem(kind("x"))[0]) in status, kind
    assert named == set(errors.__all__) - {"SemoError"}


def templates() -> Iterator[str]:
    """Every text in the package, with … for what is filled in."""
    for folder in ("semo_sdk", "export", "engines"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_messages_in_troubleshooting_are_in_the_code() -> None:
    texts = set(templates())
    messages = re.findall(r"^\| `(.+?)` \|", TROUBLE.split("## SemoError")[1], re.MULTILINE)
    assert len(messages) > 60
    for message in messages:
        pieces = message.split("…")
        pattern = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
        assert any(max(pieces, key=len) in text and pattern.search(text) for text in texts), message


EXAMPLES = [
    pytest.param(code, id=f"{path.relative_to(ROOT)}:{line}")
    for folder in ("semo_sdk", "export", "engines")
    for path in sorted((ROOT / folder).rglob("*.py"))
    for line, code in examples(path)
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_in_docstrings_are_python(code: str) -> None:
    compile(code, "docstring", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_video_is_small() -> None:
    assert 20_000 < (ROOT / "docs" / "talking.mp4").stat().st_size < 400_000


def test_nothing_is_loaded_from_other_hosts() -> None:
    assert "font: false" in MKDOCS and "extra_javascript" not in MKDOCS and "extra_css" not in MKDOCS


def test_the_picture_is_plain_svg() -> None:
    from xml.etree import ElementTree

    picture = (Path(ROOT) / "docs" / "data-flow.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(picture).tag.endswith("svg") and "<script" not in picture
