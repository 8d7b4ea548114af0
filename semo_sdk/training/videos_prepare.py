"""Any folder of talking videos -> clips that both training stages read (``semo data videos``).

Videos may lie in one folder or in nested ones; their sound is inside them or beside them. A sound belongs to the video
of the same name whose folders include the sound's own, not counting a folder called ``audio``: that covers
``a.mp4`` + ``a.wav``, ``video/a.mp4`` + ``audio/a.wav`` and MEAD's ``M003/video/front/neutral/level_1/001.mp4`` +
``M003/audio/neutral/level_1/001.m4a``. HDTF and DH-FaceVid-1K carry their sound inside.

A video is cut into clips of at most ``seconds``. Each gets one fixed square crop, inside the picture, at 25 frames/s:

==========================  ===========================================================================
``clips.jsonl``             a line for each clip: name, video, folder, frames, speech, held out
``clips/NAME/frames.jpgs``  JPEGs of 256 x 256 pixels, one after another
``clips/NAME/offsets.npy``  (T + 1,) int64, where each begins
``clips/NAME/sound.wav``    mono, 16 kHz, 16 bit, 640 samples a frame; only where it is clear speech
``videos/NAME.json``        what became of one video: with it a later run passes it over
``report.json``             totals, and each clip that was left out, with the reason
==========================  ===========================================================================
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import wave
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.config import Strict
from semo_sdk.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from semo_sdk.errors import AudioError, ConfigError, InputError, VideoError
from semo_sdk.files import replacing_folder, write_text
from semo_sdk.training.videos_check import TRACK_FPS, Problem, find_crop, speech_problem
from semo_sdk.training.videos_read import read_crop, track

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts"}
AUDIO_SUFFIXES = {".wav", ".m4a", ".mp3", ".flac", ".aac", ".ogg", ".opus"}
AUDIO_FOLDERS = {"audio", "audios", "wav"}
MIN_SECONDS = 2.0  # of a clip
HELD_OUT = 0.02  # share of the videos that is for validation
JPEG_QUALITY = 95
SHORT_SOUND = 0.9  # of the picture's length: with less sound the clip counts as without

logger = logging.getLogger(__name__)


class Options(Strict):
    """What the clips depend on besides the videos; stored, so that a later run cannot mix two kinds."""

    seconds: float = 10.0
    crop: float = 2.0
    min_face: float = 80.0


@dataclass(frozen=True)
class Video:
    """A video of the folder, and the file with its sound; ``path`` is relative to the folder."""

    folder: Path
    path: Path
    sound: Path

    @property
    def digest(self) -> str:
        return hashlib.sha1(self.path.as_posix().encode(), usedforsecurity=False).hexdigest()

    @property
    def name(self) -> str:
        """Unique, and still readable."""
        return f"{self.path.stem[:60]}-{self.digest[:8]}"


def find_videos(folder: Path, out: Path) -> list[Video]:
    """All videos below a folder in order of name, each with its sound; ``out`` and hidden folders are left out.

    Raises:
        InputError: no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder that holds the videos")
    inside = [p for p in sorted(folder.rglob("*")) if out.absolute() not in p.absolute().parents]
    files = [p.relative_to(folder) for p in inside if not any(x.startswith(".") for x in p.relative_to(folder).parts)]
    sounds: dict[str, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in AUDIO_SUFFIXES:
            sounds.setdefault(path.stem, []).append(path)
    videos = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES and (folder / p).is_file()]
    if not videos:
        raise InputError(f"no videos below {folder}: they must end in {', '.join(sorted(VIDEO_SUFFIXES))}")
    return [Video(folder, p, folder / (_sound_of(p, sounds.get(p.stem, [])) or p)) for p in videos]


