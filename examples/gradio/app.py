"""A page that turns a photo and speech into a talking head, and plays it while it is made. Also a Hugging Face Space.

    pip install -r examples/gradio/requirements.txt
    python examples/gradio/app.py                           http://127.0.0.1:7860

Settings from the environment: SEMO_BUNDLE (a bundle; default semo-tiny), SEMO_JOBS (videos made at once; default 1),
and Gradio's own (GRADIO_SERVER_NAME, GRADIO_SERVER_PORT, ...).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from segments import concatenated, seconds_of, segments

from semo_sdk import Animator
from semo_sdk.errors import SemoError
from semo_sdk.media.audio import load_audio

HERE = Path(__file__).parent
INPUTS = HERE if (HERE / "portrait.jpg").exists() else HERE.parent  # a Space has them beside app.py
EXAMPLES = [[INPUTS / "portrait.jpg", INPUTS / "speech.wav"], [INPUTS / "portrait2.jpg", INPUTS / "grid.wav"]]
MAX_SECONDS = 60.0  # of speech
MAX_WAITING = 8  # visitors in the queue; the next one is told to come back
KEPT_SECONDS = 3600  # uploads and videos on this machine's disk

NOTICE = """
# A photo speaks

Choose a photo of a face and something said. The video starts to play while it is still being made.

**Use only photos and voices of people who agreed to it, or of people who do not exist.** Say that a video is
AI-generated wherever you show it: in many places the law asks for that. Do not deceive, and do not put words into
anybody's mouth. Uploads and videos are deleted from this machine after an hour.
"""


def build(animator: Animator) -> gr.Blocks:
    """The page.

    Args:
        animator: its engines serve all visitors, each with a portrait of their own.
    """

    def animate(
        photo: str | None,
        speech: str | None,
        consent: bool,
        expressiveness: float,
        head_motion: float,
        blink: float,
        latency: str,
        seed: float | None,
        face: float | None,
    ) -> Iterator[tuple[Any, Any]]:
        """Pieces of the video, and at the end the whole file."""
        if not consent:
            raise gr.Error("Confirm first that the people in the photo and in the recording agree.", title="Consent")
        if not photo or not speech:
            raise gr.Error("Choose a photo, and record or choose some speech.", title="Something is missing")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            try:
                visitor = animator.with_portrait(photo, face_index=None if face is None or face < 0 else int(face))
                clip = visitor.from_audio(
                    load_audio(speech, max_seconds=MAX_SECONDS),
                    latency=latency,
                    seed=int(seed or 0),
                    expressiveness=expressiveness,
                    head_motion=head_motion,
                    blink=blink,
                )
                pieces = []
                for piece in segments(clip, folder):
                    pieces.append(piece)
                    yield str(piece), gr.skip()
                yield None, str(concatenated(pieces, folder / "talking.mp4"))
            except SemoError as error:  # says what was wrong and what to do
                raise gr.Error(str(error), title=type(error).__name__, print_exception=False) from error

    with gr.Blocks(title="SeMo", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as demo:
        gr.Markdown(NOTICE)
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type="filepath", sources=["upload", "webcam", "clipboard"], label="Photo", height=280)
                speech = gr.Audio(type="filepath", sources=["upload", "microphone"], label="Speech, up to a minute")
                consent = gr.Checkbox(label="The people in the photo and in the recording agree, or do not exist.")
                with gr.Accordion("Settings", open=False):
                    guidance = animator.config.generator.guidance
                    expressiveness = gr.Slider(0, 10, guidance, step=0.1, label="Expressiveness: lips and face")
                    head_motion = gr.Slider(0, 2, 1, step=0.05, label="Head motion")
                    blink = gr.Slider(0, 1, 1, step=0.05, label="Blinks")
                    latency = gr.Radio(["quality", "balanced", "low"], value="quality", label="Frames decided at once")
                    seed = gr.Number(0, precision=0, minimum=0, maximum=2**53, label="Seed: same seed, same video")
                    face = gr.Number(-1, precision=0, minimum=-1, label="Face: 0 is the largest; -1 the only large one")
                start = gr.Button("Speak", variant="primary")
                stop = gr.Button("Stop")
            with gr.Column():
                video = gr.Video(streaming=True, autoplay=True, label="AI-generated", height=400)
                whole = gr.File(label="The whole video", interactive=False)
        gr.Examples([[str(path) for path in row] for row in EXAMPLES], [photo, speech], cache_examples=False)
        play_pieces(video)
        running = start.click(
            animate,
            [photo, speech, consent, expressiveness, head_motion, blink, latency, seed, face],
            [video, whole],
            api_name="animate",
            concurrency_limit=int(os.environ.get("SEMO_JOBS", "1")),
        )
        stop.click(None, cancels=running)
    return demo.queue(max_size=MAX_WAITING)


def play_pieces(video: gr.Video) -> None:
    """Lets a streaming video take pieces as they are. By itself it needs ffmpeg and ffprobe and encodes sound again."""

    async def stream_output(value: str | None, output_id: str, first_chunk: bool) -> tuple[Any, dict[str, Any]]:
        shown = {"path": output_id, "is_stream": True, "orig_name": "talking.mp4", "meta": {"_type": "gradio.FileData"}}
        if value is None:
            return None, shown
        piece = Path(value)
        return {"data": piece.read_bytes(), "duration": seconds_of(piece), "extension": ".ts"}, shown

    async def combine_stream(stream: list[bytes], *_: Any, **__: Any) -> gr.FileData:
        folder = Path(tempfile.mkdtemp(dir=video.GRADIO_CACHE))
        pieces = [folder / f"{number}.ts" for number in range(len(stream))]
        for piece, data in zip(pieces, stream, strict=True):
            piece.write_bytes(data)
        return gr.FileData(path=str(concatenated(pieces, folder / "talking.mp4")), orig_name="talking.mp4")

    video.stream_output = stream_output
    video.combine_stream = combine_stream


def main() -> None:
    """Opens the model, and the page on this machine."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with Animator(INPUTS / "portrait.jpg", bundle=os.environ.get("SEMO_BUNDLE", "semo-tiny")) as animator:
        animator.warm_up()
        build(animator).launch(share=False, max_file_size="20mb", show_error=True, footer_links=[])


if __name__ == "__main__":
    main()
