"""Built engines on disk: their manifest, and whether they may be used on this machine.

``semo build`` (``semo_sdk.engines``) writes ``<folder>/engines/<key>/``: one ``<graph>.engine`` each and a
``manifest.json``. The key is the sha256 of everything that the engines were built from and for. Nothing is loaded that
a verified manifest does not list; "the file exists" says nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semo_sdk.backends.tensorrt_api import FLAVOURS, Flavour, Gpu
from semo_sdk.bundle import WEIGHTS_FILE, Bundle, graph_file, sha256_file
from semo_sdk.errors import EngineMismatchError

FORMAT_VERSION: Literal[1] = 1
ENGINES_FOLDER = "engines"
MANIFEST_FILE = "manifest.json"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Device(_Strict):
    """What engines were built for: one GPU with its driver, or any GPU of some compute capabilities.

    Attributes:
        gpu: name of the GPU; "" for portable engines.
        driver: version of its driver; "" for portable engines.
        compute_capabilities: that GPU's, or all that portable engines cover.
    """

    gpu: str
    driver: str
    compute_capabilities: tuple[str, ...]

    def __str__(self) -> str:
        capabilities = ", ".join(self.compute_capabilities)
        if not self.gpu:
            return f"any GPU of compute capability {capabilities}"
        return f"{self.gpu}, compute capability {capabilities}, driver {self.driver}"


class Attempt(_Strict):
    """One try to build a graph in a precision, and what the check of its numbers said."""

    precision: str
    passed: bool
    detail: str


class EngineFile(_Strict):
    """One engine of a set.

    Attributes:
        file: its name beside the manifest.
        sha256: of its bytes.
        size: in bytes.
        key: sha256 of ``parts``.
        parts: what it was built from and for (see ``semo_sdk.engines.key``).
        stored_precision: of the ONNX file that it was built from.
        precision: that its matrix products really have.
        arithmetic: how many matrix products and convolutions the network has in each element type.
        attempts: precisions that were tried, the last one is in the file.
        seconds: of building.
    """

    file: str = Field(pattern=r"^[a-z_]+\.engine$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=1)
    key: str
    parts: dict[str, Any]
    stored_precision: str
    precision: str
    arithmetic: dict[str, int]
    attempts: tuple[Attempt, ...]
    seconds: float


class EngineManifest(_Strict):
    """Contents of ``manifest.json``: a set of engines for one bundle and one target."""

    format_version: Literal[1] = FORMAT_VERSION
    key: str
    bundle: str
    target: str
    flavour: str
    version: str
    device: Device
    precision: str
    max_sessions: int
    sdk_version: str
    seconds: float
    engines: dict[str, EngineFile]


def sdk_version() -> str:
    """Installed version of semo-sdk."""
    try:
        return version("semo-sdk")
    except PackageNotFoundError:
        return "0+unknown"


def parts_key(parts: Mapping[str, Any]) -> str:
    """sha256 of JSON-ready values, the same in every process and whatever their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def set_key(keys: Mapping[str, str]) -> str:
    """Name of a set of engines, from the key of each graph's."""
    return parts_key(keys)


def cache_folder() -> Path:
    """Where engines lie when nobody says where: the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "semo-sdk"


def engine_sets(bundle: Bundle, folder: str | Path | None = None) -> list[Path]:
    """Folders that hold a manifest: in ``folder``, or without it in the bundle's own and in the user's cache.

    Args:
        bundle: whose folder to look into.
        folder: what ``semo build --out`` was given, or one set's own folder.
    """
    if folder is not None and (Path(folder) / MANIFEST_FILE).is_file() and Path(folder).parent.name == ENGINES_FOLDER:
        return [Path(folder)]
    places = [Path(folder)] if folder is not None else [bundle.path, cache_folder()]
    return [path.parent for place in places for path in sorted((place / ENGINES_FOLDER).glob(f"[!.]*/{MANIFEST_FILE}"))]


def read_manifest(folder: Path) -> EngineManifest:
    """A set's manifest, checked against its own key.

    Raises:
        EngineMismatchError: missing, damaged or altered.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = EngineManifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:  # ValidationError is a ValueError
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise EngineMismatchError(f"{path} cannot be read ({detail}); {_again()}") from error
    keys = {name: engine.key for name, engine in manifest.engines.items()}
    honest = all(parts_key(engine.parts) == engine.key for engine in manifest.engines.values())
    if not honest or set_key(keys) != manifest.key or folder.name != manifest.key or manifest.flavour not in FLAVOURS:
        raise EngineMismatchError(f"{path} does not agree with its own key, so it was altered or moved; {_again()}")
    return manifest


