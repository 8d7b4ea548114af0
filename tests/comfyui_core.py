"""Stand-ins for those of ComfyUI's own nodes that the workflows of tests/test_comfyui.py use."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from semo_sdk.media.image import load_image
from semo_sdk.media.video import VideoWriter
from tests.comfyui_api import ComfyNode, NodeOutput, Schema, Widget, io_class
from tests.comfyui_tools import ComfyUI
from tests.conftest import EXAMPLES

__all__ = ["RATE", "register_core_nodes"]

RATE = 44_100  # Hz of all sound here

IMAGE, AUDIO, VIDEO = io_class("IMAGE"), io_class("AUDIO"), io_class("VIDEO")
STRING, FLOAT = io_class("STRING", Widget), io_class("FLOAT", Widget)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 pixels as ComfyUI's LoadImage gives them."""
    return torch.from_numpy(np.asarray(pixels).astype(np.float32) / 255.0)


def register_core_nodes(ui: ComfyUI) -> None:
    """Adds LoadImage, LoadAudio, CreateVideo, SaveVideo; Driving gives a nodding face, KeepAny wants anything."""

    class LoadImage(ComfyNode):
        @classmethod
        def define_schema(cls) -> Schema:
            return Schema("LoadImage", inputs=[STRING.Input("image")], outputs=[IMAGE.Output()])

        @classmethod
        def execute(cls, image: str) -> NodeOutput:
            if image == "blank.png":
                return NodeOutput(torch.ones(1, 200, 300, 3))
            if image == "two.npy":
                return NodeOutput(torch.ones(2, 200, 300, 3))
            return NodeOutput(tensor(np.asarray(Image.open(ui.root / "input" / image).convert("RGB")))[None])

    class LoadAudio(ComfyNode):
        @classmethod
        def define_schema(cls) -> Schema:
            return Schema("LoadAudio", inputs=[STRING.Input("audio")], outputs=[AUDIO.Output()])

        @classmethod
        def execute(cls, audio: str) -> NodeOutput:
            waves = {
                "batch": torch.zeros(2, 1, 100),
                "nan": torch.full((1, 1, 100), torch.nan),
                "empty": torch.zeros(1, 1, 0),
            }
            wave = waves[audio] if audio in waves else torch.from_numpy(np.load(ui.root / "input" / audio))[None]
            return NodeOutput({"waveform": wave, "sample_rate": RATE})

    class CreateVideo(ComfyNode):
        @classmethod
        def define_schema(cls) -> Schema:
            inputs = [IMAGE.Input("images"), AUDIO.Input("audio"), FLOAT.Input("fps")]
            return Schema("CreateVideo", inputs=inputs, outputs=[VIDEO.Output()])

        @classmethod
        def execute(cls, images: torch.Tensor, audio: Any, fps: float) -> NodeOutput:
            assert 0 <= images.min() <= images.max() <= 1
            assert audio["waveform"].shape[2] == len(images) * audio["sample_rate"] / fps
            return NodeOutput(images)

    class SaveVideo(ComfyNode):
        @classmethod
        def define_schema(cls) -> Schema:
            names = ("filename_prefix", "format", "codec")
            inputs = [VIDEO.Input("video"), *(STRING.Input(name) for name in names)]
            return Schema("SaveVideo", inputs=inputs, is_output_node=True)

        @classmethod
        def execute(cls, video: torch.Tensor, filename_prefix: str, format: str, codec: str) -> NodeOutput:
            pixels = (video * 255).round().to(torch.uint8).numpy()
            with VideoWriter(ui.root / "output" / "saved.mp4", (pixels.shape[2], pixels.shape[1])) as writer:
                writer.write(pixels)
            return NodeOutput()

    class Driving(ComfyNode):
        @classmethod
        def define_schema(cls) -> Schema:
            return Schema("Driving", inputs=[FLOAT.Input("fps")], outputs=[IMAGE.Output()])

        @classmethod
        def execute(cls, fps: float) -> NodeOutput:
            photo = load_image(EXAMPLES / "portrait2.jpg")
            return NodeOutput(tensor(np.stack([np.roll(photo, number, axis=0) for number in range(8)])))

    class KeepAny(ComfyNode):
        @classmethod
        def define_schema(cls) -> Schema:
            return Schema("KeepAny", inputs=[IMAGE.Input("anything")], is_output_node=True)

        @classmethod
        def execute(cls, anything: Any) -> NodeOutput:
            return NodeOutput()

    for node in (LoadImage, LoadAudio, CreateVideo, SaveVideo, Driving, KeepAny):
        ui.add(node)
