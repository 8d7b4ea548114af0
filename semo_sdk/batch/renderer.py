"""Renderer: makes the videos of a batch one after the other, on one set of engines."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from semo_sdk import __version__
from semo_sdk.animator import Animator
from semo_sdk.backends import load_engines
from semo_sdk.batch.manifest import NOTES, Item
from semo_sdk.batch.report import Result
from semo_sdk.bundle import Bundle, sha256_file
from semo_sdk.errors import AudioError, ImageError, InputError, SemoError
from semo_sdk.files import write_text
from semo_sdk.media.image import find_portrait, load_image
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.provenance.policy import Provenance

__all__ = ["Model", "Renderer"]

log = logging.getLogger(__name__)

PORTRAITS = 8  # kept, with what the model knows of them; items come sorted by photo


@dataclass(frozen=True)
class Model:
    """What makes the videos; see :class:`semo_sdk.Animator`."""

    bundle: str = "semo-tiny"
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    provenance: bool = True


class Renderer:
    """Makes videos in one folder. Engines are opened for the first video that has to be made.

    A video is there whole or not at all: it is written in a folder of its own and moved to its name at the end. In the
    folder ``.semo-batch`` a note keeps the fingerprint of everything that decides its frames (bytes of photo and
    speech, settings, model, version) and the checksum of the file. Only a video whose note fits and whose bytes are
    those of the note is skipped.

    Args:
        out_dir: an existing folder.
        model: what to open.
    """

    def __init__(self, out_dir: Path, model: Model) -> None:
        self._out, self._model = out_dir, model
        self._bundle: Bundle | None = None
        self._graphs: Graphs | None = None
        self._animators: OrderedDict[tuple[str, int | None], Animator] = OrderedDict()

    def run(self, item: Item) -> Result:
        """Makes one video, or finds that it is there.

        Returns:
            What became of it; an item that cannot be used is a failed one.

        Raises:
            BundleError, BackendUnavailableError, ConfigError, EngineError: no item could be made: the model does not
                open.
        """
        start = time.perf_counter()
        self._open_bundle()
        try:
            fingerprint = self._fingerprint(item)
            frames = self._finished(item, fingerprint)
        except (SemoError, OSError) as error:
            return Result.failed(item, error, time.perf_counter() - start)
        status = "skipped"
        if frames is None:
            status = "made"
            graphs = self._open_graphs()
            try:
                frames = self._make(item, fingerprint, graphs)
            except Exception as error:  # whatever it is, the other items are not to blame
                log.warning(
                    "line %d, %s: %s",
                    item.line,
                    item.output,
                    error,
                    exc_info=not isinstance(error, SemoError | OSError),
                )
                return Result.failed(item, error, time.perf_counter() - start)
        seconds = round(time.perf_counter() - start, 3)
        return Result.model_validate(
            {"line": item.line, "output": item.output, "status": status, "frames": frames, "seconds": seconds}
        )

    def close(self) -> None:
        """Frees the engines; calling it twice is fine."""
        self._animators.clear()
        if self._graphs is not None:
            self._graphs.close()
            self._graphs = None

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_bundle(self) -> Bundle:
        if self._bundle is None:
            self._bundle = Bundle.open(self._model.bundle)
        return self._bundle

    def _open_graphs(self) -> Graphs:
        if self._graphs is None:
            bundle, model = self._open_bundle(), self._model
            engines = load_engines(bundle, backend=model.backend, precision=model.precision, threads=model.threads)
            marks = Provenance.of(bundle, model.provenance) or False
            self._graphs = Graphs(engines, bundle.config, provenance=marks)
        return self._graphs

    def _fingerprint(self, item: Item) -> str:
        """sha256 over everything that decides the frames. The number of threads does not."""
        told = {
            "photo": _sha256(item.photo, ImageError),
            "audio": _sha256(item.audio, AudioError),
            "settings": item.chosen,
            "model": {**asdict(self._model), "threads": None, "bundle": self._open_bundle().fingerprint},
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _note(self, item: Item) -> Path:
        return self._out / NOTES / f"{item.output}.json"

    def _finished(self, item: Item, fingerprint: str) -> int | None:
        """Frames of the video if exactly this one is there."""
        try:
            note = json.loads(self._note(item).read_text(encoding="utf-8"))
            fits = note["fingerprint"] == fingerprint
            return int(note["frames"]) if fits and sha256_file(self._out / item.output) == note["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is made again
            return None

    def _make(self, item: Item, fingerprint: str, graphs: Graphs) -> int:
        animator = self._animator(item, graphs)
        settings = {name: value for name, value in item.chosen.items() if name not in ("face_index", "paste_back")}
        clip = animator.from_audio(item.audio, **settings)
        target, note = self._out / item.output, self._note(item)
        with self._workplace(item) as folder:
            made = clip.save(folder / "video.mp4", paste_back=item.paste_back)
            checksum = sha256_file(made)
            for place in (target, note):
                place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made, target)
        told = {"fingerprint": fingerprint, "sha256": checksum, "frames": len(clip)}
        write_text(note, json.dumps(told))
        return len(clip)

    def _animator(self, item: Item, graphs: Graphs) -> Animator:
        """The photo's animator; the model's part of a photo is computed once while it is kept."""
        key = (sha256_file(item.photo), item.face_index)
        found = self._animators.pop(key, None)
        if found is None:
            portrait = find_portrait(load_image(item.photo), face_index=item.face_index)
            found = Animator.from_graphs(portrait, graphs)
        self._animators[key] = found
        if len(self._animators) > PORTRAITS:
            self._animators.popitem(last=False)
        return found

    @contextmanager
    def _workplace(self, item: Item) -> Iterator[Path]:
        """A folder for one video; what a killed worker left there goes first."""
        name = hashlib.sha256(item.output.encode()).hexdigest()[:16]
        folder = self._out / NOTES / "work" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path, kind: type[InputError]) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror})") from error
