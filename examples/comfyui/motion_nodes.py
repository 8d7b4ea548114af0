"""Motion as data: render it on another portrait, save it, load it."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from semo_sdk import Animator, Motion

from .nodes import CATEGORY, paste_back_input  # noqa: TID252
from .values import MotionType, PortraitType, Progress, draw  # noqa: TID252

__all__ = ["SemoLoadMotion", "SemoRenderMotion", "SemoSaveMotion"]


class SemoRenderMotion(io.ComfyNode):
    """Motion of one portrait on another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SemoRenderMotion",
            display_name="SeMo Render Motion",
            category=CATEGORY,
            description="Draws motion that another portrait made, or that was saved.",
            inputs=[
                PortraitType.Input("portrait"),
                MotionType.Input("motion"),
                io.Boolean.Input(
                    "retarget",
                    default=True,
                    tooltip="Start from the portrait's own pose; off: take over the pose of whoever made the motion.",
                ),
                paste_back_input(),
            ],
            outputs=[io.Image.Output(display_name="frames", tooltip="25 a second.")],
        )

    @classmethod
    def execute(cls, portrait: Animator, motion: Motion, retarget: bool, paste_back: bool) -> io.NodeOutput:
        """The frames."""
        moved = motion.check(portrait.config)
        if retarget:
            moved = moved.retarget(portrait.reference.motion[0])
        clip = portrait.render_motion(moved)
        return io.NodeOutput(draw(clip, paste_back, Progress(len(clip)))[0])


class SemoSaveMotion(io.ComfyNode):
    """Motion to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SemoSaveMotion",
            display_name="Save SeMo Motion",
            category=CATEGORY,
            description="Writes motion to an .npz file in the output folder; semo_sdk.Motion.load reads it, too.",
            inputs=[
                MotionType.Input("motion"),
                io.String.Input("filename_prefix", default="semo/motion"),
            ],
            outputs=[io.String.Output(display_name="file")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, motion: Motion, filename_prefix: str) -> io.NodeOutput:
        """The file's path."""
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        return io.NodeOutput(str(motion.save(Path(folder) / f"{name}_{counter:05}_.npz")))


class SemoLoadMotion(io.ComfyNode):
    """Motion from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        own = sorted(path.name for path in Path(folder_paths.get_input_directory()).glob("*.npz"))
        saved = sorted(path.name for path in Path(folder_paths.get_output_directory(), "semo").glob("*.npz"))
        return io.Schema(
            node_id="SemoLoadMotion",
            display_name="Load SeMo Motion",
            category=CATEGORY,
            description="Reads motion from the input folder, or what Save SeMo Motion wrote into output/semo.",
            inputs=[io.Combo.Input("file", options=own + [f"semo/{name} [output]" for name in saved])],
            outputs=[MotionType.Output(display_name="motion")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        """Changes when the file does."""
        stat = Path(folder_paths.get_annotated_filepath(file)).stat()
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """The motion."""
        return io.NodeOutput(Motion.load(folder_paths.get_annotated_filepath(file)))
