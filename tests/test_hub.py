"""Bundles from folders and from the hub's cache, whose layout is made here; no network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from semo_sdk.animator import Animator
from semo_sdk.bundle import Bundle, embedded_bundles
from semo_sdk.errors import BundleError
from semo_sdk.hub import load_pretrained, save_pretrained
from semo_sdk.media.image import Portrait

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The hub's cache with ``owner/model``: blobs, and a snapshot of links to them."""
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "hub" / "models--owner--model"
    for folder in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in embedded_bundles()["semo-tiny"].iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.name.encode()).hexdigest()
        shutil.copyfile(file, blob)
        (repository / "snapshots" / COMMIT / file.name).symlink_to(Path("../../blobs") / blob.name)
    return tmp_path / "hub"


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_repository_in_the_cache_needs_no_network(cache: Path, revision: str | None) -> None:
    bundle = load_pretrained("owner/model", revision=revision, cache_dir=cache, local_files_only=True)
    assert bundle.fingerprint == Bundle.open("semo-tiny").fingerprint and COMMIT in str(bundle.path)


def test_what_came_from_the_hub_speaks(cache: Path, portrait: Portrait) -> None:
    with Animator.from_pretrained("owner/model", portrait, cache_dir=cache, local_files_only=True) as animator:
        clip = animator.from_audio(np.zeros(640, np.float32))
        assert sum(len(chunk) for chunk in clip) == 1


def test_what_is_not_there_is_said_clearly(cache: Path) -> None:
    with pytest.raises(BundleError, match="not in the cache, and local_files_only"):
        load_pretrained("owner/other", cache_dir=cache, local_files_only=True)
    with pytest.raises(BundleError, match="revision 'v2' is not in the cache"):
        load_pretrained("owner/model", revision="v2", cache_dir=cache, local_files_only=True)
    with pytest.raises(BundleError, match="no bundle 'nonsense'"):
        load_pretrained("nonsense")
    with pytest.raises(BundleError, match="leave out revision"):
        load_pretrained("semo-tiny", revision="v2")


def test_an_altered_file_in_the_cache_is_found(cache: Path) -> None:
    weights = load_pretrained("owner/model", cache_dir=cache, local_files_only=True).weights_path
    assert weights.stat().st_nlink == 1  # onnx reads no weights that have a second name
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"weights\.safetensors was altered"):
        load_pretrained("owner/model", cache_dir=cache, local_files_only=True)


def test_save_and_load_again(cache: Path, tmp_path: Path) -> None:
    bundle = load_pretrained("owner/model", cache_dir=cache, local_files_only=True)
    folder = save_pretrained(bundle, tmp_path / "mine")
    again = load_pretrained(folder)
    assert again.fingerprint == bundle.fingerprint and (folder / "README.md").is_file()
    assert not any(path.is_symlink() for path in folder.iterdir())
    with pytest.raises(BundleError, match="exists"):
        save_pretrained(bundle, folder)
    (folder / "config.json").unlink()
    assert load_pretrained(save_pretrained("semo-tiny", folder, force=True)).name == "semo-tiny"
    with pytest.raises(BundleError, match="itself"):
        save_pretrained(folder, folder, force=True)


def test_folders_need_no_package_and_repositories_name_the_extra() -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from semo_sdk.hub import load_pretrained\n"
        "load_pretrained('semo-tiny'); print('opened')\n"
        "load_pretrained('owner/model')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "opened\n" and "MissingDependencyError" in done.stderr and "semo-sdk[hub]" in done.stderr
