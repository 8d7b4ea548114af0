"""The five exportable graphs (DESIGN, section 2): each is an arrow with everything inside it.

A module's ``forward`` takes tensors in the order of its :class:`~semo_sdk.backends.base.GraphSpec`'s inputs and returns
a tuple in the order of its outputs. Inputs are float32 (or integers); inside, the model's own dtype rules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from semo_sdk.models.motion_generator import align_features
from semo_sdk.models.semo import SemoModel


class _Graph(nn.Module):
    def __init__(self, model: SemoModel) -> None:
        super().__init__()
        self.model = model


class ReferenceGraph(_Graph):
    """Portrait -> latents, motion, cached keys and values; once per portrait."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        m = self.model
        latents = m.to_latents(image)
        motion, appearance = m.look(image, latents)
        outputs = [latents.float(), motion.unsqueeze(1).float()]
        if m.config.decoder.cache_reference:
            pairs = m.decoder.encode_reference(m.whiten(latents))
            outputs.append(torch.stack([torch.stack(pair, 1) for pair in pairs], 1).float())
        if m.decoder.warp is not None:
            outputs += [appearance.float(), m.decoder.warp.maps(m.whiten(latents), appearance).float()]
        if m.reader is not None:
            outputs.append(m.reader.controls.float().expand(image.shape[0], -1, -1))
        return tuple(outputs)


class MotionEncoderGraph(_Graph):
    """Frames -> motion tokens, without masking (paper, section 3.2)."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        motion = self.model.read_motion(frames.to(torch.float32).flatten(0, 1))
        return (motion.unflatten(0, (frames.shape[0], frames.shape[1])).float(),)


class AudioGraph(_Graph):
    """PCM window -> Whisper features of its last 24 frames."""

    def forward(self, pcm: Tensor) -> tuple[Tensor, ...]:
        return (self.model.whisper.last(pcm).float(),)


class MotionGraph(_Graph):
    """Noise, context and speech -> 16 motion tokens: the whole sampling loop."""

    def forward(
        self,
        noise: Tensor,
        context: Tensor,
        reference_motion: Tensor,
        features: Tensor,
        available: Tensor,
        guidance: Tensor,
    ) -> tuple[Tensor, ...]:
        m = self.model
        features, heard = align_features(features.to(m.dtype), available)
        motion = m.generator.sample(
            noise.to(m.dtype),
            context.to(m.dtype),
            reference_motion.to(m.dtype),
            features,
            heard,
            guidance,
            steps=m.config.generator.steps,
        )
        return (motion.float(),)


class RenderGraph(_Graph):
    """Reference and motion tokens -> RGB frames: prior, flow, autoencoder, conversion to uint8."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        m, c = self.model, self.model.config
        inputs = [x.to(m.dtype) for x in tensors]
        noise = inputs.pop(0) if c.needs_noise else None
        latents, reference_motion, *rest, motion = inputs
        cache = rest.pop(0) if c.decoder.cache_reference else None
        appearance, maps = rest or (None, None)
        frames = m.render_frames(
            noise, latents, reference_motion, cache, appearance, maps, motion, steps=c.decoder.steps
        )
        return (frames,)


def graph_modules(model: SemoModel) -> dict[str, nn.Module]:
    """The five graphs of a model by name, in evaluation mode."""
    kinds = {
        "reference": ReferenceGraph,
        "motion_encoder": MotionEncoderGraph,
        "audio": AudioGraph,
        "motion": MotionGraph,
        "render": RenderGraph,
    }
    return {name: kind(model).eval() for name, kind in kinds.items()}
