"""Motion: a sequence of motion tokens as a thing of its own: record it, save it, edit it, render it on any portrait.

A token is about 1 KB in half precision, so motion is also a compact way to send video: 25 kB a second.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semo_sdk.config import SemoConfig
from semo_sdk.constants import FPS
from semo_sdk.errors import MotionError

__all__ = ["Motion"]

FORMAT = 1  # of the file


@dataclass(frozen=True, eq=False)
class Motion:
    """Motion tokens of consecutive frames, 25 a second.

    Attributes:
        tokens: (n, D) float32, n >= 1; ``D`` is 512 for the paper's one token of width 512.
        model: name of the model that the tokens belong to; others cannot read them.

    Raises:
        MotionError: not such an array, or NaN or infinity in it.
    """

    tokens: np.ndarray
    model: str

    def __post_init__(self) -> None:
        tokens = np.asarray(self.tokens)
        if tokens.ndim != 2 or not len(tokens) or not np.issubdtype(tokens.dtype, np.floating):
            raise MotionError(f"motion tokens must be (n, D) floats with n >= 1, got {tokens.shape} {tokens.dtype}")
        if not np.isfinite(tokens).all():
            raise MotionError("motion tokens hold NaN or infinity")
        object.__setattr__(self, "tokens", np.ascontiguousarray(tokens, np.float32))

    def __len__(self) -> int:
        """Frames."""
        return len(self.tokens)

    def __getitem__(self, frames: slice) -> Motion:
        """A part, by frame numbers: ``motion[25:50]`` is the second second."""
        if not isinstance(frames, slice):
            raise TypeError("motion is cut with a slice, as in motion[25:50]; single tokens are in motion.tokens")
        return Motion(self.tokens[frames], self.model)

    def __add__(self, other: Motion) -> Motion:
        """One motion after the other, without a transition; see :meth:`then` for a soft one."""
        return self.then(other)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.tokens, dtype=dtype, copy=copy)

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self) / FPS

    def blend(self, other: Motion, weight: float | np.ndarray = 0.5) -> Motion:
        """A mixture, frame by frame.

        Args:
            other: as long as this one.
            weight: of ``other``: 0 gives this motion, 1 the other; one number, or (n,) one for each frame.

        Raises:
            MotionError: another model or length, or weights of another shape.
        """
        self._check_same_model(other)
        if len(other) != len(self):
            raise MotionError(f"cannot blend {len(self)} with {len(other)} frames; cut one, as in motion[:n]")
        share = np.asarray(weight, np.float32)
        if share.shape not in ((), (len(self),)):
            raise MotionError(f"weight must be a number or ({len(self)},), got {share.shape}")
        share = share.reshape(-1, 1)
        return Motion((1 - share) * self.tokens + share * other.tokens, self.model)

    def then(self, other: Motion, *, fade: int = 0) -> Motion:
        """This motion, then the other one.

        Args:
            other: what follows.
            fade: frames at the seam in which one turns into the other; the result is that much shorter.

        Raises:
            MotionError: another model, or a fade longer than one of the two.
        """
        self._check_same_model(other)
        if not 0 <= fade <= min(len(self), len(other)):
            raise MotionError(f"fade must be from 0 to {min(len(self), len(other))} frames here, got {fade}")
        if not fade:
            return Motion(np.concatenate([self.tokens, other.tokens]), self.model)
        weight = (np.arange(fade, dtype=np.float32) + 1) / (fade + 1)
        seam = self[len(self) - fade :].blend(other[:fade], weight)
        return Motion(np.concatenate([self.tokens[:-fade], seam.tokens, other.tokens[fade:]]), self.model)

    def retarget(self, reference_motion: np.ndarray) -> Motion:
        """The same movement, but starting from another pose: ``reference + (tokens - tokens[0])``.

        Args:
            reference_motion: (D,) or (1, D) float32, for example ``animator.reference.motion[0]``.
        """
        start = np.asarray(reference_motion, np.float32).reshape(1, -1)
        if start.shape[1] != self.tokens.shape[1]:
            raise MotionError(f"reference_motion has width {start.shape[1]}, these tokens {self.tokens.shape[1]}")
        return Motion(start + (self.tokens - self.tokens[:1]), self.model)

    def save(self, path: str | Path) -> Path:
        """Writes an ``.npz`` file (no pickle) with the tokens, the model's name and the frame rate.

        Returns:
            The path, as given.
        """
        target = Path(path)
        draft = target.with_name(f".{target.name}.part")
        try:
            with draft.open("wb") as file:
                np.savez(
                    file,
                    tokens=self.tokens,
                    model=np.asarray(self.model),
                    fps=np.asarray(FPS),
                    format=np.asarray(FORMAT),
                )
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return target

    @classmethod
    def load(cls, path: str | Path) -> Motion:
        """Reads what :meth:`save` wrote.

        Raises:
            MotionError: no such file, damaged, another kind of file, or another frame rate.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                tokens, model, fps, version = (file[name] for name in ("tokens", "model", "fps", "format"))
        except FileNotFoundError:
            raise MotionError(f"motion file {path} does not exist") from None
        except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise MotionError(f"{path} is not a motion file, or a damaged one: {error}") from error
        if version != FORMAT:
            raise MotionError(f"{path} has motion format {version}, this version of semo-sdk reads {FORMAT}")
        if fps != FPS:
            raise MotionError(f"{path} has {fps} frames a second, semo-sdk works at {FPS}")
        return cls(tokens, str(model))

    def check(self, config: SemoConfig) -> Motion:
        """Itself, if the model can read it.

        Raises:
            MotionError: it belongs to another model.
        """
        if self.model != config.name or self.tokens.shape[1] != config.motion_dim:
            raise MotionError(
                f"this motion belongs to model {self.model!r} (width {self.tokens.shape[1]}), "
                f"not to {config.name!r} (width {config.motion_dim}); record it again with this model"
            )
        return self

    def __repr__(self) -> str:
        return f"Motion({len(self)} frames, {self.duration:.2f} s, width={self.tokens.shape[1]}, model={self.model!r})"

    def _check_same_model(self, other: Motion) -> None:
        if other.model != self.model or other.tokens.shape[1] != self.tokens.shape[1]:
            raise MotionError(f"cannot join motion of model {self.model!r} with motion of {other.model!r}")
