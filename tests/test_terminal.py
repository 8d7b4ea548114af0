"""examples/terminal.py: what it draws is the frame, what it plays is the sound, and the terminal comes back."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semo_sdk import Animator, Chunk
from semo_sdk.media.image import Portrait
from semo_sdk.media.video import read_video
from semo_sdk.pipeline.graphs import Graphs
from tests.conftest import EXAMPLES, random_speech

SCRIPT = EXAMPLES / "terminal.py"
CELL = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m\u2580")


@pytest.fixture(scope="module")
def terminal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_terminal", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pictures(text: str, columns: int) -> np.ndarray:
    """(n, columns, columns, 3) uint8: what a terminal shows, frame by frame."""
    shown = []
    for picture in text.split("\x1b[H")[1:]:
        cells = np.array([[int(value) for value in cell] for cell in CELL.findall(picture)], np.uint8)
        rows = cells.reshape(-1, columns, 2, 3).transpose(0, 2, 1, 3)
        shown.append(rows.reshape(-1, columns, 3))
    return np.stack(shown)


def test_cells_are_the_frame_made_smaller(terminal: ModuleType, face_image: np.ndarray) -> None:
    text = terminal.drawn(face_image, 33)  # an odd column stays empty
    expected = np.asarray(Image.fromarray(face_image).resize((32, 32), Image.Resampling.BOX))
    assert np.array_equal(pictures(text, 32)[0], expected)
    assert text.count("\r\n") == 15 and text.endswith("\x1b[0m")


class Clock:
    """Time that passes only while somebody sleeps, so that a busy machine changes nothing."""

    def __init__(self) -> None:
        self.now = 1.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SoundFile:
    """A loudspeaker."""

    def __init__(self) -> None:
        self.taken = b""

    def write(self, samples: bytes) -> None:
        self.taken += samples

    def flush(self) -> None:
        pass


def test_late_frames_are_left_out_and_no_sound_is(
    terminal: ModuleType, animator: Animator, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, screen, sound = Clock(), StringIO(), SoundFile()
    monkeypatch.setattr(terminal, "time", clock)

    def slow() -> Iterator[Chunk]:
        for chunk in animator.stream(random_speech(40 * 640)):
            yield chunk
            clock.now += 0.25  # drawing the next one takes so much longer than showing this one

    assert terminal.show(slow(), screen, 8, sound) == 5 + 5  # twice 0.25 s; one frame late is forgiven
    assert len(pictures(screen.getvalue(), 8)) == 40 - 10
    assert len(sound.taken) == 40 * 640 * 2


@pytest.fixture
def faked(terminal: ModuleType, portrait: Portrait, graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, its Animator on fakes, and no waiting."""
    monkeypatch.setattr(terminal, "Animator", lambda photo: Animator.from_graphs(portrait, graphs))
    monkeypatch.setattr(terminal, "time", Clock())
    return terminal


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo terminals")
def test_it_plays_in_a_terminal(faked: ModuleType, animator: Animator, tmp_path: Path) -> None:
    expected = animator.from_audio(EXAMPLES / "grid.wav")
    heard, film = tmp_path / "heard.raw", tmp_path / "film.mp4"
    speaker = f'{sys.executable} -c \'import sys; open("{heard}", "wb").write(sys.stdin.buffer.read())\''
    arguments = ["--columns", "16", "--player", speaker, "--save", str(film)]
    master, slave = os.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while data := os.read(master, 65_536):
            shown.append(data)
            if data.endswith(b"\x1b[?1049l"):
                return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as screen:
        faked.main([str(EXAMPLES / "portrait.jpg"), str(EXAMPLES / "grid.wav"), *arguments], screen)
        reader.join(10)
    os.close(master)
    text = b"".join(shown).decode()
    assert text.startswith("\x1b[?1049h\x1b[?25l") and text.endswith("\x1b[0m\x1b[?25h\x1b[?1049l")
    frames = pictures(text, 16)
    assert np.array_equal(frames[-1], pictures(faked.drawn(expected.frames[-1], 16), 16)[0])
    assert len(frames) == len(expected)
    assert expected.audio is not None
    samples = np.frombuffer(heard.read_bytes(), "<i2")
    assert np.array_equal(samples, np.rint(expected.audio * 32_767).astype(np.int16))
    assert sum(1 for _ in read_video(film)) == len(expected)


def test_errors_are_one_line_and_a_dead_player_is_no_error(
    faked: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = StringIO()
    with pytest.raises(SystemExit, match="AudioError.*no such file"):
        faked.main([str(EXAMPLES / "portrait.jpg"), str(tmp_path / "none.wav"), "--player", ""], screen)
    assert not screen.getvalue()
    faked.main(["--columns", "4", "--player", f"{sys.executable} -c pass"], screen)
    assert screen.getvalue().endswith("\x1b[?1049l")
    monkeypatch.setattr(faked.shutil, "which", lambda name: None)
    faked.main(["--columns", "4"], screen)  # nothing that plays sound is installed
    with pytest.raises(SystemExit):
        faked.main(["--columns", "1"], screen)


@pytest.mark.slow
def test_ctrl_c_gives_the_terminal_back(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--columns", "8", "--player", "", "--save", str(film)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    first: Any = b""
    while b"\x1b[H" not in first:
        first += process.stdout.read1(4096)  # type: ignore[attr-defined]
    process.send_signal(signal.SIGINT)
    rest, complaint = process.communicate(timeout=60)
    assert process.returncode == 130 and (first + rest).endswith(b"\x1b[?1049l"), complaint
    assert b"Traceback" not in complaint and not film.exists()
