"""A talking head in the terminal: half-block characters in 24-bit colours, 25 frames a second, with sound.

    python examples/terminal.py                             the example inputs
    python examples/terminal.py photo.jpg speech.mp3 --columns 100 --save talking.mp4

Sound goes to the first of ffplay, paplay, aplay and play that is installed; without one the picture is silent.
Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TextIO

import numpy as np
from PIL import Image

from semo_sdk import Animator, Chunk
from semo_sdk.constants import FPS, IMAGE_SIZE, SAMPLE_RATE
from semo_sdk.errors import SemoError
from semo_sdk.media.video import VideoWriter

HERE = Path(__file__).parent
PLAYERS = {  # commands that play 16-bit mono sound at 16 kHz as it comes through stdin
    "ffplay": f"ffplay -v error -nodisp -autoexit -f s16le -ar {SAMPLE_RATE} -i pipe:0",
    "paplay": f"paplay --raw --format=s16le --rate={SAMPLE_RATE} --channels=1",
    "aplay": f"aplay -q -t raw -f S16_LE -r {SAMPLE_RATE} -c 1",
    "play": f"play -q -t raw -e signed -b 16 -r {SAMPLE_RATE} -c 1 -",
}
BEGIN = "\x1b[?1049h\x1b[?25l\x1b[2J"  # a screen of our own, no cursor
END = "\x1b[0m\x1b[?25h\x1b[?1049l"  # and everything back


def drawn(frame: np.ndarray, columns: int) -> str:
    """A frame as text.

    Args:
        frame: (H, H, 3) uint8 RGB.
        columns: characters a line. Each shows two pixels, the upper one in its own colour, the lower one behind it.

    Returns:
        ``columns`` / 2 lines, drawn from the upper left corner.
    """
    side = columns // 2 * 2
    pixels = np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX)).tolist()
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = []
        for (r, g, b), (red, green, blue) in zip(upper, lower, strict=True):
            cells.append(f"\x1b[38;2;{r};{g};{b};48;2;{red};{green};{blue}m\u2580")
        lines.append("".join(cells) + "\x1b[0m")
    return "\x1b[H" + "\r\n".join(lines)


def ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks; while one is shown, the next one is made."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = pool.submit(next, chunks, None)
            yield chunk


def show(chunks: Iterator[Chunk], screen: TextIO, columns: int, sound: IO[bytes] | None) -> int:
    """Plays chunks in real time.

    Args:
        chunks: frames and their sound.
        screen: where to draw.
        columns: as for :func:`drawn`.
        sound: takes 16-bit samples; None for silence.

    Returns:
        How many frames were left out because they came too late.
    """
    begin, late = 0.0, 0
    for chunk in chunks:
        begin = begin or time.perf_counter()  # the clock starts with the first frame
        if sound is not None:
            with contextlib.suppress(BrokenPipeError):  # a player that gave up does not stop the picture
                sound.write(np.rint(chunk.audio * 32_767).astype("<i2").tobytes())
                sound.flush()
        for number, frame in enumerate(chunk.frames, chunk.index):
            wait = begin + number / FPS - time.perf_counter()
            if wait < -1 / FPS:
                late += 1
                continue
            time.sleep(max(wait, 0))
            screen.write(drawn(frame, columns))
            screen.flush()
    return late


@contextlib.contextmanager
def player(command: str | None) -> Iterator[IO[bytes] | None]:
    """The stdin of a program that plays sound, None if there is none; waits until it has played."""
    found = next((PLAYERS[name] for name in PLAYERS if shutil.which(name)), "") if command is None else command
    if not found:
        yield None
        return
    process = subprocess.Popen(shlex.split(found), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    try:
        yield process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()


def saved(chunks: Iterator[Chunk], path: str, animator: Animator) -> Iterator[Chunk]:
    """The same chunks, which also become a video, signed: AI-generated."""
    with VideoWriter(path, (IMAGE_SIZE, IMAGE_SIZE), seal=animator.provenance) as writer:
        for chunk in chunks:
            writer.write(chunk.frames, chunk.audio)
            yield chunk


def main(arguments: list[str] | None = None, screen: TextIO = sys.stdout) -> None:
    """Reads the command line and plays."""
    window = shutil.get_terminal_size()
    parser = argparse.ArgumentParser(description="A talking head in the terminal.")
    parser.add_argument("portrait", nargs="?", default=HERE / "portrait.jpg", help="any photo with a face")
    parser.add_argument("speech", nargs="?", default=HERE / "speech.wav", help="anything with sound")
    parser.add_argument("--columns", type=int, default=min(window.columns, 2 * window.lines - 2), help="width")
    parser.add_argument("--player", help="command that plays 16-bit mono sound at 16 kHz from stdin; '' for silence")
    parser.add_argument("--save", metavar="MP4", help="write the video, too")
    options = parser.parse_args(arguments)
    if options.columns < 2:
        parser.error("--columns: at least 2")

    late = 0
    try:
        with Animator(options.portrait) as animator, player(options.player) as sound:
            chunks = animator.stream(options.speech)
            if options.save:
                chunks = saved(chunks, options.save, animator)
            animator.warm_up()  # the models are ready before the screen is cleared
            screen.write(BEGIN)
            try:
                late = show(ahead(chunks), screen, options.columns, sound)
            finally:
                screen.write(END)
                screen.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except SemoError as error:  # every error of the SDK says what was wrong and what to do
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    if late:
        print(f"{late} frames came too late and were left out", file=sys.stderr)


if __name__ == "__main__":
    main()
