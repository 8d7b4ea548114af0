"""Load a model, take a portrait, make it speak or follow a face."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

from semo_sdk import Animator, Bundle, Motion
from semo_sdk.backends import load_engines
from semo_sdk.bundle import embedded_bundles
from semo_sdk.media.image import find_portrait
from semo_sdk.pipeline.graphs import Graphs

from .values import (  # noqa: TID252
    Audio,
    ModelType,
    MotionType,
    PortraitType,
    Progress,
    draw,
    fit,
    photo,
    pictures,
    pixels,
    speech,
    times,
)

__all__ = ["CATEGORY", "SemoLoadModel", "SemoPortrait", "SemoReenact", "SemoSpeak", "bundles", "paste_back_input"]

CATEGORY = "SeMo"
BACKENDS = ["auto", "openvino", "onnxruntime", "torch", "tensorrt"]
PRECISIONS = ["auto", "fp32", "bf16", "fp16"]

# Engines that are open, by bundle and settings. ComfyUI keeps a model between runs, and drops it with "free memory".
_open: weakref.WeakValueDictionary[tuple[str | int, ...], Graphs] = weakref.WeakValueDictionary()


def bundles() -> dict[str, Path]:
    """The models to choose from: those in semo-sdk, and the bundles in ``ComfyUI/models/semo``."""
    folder = os.path.join(folder_paths.models_dir, "semo")
    if "semo" not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path("semo", folder)
    own = [Path(place) for place in folder_paths.get_folder_paths("semo")]
    found = {
        manifest.parent.name: manifest.parent for place in own for manifest in sorted(place.glob("*/manifest.json"))
    }
    return {**found, **embedded_bundles()}


def paste_back_input() -> io.Boolean.Input:
    """The switch that the nodes with frames share."""
    return io.Boolean.Input(
        "paste_back",
        default=False,
        tooltip="The whole photo with the moving face in it, instead of the 256 x 256 crop. A second of frames then "
        "takes 300 bytes a pixel of the photo: 300 MB for one megapixel.",
    )


class SemoLoadModel(io.ComfyNode):
    """A bundle and what runs it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SemoLoadModel",
            display_name="Load SeMo Model",
            category=CATEGORY,
            description="Opens a SeMo model. It stays open between runs; a bundle that changed on disk is opened anew.",
            inputs=[
                io.Combo.Input(
                    "bundle",
                    options=sorted(bundles()),
                    default="semo-tiny",
                    tooltip="semo-tiny comes with semo-sdk; put other bundles into ComfyUI/models/semo.",
                ),
                io.Combo.Input("backend", options=BACKENDS, default="auto", tooltip="What runs the model."),
                io.Combo.Input("precision", options=PRECISIONS, default="auto", tooltip="auto: the backend's best."),
                io.Int.Input("threads", default=0, min=0, max=1024, tooltip="CPU threads; 0: all."),
            ],
            outputs=[ModelType.Output(display_name="model")],
        )

    @classmethod
    def fingerprint_inputs(cls, bundle: str, backend: str, precision: str, threads: int) -> str:
        """Changes when a file of the bundle does."""
        return Bundle.open(bundles()[bundle], verify=False).fingerprint

    @classmethod
    def execute(cls, bundle: str, backend: str, precision: str, threads: int) -> io.NodeOutput:
        """The model's graphs, on the engines that are open already if there are any."""
        opened = Bundle.open(bundles()[bundle])
        key = (opened.fingerprint, backend, precision, threads)
        graphs = _open.get(key)
        if graphs is None:
            engines = load_engines(opened, backend=backend, precision=precision, threads=threads or None)
            graphs = _open[key] = Graphs(engines, opened.config)
        return io.NodeOutput(graphs)


