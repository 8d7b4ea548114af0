"""Offline: a photo and a recording become a video.

python examples/animate.py                              the example inputs -> talking.mp4
python examples/animate.py photo.jpg speech.mp3 out.mp4 --paste-back
"""

from __future__ import annotations

import argparse
from pathlib import Path

from semo_sdk import Animator
from semo_sdk.errors import SemoError

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and makes the video."""
    parser = argparse.ArgumentParser(description="A photo and a recording become a video.")
    parser.add_argument("portrait", nargs="?", default=HERE / "portrait.jpg", help="any photo with a face")
    parser.add_argument("speech", nargs="?", default=HERE / "speech.wav", help="anything with sound")
    parser.add_argument("video", nargs="?", default="talking.mp4", help="the MP4 to write")
    parser.add_argument("--paste-back", action="store_true", help="the whole photo instead of the 256 x 256 crop")
    options = parser.parse_args(arguments)

    try:
        with Animator(options.portrait) as animator:
            clip = animator.from_audio(options.speech)  # no frame is made yet
            clip.save(options.video, paste_back=options.paste_back, progress=True)
    except SemoError as error:  # every error of the SDK says what was wrong and what to do
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    print(f"{options.video}: {clip.duration:.2f} s of video")


if __name__ == "__main__":
    main()
