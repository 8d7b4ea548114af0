"""``semo verify``, and the options that say what videos carry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semo_sdk.cli.outcome import outcome
from semo_sdk.errors import ConfigError

if TYPE_CHECKING:
    from semo_sdk.provenance.signing import Signer

NoProvenance = Annotated[
    bool,
    typer.Option("--no-provenance", help="no watermark and no manifest: then say yourself that it is AI-generated"),
]
SignCert = Annotated[
    Path | None,
    typer.Option(help="your certificate chain (PEM), to sign videos; also SEMO_SIGN_CERT", show_default=False),
]
SignKey = Annotated[Path | None, typer.Option(help="its private key (PEM); also SEMO_SIGN_KEY", show_default=False)]


def chosen(no_provenance: bool, certificate: Path | None, key: Path | None) -> bool | Signer:
    """What these options mean, for ``Animator(provenance=...)``.

    Raises:
        ConfigError: they contradict each other.
    """
    if (certificate is None) != (key is None):
        raise ConfigError("--sign-cert and --sign-key belong together")
    if certificate is None or key is None:
        return not no_provenance
    if no_provenance:
        raise ConfigError("--no-provenance signs nothing: leave --sign-cert and --sign-key out")
    from semo_sdk.provenance.signing import Signer

    return Signer(certificate, key)


def verify(
    file: Annotated[Path, typer.Argument(help="a video, or a picture", show_default=False)],
    trust: Annotated[
        Path | None, typer.Option(help="root certificates (PEM) that you trust", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Does FILE say that it is AI-generated? Reads its C2PA manifest and looks for the watermark of semo-sdk.

    Exit code 0: it does, and nothing contradicts it. 1: no mark was found, or its manifest is invalid.
    """
    with outcome(as_json):
        from semo_sdk.provenance.verify import verify as look

        found = look(file, trust=trust)
        typer.echo(json.dumps(found.as_dict()) if as_json else str(found))
        if not found.ok:
            raise typer.Exit(1)
