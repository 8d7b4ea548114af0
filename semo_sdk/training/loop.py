"""What both training stages share: schedule, moving average, checkpoints that resume exactly, logs and loss plot."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from semo_sdk.config import Strict
from semo_sdk.errors import CheckpointError
from semo_sdk.files import replacing, write_text
from semo_sdk.training.processes import processes

STATE = "state.safetensors"


class LoopConfig(Strict):
    """Settings of the optimiser and of the run.

    The paper contradicts itself on weight decay (0.05 in section 4.1 and Appendix B, 0.0001 in Table 4) and on the
    optimiser (AdamW and Adam): AdamW with 0.05 is used, because a decoupled decay is what 0.05 makes sense for.
    """

    steps: int = 20_000
    learning_rate: float = 5e-4
    warmup: int = 300
    final_rate: float = 0.05  # of the learning rate, at the end of the cosine
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    save_every: int = 500
    log_every: int = 20


class Trainer:
    """Optimiser, moving average and files of one run in ``out``.

    Where several processes train together (see :mod:`~semo_sdk.training.processes`) each has a trainer, all hold the
    same weights; the first one writes. With tensorboard installed there are logs for it in ``out/tensorboard``.
    """

    def __init__(
        self, config: LoopConfig, modules: dict[str, nn.Module], out: Path, *, resume: bool, restart: float = 1.0
    ) -> None:
        """
        Args:
            modules: what is trained, by name. out: folder of the run; made if it is missing.
            resume: go on from ``out/state.safetensors``.
            restart: share of the run after which the learning rate's warm-up and cosine begin anew.

        Raises:
            CheckpointError: nothing to resume from, or a run is there already and ``resume`` is False.
        """
        self.config, self.out, self.processes = config, out, processes()
        self.params = {
            f"{m}.{k}": p for m, mod in modules.items() for k, p in mod.named_parameters() if p.requires_grad
        }
        self.ema = {k: p.detach().clone() for k, p in self.params.items()}
        decay = [p for p in self.params.values() if p.ndim > 1]
        plain = [p for p in self.params.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        self.step, self.restart = 0, round(restart * config.steps)
        self.history: list[dict[str, float]] = []
        out.mkdir(parents=True, exist_ok=True)
        if resume:
            self._load()
        elif (out / STATE).exists():
            raise CheckpointError(f"{out} holds a run already: resume it, or choose another folder")
        self.processes.share([*self.params.values(), *self.ema.values()])
        self.board = self._open_board() if self.processes.first else None

    def _open_board(self) -> Any:
        """TensorBoard's writer, or None where it is not installed."""
        if importlib.util.find_spec("tensorboard") is None:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step or None)

    def keep_config(self, config: Strict) -> None:
        """Writes what the run depends on to ``out/config.json``."""
        if self.processes.first:
            write_text(self.out / "config.json", config.model_dump_json(indent=2))

    def learning_rate(self) -> float:
        c = self.config
        step, steps = self.step, c.steps
        if 0 < self.restart < steps:
            step, steps = (step, self.restart) if step < self.restart else (step - self.restart, steps - self.restart)
        if step < c.warmup:
            return c.learning_rate * (step + 1) / c.warmup
        done = (step - c.warmup) / max(1, steps - c.warmup)
        return c.learning_rate * (c.final_rate + (1 - c.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def update(self, loss: Tensor) -> float:
        """One optimiser step from ``loss``; gradient norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.average([p.grad for p in self.params.values() if p.grad is not None])
        norm = float(nn.utils.clip_grad_norm_(list(self.params.values()), self.config.clip))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        if math.isfinite(norm):  # a bad batch must not poison the weights
            self.optimizer.step()
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages, values = list(self.ema.values()), [p.detach() for p in self.params.values()]
            torch._foreach_lerp_(averages, values, 1 - decay)
        self.step += 1
        return norm

    def run(
        self, batches: Iterable[Any], losses: Callable[[Any], dict[str, Tensor]], on_save: Callable[[], None]
    ) -> None:
        """Trains on ``batches``; ``losses`` returns the total under ``loss`` and parts to log beside it.

        ``on_save`` is called in the first process only.
        """
        c, first = self.config, self.processes.first
        bar = tqdm(total=c.steps, initial=self.step, unit="step", dynamic_ncols=True, disable=not first)
        sums: dict[str, float] = {}
        started = time.perf_counter()
        for batch in batches:
            # a resumed run draws what it would have drawn
            torch.manual_seed((c.seed * 1_000_003 + self.step) * self.processes.count + self.processes.rank)
            parts = losses(batch)
            norm = self.update(parts["loss"])
            logged: dict[str, Tensor | float] = {**parts, "norm": norm}
            for key, value in logged.items():
                sums[key] = sums.get(key, 0.0) + (value.item() if isinstance(value, Tensor) else value)
            bar.update()
            if self.step % c.log_every == 0:
                row = self.processes.mean({k: v / c.log_every for k, v in sums.items()})
                bar.set_postfix({k: f"{row[k]:.4f}" for k in parts})
                self._log(row | {"step": self.step, "rate": self.learning_rate()}, time.perf_counter() - started)
                sums = {}
            if self.step % c.save_every == 0 or self.step == c.steps:
                if first:
                    self.save()
                    on_save()
                self.processes.wait()
        bar.close()
        if self.board is not None:
            self.board.flush()

    def _log(self, row: dict[str, float], seconds: float) -> None:
        self.history.append({**row, "seconds": seconds})
        if self.board is not None:
            for key, value in row.items():
                if key != "step":
                    self.board.add_scalar(f"train/{key}", value, self.step)

    def show(self, name: str, path: Path) -> None:
        """Adds a picture (a file that PIL reads) to TensorBoard's log."""
        if self.board is None:
            return
        import numpy as np
        from PIL import Image

        self.board.add_image(name, np.asarray(Image.open(path)), self.step, dataformats="HWC")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the modules hold the averaged weights."""
        kept = {k: p.detach().clone() for k, p in self.params.items()}
        with torch.no_grad():
            for k, p in self.params.items():
                p.copy_(self.ema[k])
        try:
            yield
        finally:
            with torch.no_grad():
                for k, p in self.params.items():
                    p.copy_(kept[k])

    def note(self, scores: dict[str, float]) -> None:
        """Appends validation scores of this step to ``out/validation.jsonl`` and shows them above the bar."""
        row = {"step": self.step, **scores}
        with (self.out / "validation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for key, value in scores.items():
                self.board.add_scalar(f"validation/{key}", value, self.step)
        tqdm.write("  ".join(f"{k} {v:.4g}" for k, v in row.items()))

    def freeze(self, *names: str) -> None:
        """Gives the parameters of modules, or of parts of them, their averaged values, to stay there."""
        frozen = tuple(f"{name}." for name in names)
        with torch.no_grad():
            for k, p in self.params.items():
                if p.requires_grad and k.startswith(frozen):
                    p.copy_(self.ema[k])
                    p.requires_grad_(False)

    def save(self) -> None:
        """Writes weights, averages and optimiser moments (safetensors), the log (JSON lines) and the loss plot."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for k, p in self.params.items():
            tensors[f"weight/{k}"], tensors[f"ema/{k}"] = p.detach(), self.ema[k]
            for name, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer/{name}/{k}"] = value.detach().reshape(value.shape)
        with replacing(self.out / STATE) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"step": str(self.step)})
        log = self.out / "log.jsonl"
        log.write_text("".join(json.dumps(row) + "\n" for row in self.history), encoding="utf-8")
        plot_losses(self.history, self.out / "loss.png")

    def _load(self) -> None:
        from safetensors import SafetensorError, safe_open

        path = self.out / STATE
        if not path.is_file():
            raise CheckpointError(f"nothing to resume: {path} does not exist")
        try:
            with safe_open(path, "pt") as file:
                self.step = int((file.metadata() or {})["step"])
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, KeyError) as error:
            raise CheckpointError(f"{path} is truncated or foreign: {error}") from error
        missing = [k for k in self.params if f"weight/{k}" not in state]
        if missing:
            raise CheckpointError(f"{path} is of another model: it lacks {missing[0]}")
        with torch.no_grad():
            for k, p in self.params.items():
                p.copy_(state[f"weight/{k}"])
                self.ema[k].copy_(state[f"ema/{k}"])
                moments = {n: state.get(f"optimizer/{n}/{k}") for n in ("step", "exp_avg", "exp_avg_sq")}
                if moments["step"] is not None:
                    self.optimizer.state[p] = {n: v.to(p.device) for n, v in moments.items() if v is not None}
        log = self.out / "log.jsonl"
        if log.is_file():
            rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            self.history = [row for row in rows if row["step"] <= self.step]


def best_device() -> torch.device:
    """This process's CUDA GPU where torch sees one, else the CPU."""
    return processes().device


def plot_losses(history: list[dict[str, float]], path: Path) -> None:
    """Each logged quantity over steps, logarithmic, one panel each (PNG)."""
    if not history:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [k for k in history[-1] if k not in ("step", "seconds", "rate")]
    figure, axes = plt.subplots(1, len(names), figsize=(3 * len(names), 2.6), layout="constrained")
    for axis, name in zip(axes if len(names) > 1 else [axes], names, strict=True):
        axis.plot([r["step"] for r in history], [r.get(name, math.nan) for r in history], linewidth=0.8)
        axis.set(title=name, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)
