"""What the scripts for a lent GPU box share: files travel in loads of pieces, wheels are installed, the package found.

Such a box has torch but no network, takes and gives back only so much a call, and this package is not installed there.
Nothing here needs more than Python's standard library, so that a script run by its path can import it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(os.environ.get("SEMO_SITE", "/tmp/semo-site"))
PIECE_BYTES = 8 << 20
LOAD_BYTES = 48 << 20  # of pieces in one transfer
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def work_folder() -> Path:
    """Where a box keeps what it makes; it is there."""
    folder = Path(os.environ.get("SEMO_WORK", "/tmp/semo-work"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def download(names: Sequence[str], with_needs: frozenset[str], folder: Path) -> list[Path]:
    """Wheels for the box, through pip, in the order of their names.

    Args:
        with_needs: names whose needs come too, in the very versions that they ask for.
        folder: for the wheels.
    """
    base = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--python-version", "3.12"]
    base += ["--implementation", "cp", *(word for platform in PLATFORMS for word in ("--platform", platform))]
    wheels: list[Path] = []
    for name in names:
        fetched = folder / name
        fetched.mkdir(parents=True, exist_ok=True)
        subprocess.run([*base, *([] if name in with_needs else ["--no-deps"]), "-d", str(fetched), name], check=True)
        wheels += [w for w in sorted(fetched.glob("*.whl")) if w.name not in {other.name for other in wheels}]
    return wheels


def split(path: Path, size: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a file's pieces of at most ``size`` bytes, and of the list with its checksum."""
    data = path.read_bytes()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    for number, piece in enumerate(pieces):
        yield f"{path.name}.{number:03}", piece
    yield f"{path.name}.list", json.dumps({"sha256": hashlib.sha256(data).hexdigest(), "pieces": len(pieces)}).encode()


def cut(files: Sequence[Path], folder: Path) -> list[Path]:
    """Cuts files into loads: folders ``1``, ``2``, ... in ``folder``, each for one transfer."""
    loads: list[Path] = []
    room = 0
    for path in files:
        for name, piece in split(path, PIECE_BYTES):
            if not loads or len(piece) > room:
                loads.append(folder / str(len(loads) + 1))
                loads[-1].mkdir()
                room = LOAD_BYTES
            (loads[-1] / name).write_bytes(piece)
            room -= len(piece)
    return loads


def collect(folder: Path) -> list[Path]:
    """Puts together every file in ``folder`` whose pieces are all there; the pieces go.

    Returns:
        The files that became whole now.
    """
    whole = []
    for listing in sorted(folder.glob("*.list")):
        expected, name = json.loads(listing.read_text()), listing.name.removesuffix(".list")
        pieces = [folder / f"{name}.{number:03}" for number in range(expected["pieces"])]
        if not all(piece.is_file() for piece in pieces):
            continue
        data = b"".join(piece.read_bytes() for piece in pieces)
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise SystemExit(f"{name} was damaged on the way: send its pieces again")
        (folder / name).write_bytes(data)
        for path in (*pieces, listing):
            path.unlink()
        whole.append(folder / name)
    return whole


def stow(folder: Path, kept: Path, data: Path) -> list[str]:
    """Keeps what came this time in ``kept``. Of whole files wheels are installed, archives unpacked into ``data``.

    Returns:
        Names of the files that became whole now.
    """
    kept.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        shutil.copy(path, kept / path.name)
    whole = collect(kept)
    wheels = [str(path) for path in whole if path.suffix == ".whl"]
    if wheels:
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade"]
        subprocess.run([*install, "--target", str(SITE), *wheels], check=True)
    for path in whole:
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                archive.extractall(data, filter="data")
            path.unlink()
    return [path.name for path in whole]


def environment(work: Path) -> dict[str, str]:
    """What a process of this package needs on the box; its caches go into ``work``."""
    site = install_tree()
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(site), "XDG_CACHE_HOME": str(work / "cache")}
    if site:
        found["PYTHONSAFEPATH"] = "1"  # this checkout's semo_sdk has no benchmarks inside; the copy has
    return found


def install_tree() -> list[str]:
    """Folders for ``PYTHONPATH``: none where the package is installed, else a copy of this checkout and the wheels."""
    if importlib.util.find_spec("semo_sdk") is not None and importlib.util.find_spec("semo_sdk.benchmarks") is not None:
        return []
    SITE.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "semo_sdk", SITE / "semo_sdk", dirs_exist_ok=True)
    for name in ("export", "engines", "benchmarks"):
        shutil.copytree(ROOT / name, SITE / "semo_sdk" / name, dirs_exist_ok=True)
    return [str(SITE)]


def say(text: str) -> None:
    """A line of progress."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