def _sound_of(video: Path, sounds: list[Path]) -> Path | None:
    """The file beside a video that holds its sound: the one that shares most folders with it."""

    def folders(sound: Path) -> list[str] | None:
        own = [part for part in sound.parts[:-1] if part.lower() not in AUDIO_FOLDERS]
        rest = iter(video.parts[:-1])
        return own if all(part in rest for part in own) else None  # in this order

    fitting = [(len(own), sound) for sound in sounds if (own := folders(sound)) is not None]
    return max(fitting)[1] if fitting else None


def prepare_videos(folder: Path, out: Path, options: Options, *, workers: int = 1) -> Iterator[tuple[int, int]]:
    """Makes clips of all videos that have not been looked at yet, then the list and the report.

    Args:
        folder: with videos, in any layout. out: folder to write; a run that was cut short goes on here.
        options: of the clips. workers: processes.

    Yields:
        How many videos are done, and how many there are.

    Raises:
        InputError: no videos. ConfigError: ``out`` holds clips made with other options.
    """
    import multiprocessing

    from semo_sdk.training.puppet_assets import one_thread_each

    videos = find_videos(folder, out)
    (out / "videos").mkdir(parents=True, exist_ok=True)
    _same_options(out / "options.json", options)
    jobs = [(v, out, options) for v in videos if not (out / "videos" / f"{v.name}.json").is_file()]
    done = len(videos) - len(jobs)
    yield done, len(videos)
    if workers > 1 and len(jobs) > 1:
        with one_thread_each(), multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
            for _ in pool.imap_unordered(_work, jobs):
                done += 1
                yield done, len(videos)
    else:
        for job in jobs:
            _work(job)
            done += 1
            yield done, len(videos)
    _write_report(videos, out)


def _same_options(path: Path, options: Options) -> None:
    text = options.model_dump_json()
    if not path.is_file():
        write_text(path, text)
    elif (old := path.read_text(encoding="utf-8")) != text:
        raise ConfigError(f"{path.parent} holds clips made with {old}, not {text}: choose another folder")


def _work(job: tuple[Video, Path, Options]) -> None:
    video, out, options = job
    record = prepare_video(video, out, options)
    write_text(out / "videos" / f"{video.name}.json", json.dumps(record, indent=1))


def prepare_video(video: Video, out: Path, options: Options) -> dict[str, Any]:
    """Makes the clips of one video.

    Returns:
        ``clips`` (as in ``clips.jsonl``) and ``left_out``: what was not usable, from which second on and why.
    """
    record: dict[str, Any] = {"video": video.path.as_posix(), "clips": [], "left_out": []}

    def leave_out(problem: Problem, second: float = 0.0) -> None:
        record["left_out"].append({"video": record["video"], "second": round(second, 2), **asdict(problem)})

    try:
        faces, several, size = track(video.folder / video.path)
    except VideoError as error:
        leave_out(Problem("not a readable video", str(error)))
        return record
    pcm = _sound(video)
    step = round(options.seconds * TRACK_FPS)
    for number, start in enumerate(range(0, len(faces), step)):
        second, part = start / TRACK_FPS, faces[start : start + step]
        if len(part) < MIN_SECONDS * TRACK_FPS:
            if not number:  # the rest of a longer video is no loss worth a line
                leave_out(Problem("too short", f"{len(part) / TRACK_FPS:.1f} s, at least {MIN_SECONDS:.0f} are needed"))
            continue
        crop = find_crop(part, size, scale=options.crop, min_face=options.min_face)
        if any(several[start : start + step]):
            crop = Problem("several faces")
        if isinstance(crop, Problem):
            leave_out(crop, second)
            continue
        name = f"{video.name}-{number:03d}"
        frames = read_crop(video.folder / video.path, crop, second, len(part) / TRACK_FPS)
        if len(frames) < MIN_SECONDS * FPS:
            leave_out(Problem("damaged video", f"only {len(frames)} frames could be read"), second)
            continue
        sound, problem = _sound_of_clip(pcm, second, len(frames))
        _write_clip(out / "clips" / name, frames, sound if problem is None else None)
        folder = video.path.parts[0] if len(video.path.parts) > 1 else ""
        record["clips"].append(
            {
                "name": name, "video": record["video"], "folder": folder, "second": second, "frames": len(frames),
                "face": round(crop.face, 3), "crop": [crop.x, crop.y, crop.side],
                "speech": problem is None, "no_speech": None if problem is None else asdict(problem),
            }
        )  # fmt: skip
    return record


