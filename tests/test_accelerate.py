"""Two processes that train together are one with twice the batch: same losses, same weights; one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from semo_sdk.training.loop import LoopConfig, Trainer
from semo_sdk.training.processes import Processes, processes

pytest.importorskip("accelerate")

ROOT = Path(__file__).parent.parent
STEPS, BATCH = 6, 8

# What each of the processes runs: this module's own `train`, on its share of every batch.
WORKER = "import sys; from pathlib import Path; from tests.test_accelerate import train; " + (
    "train(Path(sys.argv[1]), steps=int(sys.argv[2]), resume=sys.argv[3] == 'resume')"
)


class Network(nn.Module):
    """Small, with a part that takes no part in the loss (as in some phases of the first stage)."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.out, self.idle = nn.Linear(5, 16), nn.Linear(16, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.used(x)))


def train(out: Path, *, steps: int, resume: bool = False) -> None:
    """Trains on this process's share of a batch that depends on the step alone."""
    us = processes()
    torch.manual_seed(us.rank)  # processes that start apart are made equal
    network = Network()
    if us.count == 1:
        torch.manual_seed(0)
        network = Network()
    loop = LoopConfig(steps=steps, learning_rate=1e-2, warmup=2, save_every=3, log_every=1, ema=0.5)
    trainer = Trainer(loop, {"network": network}, out, resume=resume)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        noise = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH, 5, generator=noise)
        share = slice(us.rank * BATCH // us.count, (us.rank + 1) * BATCH // us.count)
        return x[share], x.square()[share, :2]

    def losses(pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss": (network(pair[0]) - pair[1]).square().mean()}

    def on_save() -> None:
        with (out / "saves").open("a") as file:
            file.write(f"{us.rank} {trainer.step}\n")

    trainer.run((batch(step) for step in range(trainer.step, steps)), losses, on_save)


def launch(out: Path, steps: int, how: str = "new") -> None:
    """Two processes on the CPU, as ``accelerate launch`` starts them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    script = out.parent / "worker.py"
    script.write_text(WORKER)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    result = subprocess.run(
        [*command, str(script), str(out), str(steps), how], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two") / "run"
    launch(out, STEPS)
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    train(out, steps=STEPS)
    return out


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(together: Path, alone: Path) -> None:
    two, one = log(together), log(alone)
    assert len(two) == len(one) == STEPS
    for mine, other in zip(two, one, strict=True):
        for key in ("loss", "norm", "rate"):
            assert mine[key] == pytest.approx(other[key], rel=1e-4), (mine["step"], key)
    a, b = load_file(together / "state.safetensors"), load_file(alone / "state.safetensors")
    assert set(a) == set(b)
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_only_the_first_process_writes(together: Path) -> None:
    assert (together / "saves").read_text().splitlines() == ["0 3", "0 6"]
    assert len(list(together.glob("tensorboard/events.*"))) <= 1  # none where tensorboard is not installed


@pytest.mark.slow
def test_a_resumed_run_of_two_goes_on_where_it_was(together: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    longer = tmp_path / "longer"
    train(out, steps=STEPS)
    launch(out, STEPS + 3, "resume")  # what one process began, two may go on with
    assert [row["step"] for row in log(out)] == list(range(1, STEPS + 4))
    train(longer, steps=STEPS)
    train(longer, steps=STEPS + 3, resume=True)
    assert log(out)[-1]["loss"] == pytest.approx(log(longer)[-1]["loss"], rel=1e-4)


def test_one_process_needs_no_accelerate() -> None:
    us = processes()
    assert type(us) is Processes and us.first and us.count == 1
    tensor = torch.ones(2)
    us.average([tensor])
    us.share([tensor])
    us.wait()
    assert us.mean({"a": 0.1, "b": 2.0}) == {"a": 0.1, "b": 2.0} and tensor.tolist() == [1, 1]
