"""What a machine spends while something runs: memory, and on NVIDIA GPUs memory of the card and energy."""

from __future__ import annotations

import logging
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 0.02
STATUS = Path("/proc/self/status")


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far."""
    # The kernel's own high-water mark of this program; getrusage would also count what its parent held.
    if STATUS.is_file():
        line = next((line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")), "")
        if line:
            return round(int(line.split()[1]) / 1024, 1)
    scale = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20, 1)


class GpuMeter:
    """Peak memory and energy of the first NVIDIA GPU while the ``with`` block runs, through NVML.

    ``result`` is a dictionary afterwards: ``peak_mib`` (the whole card, sampled fifty times a second), ``energy_j`` and
    ``mean_watts``; a value that the card does not tell is None. Without a card, or without the package nvidia-ml-py, it
    holds only ``reason``.
    """

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}
        self._nvml: Any = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._peak = 0
        self._watts: list[float] = []
        self._began: int | None = None

    def __enter__(self) -> GpuMeter:
        try:
            import pynvml

            pynvml.nvmlInit()
            self._card = pynvml.nvmlDeviceGetHandleByIndex(0)
        except ImportError:
            self.result = {"reason": "nvidia-ml-py is not installed: pip install nvidia-ml-py"}
            return self
        except pynvml.NVMLError as error:
            self.result = {"reason": f"no NVIDIA GPU ({error})"}
            return self
        self._nvml = pynvml
        self._began = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        self._thread = threading.Thread(target=self._watch, name="gpu-meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._nvml is None or self._thread is None:
            return
        ended = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        self._stop.set()
        self._thread.join()
        known = self._began is not None and ended is not None
        self.result = {
            "peak_mib": round(self._peak / 2**20, 1),
            "energy_j": round((ended - self._began) / 1000, 3) if known else None,
            "mean_watts": round(sum(self._watts) / len(self._watts), 1) if self._watts else None,
        }
        self._nvml.nvmlShutdown()

    def _watch(self) -> None:
        while True:
            memory = self._ask("nvmlDeviceGetMemoryInfo")
            self._peak = max(self._peak, memory.used if memory is not None else 0)
            milliwatts = self._ask("nvmlDeviceGetPowerUsage")
            if milliwatts is not None:
                self._watts.append(milliwatts / 1000)
            if self._stop.wait(SAMPLE_SECONDS):
                return

    def _ask(self, question: str) -> Any:
        """NVML's answer, None where the card does not support the question."""
        try:
            return getattr(self._nvml, question)(self._card)
        except self._nvml.NVMLError as error:
            log.debug("%s: %s", question, error)
            return None
