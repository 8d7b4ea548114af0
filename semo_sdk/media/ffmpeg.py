"""One place that starts ffmpeg: argument lists (no shell), local files only, stderr kept for messages."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from semo_sdk.errors import InputError, MissingDependencyError

__all__ = ["Ffmpeg", "local_file"]

SHUTDOWN_SECONDS = 10.0  # how long a process that was told to end may take


class Ffmpeg:
    """A running ffmpeg with one pipe. Its stderr goes to a temporary file, so that it can never block on it.

    Args:
        arguments: what follows ``ffmpeg`` and the common flags.
        write: True opens a pipe into ffmpeg (``stdin``), False a pipe out of it (``stdout``), None no pipe.

    Raises:
        MissingDependencyError: if there is no ffmpeg.
        OSError: if it cannot be started.
    """

    def __init__(self, arguments: list[str], *, write: bool | None = None) -> None:
        command = [_executable(), "-hide_banner", "-nostats", "-v", "error", *arguments]
        self._log = tempfile.TemporaryFile()  # closed in stop()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if write else subprocess.DEVNULL,
                stdout=subprocess.PIPE if write is False else subprocess.DEVNULL,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C in a terminal is for us: we stop ffmpeg and clean up
            )
        except OSError:
            self._log.close()
            raise

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def complaint(self) -> str:
        """The first lines of what ffmpeg wrote to stderr; empty if nothing."""
        if self._log.closed:
            return ""
        self._log.seek(0)
        lines = self._log.read(4000).decode(errors="replace").strip().splitlines()
        return "; ".join(line.strip() for line in lines[:4])

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal, once it has ended.

        Raises:
            subprocess.TimeoutExpired: if it runs longer than ``timeout`` seconds.
        """
        return self.process.wait(timeout)

    def stop(self) -> None:
        """Ends the process if it still runs and closes the pipes. May be called twice."""
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # bytes that a dead process will not take
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(SHUTDOWN_SECONDS)
        self._log.close()


def _executable() -> str:
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise MissingDependencyError(
            "no ffmpeg was found: reinstall imageio-ffmpeg, which brings one, or set IMAGEIO_FFMPEG_EXE"
        ) from error


@contextlib.contextmanager
def local_file(source: str | os.PathLike[str] | bytes, error: type[InputError]) -> Iterator[tuple[list[str], str]]:
    """A media file as ffmpeg input arguments.

    Args:
        source: a path, or the bytes of a file (they go to a temporary file: MP4 needs seeking).
        error: what to raise.

    Yields:
        The arguments up to and including ``-i``, and the name to use in messages.

    Raises:
        InputError: of the given type, if there is no such file or no byte in it.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes | bytearray | memoryview):
            name = f"{len(source)} bytes"
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="semo-"))
            path = Path(folder) / "input"
            path.write_bytes(source)
        else:
            path = check_file(source, error)
            name = str(path)
        if not path.stat().st_size:
            raise error(f"{name}: empty file")
        # "file:" keeps names such as "concat:..." plain names; a playlist cannot reach the network.
        yield ["-protocol_whitelist", "file,pipe", "-i", f"file:{path}"], name


def check_file(source: str | os.PathLike[str], error: type[InputError]) -> Path:
    """The path of a file that exists.

    Raises:
        InputError: of the given type, naming the path.
    """
    if not isinstance(source, str | os.PathLike):
        raise error(f"got {type(source).__name__}: expected a path or the bytes of a file")
    try:
        path = Path(os.fsdecode(source))
        if path.is_file():
            return path
        reason = "is a folder, not a file" if path.is_dir() else "no such file"
    except (ValueError, OSError) as problem:  # a null byte, a name that is too long
        raise error(f"{os.fsdecode(source)!r}: not the name of a file ({problem})") from problem
    raise error(f"{path}: {reason}")
