"""The model card of a bundle: what it is, whence it comes, how it was checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from semo_sdk.export.writer import sdk_version

if TYPE_CHECKING:
    from semo_sdk.export.parity import ParityReport
    from semo_sdk.models.semo import SemoModel


def model_card(
    model: SemoModel,
    report: ParityReport,
    *,
    licence: str,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> str:
    """Markdown text of the card."""
    config = model.config
    sizes = [
        f"| {name} | {sum(p.numel() for p in part.parameters()) / 1e6:.1f} M |" for name, part in model.named_children()
    ]
    lines = [
        f"# {config.name}",
        "",
        "A SeMo bundle: one portrait and speech to a talking head at 256 x 256 pixels and 25 frames per second.",
        "",
        "```python",
        "from semo_sdk import Animator",
        "",
        'Animator("portrait.jpg", bundle="THIS FOLDER").from_audio("speech.wav").save("talking.mp4")',
        "```",
        "",
        "| part | parameters |",
        "| --- | --- |",
        *sizes,
        "",
        f"Autoencoder `{config.vae}`; {config.motion_tokens} motion token(s) of width {config.motion_width} a frame; "
        f"{config.generator.steps} sampling steps for motion, {config.decoder.steps} for frames.",
        "",
        "## Licence",
        "",
        licence or "Not stated by whoever exported this bundle.",
        "",
        "## Provenance",
        "",
        *_items(provenance),
        "",
        "## Metrics",
        "",
        *_items(metrics),
        "",
        "## Parity with torch",
        "",
        "Errors are relative to the root mean square of torch's output; for frames in grey levels of 255.",
        "",
        "```text",
        report.table(),
        "```",
        "",
        f"Exported by semo-sdk {sdk_version()}. Do not animate people without their consent.",
    ]
    return "\n".join(lines) + "\n"


def _items(values: Mapping[str, Any]) -> list[str]:
    return [f"- {key}: {value}" for key, value in values.items()] or ["Not stated."]
