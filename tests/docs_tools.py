"""What is written in the documentation, taken apart: pages, their code blocks, headings and links, and commands."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from semo_sdk.cli import app

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^( *)(`{3,})([\w+-]*)[^\n]*\n(.*?)^\1\2[ ]*$", re.MULTILINE | re.DOTALL)
SEPARATORS = {"&&", "||", ";", "|", "&"}
KEYWORDS = {"for", "done", "if", "then", "else", "fi", "while", "do", "in"}


def pages() -> list[Path]:
    """Every Markdown file that people read, the README first."""
    folders = [ROOT.glob("*.md")] + [(ROOT / name).rglob("*.md") for name in ("docs", "examples", "benchmarks")]
    return sorted({path for found in folders for path in found if "node_modules" not in path.parts})


def name_of(page: Path) -> str:
    """``docs/app.md``"""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: its path in the repository.
        line: where it begins, from 1.
        language: the word after the fence, "" for none.
        code: without the fence and the indentation that it shares with it.
    """

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_in(text: str, page: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        indent, _, language, code = found.groups()
        lines = [line.removeprefix(indent) for line in code.splitlines(keepends=True)]
        yield Block(page, text.count("\n", 0, found.start()) + 1, language, "".join(lines))


def blocks(*languages: str) -> list[Block]:
    """The blocks of all pages, in order; of all languages when none is named."""
    every = [block for page in pages() for block in blocks_in(page.read_text(encoding="utf-8"), name_of(page))]
    return [block for block in every if not languages or block.language in languages]


def examples(path: Path) -> Iterator[tuple[int, str]]:
    """Line and code of each example in a module's docstrings."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)>>> .*(?:\n\1(?:>>>|\.\.\.).*)*", text, re.MULTILINE):
        yield text.count("\n", 0, found.start()) + 1, re.sub(r"^ *(?:>>>|\.\.\.) ?", "", found[0], flags=re.MULTILINE)


def prose(text: str) -> str:
    """A page without its code, as long as before, so that positions stay."""
    return FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def slug(heading: str) -> str:
    """The anchor that MkDocs gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain.encode("ascii", "ignore").decode()).strip().lower())


def anchors(text: str) -> set[str]:
    """Everything in a page that a link can lead to."""
    found: set[str] = set(re.findall(r'(?:id|name)="([^"]+)"', text)) | set(re.findall(r"\{ *#([\w.-]+)", text))
    for heading in re.findall(r"^#{1,6} +(.+?)(?: *\{.*\})? *$", prose(text), re.MULTILINE):
        anchor, number = slug(heading), 0
        while (name := f"{anchor}_{number}" if number else anchor) in found:
            number += 1
        found.add(name)
    return found


def links(text: str) -> Iterator[str]:
    """Targets of all links and pictures, in Markdown and in HTML."""
    plain = re.sub(r"`[^`\n]*`", "", prose(text))
    yield from re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", plain)
    yield from re.findall(r"^\[[^\]]+\]: +(\S+)", plain, re.MULTILINE)
    yield from re.findall(r'(?:src|href|poster|data)="([^"]+)"', plain)


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a shell block as words: pipes and loops (once) taken apart, settings in front dropped."""
    for variable, value in re.findall(r"^ *for (\w+) in ([^\s;]+)", code, re.MULTILINE):
        code = re.sub(rf"\${variable}\b|\${{{variable}[^}}]*}}", value, code)
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if token in SEPARATORS:
                yield from filter(None, [_command(words)])
                words = []
            else:
                words.append(token)


def _command(words: list[str]) -> list[str]:
    while words and (words[0] in ("do", "then", "else") or re.fullmatch(r"[A-Z_]+=\S*", words[0])):
        words = words[1:]
    if not words or words[0] in KEYWORDS:
        return []
    end = next((i for i, word in enumerate(words) if set(word) <= set("<>&") and word), len(words))
    return words[:end]


class Parsed(BaseException):
    """An argparse command line was read without a complaint: enough, the command need not run."""


def parse_semo(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reads the arguments of ``semo`` as the command itself would, and stops before it does anything.

    Returns:
        The command's name: ``["bench", "latency"]``.

    Raises:
        click.UsageError: there is no such command, option or choice, or an argument is missing.
        AssertionError: the same of a command with an argparse parser of its own.
    """
    command: Any = typer.main.get_command(app)
    name, rest, path, context = "semo", list(words), [], None
    while True:
        context = command.make_context(name, rest, parent=context)
        left = [*getattr(context, "_protected_args", ()), *context.args]
        if not hasattr(command, "resolve_command") or not left:
            break
        name, command, rest = command.resolve_command(context, left)
        path.append(name)
    if context.ignore_unknown_options:  # its module has the parser
        parse_module(lambda: CliRunner().invoke(app, words), monkeypatch)
    return path


def parse_module(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts a command, which must come as far as argparse being content with its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *arguments: Any, **settings: Any) -> Any:
        parse(parser, *arguments, **settings)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        try:
            result = start()
        except Parsed:
            return
        except SystemExit as error:
            raise AssertionError(f"argparse refuses it: exit code {error.code}") from error
    raise AssertionError(getattr(result, "output", None) or "it never read its arguments")
