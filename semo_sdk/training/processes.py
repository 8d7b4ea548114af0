"""Several processes that train one model together, each on its own batches, one GPU each (or a share of the CPU).

``accelerate launch`` (or ``torchrun``) starts them and says so in the environment; without it there is one process, and
``accelerate`` is not needed. Gradients are averaged after each backward pass; only the first process writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from semo_sdk.errors import MissingDependencyError


class Processes:
    """One process, alone: every operation on several is the identity."""

    rank, count = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors, alike in number and shape in all processes, by their means over the processes."""

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by those of the first process."""

    def wait(self) -> None:
        """Returns when all processes have come here."""

    def mean(self, row: Mapping[str, float]) -> dict[str, float]:
        """Numbers averaged over the processes."""
        values = torch.tensor(list(row.values()), dtype=torch.float32, device=self.device)
        self.average([values])
        return dict(zip(row, values.tolist(), strict=True)) if self.count > 1 else dict(row)


class LaunchedProcesses(Processes):
    """What ``accelerate launch`` started.

    Raises:
        MissingDependencyError: accelerate is not installed.
    """

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MissingDependencyError(
                "several processes need accelerate: pip install 'semo-sdk[train]'", name="accelerate"
            ) from error
        # precision is this package's business (bfloat16 autocast), whatever accelerate was configured for
        self.accelerator: Any = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        return torch.device(self.accelerator.device)

    def average(self, tensors: Sequence[Tensor]) -> None:
        flat = self.accelerator.reduce(torch.cat([t.detach().flatten() for t in tensors]), reduction="mean")
        for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(piece.view_as(tensor))

    def share(self, tensors: Sequence[Tensor]) -> None:
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.copy_(broadcast(tensor.detach()))

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


@cache
def processes() -> Processes:
    """The processes that train together with this one."""
    return LaunchedProcesses() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Processes()
