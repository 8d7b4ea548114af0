"""What the outputs of one model carry: a watermark in every frame, a signed manifest in every file."""

from __future__ import annotations

from pathlib import Path

from semo_sdk.bundle import Bundle
from semo_sdk.provenance.signing import Signer
from semo_sdk.provenance.watermark import Watermark

__all__ = ["Provenance", "Signer"]


class Provenance:
    """Marks what a model makes.

    Attributes:
        model: the model's name.
        checksum: of its bundle, see :attr:`semo_sdk.bundle.Bundle.fingerprint`; empty if there is no bundle.
        signer: whose signature files carry; None is the one made for this user.
        watermark: marks frames of any size.
    """

    def __init__(self, model: str, checksum: str = "", *, signer: Signer | None = None) -> None:
        self.model = model
        self.checksum = checksum
        self.signer = signer
        self.watermark = Watermark(model)

    @classmethod
    def of(cls, bundle: Bundle, choice: bool | Signer = True) -> Provenance | None:
        """What the caller chose for a bundle: True, their own signer, or False for nothing."""
        if choice is False:
            return None
        return cls(bundle.name, bundle.fingerprint, signer=None if choice is True else choice)

    def check(self) -> None:
        """Makes sure that files can be signed, before anything is drawn.

        Raises:
            MissingDependencyError: c2pa-python does not work here.
            ConfigError: the certificate or its key cannot be used.
        """
        from semo_sdk.provenance.manifest import try_identity

        try_identity((self.signer or Signer.default()).identity())

    def seal(self, source: Path, target: Path) -> None:
        """Writes an MP4 again with a manifest.

        Args:
            source: the file.
            target: another name, which does not exist.

        Raises:
            MissingDependencyError, ConfigError: as :meth:`check`.
            EncodeError: it cannot be written.
        """
        from semo_sdk.provenance.manifest import write_manifest

        write_manifest(source, target, self.model, self.checksum, (self.signer or Signer.default()).identity())