class SemoPortrait(io.ComfyNode):
    """A face in a photo, ready to move."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SemoPortrait",
            display_name="SeMo Portrait",
            category=CATEGORY,
            description="Finds the face in a photo. Use photos of people who agreed to it, or who do not exist.",
            inputs=[
                ModelType.Input("model"),
                io.Image.Input("image", tooltip="One photo with a face, from the front."),
                io.Int.Input(
                    "face_index",
                    default=-1,
                    min=-1,
                    max=99,
                    tooltip="Which face, when there are several: 0 is the largest. -1: the only large one.",
                ),
                io.Float.Input(
                    "crop_scale",
                    default=2.0,
                    min=1.2,
                    max=4.0,
                    step=0.1,
                    tooltip="Side of the square crop in face heights; the model was trained around 2.",
                ),
            ],
            outputs=[
                PortraitType.Output(display_name="portrait"),
                io.Image.Output(display_name="crop", tooltip="What the model sees, 256 x 256."),
            ],
        )

    @classmethod
    def execute(cls, model: Graphs, image: torch.Tensor, face_index: int, crop_scale: float) -> io.NodeOutput:
        """The portrait, with all that the model keeps of it."""
        found = find_portrait(photo(image), None if face_index < 0 else face_index, crop_scale)
        animator = Animator.from_graphs(found, model)
        animator.reference  # noqa: B018 - computed here, so that ComfyUI keeps it for the next run
        return io.NodeOutput(animator, pictures(found.crop[None]))


class SemoSpeak(io.ComfyNode):
    """Speech moves the portrait."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SemoSpeak",
            display_name="SeMo Speak",
            category=CATEGORY,
            description="The portrait speaks: 25 frames a second, and their sound.",
            inputs=[
                PortraitType.Input("portrait"),
                io.Audio.Input("audio", tooltip="Speech, of any rate and channel count."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="Same seed, same frames."),
                io.Combo.Input(
                    "latency",
                    options=["quality", "balanced", "low"],
                    default="quality",
                    tooltip="Frames decided at once: 16, 8 or 4. As in a live session; quality is best here.",
                ),
                io.Float.Input(
                    "expressiveness",
                    default=-1.0,
                    min=-1.0,
                    max=10.0,
                    step=0.1,
                    tooltip="How strongly the speech moves the face, 0 to 10. -1: the model's own.",
                ),
                io.Float.Input(
                    "head_motion",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much the head moves; 0 holds it still.",
                ),
                io.Float.Input(
                    "blink", default=1.0, min=0.0, max=1.0, step=0.05, tooltip="How far the eyes close in a blink."
                ),
                paste_back_input(),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="25 a second."),
                io.Audio.Output(display_name="sound", tooltip="The speech, exactly as long as the frames."),
                MotionType.Output(display_name="motion"),
            ],
        )

    @classmethod
    def execute(
        cls,
        portrait: Animator,
        audio: Audio,
        seed: int,
        latency: str,
        expressiveness: float,
        head_motion: float,
        blink: float,
        paste_back: bool,
    ) -> io.NodeOutput:
        """Frames, sound and motion."""
        samples, rate = speech(audio)
        clip = portrait.from_audio(
            samples,
            sample_rate=rate,
            latency=latency,
            seed=seed,
            expressiveness=None if expressiveness < 0 else expressiveness,
            head_motion=head_motion,
            blink=blink,
        )
        frames, tokens = draw(clip, paste_back, Progress(len(clip)))
        return io.NodeOutput(frames, fit(audio, len(clip)), Motion(tokens, portrait.config.name))


class SemoReenact(io.ComfyNode):
    """A face in a video moves the portrait."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SemoReenact",
            display_name="SeMo Reenact",
            category=CATEGORY,
            description="The portrait moves as the face in a video does. Get frames and fps from Get Video Components.",
            inputs=[
                PortraitType.Input("portrait"),
                io.Image.Input("video", tooltip="Frames of one face."),
                io.Float.Input("fps", default=25.0, min=1.0, max=240.0, step=0.01, tooltip="Of the video."),
                io.Boolean.Input(
                    "relative",
                    default=True,
                    tooltip="Start from the portrait's own pose and add the movement; off: take over the video's pose.",
                ),
                io.Int.Input(
                    "face_index", default=-1, min=-1, max=99, tooltip="Which face of the video; -1: the only large one."
                ),
                paste_back_input(),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="25 a second, whatever the rate of the video."),
                MotionType.Output(display_name="motion"),
            ],
        )

    @classmethod
    def execute(
        cls, portrait: Animator, video: torch.Tensor, fps: float, relative: bool, face_index: int, paste_back: bool
    ) -> io.NodeOutput:
        """Frames and motion."""
        wanted = times(len(video), fps)
        progress = Progress(2 * len(wanted))

        def driving() -> Iterator[np.ndarray]:
            for number in wanted:
                progress.step(1)
                yield pixels(video[number])

        clip = portrait.reenact(driving(), relative=relative, face_index=None if face_index < 0 else face_index)
        frames, tokens = draw(clip, paste_back, progress)
        return io.NodeOutput(frames, Motion(tokens, portrait.config.name))
