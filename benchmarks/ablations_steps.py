"""How many steps and how much guidance the shipped weights need: quality of reconstruction and of speech by them.

    python -m semo_sdk.benchmarks.ablations_steps --clips grid_s1 --others grid_validation --motion MOTION \\
        --out ablations.json

The decoder makes real clips again from their first frame and their motion, the generator makes the motion of held-out
clips from their speech. Both run in torch, in float32, with the bundle's weights. The result goes into the JSON of
:mod:`semo_sdk.benchmarks.ablations`, beside the arms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from semo_sdk.benchmarks.command import deliver
from semo_sdk.benchmarks.footage import Footage, face_sharpness, load_footage
from semo_sdk.benchmarks.lipsync import HELD_OUT_CLIPS, VIDEO_SUFFIXES, held_out
from semo_sdk.benchmarks.pixels import psnr, ssim
from semo_sdk.benchmarks.report import table
from semo_sdk.bundle import Bundle
from semo_sdk.constants import CHUNK_FRAMES, CONTEXT_FRAMES, POSE_SIZE
from semo_sdk.models.checkpoint import load_checkpoint
from semo_sdk.models.graphs import graph_modules
from semo_sdk.models.motion_generator import align_features
from semo_sdk.models.semo import SemoModel
from semo_sdk.training.motion_data import MotionData
from semo_sdk.training.teacher import read

DECODER_STEPS = (1, 2, 4)
GENERATOR_STEPS = (1, 2, 4, 8, 16)
GUIDANCES = (1.0, 1.5, 2.0, 3.0)
STRETCHES = (8, 24, 40, 56)  # first frames of what is made again of each clip
LENGTH = 4  # frames of a stretch: the Temporal Align Module's window
LEADING = slice(POSE_SIZE, POSE_SIZE + 2)  # of expression: jaw and lips


@torch.no_grad()
def decoder_steps(model: SemoModel, clips: Sequence[Footage]) -> list[dict[str, float]]:
    """PSNR, SSIM and sharpness (made / real) of reconstructions by steps."""
    reference_graph, render = graph_modules(model)["reference"], model.render_frames
    rows = []
    for steps in DECODER_STEPS:
        made, real, sharp = [], [], []
        for clip in tqdm(clips, desc=f"decoder, steps {steps}"):
            latents, own, *rest = reference_graph(torch.from_numpy(clip.frames[:1].copy()))
            cache = rest.pop(0) if model.config.decoder.cache_reference else None
            appearance, maps = rest[:2] if model.decoder.warp is not None else (None, None)
            for first in STRETCHES:
                truth = clip.frames[first : first + LENGTH]
                if len(truth) < LENGTH:
                    continue
                motion = model.read_motion(torch.from_numpy(truth.copy()))[None]
                noise = torch.randn(1, LENGTH, *latents.shape[1:]) if model.config.needs_noise else None
                frames = render(noise, latents, own, cache, appearance, maps, motion, steps=steps)[0].numpy()
                made.append(frames)
                real.append(truth)
                face = type(clip.face)(clip.face.mesh[first : first + LENGTH])
                sharp.append(face_sharpness(frames, face) / max(face_sharpness(truth, face), 1e-9))
        a, b = np.concatenate(made), np.concatenate(real)
        scores = {"psnr": psnr(a, b).mean(), "ssim": ssim(a, b).mean(), "sharpness": np.mean(sharp)}
        rows.append({"steps": steps, "frames": len(a), **scores})
    return [{key: round(float(value), 4) for key, value in row.items()} for row in rows]


@torch.no_grad()
def generator_scores(model: SemoModel, data: MotionData, *, steps: int, guidance: float) -> dict[str, float]:
    """Jaw and lips of freely generated motion: correlation with the real clips' and range (made / real).

    ``spoken`` is the correlation for synthetic speech with the held-out voice and words, where the data has some.
    """
    scores: dict[str, list[float]] = {"correlation": [], "range": [], "spoken": []}
    for row in tqdm(data.held_out, desc=f"generator, steps {steps}, guidance {guidance:g}"):
        frames = torch.from_numpy(data.frames(row, None))
        made = _speak(model, data, row, frames, steps, guidance)
        real, ours = (read(x)[:, LEADING].numpy().T for x in (frames[: len(made)], made))
        pairs = list(zip(ours, real, strict=True))
        scores["spoken" if row.spoken else "correlation"] += [np.corrcoef(a, b)[0, 1] for a, b in pairs]
        if not row.spoken:
            scores["range"] += [a.std() / b.std() for a, b in pairs]
    clips = sum(not row.spoken for row in data.held_out)
    means = {name: round(float(np.mean(values)), 4) for name, values in scores.items() if values}
    return {"steps": steps, "guidance": guidance, "clips": clips, **means}


def _speak(model: SemoModel, data: MotionData, row: Any, frames: Tensor, steps: int, guidance: float) -> Tensor:
    """Motion (n, T * D) of a whole clip, pass by pass, from its speech and first frame."""
    context = frames[:1].expand(CONTEXT_FRAMES, -1)
    made: list[Tensor] = []
    for end, features in data.passes(row):
        aligned, heard = align_features(torch.from_numpy(features)[None], torch.tensor([CHUNK_FRAMES]))
        noise = torch.randn(1, CHUNK_FRAMES, frames.shape[1], generator=torch.Generator().manual_seed(end))
        speech = noise, context[None], frames[None, :1], aligned, heard
        motion = model.generator.sample(*speech, torch.full((1,), guidance), steps=steps)[0]
        made.append(motion)
        context = torch.cat([context, motion])[-CONTEXT_FRAMES:]
    return torch.cat(made)


def markdown(result: Mapping[str, Any]) -> str:
    """The three tables."""
    model, decoder, generator, guidance = (result[key] for key in ("model", "decoder", "generator", "guidance"))
    d_rows = [
        [f"{row['steps']:g}", f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['sharpness']:.2f}"] for row in decoder
    ]
    return "\n\n".join(
        [
            f"Steps of the decoder, shipped weights of {model['name']} ({model['fingerprint'][:12]}; exported with "
            f"{model['decoder_steps']}): {decoder[0]['frames']:g} frames of {result['clips']} real clips made again.",
            table(["steps", "PSNR, dB", "SSIM", "sharpness, made / real"], d_rows),
            f"Steps of the generator, same weights (exported with {model['generator_steps']}, guidance "
            f"{model['guidance']:g}): jaw and lips of {generator[0]['clips']:g} held-out clips, from speech alone.",
            _generator_table("steps", generator),
            f"Guidance on the speech, same clips, {model['generator_steps']} steps:",
            _generator_table("guidance", guidance),
        ]
    )


def _generator_table(key: str, rows: Sequence[Mapping[str, float]]) -> str:
    head = [key, "correlation with the real clip", "range, made / real", "new words in a new, synthetic voice"]
    spoken = [f"{row['spoken']:.3f}" if "spoken" in row else "-" for row in rows]
    cells = [[f"{row[key]:g}", f"{row['correlation']:.3f}", f"{row['range']:.2f}"] for row in rows]
    return table(head, [[*cell, last] for cell, last in zip(cells, spoken, strict=True)])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semo_sdk.benchmarks.ablations_steps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clips", type=Path, required=True, help="folder of videos; of the last 60 some are used")
    parser.add_argument("--others", type=Path, required=True, help="folder of videos of other people")
    parser.add_argument("--motion", type=Path, required=True, help="what `semo data motion` wrote")
    parser.add_argument("--bundle", default="semo-tiny")
    parser.add_argument("--count", type=int, default=3, help="of the held-out clips")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the ablations; the steps are added to it")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    model = load_checkpoint(bundle.weights_path)[0]
    strangers = sorted(path for path in options.others.glob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    paths = [*held_out(options.clips, VIDEO_SUFFIXES, HELD_OUT_CLIPS, options.count), *strangers]
    motion = MotionData(options.motion)
    guidance, exported = model.config.generator.guidance, model.config.generator.steps
    about = {"decoder_steps": model.config.decoder.steps, "generator_steps": exported}
    result = {
        "model": {"name": bundle.name, "fingerprint": bundle.fingerprint, "guidance": guidance, **about},
        "clips": len(paths),
        "generator": [generator_scores(model, motion, steps=n, guidance=guidance) for n in GENERATOR_STEPS],
        "guidance": [generator_scores(model, motion, steps=exported, guidance=g) for g in GUIDANCES],
        "decoder": decoder_steps(model, [load_footage(path, "steps") for path in paths]),
    }
    out: Path = options.out
    whole = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"benchmark": "ablations", "arms": {}}
    deliver({**whole, "steps": result}, out, markdown(result))


if __name__ == "__main__":
    main()
