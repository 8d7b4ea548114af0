"""What a GPU session needs besides the benchmarks: numbers compared on every backend, and a bundle of the paper's size.

python -m semo_sdk.benchmarks.gpu_checks parity semo-tiny parity.json
python -m semo_sdk.benchmarks.gpu_checks random semo-base FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def random_bundle(name: str, folder: Path) -> None:
    """Writes a preset with random weights as a bundle: for its speed alone; nobody has trained it.

    Graphs in float16; unlike ``semo export`` it does not run them, which takes minutes at that size on a CPU. Exporting
    takes minutes too (one thread of Python), so a bundle that is there already is left as it is.
    """
    import torch

    from semo_sdk.backends.base import graph_specs
    from semo_sdk.bundle import MANIFEST_FILE, WEIGHTS_FILE
    from semo_sdk.config import preset
    from semo_sdk.export.bundle import write_graph
    from semo_sdk.export.weights import WeightIndex
    from semo_sdk.export.writer import bundle_folder, write_manifest
    from semo_sdk.models.checkpoint import save_checkpoint
    from semo_sdk.models.graphs import graph_modules
    from semo_sdk.models.semo import SemoModel

    if (folder / MANIFEST_FILE).is_file():
        return
    config = preset(name)
    torch.manual_seed(0)
    model = SemoModel(config).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    with bundle_folder(folder, force=True) as work:
        model.half()
        save_checkpoint(work / WEIGHTS_FILE, model)
        index, modules = WeightIndex(work / WEIGHTS_FILE), graph_modules(model)
        for spec in graph_specs(config).values():
            write_graph(modules[spec.name], spec, config, "fp16", index)
        origin = {"weights": "random"}
        write_manifest(work, config, precisions=["fp16"], licence="", provenance=origin, metrics={})


def parity(bundle: str, out: Path) -> bool:
    """Every graph on every backend that runs here beside ONNX Runtime on the CPU in float32; whether all are close."""
    from semo_sdk.backends import load_engines
    from semo_sdk.backends.base import graph_specs
    from semo_sdk.bundle import Bundle
    from semo_sdk.engines.check import compare, make_samples
    from semo_sdk.errors import SemoError

    opened = Bundle.open(bundle)
    with load_engines(opened, "onnxruntime:cpu", "fp32") as trusted:
        samples = make_samples(opened.config, trusted, batch=2)
    rows: list[dict[str, Any]] = []
    # what compiles for minutes comes last: every row is written when it is there
    backends = ("openvino", "torch", "onnxruntime:cuda", "tensorrt", "torch:compile", "onnxruntime:tensorrt")
    for backend in backends:
        for precision in ("fp32", "bf16", "fp16"):
            row: dict[str, Any] = {"backend": backend, "precision": precision}
            try:
                if backend == "torch:compile" and shutil.which("nvidia-smi") is None:
                    raise SemoError("measured on GPUs only")
                with load_engines(opened, backend, precision) as engines:
                    tries = {
                        name: compare(spec, precision, samples.outputs[name], engines[name](samples.feeds[name]))
                        for name, spec in graph_specs(opened.config).items()
                    }
                row |= {"passed": all(t.passed for t in tries.values())}
                row |= {"graphs": {name: t.detail for name, t in tries.items()}}
            except SemoError as error:
                row["left_out"] = str(error)
            except Exception as error:  # one library's failure must not cost the others' rows
                row |= {"passed": False, "failed": f"{type(error).__name__}: {error}"}
            rows.append(row)
            told = {"benchmark": "parity", "bundle": bundle, "rows": rows}
            out.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return all(row.get("passed", True) for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semo_sdk.benchmarks.gpu_checks", description="Numbers compared.")
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("parity")
    checking.add_argument("bundle")
    checking.add_argument("out", type=Path)
    making = commands.add_parser("random")
    making.add_argument("preset")
    making.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "parity":
        sys.exit(0 if parity(options.bundle, options.out) else 1)
    random_bundle(options.preset, options.folder)


if __name__ == "__main__":
    main()
