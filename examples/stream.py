"""Live: speech comes in 20 ms pieces, as from a microphone, and chunks of frames with their sound go out.

    python examples/stream.py                               the example inputs -> live.mp4
    python examples/stream.py photo.jpg speech.mp3 --latency balanced

A real application takes the pieces from its sound card or voice service, and shows the frames instead of storing
them. Replace ``microphone`` and ``show``; the loop in ``main`` stays.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from semo_sdk import Animator, Chunk
from semo_sdk.constants import SAMPLE_RATE
from semo_sdk.media.audio import load_audio
from semo_sdk.media.video import VideoWriter

HERE = Path(__file__).parent
PIECE = SAMPLE_RATE // 50  # samples in 20 ms


def microphone(speech: str | Path) -> Iterator[np.ndarray]:
    """A recording, spoken in real time: every 20 ms the next (n,) int16 samples at 16 kHz."""
    samples = np.rint(load_audio(speech) * 32_767).astype(np.int16)
    begin = time.perf_counter()
    for start in range(0, len(samples), PIECE):
        piece = samples[start : start + PIECE]
        spoken_at = begin + (start + len(piece)) / SAMPLE_RATE
        time.sleep(max(spoken_at - time.perf_counter(), 0))
        yield piece


def show(chunk: Chunk, begin: float, writer: VideoWriter) -> None:
    """Stands for a window and a loudspeaker: stores the chunk and says how late it is."""
    writer.write(chunk.frames, chunk.audio)
    spoken = chunk.start_time + len(chunk.audio) / SAMPLE_RATE  # when its last sample came
    late = time.perf_counter() - begin - spoken
    print(
        f"{chunk.start_time:6.2f} s: {len(chunk.frames):2d} frames, ready {1000 * late:4.0f} ms after their last sample"
    )


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and plays."""
    parser = argparse.ArgumentParser(description="Speech in small pieces becomes a live video.")
    parser.add_argument("portrait", nargs="?", default=HERE / "portrait.jpg", help="any photo with a face")
    parser.add_argument("speech", nargs="?", default=HERE / "speech.wav", help="anything with sound")
    parser.add_argument("video", nargs="?", default="live.mp4", help="where to store what would be shown")
    parser.add_argument("--latency", choices=("quality", "balanced", "low"), default="low")
    options = parser.parse_args(arguments)

    with (
        Animator(options.portrait) as animator,
        animator.session(latency=options.latency) as session,  # the models are ready when this returns
        VideoWriter(options.video, (256, 256), seal=animator.provenance) as writer,  # signed: AI-generated
    ):
        begin = time.perf_counter()
        for piece in microphone(options.speech):
            for chunk in session.push(piece, sample_rate=SAMPLE_RATE):  # often none: a chunk needs several pieces
                show(chunk, begin, writer)
        for chunk in session.flush():  # the speaker stopped: what is left
            show(chunk, begin, writer)


if __name__ == "__main__":
    main()
