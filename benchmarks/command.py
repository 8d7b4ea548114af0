"""What the benchmark commands share: the options that choose an engine, and what is done with the result."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semo_sdk.benchmarks.report import write_json

if TYPE_CHECKING:
    from semo_sdk.bundle import Bundle


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser of ``semo bench NAME`` with ``--bundle``, ``--backend``, ``--precision`` and ``--json``."""
    parser = argparse.ArgumentParser(prog=f"semo bench {name}", description=description)
    parser.add_argument("--bundle", default="semo-tiny", help="bundle folder, or the name of the embedded one")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path, help="write the result")
    return parser


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Adds ``--threads``."""
    parser.add_argument("--threads", type=int, help="CPU threads; default: all usable cores")


def label_of(bundle: Bundle) -> str:
    """ "trained weights" or "random weights": a speed measured with random weights says nothing of pictures."""
    words = [str(value).lower() for value in bundle.manifest.provenance.values()]
    known = words and not any(word == "random" or "random weights" in word for word in words)
    return "trained weights" if known else "random weights"


def add_footage(parser: argparse.ArgumentParser, *, counts: str) -> None:
    """Adds ``--clips``, ``--portraits``, ``--latency`` and ``--count``, of which ``counts`` says what it counts."""
    parser.add_argument("--clips", type=Path, required=True, help="folder of talking-head videos with sound")
    parser.add_argument("--portraits", type=Path, required=True, help="folder of photos")
    parser.add_argument("--latency", default="quality", choices=["quality", "balanced", "low"])
    parser.add_argument("--count", type=int, default=12, help=counts)


def deliver(result: Mapping[str, Any], json: Path | None, text: str) -> None:
    """Writes the result where it is wanted, and its tables to stdout."""
    if json:
        write_json(json, result)
    sys.stdout.write(text + "\n")
