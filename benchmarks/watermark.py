"""What the watermark survives, how often it is seen where it is not, and what it costs.

    semo bench watermark --clips CLIPS --portraits PORTRAITS --json benchmarks/results/provenance/watermark.json

- **survival**: generated videos are marked, written as ``Clip.save`` writes them, and compressed again, resized,
  cropped. For each: videos in which the mark was found, in which the right model was read, and wrong bits (of 30, each
  group of frequencies read by itself, before the check symbol helps).
- **false alarms**: unmarked pictures are searched with the real key; and the correlation that the detector takes to
  be standard normal is measured on the same pictures with many other keys, at every shift.
- **visibility**: PSNR and SSIM of marked against unmarked frames. **cost**: processor time.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.benchmarks.command import add_footage, deliver, make_parser
from semo_sdk.benchmarks.pixels import psnr, ssim
from semo_sdk.benchmarks.report import table
from semo_sdk.constants import FPS, IMAGE_SIZE
from semo_sdk.media.audio import load_audio
from semo_sdk.media.video import VideoWriter, read_video
from semo_sdk.provenance.code import BITS, TILE, Payload, band, model_number
from semo_sdk.provenance.detect import FALSE_ALARM, Detection, average, correlations, detect
from semo_sdk.provenance.watermark import Watermark

SECONDS = 3.0  # of each video
CROPPED = round(IMAGE_SIZE * 0.8)
CROP = f"crop={CROPPED}:{CROPPED}:31:17"
# name -> ffmpeg's filter, and what x264 is told; after the file that Clip.save writes (CRF 17)
ATTACKS: dict[str, tuple[str, list[str]]] = {
    "as written": ("", []),
    "CRF 18": ("", ["-crf", "18"]),
    "CRF 23": ("", ["-crf", "23"]),
    "CRF 28": ("", ["-crf", "28"]),
    "500 kbit/s": ("", ["-b:v", "500k"]),
    "300 kbit/s": ("", ["-b:v", "300k"]),
    "150 kbit/s": ("", ["-b:v", "150k"]),
    "half size, CRF 18": ("scale=128:128", ["-crf", "18"]),
    "half size, CRF 23": ("scale=128:128", ["-crf", "23"]),
    "half size, 150 kbit/s": ("scale=128:128", ["-b:v", "150k"]),
    "twice the size, CRF 23": ("scale=512:512", ["-crf", "23"]),
    "twice the size, CRF 28": ("scale=512:512", ["-crf", "28"]),
    "cropped to 80 %, CRF 18": (CROP, ["-crf", "18"]),
    "cropped to 80 %, CRF 23": (CROP, ["-crf", "23"]),
    "cropped to 80 % and enlarged, CRF 23": (f"{CROP},scale=256:256", ["-crf", "23"]),
    "cropped to 80 %, 150 kbit/s": (CROP, ["-b:v", "150k"]),
    "cropped to 80 %, half size, 150 kbit/s": (f"{CROP},scale=128:128", ["-b:v", "150k"]),
}
KEYS = 20  # other keys that the null is measured with
TAILS = (3.0, 4.0, 4.5)


def compressed(video: Path, attack: str, target: Path) -> float:
    """Writes what becomes of a video; returns its kilobits a second."""
    import imageio_ffmpeg

    size, rate = ATTACKS[attack]
    if not rate:
        target.write_bytes(video.read_bytes())
    else:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(video), "-an"]
        command += ["-vf", size] if size else []
        codec = ["-c:v", "libx264", "-preset", "veryfast", "-threads", "1", "-pix_fmt", "yuv420p"]
        subprocess.run([*command, *codec, *rate, str(target)], check=True)
    return target.stat().st_size * 8 / 1000 / SECONDS


def survival(videos: Sequence[np.ndarray], model: str) -> list[dict[str, Any]]:
    """One row for each attack."""
    wanted, mark = Payload(model_number(model)), Watermark(model)
    rows: dict[str, list[tuple[Detection, float]]] = {name: [] for name in ATTACKS}
    with tempfile.TemporaryDirectory() as folder:
        written, target = Path(folder) / "written.mp4", Path(folder) / "attacked.mp4"
        for frames in videos:
            with VideoWriter(written, (frames.shape[2], frames.shape[1])) as writer:
                writer.write(mark(frames))
            for name in ATTACKS:
                rate = compressed(written, name, target)
                found = detect(read_video(target))
                assert found is not None
                rows[name].append((found, rate))
    return [
        {
            "attack": name,
            "videos": len(looks),
            "found": sum(found.found for found, _ in looks),
            "read": sum(found.payload == wanted for found, _ in looks),
            "bit_error_rate": sum(wrong_bits(found, wanted) for found, _ in looks) / (BITS * len(looks)),
            "score_min": min(found.score for found, _ in looks),
            "score_mean": float(np.mean([found.score for found, _ in looks])),
            "kbit_s": float(np.mean([rate for _, rate in looks])),
        }
        for name, looks in rows.items()
    ]


def wrong_bits(found: Detection, wanted: Payload) -> int:
    """Of 30."""
    return sum((a ^ b).bit_count() for a, b in zip(found.symbols, wanted.symbols, strict=True))


def false_alarms(pictures: Sequence[tuple[str, list[np.ndarray]]]) -> dict[str, Any]:
    """What the detector finds in unmarked frames, and whether its null is as it should be."""
    kinds: dict[str, list[float]] = {}
    tails, count, square = dict.fromkeys(TAILS, 0), 0, 0.0
    highest = 0.0
    keys = [f"null {number}".encode() for number in range(KEYS)]
    for kind, frames in pictures:
        look = detect(frames)
        assert look is not None
        kinds.setdefault(kind, []).append(look.false_alarm)
        picture = average(frames)
        for key in keys:
            scores = correlations(picture, key=key)
            count += scores.size
            square += float(np.square(scores).sum())
            highest = max(highest, float(scores.max()))
            for tail in TAILS:
                tails[tail] += int((scores > tail).sum())
    return {
        "searched": {
            kind: {
                "files": len(found),
                "alarms": sum(c <= FALSE_ALARM for c in found),
                "least_chance": min(found),
            }
            for kind, found in kinds.items()
        },
        "allowed": FALSE_ALARM,
        "correlations": count,
        "keys": KEYS,
        "standard_deviation": math.sqrt(square / count),
        "highest": highest,
        "tails": [
            {"above": tail, "measured": seen / count, "normal": 0.5 * math.erfc(tail / math.sqrt(2))}
            for tail, seen in tails.items()
        ],
        "frequencies": len(band().rows),
        "places": TILE * TILE,
    }


def unmarked(
    videos: Sequence[np.ndarray], clips: Sequence[Path], photos: Sequence[Path]
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """What carries no mark: kind, frames."""
    from PIL import Image

    yield from (("generated, unmarked", list(frames)) for frames in videos)
    yield from (("real clips", list(read_video(clip))) for clip in clips)
    for photo in photos:
        with Image.open(photo) as image:
            yield "photos", [np.asarray(image.convert("RGB"))]
    noise = np.random.default_rng(0)
    yield from (("noise", [noise.integers(0, 256, (256, 256, 3), dtype=np.uint8)]) for _ in range(10))


def cost(frames: np.ndarray, model: str) -> dict[str, float]:
    """Processor milliseconds a frame for marking, the least of five; seconds for a detection."""
    mark = Watermark(model)
    marked, taken = mark(frames), []
    for _ in range(5):
        begun = time.process_time()
        mark(frames)
        taken.append(time.process_time() - begun)
    begun = time.process_time()
    detect(marked)
    return {"mark_ms_per_frame": 1000 * min(taken) / len(frames), "detect_s": time.process_time() - begun}


def run(
    clips: Path, portraits: Path, *, bundle: str, backend: str, precision: str, latency: str, count: int, photos: int
) -> dict[str, Any]:
    """Measures everything; arguments as the command's options."""
    from semo_sdk.animator import Animator
    from semo_sdk.doctor import fingerprint

    started = time.perf_counter()
    speech = sorted(clips.glob("*.mp4"))
    faces = sorted(path for path in portraits.iterdir() if path.suffix.lower() in (".jpg", ".png", ".webp"))
    chosen = faces[-count * 6 :: 6][:count]
    videos: list[np.ndarray] = []
    animator: Animator | None = None
    for number, photo in enumerate(chosen):
        if animator is None:
            animator = Animator(photo, bundle=bundle, backend=backend, precision=precision, provenance=False)
        speaker = animator.with_portrait(photo)
        pcm = load_audio(speech[number % len(speech)])
        videos.append(speaker.from_audio(np.resize(pcm, int(SECONDS * 16_000)), latency=latency).frames)
    assert animator is not None
    model = animator.config.name
    frames = np.concatenate([video[::15] for video in videos])
    marked = Watermark(model)(frames)
    difference = marked.astype(int) - frames
    return {
        "benchmark": "watermark",
        "bundle": bundle if not Path(bundle).exists() else Path(bundle).name,
        "backend": animator.backend,
        "precision": animator.precision,
        "videos": len(videos),
        "seconds_each": SECONDS,
        "fps": FPS,
        "bits": BITS,
        "survival": survival(videos, model),
        "false_alarms": false_alarms(list(unmarked(videos, speech, faces[:photos]))),
        "visibility": {
            "psnr_mean": float(psnr(marked, frames).mean()),
            "psnr_min": float(psnr(marked, frames).min()),
            "ssim_mean": float(ssim(marked, frames).mean()),
            "most_grey_levels": int(abs(difference).max()),
        },
        "cost": cost(videos[0], model),
        "seconds": round(time.perf_counter() - started, 1),
        "fingerprint": fingerprint(),
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    rows = [
        [
            row["attack"],
            f"{row['kbit_s']:.0f}",
            f"{row['found']} of {row['videos']}",
            f"{row['read']} of {row['videos']}",
            f"{100 * row['bit_error_rate']:.1f} %",
            f"{row['score_min']:.1f} / {row['score_mean']:.1f}",
        ]
        for row in result["survival"]
    ]
    first = table(["what was done", "kbit/s", "found", "model read", "wrong bits", "score, least / mean"], rows)
    alarms, seen, cost = result["false_alarms"], result["visibility"], result["cost"]
    rows = [[f"false alarms: {kind}", f"{one['alarms']} of {one['files']}"] for kind, one in alarms["searched"].items()]
    rows.append([f"correlations without a mark ({alarms['keys']} keys)", f"{alarms['correlations']:,}"])
    rows.append(["their standard deviation (1 is assumed)", f"{alarms['standard_deviation']:.3f}"])
    rows += [
        [f"share above {tail['above']:g} (assumed: {tail['normal']:.1e})", f"{tail['measured']:.1e}"]
        for tail in alarms["tails"]
    ]
    rows += [
        ["PSNR of marked frames, least / mean", f"{seen['psnr_min']:.1f} / {seen['psnr_mean']:.1f} dB"],
        ["SSIM, mean", f"{seen['ssim_mean']:.3f}"],
        ["largest change", f"{seen['most_grey_levels']} grey levels"],
        ["marking a frame, processor time", f"{cost['mark_ms_per_frame']:.2f} ms"],
    ]
    return f"{first}\n\n{table(['', 'measured'], rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = make_parser("watermark", re.sub(r"\s+", " ", (__doc__ or "").split("\n")[0]))
    add_footage(parser, counts="videos that are marked")
    parser.add_argument("--photos", type=int, default=100, help="unmarked photos that are searched")
    options = parser.parse_args(arguments)
    result = run(
        options.clips,
        options.portraits,
        bundle=options.bundle,
        backend=options.backend,
        precision=options.precision,
        latency=options.latency,
        count=options.count,
        photos=options.photos,
    )
    deliver(result, options.json, markdown(result))


if __name__ == "__main__":
    main()
