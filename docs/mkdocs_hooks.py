"""What MkDocs does beyond its plugins: pages from outside of ``docs/``, measured tables, the command line's own help.

Pages link to files of the repository as they lie there (``../CONTRIBUTING.md``), so that links also work where the
repository is browsed. Whatever is linked to becomes a part of the site, below ``repository/``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "semo_sdk/bundles/semo-tiny/README.md")  # named in the navigation
LINK = re.compile(r"(\]\()([\w./-]+)((?:#[\w-]+)?\))")
PREFIX = "repository/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and files of the repository that pages link to, and the command line's page."""
    files.append(File.generated(config, "cli.md", content=command_line()))
    open_pages = [ROOT / name for name in PAGES]
    open_pages += [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    seen: set[Path] = set()
    while open_pages:
        page = open_pages.pop()
        if page in seen:
            continue
        seen.add(page)
        if _place(page).startswith(PREFIX):
            files.append(File.generated(config, _place(page), abs_src_path=str(page)))
        for target in _links(page):
            if target.suffix == ".md":
                open_pages.append(target)
            elif _place(target).startswith(PREFIX) and target not in seen:
                seen.add(target)
                files.append(File.generated(config, _place(target), abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tables between their markers; links of the repository led to where the files are in the site."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    markdown = measured(markdown)
    here = Path(source).parent

    def lead(found: re.Match[str]) -> str:
        target = _file(here, found[2])
        if target is None:
            return found[0]
        way = os.path.relpath(_place(target), os.path.dirname(page.file.src_uri))
        return f"{found[1]}{way}{found[3]}"

    return LINK.sub(lead, markdown)


def _links(page: Path) -> Iterator[Path]:
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        target = _file(page.parent, found[2])
        if target is not None:
            yield target


def _file(folder: Path, link: str) -> Path | None:
    """The file of the repository that a link leads to; a folder's README."""
    target = (folder / link).resolve()
    if target.is_dir() and (target / "README.md").is_file():
        target /= "README.md"
    return target if target.is_file() and target.is_relative_to(ROOT) else None


def _place(file: Path) -> str:
    """Where a file of the repository is in the site."""
    inside = ROOT / "docs"
    return file.relative_to(inside).as_posix() if file.is_relative_to(inside) else PREFIX + _name(file)


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def measured(markdown: str) -> str:
    """A page with the tables of the results in ``benchmarks/results`` between the markers that it has."""
    from semo_sdk.benchmarks.report import update_readme

    results: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((ROOT / "benchmarks" / "results").rglob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if "benchmark" in result and f"<!-- {result['benchmark']} -->" in markdown:
            results.setdefault(result["benchmark"], []).append(result)
    return update_readme(markdown, [result for group in results.values() for result in group])


def command_line() -> str:
    """The page of the ``semo`` command, made from the command itself."""
    import typer

    from semo_sdk.cli import app

    root: Any = typer.main.get_command(app)
    parts = ["# Command line", "Made from the command's own help (`semo COMMAND --help`).", f"{root.epilog}"]
    return "\n\n".join([*parts, *_commands(root, [])]) + "\n"


def _commands(group: Any, path: list[str]) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        words = [*path, name]
        yield f"## semo {' '.join(words)}\n\n{_text(command.help)}"
        if command.context_settings.get("ignore_unknown_options"):  # its module has a parser of its own
            yield f"```text\n{_own_help(words)}\n```"
        elif rows := [_row(parameter) for parameter in command.params if parameter.name != "help"]:
            yield "\n".join(["| argument | meaning | default |", "| --- | --- | --- |", *rows])
        if hasattr(command, "commands"):
            yield from _commands(command, words)


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts] if name.startswith("-"))
    default = parameter.default
    is_said = default is not None and default is not False and not callable(default) and "Sentinel" not in repr(default)
    shown = f"`{default}`" if is_said and default != () else ""
    if getattr(parameter, "required", False):
        shown = "required"
    return f"| {names or '`' + parameter.name.upper() + '`'} | {_text(getattr(parameter, 'help', ''))} | {shown} |"


def _own_help(words: list[str]) -> str:
    from typer.testing import CliRunner

    from semo_sdk.cli import app

    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100"})
    if result.exit_code:
        raise RuntimeError(f"semo {' '.join(words)} --help: {result.output}")
    return str(result.output).strip()


def _text(help: str | None) -> str:
    """A help text in one line, safe in a Markdown table."""
    return re.sub(r"\s+", " ", help or "").replace("|", "\\|").replace("<", "&lt;").strip()
