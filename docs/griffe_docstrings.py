"""Docstrings as mkdocstrings wants them: references as links, examples as code blocks, one line for each parameter."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")
SHARED = re.compile(r"^( {4,})(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1(?:>>>|\.\.\.).*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed; sources stay as they are."""

    def on_instance(self, *, obj: griffe.Object, **settings: Any) -> None:
        """Called for every object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)


def rewrite(text: str) -> str:
    """Sphinx roles, doctest prompts and literal-block colons in Markdown."""
    text = SHARED.sub(_each, EXAMPLE.sub(_block, text))
    text = re.sub(r"^::\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"(\w)::$", r"\1:", text, flags=re.MULTILINE)
    return ROLE.sub(_link, text)


def _each(found: re.Match[str]) -> str:
    indent, names, meaning = found.groups()
    return "\n".join(f"{indent}{name}: {meaning}" for name in names.split(", "))


def _block(found: re.Match[str]) -> str:
    indent = found[1]
    lines = [re.sub(rf"^{indent}(>>>|\.\.\.) ?", indent, line) for line in found[0].splitlines()]
    return "\n".join([f"{indent}```python", *lines, f"{indent}```"])


def _link(found: re.Match[str]) -> str:
    shortened, path = found.groups()
    shown = path.rpartition(".")[2] if shortened else path
    if not path.startswith("semo_sdk."):
        return f"`{shown}`"
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'
