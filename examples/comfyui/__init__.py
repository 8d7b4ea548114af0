"""SeMo nodes for ComfyUI: a portrait and speech become a talking head. Install: see README.md beside this file.

The nodes use ComfyUI's V3 API (``comfy_api.latest``). Copy or link this folder to ``ComfyUI/custom_nodes/semo``.
"""

from __future__ import annotations

try:
    import semo_sdk  # noqa: F401 - only to say how it is installed
except ImportError as error:
    raise ImportError("the SeMo nodes need semo-sdk in ComfyUI's Python: pip install semo-sdk") from error

from comfy_api.latest import ComfyExtension, io

# ComfyUI names a pack after the path of its folder, so its modules can only find each other by relative imports.
from .motion_nodes import SemoLoadMotion, SemoRenderMotion, SemoSaveMotion  # noqa: TID252
from .nodes import SemoLoadModel, SemoPortrait, SemoReenact, SemoSpeak  # noqa: TID252

__all__ = ["SemoExtension", "comfy_entrypoint"]


class SemoExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack."""
        return [
            SemoLoadModel,
            SemoPortrait,
            SemoSpeak,
            SemoReenact,
            SemoRenderMotion,
            SemoSaveMotion,
            SemoLoadMotion,
        ]


async def comfy_entrypoint() -> SemoExtension:
    """Where ComfyUI starts."""
    return SemoExtension()
