"""What this machine has, and whether it can animate: ``semo doctor``, and the benchmarks' fingerprint.

Nothing here says who or where the machine is: no host name, no user, no path.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from semo_sdk.errors import SemoError

__all__ = ["diagnose", "fingerprint", "render"]

# distribution -> the extra that brings it ("" = part of the plain install)
PACKAGES = {
    "numpy": "",
    "pydantic": "",
    "openvino": "",
    "imageio-ffmpeg": "",
    "pillow": "",
    "c2pa-python": "",
    "onnxruntime": "ort",
    "onnxruntime-gpu": "ort-gpu",
    "torch": "export",
    "onnx": "export",
    "tensorrt": "tensorrt",
}
PARTS = ("ffmpeg", "bundle", "signing")
# instruction sets that decide how fast a transformer runs on a CPU (Linux names)
CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "sve",
)


def fingerprint() -> dict[str, Any]:
    """Hardware and versions that a measured number depends on.

    Returns:
        JSON-ready: ``cpu`` (model, cores, usable cores, features, memory in GiB), ``gpu`` (list), ``system``,
        ``python``, ``semo_sdk`` (version), ``packages`` (installed versions).
    """
    return {
        "semo_sdk": _version("semo-sdk"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "gpu": _gpus(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def diagnose() -> dict[str, Any]:
    """Everything ``semo doctor`` shows.

    Returns:
        The :func:`fingerprint`, plus ``backends``, ``ffmpeg``, ``bundle``, ``signing`` (each with ``ok`` and
        ``detail``), ``missing`` (package -> extra) and ``ok``: whether ``semo animate`` can work here.
    """
    report = fingerprint()
    report["backends"] = _backends()
    report["ffmpeg"] = _ffmpeg()
    report["bundle"] = _bundle()
    report["signing"] = _signing()
    report["missing"] = {name: extra for name, extra in PACKAGES.items() if name not in report["packages"]}
    report["ok"] = bool(
        any(backend["ok"] for backend in report["backends"]) and all(report[part]["ok"] for part in PARTS)
    )
    return report


def render(report: dict[str, Any]) -> str:
    """A report of :func:`diagnose` as text for a terminal."""
    cpu = report["cpu"]
    lines = [
        f"semo-sdk {report['semo_sdk']}   Python {report['python']}   {report['system']}",
        "",
        f"CPU       {cpu['model']}, {cpu['usable_cores']} of {cpu['cores']} cores, {cpu['memory_gib']} GiB",
        f"          {' '.join(cpu['features']) or 'no instruction set of interest found'}",
    ]
    gpus = [f"{gpu['name']}, {gpu['memory_mib']} MiB, driver {gpu['driver']}" for gpu in report["gpu"]]
    lines += [f"GPU       {gpu}" for gpu in gpus or ["no NVIDIA GPU"]]
    lines += ["", "Backends"]
    lines += [_row(backend["ok"], backend["name"], backend["detail"]) for backend in report["backends"]]
    lines += ["", "Parts"]
    lines += [_row(report[part]["ok"], part, report[part]["detail"]) for part in PARTS]
    lines += [
        "",
        "Packages  " + "  ".join(f"{name} {version}" for name, version in report["packages"].items()),
    ]
    lines += [
        f"          {name} is not installed" + (f" (pip install 'semo-sdk[{extra}]')" if extra else "")
        for name, extra in report["missing"].items()
    ]
    lines += [
        "",
        "`semo animate` works here." if report["ok"] else "`semo animate` cannot work here: see the lines with 'no'.",
    ]
    return "\n".join(lines)


def _row(ok: bool, name: str, detail: str) -> str:
    return f"  {'yes' if ok else 'no ':3}  {name:<12} {detail}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        text = info.read_text(encoding="utf-8", errors="replace")
        if named := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            model = named[1].strip()
        if listed := re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE):
            flags = set(listed[1].split())
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return {
        "model": model,
        "cores": cores,
        "usable_cores": usable,
        "features": [feature for feature in CPU_FEATURES if feature in flags],
        "memory_gib": _memory_gib(),
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpus() -> list[dict[str, Any]]:
    query = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version,compute_cap",
        "--format=csv,noheader,nounits",
    ]
    try:
        output = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines() if line.count(",") == 3]
    keys = ("name", "memory_mib", "driver", "compute_capability")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _backends() -> list[dict[str, Any]]:
    from semo_sdk.backends import available_backends

    return [
        {
            "name": backend.name,
            "ok": backend.available,
            "devices": list(backend.devices),
            "detail": backend.reason + (f" ({', '.join(backend.devices)})" if backend.devices else ""),
        }
        for backend in available_backends()
    ]


def _ffmpeg() -> dict[str, Any]:
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
        encoders = subprocess.run(
            [program, "-hide_banner", "-encoders"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return {"ok": False, "detail": f"ffmpeg does not run: {error}; pip install imageio-ffmpeg"}
    lacking = [name for name in ("libx264", "aac") if not re.search(rf"\b{name}\b", encoders)]
    if lacking:
        return {"ok": False, "detail": f"this ffmpeg has no encoder {' and '.join(lacking)}"}
    return {"ok": True, "detail": f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}, H.264 and AAC"}


def _signing() -> dict[str, Any]:
    from semo_sdk.provenance.manifest import library

    try:
        return {"ok": True, "detail": f"manifests by c2pa {library().sdk_version()}"}
    except SemoError as error:
        return {"ok": False, "detail": str(error)}


def _bundle() -> dict[str, Any]:
    from semo_sdk.bundle import Bundle

    try:
        bundle = Bundle.open("semo-tiny")
    except SemoError as error:
        return {"ok": False, "detail": str(error)}
    size = sum(entry.size for entry in bundle.manifest.files.values())
    return {
        "ok": True,
        "detail": f"{bundle.config.name}, {size / 1e6:.1f} MB, every file's checksum is right",
    }
