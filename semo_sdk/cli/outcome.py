"""How a command ends: one clear line or one JSON object, and an exit code that says what kind of failure it was."""

from __future__ import annotations

import importlib
import importlib.util
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from semo_sdk.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    EngineError,
    ExportError,
    InputError,
    MissingDependencyError,
    SemoError,
)

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, 130),
    (ConfigError, 2),
    (InputError, 3),
    (BundleError, 4),
    (CheckpointError, 4),
    (EngineError, 5),
    (ExportError, 5),
    (MissingDependencyError, 6),
)
# A module with a command line of its own gets all arguments, --help included: its options are written once.
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


def exit_code(error: BaseException) -> int:
    """The exit code of an exception (see :mod:`semo_sdk.cli`)."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


@contextmanager
def outcome(as_json: bool = False) -> Iterator[None]:
    """Turns an exception into one clear line (or a JSON object) and the right exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if not isinstance(error, SemoError | OSError | KeyboardInterrupt):
            traceback.print_exc()  # a defect: whoever reports it needs the place
        message = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        if as_json:
            typer.echo(json.dumps({"error": {"type": type(error).__name__, "message": message, "code": code}}))
        else:
            typer.echo(f"semo: {message}", err=True)
        raise typer.Exit(code) from None


def need(extra: str, *modules: str) -> None:
    """Checks that packages are there before a command starts.

    Raises:
        MissingDependencyError: names them and the extra that brings them.
    """
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    if lacking:
        raise MissingDependencyError(f"{', '.join(lacking)} is not installed: pip install 'semo-sdk[{extra}]'")


def delegate(module: str, context: typer.Context) -> None:
    """Runs the command line of another module with all arguments of this command."""
    importlib.import_module(module).main(context.args)
