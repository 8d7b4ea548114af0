"""Bundles from the Hugging Face hub, and folders that can be uploaded there. Needs the extra ``hub`` only to download.

A repository holds the files of a bundle, as ``semo export`` writes them. Nothing else is fetched from it, and nothing
is ever unpickled; every file is compared with the sha256 in the bundle's manifest. Pin ``revision`` to a commit to get
the same files for ever.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, Self

from semo_sdk.bundle import CARD_FILE, MANIFEST_FILE, PARITY_FILE, WEIGHTS_FILE, Bundle, embedded_bundles
from semo_sdk.errors import BundleError, MissingDependencyError
from semo_sdk.files import replacing_folder

__all__ = ["Pretrained", "load_pretrained", "save_pretrained"]

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["config.json", MANIFEST_FILE, WEIGHTS_FILE, PARITY_FILE, CARD_FILE, "*.onnx"]


def load_pretrained(
    repo_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Bundle:
    """A bundle from a folder, or from a repository of the hub, verified.

    >>> Animator("photo.jpg", bundle=load_pretrained("owner/model", revision="0123abc"))

    Args:
        repo_or_path: a folder, the name of an embedded bundle, or ``"owner/name"`` of a repository.
        revision: branch, tag or commit; default: the repository's main branch. Not for folders.
        cache_dir: where downloads are kept; default: the hub's own cache.
        local_files_only: use what the cache has; nothing goes over the network.
        token: for private repositories; True or None takes the one that is logged in, False none.

    Raises:
        BundleError: no such folder or repository, no access, no network and not in the cache, or a file that is not
            what the manifest says; the message says which.
        MissingDependencyError: huggingface_hub is not installed.
    """
    name = os.fspath(repo_or_path)
    if Path(name).exists() or name in embedded_bundles() or not _REPOSITORY.fullmatch(name):
        if revision is not None:
            raise BundleError(f"bundle {name!r} is not in a repository of the hub: leave out revision=")
        return Bundle.open(name)
    return Bundle.open(_download(name, revision, cache_dir, local_files_only, token))


class Pretrained:
    """What :class:`semo_sdk.Animator` inherits: made of a model from the hub."""

    @classmethod
    def from_pretrained(
        cls,
        repo_or_path: str | os.PathLike[str],
        portrait: Any,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **settings: Any,
    ) -> Self:
        """An animator with a model from a repository of the hub, or from a folder.

        >>> Animator.from_pretrained("owner/model", "photo.jpg", revision="0123abc", backend="onnxruntime")

        Args:
            repo_or_path, revision, cache_dir, local_files_only, token: as for :func:`semo_sdk.hub.load_pretrained`.
            portrait: as for :class:`semo_sdk.Animator`.
            **settings: the others of :class:`semo_sdk.Animator`.

        Raises:
            BundleError, MissingDependencyError: as :func:`semo_sdk.hub.load_pretrained`.
            SemoError: as :class:`semo_sdk.Animator`.
        """
        bundle = load_pretrained(
            repo_or_path, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        make: Any = cls
        made: Self = make(portrait, bundle=bundle, **settings)
        return made


def _download(
    name: str, revision: str | None, cache_dir: str | os.PathLike[str] | None, offline: bool, token: str | bool | None
) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise MissingDependencyError("huggingface_hub is not installed: pip install 'semo-sdk[hub]'") from error
    which = f"{name!r}" if revision is None else f"{name!r} at revision {revision!r}"
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            local_files_only=offline,
            token=token,
            allow_patterns=_FILES,
        )
    except LocalEntryNotFoundError as error:
        why = "local_files_only=True" if offline else "the hub cannot be reached"
        raise BundleError(
            f"{which} is not in the cache, and {why}: download it where there is a network, or give a bundle's folder"
        ) from error
    except GatedRepoError as error:
        raise BundleError(f"{which}: accept its terms on the hub, then give a token=") from error
    except RevisionNotFoundError as error:
        raise BundleError(f"{name!r} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise BundleError(f"no folder and no repository {name!r}; a private one needs a token=") from error
    except (OSError, ValueError) as error:  # requests' and the hub's other errors are OSErrors
        raise BundleError(f"{which} cannot be downloaded: {error}") from error
    return _without_links(Path(folder))


def _without_links(snapshot: Path) -> Path:
    """The cache keeps links out of its folder, which engines do not follow: copies of the files beside it.

    No hard links: onnx refuses weights that have a second name.
    """
    if not any(file.is_symlink() for file in snapshot.iterdir()):
        return snapshot
    plain = snapshot.parent.parent / "semo" / snapshot.name
    if not plain.is_dir():
        try:
            with replacing_folder(plain) as temporary:
                for file in snapshot.iterdir():
                    shutil.copyfile(file, temporary / file.name)
        except OSError as error:
            raise BundleError(f"the hub's cache {snapshot.parent.parent} cannot be written: {error}") from error
    return plain


def save_pretrained(bundle: str | Path | Bundle, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Writes a bundle's files, model card included, as a folder to upload or to give away. It appears when complete.

    Args:
        bundle: a folder, the name of an embedded bundle, or an open bundle.
        folder: must not exist.
        force: replace it.

    Returns:
        The folder.

    Raises:
        BundleError: a damaged bundle, or the folder exists.
    """
    opened, target = Bundle.open(bundle), Path(folder)
    if target.exists() and not force:
        raise BundleError(f"{target} exists; choose another folder, or force=True to replace it")
    if target.exists() and target.resolve() == opened.path.resolve():
        raise BundleError(f"{target} is the bundle itself; choose another folder")
    with replacing_folder(target) as temporary:
        for name in (*opened.manifest.files, MANIFEST_FILE, PARITY_FILE, CARD_FILE):
            if (opened.path / name).is_file():
                shutil.copyfile(opened.path / name, temporary / name)
        Bundle.open(temporary)
    return target
