"""Do lips and sound belong together? Distance and confidence of a SyncNet, the repository's own or the published one.

Both embed every five frames of lips and the sound of the same 200 ms. The mean distance of the two is taken for each
shift of the sound within 15 frames; the least one is the *distance*, the median of the shifts' less the least one the
*confidence*, and where it lies the *offset* (Chung and Zisserman 2016). The two networks' numbers are of different
scales and have different names; neither stands in for the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semo_sdk.benchmarks.faces import FaceSeries
from semo_sdk.benchmarks.footage import Footage
from semo_sdk.errors import MissingDependencyError

SHIFT = 15  # frames either way
GRID_WEIGHTS = Path(__file__).parent / "weights" / "grid_syncnet.safetensors"
GRID = "GRID SyncNet"
GRID_ABOUT = (
    "of the small SyncNet in this repository (benchmarks/weights), trained on one speaker of GRID and on puppets that "
    "speak with his motion, at the best shift of the sound within 15 frames; distances of unit vectors, 0 to 2"
)


class SyncMeter(ABC):
    """A network that says how well lips follow sound.

    Attributes:
        definitions: the names of the numbers and what each is: distance, confidence and offset, in this order.
    """

    definitions: dict[str, str]

    @abstractmethod
    def lips(self, frames: np.ndarray, mesh: np.ndarray) -> np.ndarray:
        """(m, d) embeddings of the windows of a video.

        Args:
            frames: (n, H, W, 3) uint8 RGB. mesh: (n, 478, 3) landmarks in pixels, NaN where no face was seen.
        """

    @abstractmethod
    def sound(self, pcm: np.ndarray, frames: int) -> np.ndarray:
        """(m, d) embeddings of the windows of the sound (float32 mono 16 kHz) of as many video frames."""

    @abstractmethod
    def distances(self, lips: np.ndarray, sound: np.ndarray) -> np.ndarray:
        """(windows, 31) distances at shifts of -15 to 15 frames; no rows for a video that is too short."""

    def score(self, lips: np.ndarray, sound: np.ndarray) -> dict[str, float]:
        """Distance, confidence and offset by the names in ``definitions``; nothing for a video that is too short."""
        found = self.distances(lips, sound)
        return dict(zip(self.definitions, summary(found), strict=True)) if len(found) else {}


def summary(distances: np.ndarray) -> tuple[float, float, float]:
    """Distance, confidence and offset (frames; positive when the lips come late) from distances (windows, 31)."""
    mean = distances.mean(0)
    best = int(mean.argmin())
    return float(mean[best]), float(np.median(mean) - mean[best]), float(len(mean) // 2 - best)


class GridSyncNet(SyncMeter):
    """The repository's own network.

    Raises:
        MissingDependencyError: torch or safetensors is not installed.
        CheckpointError: the weights are missing or damaged.
    """

    definitions = {
        "grid_syncnet_distance": f"distance {GRID_ABOUT} (this is not Sync-D)",
        "grid_syncnet_confidence": f"confidence {GRID_ABOUT} (this is not Sync-C)",
        "grid_syncnet_offset": f"offset in frames {GRID_ABOUT}",
    }

    def __init__(self, weights: Path = GRID_WEIGHTS) -> None:
        try:
            from semo_sdk.training import syncnet
        except ImportError as error:
            raise MissingDependencyError(
                f"{error.name} is not installed: pip install 'semo-sdk[quality]'", name=error.name
            ) from error
        self._tools = syncnet
        self.network, self.metadata = syncnet.load_syncnet(weights)

    def lips(self, frames: np.ndarray, mesh: np.ndarray) -> np.ndarray:
        import torch

        crops = torch.from_numpy(self._tools.mouth_crops(frames, mesh))[None]
        with torch.inference_mode():
            return np.asarray(self.network.lips(crops)[0].numpy())

    def sound(self, pcm: np.ndarray, frames: int) -> np.ndarray:
        import torch

        mel = torch.from_numpy(self._tools.log_mel(pcm, frames))[None]
        with torch.inference_mode():
            return np.asarray(self.network.sound(mel)[0].numpy())

    def distances(self, lips: np.ndarray, sound: np.ndarray) -> np.ndarray:
        return self._tools.shifted_distances(lips, sound, SHIFT)


class SyncScores:
    """What the meters say of videos, beside the real clip with the same sound and the same lips with another sound."""

    def __init__(self, meters: Sequence[SyncMeter]) -> None:
        self.meters = meters
        self._real: dict[Path, list[np.ndarray]] = {}

    def lips(self, frames: np.ndarray, face: FaceSeries) -> list[np.ndarray]:
        """Each meter's embeddings of a video (n, H, W, 3) uint8 RGB; none where no face was seen in it."""
        return [meter.lips(frames, face.mesh) for meter in self.meters] if face.seen.any() else []

    def numbers(self, lips: Sequence[np.ndarray], frames: int, clip: Footage, other: Footage) -> dict[str, float]:
        """Distance, confidence and offset with the clip's sound, with another's (``..._other``), and of the real clip.

        Args:
            lips: of :meth:`lips`. frames: of that video. clip: whose sound it was made from. other: another clip.
        """
        if self.meters and clip.path not in self._real:
            self._real[clip.path] = self.lips(clip.frames, clip.face)
        real = self._real.get(clip.path, [])
        numbers: dict[str, float] = {}
        for meter, seen in zip(self.meters, lips, strict=False):
            own = meter.score(seen, meter.sound(clip.pcm, frames))
            foreign = meter.score(seen, meter.sound(other.pcm, frames))
            numbers |= own | {f"{name}_other": value for name, value in foreign.items()}
        for meter, seen in zip(self.meters, real, strict=False):
            scores = meter.score(seen, meter.sound(clip.pcm, len(clip.frames)))
            numbers |= {f"{name}_real": value for name, value in scores.items()}
        return numbers


def load_meters(kinds: Sequence[type[SyncMeter]]) -> tuple[list[SyncMeter], dict[str, dict[str, str]]]:
    """The networks that run here, and for each of their numbers its status and definition, as the report shows them."""
    meters: list[SyncMeter] = []
    metrics: dict[str, dict[str, str]] = {}
    for kind in kinds:
        status = "computed"
        try:
            meters.append(kind())
        except (ImportError, OSError, RuntimeError) as error:
            status = f"not computed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        metrics |= {name: {"status": status, "definition": text} for name, text in kind.definitions.items()}
    return meters, metrics
