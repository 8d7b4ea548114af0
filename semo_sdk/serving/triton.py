"""Live sessions inside Triton Inference Server: this package's streaming loop on graphs that Triton runs.

``semo export --triton`` writes a model repository whose chain is a ``model.py`` that imports
:class:`TritonPythonModel`. A sequence is one portrait speaking. Its first request brings the photo and the settings,
every request brings speech, and each response holds the frames that the speech so far is enough for, with exactly their
sound. Graphs are called by BLS, so Triton owns the weights, the GPU and their batches.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.backends.base import Arrays, GraphSpec, graph_specs
from semo_sdk.config import SemoConfig, parse_config
from semo_sdk.constants import IMAGE_SIZE
from semo_sdk.errors import ConfigError, EngineError, ImageError, InputError, SemoError
from semo_sdk.media.audio import Resampler
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.pipeline.reference import encode_reference, stack_references
from semo_sdk.pipeline.state import StreamState
from semo_sdk.pipeline.stream import Chunk, step_batch
from semo_sdk.serving.problems import ApiError
from semo_sdk.serving.settings import MEGABYTE
from semo_sdk.serving.triton_sequence import Speaker, Start, UnknownSequenceError
from semo_sdk.serving.uploads import read_portrait

__all__ = ["BlsEngine", "TritonPythonModel"]

CONFIG_FILE = "config.json"  # the model's SemoConfig, beside model.py
IMAGE_BYTES, IMAGE_PIXELS = 10 * MEGABYTE, 24_000_000


class BlsEngine:
    """One graph that Triton runs, called from another model of the same server (business logic scripting).

    Args:
        spec: the graph's contract.
        model: name of its model in Triton.
    """

    def __init__(self, spec: GraphSpec, model: str) -> None:
        self.spec = spec
        self.model = model

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Runs the graph once.

        Raises:
            EngineError: inputs that do not fit the spec, or whatever Triton says.
        """
        self.spec.check(feeds)
        utils = _utils()
        # Triton's shapes have an axis beside the batch's, always: (B,) is (B, 1) there.
        columns = {name: array[:, None] if array.ndim == 1 else array for name, array in feeds.items()}
        names = [t.name for t in self.spec.outputs]
        request = utils.InferenceRequest(
            model_name=self.model,
            requested_output_names=names,
            inputs=[utils.Tensor(name, np.ascontiguousarray(array)) for name, array in columns.items()],
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        try:
            response = request.exec()
        except Exception as error:  # the type of Triton's exception cannot be imported here
            raise EngineError(f"model {self.model!r} cannot be called: {error}") from error
        if response.has_error():
            raise EngineError(f"model {self.model!r} failed: {response.error().message()}")
        # Triton's memory is only lent.
        return {name: np.array(utils.get_output_tensor_by_name(response, name).as_numpy()) for name in names}

    def close(self) -> None:
        """Nothing: the model is Triton's."""


@dataclass(eq=False)
class Turn:
    """One request on its way to a response."""

    request: Any
    sequence: int
    speaker: Speaker | None = None
    final: bool = False
    error: SemoError | None = None
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def hop(self) -> int:
        """Frames of its next pass, 0 if it needs none."""
        if self.error is not None or self.speaker is None or not self.speaker.due(self.final):
            return 0
        return self.speaker.state.hop


class TritonPythonModel:
    """The chain as Triton's Python backend wants it."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called once: reads the model's config and says which models to call.

        Raises:
            TritonModelException: the repository is damaged; export it again.
        """
        try:
            config = json.loads(args["model_config"])
            folder = Path(args["model_repository"]) / args["model_version"]
            model = parse_config((folder / CONFIG_FILE).read_text(encoding="utf-8"), where=str(folder / CONFIG_FILE))
            sequences = config["sequence_batching"]
            self._idle = int(sequences["max_sequence_idle_microseconds"]) / 1e6
            self._most = int(sequences["oldest"]["max_candidate_sequences"])
            self._batch = max(int(config["max_batch_size"]), 1)
        except (OSError, KeyError, ValueError, SemoError) as error:
            raise _utils().TritonModelException(
                f"{args['model_name']}: {type(error).__name__}: {error}; export again"
            ) from error
        self._config: SemoConfig = model
        name = args["model_name"]
        self._graphs = Graphs({k: BlsEngine(spec, f"{name}_{k}") for k, spec in graph_specs(model).items()}, model)
        self._speakers: OrderedDict[int, Speaker] = OrderedDict()  # the one used least recently first

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, each of another sequence; passes of several sequences share launches."""
        self._forget_idle()
        turns = [self._begin(request) for request in requests]
        while hop := next((turn.hop for turn in turns if turn.hop), 0):
            self._pass([turn for turn in turns if turn.hop == hop][: self._batch])
        return [self._answer(turn) for turn in turns]

    def finalize(self) -> None:
        """Called once, at the end."""
        self._speakers.clear()

    def _forget_idle(self) -> None:
        """Triton ends a sequence that is idle for too long without telling the model."""
        now = time.monotonic()
        for sequence, speaker in list(self._speakers.items()):
            if now - speaker.used > self._idle:
                del self._speakers[sequence]

    def _begin(self, request: Any) -> Turn:
        """Hears what a request says."""
        turn = Turn(request, int(_input(request, "CORRID")))
        start, end = bool(_input(request, "START")), bool(_input(request, "END"))
        try:
            if not _input(request, "READY"):
                return turn
            settings = Start.parse(request.parameters(), first=start)
            if start:
                self._speakers.pop(turn.sequence, None)
                self._speakers[turn.sequence] = self._open(request, settings)
                while len(self._speakers) > self._most:
                    self._speakers.popitem(last=False)
            turn.speaker = self._speakers.get(turn.sequence)
            if turn.speaker is None:
                raise UnknownSequenceError(
                    f"sequence {turn.sequence} is not known: it did not start, failed to, or was idle for more than "
                    f"{self._idle:g} s; start it again"
                )
            self._speakers.move_to_end(turn.sequence)
            turn.speaker.used = time.monotonic()
            if settings.interrupt:
                turn.speaker.interrupt()
            turn.speaker.hear(_array(request, "SPEECH").reshape(-1))
            turn.final = end or settings.flush
            if turn.final:
                turn.speaker.end_utterance()
        except SemoError as error:
            turn.error = error
        if end:
            self._speakers.pop(turn.sequence, None)
        return turn

    def _open(self, request: Any, settings: Start) -> Speaker:
        """A new sequence from its first request.

        Raises:
            ImageError: no usable photo.
            ConfigError, AudioError: an impossible setting.
        """
        photo = _utils().get_input_tensor_by_name(request, "PORTRAIT")
        data = None if photo is None else photo.as_numpy().reshape(-1)[0]
        if data is None or len(data) > IMAGE_BYTES:
            size = f"at most {IMAGE_BYTES // MEGABYTE} MB of" if data else "the bytes of"
            raise ImageError(f"the first request of a sequence has {size} a JPEG, PNG or WebP photo as PORTRAIT")
        Resampler(settings.sample_rate)  # a wrong rate costs no launch
        portrait = read_portrait(data, IMAGE_PIXELS, face_index=settings.face_index)
        reference = encode_reference(self._graphs, portrait.crop)
        state = StreamState.start(
            self._config,
            reference.motion[0],
            latency=settings.latency,
            seed=settings.seed,
            expressiveness=settings.expressiveness,
            head_motion=settings.head_motion,
            blink=settings.blink,
        )
        return Speaker(reference, state, settings.sample_rate)

    def _pass(self, turns: Sequence[Turn]) -> None:
        """One pass for sequences of the same hop; if it fails, one for each: a failure hits only who is to blame."""
        speakers = [turn.speaker for turn in turns if turn.speaker is not None]
        try:
            references = stack_references([speaker.reference for speaker in speakers])
            made = step_batch(self._graphs, references, [speaker.state for speaker in speakers])
        except SemoError as error:
            if len(turns) == 1:
                turns[0].error = error
            else:
                for turn in turns:
                    self._pass([turn])
            return
        for turn, speaker, (chunk, after) in zip(turns, speakers, made, strict=True):
            turn.chunks.append(chunk)
            speaker.state = after

    def _answer(self, turn: Turn) -> Any:
        utils = _utils()
        if turn.error is not None:
            return utils.InferenceResponse(error=utils.TritonError(str(turn.error), _code(utils, turn.error)))
        none = np.zeros((0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        next_frame = 0 if turn.speaker is None else turn.speaker.state.frame_index
        outputs = {
            "FRAMES": np.concatenate([none, *(chunk.frames for chunk in turn.chunks)]),
            "AUDIO": np.concatenate([np.zeros(0, np.float32), *(chunk.audio for chunk in turn.chunks)]),
            "MOTION": np.concatenate(
                [np.zeros((0, self._config.motion_dim), np.float32), *(chunk.motion for chunk in turn.chunks)]
            ),
            "INDEX": np.array([turn.chunks[0].index if turn.chunks else next_frame], np.int64),
        }
        wanted = turn.request.requested_output_names()
        tensors = [utils.Tensor(name, array[None]) for name, array in outputs.items() if name in wanted]
        return utils.InferenceResponse(output_tensors=tensors)


def _utils() -> Any:
    """What Triton gives to its Python models; there is no such package elsewhere."""
    import triton_python_backend_utils

    return triton_python_backend_utils


def _array(request: Any, name: str) -> np.ndarray:
    array: np.ndarray = _utils().get_input_tensor_by_name(request, name).as_numpy()
    return array


def _input(request: Any, name: str) -> Any:
    """The one number of a control input."""
    return _array(request, name).reshape(-1)[0]


def _code(utils: Any, error: SemoError) -> Any:
    if isinstance(error, UnknownSequenceError):
        return utils.TritonError.NOT_FOUND
    if isinstance(error, InputError | ConfigError | ApiError):
        return utils.TritonError.INVALID_ARG
    return utils.TritonError.INTERNAL