def _sound(video: Video) -> np.ndarray | None:
    from semo_sdk.media.audio import load_audio

    try:
        return load_audio(video.sound)
    except AudioError:
        return None


def _sound_of_clip(pcm: np.ndarray | None, second: float, frames: int) -> tuple[np.ndarray, Problem | None]:
    """Sound of exactly these frames, and why it is no clear speech, if so."""
    first, count = round(second * SAMPLE_RATE), frames * SAMPLES_PER_FRAME
    sound = np.zeros(0, np.float32) if pcm is None else pcm[first : first + count]
    problem = Problem("no sound") if pcm is None else speech_problem(sound)
    if problem is None and len(sound) < SHORT_SOUND * count:
        problem = Problem("sound ends early", f"after {len(sound) / SAMPLE_RATE:.1f} s")
    return np.pad(sound, (0, count - len(sound))), problem


def _write_clip(folder: Path, frames: list[np.ndarray], sound: np.ndarray | None) -> None:
    from PIL import Image

    offsets = [0]
    with replacing_folder(folder) as temporary:
        with (temporary / "frames.jpgs").open("wb") as file:
            for frame in frames:
                jpeg = io.BytesIO()
                Image.fromarray(frame).save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
                file.write(jpeg.getbuffer())
                offsets.append(file.tell())
        np.save(temporary / "offsets.npy", np.array(offsets, np.int64))
        if sound is not None:
            with wave.open(str(temporary / "sound.wav"), "wb") as wav:
                wav.setnchannels(1)
                wav.setsampwidth(2)
                wav.setframerate(SAMPLE_RATE)
                wav.writeframes(np.rint(sound.clip(-1, 1) * 32767).astype("<i2").tobytes())


def _write_report(videos: list[Video], out: Path) -> None:
    """``clips.jsonl`` and ``report.json`` of all videos looked at.

    Whole videos are held out, chosen by the hash of their path, so that further videos leave the choice as it is; of a
    single video the last clip is.
    """
    records = {v: json.loads((out / "videos" / f"{v.name}.json").read_text(encoding="utf-8")) for v in videos}
    used = [v for v in videos if records[v]["clips"]]
    clips = [clip for v in used for clip in records[v]["clips"]]
    spoken = [v for v in used if any(clip["speech"] for clip in records[v]["clips"])]
    chosen = [v for v in used if int(v.digest[:8], 16) < HELD_OUT * 2**32]
    if not set(chosen) & set(spoken or used):  # a small folder: the second stage needs speech to be judged by
        chosen.append(min(spoken or used, key=lambda v: v.digest))
    held = {v.path.as_posix() for v in chosen}
    for clip in clips:
        clip["held_out"] = clip["video"] in held if len(used) > 1 else clip is clips[-1]
    left_out = [row for v in videos for row in records[v]["left_out"]]
    silent = [c["no_speech"]["reason"] for c in clips if not c["speech"]]
    report = {
        "videos": len(videos),
        "videos_used": len(used),
        "clips": len(clips),
        "minutes": round(sum(c["frames"] for c in clips) / FPS / 60, 2),
        "minutes_of_speech": round(sum(c["frames"] for c in clips if c["speech"]) / FPS / 60, 2),
        "held_out_clips": sum(c["held_out"] for c in clips),
        "left_out": Counter(row["reason"] for row in left_out),
        "pictures_only": Counter(silent),
        "rows": left_out,
    }
    write_text(out / "clips.jsonl", "".join(json.dumps(clip) + "\n" for clip in clips))
    write_text(out / "report.json", json.dumps(report, indent=1))