def verify(
    folder: Path,
    bundle: Bundle,
    *,
    flavours: Mapping[str, Flavour],
    gpu: Gpu | None,
    graphs: Iterable[str],
    must_run: bool = True,
) -> EngineManifest:
    """A set's manifest if its engines may be used here: same bundle, versions and GPU, no byte changed.

    Args:
        folder: the set's folder.
        bundle: the bundle to run.
        flavours: installed TensorRTs.
        gpu: this machine's GPU.
        graphs: names of the graphs that are needed.
        must_run: portable engines need a GPU that they fit; without ``must_run`` they may also only be kept here.

    Raises:
        EngineMismatchError: the message names everything that differs, both values, and the command that helps.
    """
    manifest = read_manifest(folder)
    title = FLAVOURS[manifest.flavour][0]
    differences: list[str] = []

    def compare(what: str, built: object, here: object) -> None:
        if built != here:
            differences.append(f"{what}: built for {built}, here is {here}")

    installed = flavours.get(manifest.flavour)
    compare(title, manifest.version, installed.version if installed else "none")
    compare("semo-sdk", manifest.sdk_version, sdk_version())
    if must_run or manifest.device.gpu:
        differences += _device_differences(manifest.device, gpu)
    differences += bundle_differences(folder, manifest, bundle, graphs)
    if differences:
        unique = "; ".join(dict.fromkeys(differences))
        raise EngineMismatchError(f"engines in {folder} cannot be used: {unique}. {_again(manifest, bundle)}")
    return manifest


def bundle_differences(folder: Path, manifest: EngineManifest, bundle: Bundle, graphs: Iterable[str]) -> list[str]:
    """What keeps a set's engines from being those of a bundle, byte for byte: nothing, if the list is empty.

    Args:
        folder: the set's folder.
        manifest: its manifest.
        bundle: the bundle that they should be of.
        graphs: names of the graphs that are needed.
    """
    found = []
    for graph in graphs:
        if graph not in manifest.engines:
            found.append(f"graph {graph}: no engine was built")
            continue
        engine = manifest.engines[graph]
        onnx = graph_file(graph, engine.stored_precision)
        for what, part, name in (("graph", "onnx", onnx), ("weights", "weights", WEIGHTS_FILE)):
            entry = bundle.manifest.files.get(name)
            built, here = _short(engine.parts.get(part)), _short(entry.sha256 if entry else None)
            if built != here:
                found.append(f"{what} {name}: built for {built}, here is {here}")
        found += _file_differences(folder / engine.file, engine)
    return found


def _device_differences(device: Device, gpu: Gpu | None) -> list[str]:
    if gpu is None:
        return [f"GPU: built for {device}, here is none"]
    found = []
    if gpu.compute_capability not in device.compute_capabilities:
        built = ", ".join(device.compute_capabilities)
        found.append(f"compute capability: built for {built}, here is {gpu.compute_capability}")
    for what, built, here in (("GPU", device.gpu, gpu.name), ("driver", device.driver, gpu.driver)):
        if built and built != here:
            found.append(f"{what}: built for {built}, here is {here}")
    return found


def _file_differences(path: Path, engine: EngineFile) -> list[str]:
    if not path.is_file():
        return [f"{path.name} is missing"]
    if path.stat().st_size != engine.size:
        return [f"{path.name} has {path.stat().st_size} bytes instead of {engine.size}"]
    if sha256_file(path) != engine.sha256:
        return [f"{path.name} was altered (sha256 differs from the manifest)"]
    return []


def _short(digest: object) -> str:
    return str(digest)[:12] if digest else "none"


def _again(manifest: EngineManifest | None = None, bundle: Bundle | None = None) -> str:
    if manifest is None or bundle is None:
        return "build again: semo build BUNDLE"
    return (
        f"Build again: semo build {bundle.path} --target {manifest.target} --precision {manifest.precision} "
        f"--max-sessions {manifest.max_sessions}"
    )
