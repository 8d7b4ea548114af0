"""Animator: one portrait, ready to speak. The front door of the package."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semo_sdk.backends import load_engines
from semo_sdk.bundle import Bundle
from semo_sdk.clip import Clip, fit_audio
from semo_sdk.config import SemoConfig
from semo_sdk.constants import CHUNK_FRAMES
from semo_sdk.driving import Driver, face_crops, sound_of
from semo_sdk.hub import Pretrained
from semo_sdk.media.audio import load_audio
from semo_sdk.media.image import Portrait, find_portrait, load_image
from semo_sdk.motion import Motion
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.motion import encode_motion
from semo_sdk.pipeline.reference import Reference, encode_reference
from semo_sdk.pipeline.render import launch_size
from semo_sdk.pipeline.state import StreamState, hop_of
from semo_sdk.pipeline.stream import Chunk, drain, draw, frames_in, speak, step
from semo_sdk.provenance.policy import Provenance, Signer
from semo_sdk.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | os.PathLike[str] | bytes | Image | np.ndarray | Portrait

__all__ = ["Animator", "Clip"]

log = logging.getLogger(__name__)

Sound = str | os.PathLike[str] | bytes | np.ndarray


class Animator(Pretrained):
    """Makes a portrait speak.

    >>> Animator("portrait.jpg").from_audio("speech.wav").save("talking.mp4")      # a file
    >>> with Animator("portrait.jpg").session(latency="low") as session: ...         # live

    Finding the face and opening the engines happens here, so that bad input fails at once; graphs are compiled in the
    background, each as soon as it is known to be needed. Any number of sessions and clips may run on one animator, also
    in threads: they take turns.

    **Consent**: animate only people who agreed to it, or who do not exist, and say where you show it that it is
    AI-generated. Frames carry a watermark that says so, files a signed C2PA manifest too; see docs/provenance.md.

    Args:
        portrait: path, bytes, PIL image or (H, W, 3) uint8 RGB array of a photo with a face, or a
            :class:`~semo_sdk.Portrait` that is already cropped.
        bundle: folder of a bundle, name of the embedded one, or an open :class:`~semo_sdk.Bundle`.
        backend: ``"auto"``, ``"openvino"``, ``"onnxruntime"`` or ``"torch"``.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``; not every backend has each.
        face_index: which face, when the photo has several: 0 is the largest.
        crop_scale: side of the square crop in face heights, less where the photo has no room; the model was trained
            around 2.
        threads: CPU threads of the engines; None lets the backend choose.
        provenance: True marks frames, and signs files with a certificate that is made on first use; a
            :class:`~semo_sdk.Signer` signs with yours; False does neither: then saying it is up to you.

    Raises:
        ImageError: not a usable photo (``NoFaceError``, ``FaceTooSmallError``, ``AmbiguousFaceError``).
        BundleError: no such bundle, or a damaged one.
        BackendUnavailableError: the backend cannot run here; the message names what is missing.
        ConfigError: an impossible setting.
    """

    def __init__(
        self,
        portrait: Picture,
        *,
        bundle: str | Path | Bundle = "semo-tiny",
        backend: str = "auto",
        precision: str = "auto",
        face_index: int | None = None,
        crop_scale: float = 2.0,
        threads: int | None = None,
        provenance: bool | Signer = True,
    ) -> None:
        opened = Bundle.open(bundle)
        photo = portrait if isinstance(portrait, Portrait) else load_image(portrait)
        engines = load_engines(opened, backend=backend, precision=precision, threads=threads)
        graphs = Graphs(engines, opened.config, provenance=Provenance.of(opened, provenance) or False)
        graphs.prepare("reference")  # while the face is found
        self._init(_find(photo, face_index, crop_scale), graphs, owner=True)
        log.info("portrait %s, model %s on %s", self.portrait.photo.shape, opened.config.name, engines)

    def _init(self, portrait: Portrait, graphs: Graphs, *, owner: bool) -> None:
        self.portrait = portrait
        self.graphs = graphs
        self._owner = owner
        self._lock = threading.Lock()
        self._reference: Reference | None = None
        self._warm: set[str] = set()  # latencies

    @classmethod
    def from_graphs(cls, portrait: Portrait, graphs: Graphs) -> Animator:
        """An animator on engines that exist already, for example fakes in tests. Closing it leaves them open."""
        animator = cls.__new__(cls)
        animator._init(portrait, graphs, owner=False)
        return animator

    def with_portrait(self, portrait: Picture, *, face_index: int | None = None, crop_scale: float = 2.0) -> Animator:
        """Another portrait on the same engines, which are closed with this animator, not with the new one.

        Raises:
            ImageError: not a usable photo.
        """
        return Animator.from_graphs(_find(portrait, face_index, crop_scale), self.graphs)

    @property
    def config(self) -> SemoConfig:
        """The model's config."""
        return self.graphs.config

    @property
    def backend(self) -> str:
        """What runs the graphs: ``"openvino"``, ``"onnxruntime"``, ``"torch"``."""
        return self.graphs.backend

    @property
    def precision(self) -> str:
        """Precision of the engines."""
        return self.graphs.precision

    @property
    def provenance(self) -> Provenance | None:
        """What frames and files carry, for ``VideoWriter(..., seal=animator.provenance)``; None if nothing."""
        return self.graphs.provenance

    @property
    def reference(self) -> Reference:
        """What the model keeps of the portrait. Computed once, at first need."""
        with self._lock:
            if self._reference is None:
                self._reference = encode_reference(self.graphs, self.portrait.crop)
                if self._owner:  # most animators have one portrait; the next one compiles the graph once more
                    self.graphs.shrink("reference")
            return self._reference

    def warm_up(self, latency: str = "quality") -> None:
        """Compiles the speaking graphs and runs them once; :meth:`session` does it, once for each latency.

        Raises:
            ConfigError: an impossible latency.
            EngineError: the engine failed.
        """
        silence = np.zeros(1, np.float32)
        step(self.graphs, self.reference, self._start(latency).push(silence))
        self._warm.add(latency)

    def session(
        self,
        latency: str = "quality",
        seed: int = 0,
        expressiveness: float | None = None,
        head_motion: float = 1.0,
        blink: float = 1.0,
    ) -> Session:
        """A live session for speech of unknown length. The first of each latency takes seconds to open: graphs compile.

        Args:
            latency: speech needed for a chunk: ``"quality"`` 640 ms, ``"balanced"`` 320 ms, ``"low"`` 160 ms. A
                shorter one costs more passes a second, and lips know less of what follows.
            seed: 0 to 2**64 - 1; same seed, same frames.
            expressiveness: how strongly the speech moves the face, 0 to 10 (classifier-free guidance; 1 = off);
                None takes the model's own.
            head_motion: how much the head moves, 0 to 2: 0 holds it where the portrait has it.
            blink: how far the eyes close in a blink, 0 to 1.

        Raises:
            ConfigError: an impossible setting.
            EngineError: the engine failed.
        """
        self._prepare(latency)
        start = self._start(latency, seed, expressiveness=expressiveness, head_motion=head_motion, blink=blink)
        if latency not in self._warm:
            self.warm_up(latency)
        return Session(self.graphs, self.reference, start)

    def resume(self, state: StreamState) -> Session:
        """A session that goes on from ``session.state``, with the same frames as if it had never stopped.

        Raises:
            InputError: the state belongs to another model.
        """
        return Session(self.graphs, self.reference, state.check(self.config))

    def stream(
        self,
        audio: Sound,
        *,
        sample_rate: int | None = None,
        latency: str = "quality",
        seed: int = 0,
        expressiveness: float | None = None,
        head_motion: float = 1.0,
        blink: float = 1.0,
    ) -> Iterator[Chunk]:
        """Chunks of a whole piece of speech, each as soon as it is made. Arguments as :meth:`from_audio`."""
        style: dict[str, Any] = {"expressiveness": expressiveness, "head_motion": head_motion, "blink": blink}
        return iter(self.from_audio(audio, sample_rate=sample_rate, latency=latency, seed=seed, **style))

    def from_audio(
        self,
        audio: Sound,
        *,
        sample_rate: int | None = None,
        latency: str = "quality",
        seed: int = 0,
        expressiveness: float | None = None,
        head_motion: float = 1.0,
        blink: float = 1.0,
    ) -> Clip:
        """A video of the portrait speaking: ``ceil(samples / 640)`` frames at 16 kHz and 25 frames a second.

        Args:
            audio: path or bytes of anything with sound that ffmpeg reads, or (n,) or (n, channels) samples: float in
                [-1, 1] or integers of full scale.
            sample_rate: of an array, in Hz (default 16 000); files know theirs.
            latency, seed, expressiveness, head_motion, blink: as :meth:`session`; with the same ones a live session
                gives the same frames.

        Returns:
            The clip. Its frames are made when it is saved or iterated.

        Raises:
            AudioError: not usable as speech.
            ConfigError: an impossible setting.
        """
        self._prepare(latency)
        pcm = load_audio(audio, sample_rate)
        begin = self._start(latency, seed, expressiveness=expressiveness, head_motion=head_motion, blink=blink)
        start, frames = begin.push(pcm), frames_in(len(pcm))
        return self._clip(
            frames=frames,
            chunks=lambda: drain(self.graphs, self.reference, start),
            motion=lambda: Motion(speak(self.graphs, self.reference, start), self.config.name),
            audio=fit_audio(pcm, frames),
        )

    def reenact(
        self,
        video: Driver,
        *,
        relative: bool = True,
        face_index: int | None = None,
        crop_scale: float = 2.0,
    ) -> Clip:
        """The portrait moves as the face in a video does (the paper's first task).

        The video is read and encoded now, its motion is then in ``clip.motion``; the frames are made when the clip is
        saved or iterated. The video's sound, if any, goes with them.

        Args:
            video: path or bytes of a video of one face, or its frames: (H, W, 3) uint8 RGB arrays at 25 a second.
            relative: add the face's movement since the first frame to the portrait's own pose, so that the portrait
                starts as it is in the photo. False takes over the pose itself.
            face_index, crop_scale: of the face in the video, as for the portrait.

        Raises:
            VideoError: not a video, or without frames.
            NoFaceError: no face at the start of it.
            EngineError: the engine failed.
        """
        motion = self.encode_motion(video, face_index=face_index, crop_scale=crop_scale)
        if relative:
            motion = motion.retarget(self.reference.motion[0])
        return self.render_motion(motion, sound_of(video))

    def encode_motion(self, video: Driver, *, face_index: int | None = None, crop_scale: float = 2.0) -> Motion:
        """Motion tokens of a video of one face, to be saved, edited, or rendered on any portrait.

        Arguments and errors as :meth:`reenact`.
        """
        tokens = [
            encode_motion(self.graphs, crops[None])[0]
            for crops in face_crops(video, CHUNK_FRAMES, face_index=face_index, crop_scale=crop_scale)
        ]
        return Motion(np.concatenate(tokens), self.config.name)

    def render_motion(
        self, motion: Motion | np.ndarray, audio: Sound | None = None, *, sample_rate: int | None = None
    ) -> Clip:
        """The portrait moved by motion tokens.

        Args:
            motion: tokens of this model; an array is (n, D) float.
            audio: as for :meth:`from_audio`; cut, or filled up with silence, to the length of the motion.
            sample_rate: of an array, in Hz.

        Raises:
            MotionError: tokens of another model, or not tokens at all.
            AudioError: not usable as sound.
        """
        checked = (motion if isinstance(motion, Motion) else Motion(motion, self.config.name)).check(self.config)
        frames = len(checked)
        sound = None if audio is None else fit_audio(load_audio(audio, sample_rate), frames)
        return self._clip(
            frames=frames,
            chunks=lambda: draw(self.graphs, self.reference, checked.tokens, sound),
            motion=lambda: checked,
            audio=sound,
        )

    def close(self) -> None:
        """Frees the engines; calling it twice is fine. Clips and sessions that are still used get an EngineError."""
        if self._owner:
            self.graphs.close()

    def __enter__(self) -> Animator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        height, width = self.portrait.photo.shape[:2]
        return (
            f"Animator(photo={width}x{height}, model={self.config.name!r}, backend={self.backend!r}, "
            f"precision={self.precision!r})"
        )

    def _clip(self, **parts: Any) -> Clip:
        return Clip(portrait=self.portrait, provenance=self.provenance, **parts)

    def _prepare(self, latency: str) -> None:
        self.graphs.prepare("motion", "audio", "render", N=launch_size(self.config, hop_of(latency)))

    def _start(self, latency: str, seed: int = 0, **style: float | None) -> StreamState:
        return StreamState.start(self.config, self.reference.motion[0], latency=latency, seed=seed, **style)


def _find(portrait: Any, face_index: int | None, crop_scale: float) -> Portrait:
    if isinstance(portrait, Portrait):
        return portrait
    found = find_portrait(load_image(portrait), face_index=face_index, crop_scale=crop_scale)
    for advice in found.advice.values():
        log.warning("%s", advice)
    return found
