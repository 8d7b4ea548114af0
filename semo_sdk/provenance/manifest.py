"""C2PA manifests: what a file says about how it was made, signed. By c2pa-python, the reference implementation.

Everything works without a network: no time stamp is asked for, and nothing remote is fetched.
"""

from __future__ import annotations

import functools
import io
import json
import mimetypes
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from semo_sdk.errors import ConfigError, EncodeError, MissingDependencyError
from semo_sdk.provenance.signing import LOCAL_ORGANISATION, Identity

__all__ = ["AI_GENERATED", "Manifest", "library", "read_manifest", "try_identity", "write_manifest"]

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"  # IPTC's names of kinds of media, not an address
AI_GENERATED = SOURCE_TYPES + "trainedAlgorithmicMedia"
AI_KINDS = (AI_GENERATED, SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia")
MODEL_LABEL = "org.semo-sdk.model"
MP4, PNG = "video/mp4", "image/png"
UNTRUSTED = "signingCredential.untrusted"
OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}


@dataclass(frozen=True)
class Manifest:
    """What a file's active manifest says, and whether it may be believed.

    Attributes:
        valid: the signature is right and the file has not changed since.
        trusted: the signer's certificate leads to a root that the reader trusts.
        local: the certificate is one that semo-sdk made for its user: it says nothing about who signed.
        ai_generated: it says that a model made the media.
        generator: name and version of the program that wrote it, empty if it does not say.
        model: name of the model, if semo-sdk wrote it; empty otherwise.
        checksum: sha256 of the model's bundle, likewise.
        signer: organisation of the signer's certificate, empty if it names none.
        problems: what made it invalid, as codes of the C2PA specification with explanations.
    """

    valid: bool
    trusted: bool
    local: bool
    ai_generated: bool
    generator: str
    model: str
    checksum: str
    signer: str
    problems: tuple[str, ...]


@functools.cache
def library() -> Any:
    """The module ``c2pa``.

    Raises:
        MissingDependencyError: it does not work here.
    """
    try:
        import c2pa
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its native library
        raise MissingDependencyError(
            f"c2pa-python, which writes and reads manifests, does not work here ({error}): pip install c2pa-python, or "
            "write videos without a manifest: provenance=False, --no-provenance"
        ) from error
    return c2pa


def write_manifest(source: Path, target: Path, model: str, checksum: str, identity: Identity) -> None:
    """Writes an MP4 again with a manifest that says: AI-generated, by this model.

    Args:
        source: the file.
        target: the file to write.
        model: the model's name.
        checksum: of its bundle; empty if there is none.
        identity: who signs.

    Raises:
        MissingDependencyError: c2pa-python does not work here.
        EncodeError: the file cannot be written.
    """
    c2pa = library()
    try:
        with source.open("rb") as file, target.open("w+b") as sealed:
            _sign(c2pa, MP4, file, sealed, _definition(MP4, model, checksum), identity)
    except (OSError, c2pa.C2paError) as error:
        raise EncodeError(f"the manifest could not be written: {error}") from error


@functools.lru_cache(maxsize=4)
def try_identity(identity: Identity) -> None:
    """Signs a picture of one pixel: whether C2PA accepts a certificate shows in no other way.

    Raises:
        MissingDependencyError: c2pa-python does not work here.
        ConfigError: it does not.
    """
    from PIL import Image

    c2pa, pixel = library(), io.BytesIO()
    Image.new("L", (1, 1)).save(pixel, "PNG")
    pixel.seek(0)
    try:
        _sign(c2pa, PNG, pixel, io.BytesIO(), _definition(PNG, "trial", ""), identity)
    except c2pa.C2paError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"C2PA does not accept the certificate or the key that shall sign videos: {reason}"
        ) from error


def _sign(c2pa: Any, kind: str, source: IO[bytes], target: IO[bytes], definition: str, identity: Identity) -> None:
    info = c2pa.C2paSignerInfo(
        alg=identity.algorithm.encode(),
        sign_cert=identity.certificates.encode(),
        private_key=identity.key.encode(),
        ta_url=None,
    )
    settings = {"builder": {"thumbnail": {"enabled": False}}, "verify": OFFLINE}
    with (
        c2pa.Context.from_dict(settings) as context,
        c2pa.Signer.from_info(info) as signer,
        c2pa.Builder(definition, context) as builder,
    ):
        builder.sign(signer, kind, source, target)


def _definition(kind: str, model: str, checksum: str) -> str:
    from semo_sdk import __version__

    program = {"name": "semo-sdk", "version": __version__}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": AI_GENERATED,
        "softwareAgent": program,
        "description": f"A portrait animated by the model {model}",
    }
    said = {"name": model, **({"sha256": checksum} if checksum else {})}
    return json.dumps(
        {
            "claim_generator_info": [program],
            "title": "AI-generated talking head",
            "format": kind,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [created]}, "created": True},
                {"label": MODEL_LABEL, "data": said, "created": True},
            ],
        }
    )


def read_manifest(path: Path, *, roots: str = "") -> Manifest | None:
    """A file's active manifest; None if it has none.

    Args:
        path: of the file.
        roots: PEM certificates that the reader trusts.

    Raises:
        MissingDependencyError: c2pa-python does not work here.
    """
    c2pa = library()
    kind = mimetypes.guess_type(path.name)[0] or MP4
    if kind not in c2pa.Reader.get_supported_mime_types():
        return None
    settings: dict[str, Any] = {"verify": OFFLINE}
    if roots:
        settings["trust"] = {"user_anchors": roots}
    try:
        with (
            c2pa.Context.from_dict(settings) as context,
            path.open("rb") as file,
            c2pa.Reader(kind, file, context=context) as reader,
        ):
            store = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        return _broken(str(error))
    return _manifest(store)


def _broken(problem: str) -> Manifest:
    return Manifest(False, False, False, False, "", "", "", "", (problem,))


def _manifest(store: dict[str, Any]) -> Manifest:
    active = store.get("manifests", {}).get(store.get("active_manifest"), {})
    assertions = {one.get("label", ""): one.get("data", {}) for one in active.get("assertions", [])}
    actions = [
        action
        for label, data in assertions.items()
        if label.startswith("c2pa.actions")
        for action in data.get("actions", [])
    ]
    programs = active.get("claim_generator_info") or [{}]
    model = assertions.get(MODEL_LABEL, {})
    problems = [one for one in store.get("validation_status", []) if one.get("code") != UNTRUSTED]
    state = store.get("validation_state")
    signature = active.get("signature_info") or {}
    return Manifest(
        valid=state in ("Valid", "Trusted"),
        trusted=state == "Trusted",
        local=signature.get("issuer") == LOCAL_ORGANISATION and state != "Trusted",
        ai_generated=any(action.get("digitalSourceType") in AI_KINDS for action in actions),
        generator=" ".join(filter(None, (programs[0].get("name"), programs[0].get("version")))),
        model=str(model.get("name", "")),
        checksum=str(model.get("sha256", "")),
        signer=str(signature.get("issuer") or ""),
        problems=tuple(f"{one.get('code')}: {one.get('explanation', '')}" for one in problems),
    )
