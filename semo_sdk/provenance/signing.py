"""Whose signature a manifest carries: the user's own certificate, or one that is made for them on first use.

The certificate made here says nothing about who the user is. Its authority signs it and is forgotten, so nobody can
sign another with it, and no trust list knows it: a verifier sees that a file has not changed since semo-sdk wrote it,
and that is all.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semo_sdk.errors import ConfigError, MissingDependencyError

__all__ = ["LOCAL_ORGANISATION", "Identity", "Signer", "config_folder"]

CERTIFICATE_VARIABLE, KEY_VARIABLE = "SEMO_SIGN_CERT", "SEMO_SIGN_KEY"
LOCAL_ORGANISATION = "semo-sdk, made on this computer"
LOCAL_FILE = "signing.pem"
YEARS = 20  # without a time stamp a signature counts only as long as its certificate does
EMAIL_PROTECTION = "1.3.6.1.5.5.7.3.4"  # the one use that all versions of the C2PA libraries accept
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True)
class Identity:
    """What a signature is made with.

    Attributes:
        certificates: PEM, the signer's own first.
        key: PEM (PKCS 8), its private key.
        algorithm: as C2PA calls it.
    """

    certificates: str
    key: str
    algorithm: str

    def __repr__(self) -> str:
        return f"Identity({self.algorithm})"


@dataclass(frozen=True)
class Signer:
    """A certificate to sign videos with.

    >>> Animator("photo.jpg", provenance=Signer("certificates.pem", "key.pem"))

    Attributes:
        certificate: PEM file: the signer's certificate, then those that it rests on, without the root. C2PA wants one
            that is not self-signed, for digital signatures, and for a use such as e-mail protection.
        key: PEM file without a password: its private key (EC P-256, P-384, P-521, Ed25519 or RSA).
    """

    certificate: str | os.PathLike[str]
    key: str | os.PathLike[str]

    @classmethod
    def default(cls) -> Signer:
        """The files that ``SEMO_SIGN_CERT`` and ``SEMO_SIGN_KEY`` name, or else the user's own, made on first use.

        Raises:
            ConfigError: only one of them is set, or the user's folder cannot be written.
            MissingDependencyError: the package ``cryptography`` does not work here.
        """
        certificate, key = os.environ.get(CERTIFICATE_VARIABLE), os.environ.get(KEY_VARIABLE)
        if certificate and key:
            return cls(certificate, key)
        if certificate or key:
            raise ConfigError(f"{CERTIFICATE_VARIABLE} and {KEY_VARIABLE} belong together: set both or none")
        path = config_folder() / LOCAL_FILE
        if not path.is_file():
            _make_local(path)
        return cls(path, path)

    def identity(self) -> Identity:
        """The contents of the files, checked.

        Raises:
            ConfigError: a file cannot be read, is not what it should be, or does not go with the other.
            MissingDependencyError: the package ``cryptography`` does not work here.
        """
        texts = []
        for path in (self.certificate, self.key):
            try:
                texts.append(Path(path).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{os.fspath(path)!r} cannot be read as a PEM file: {error}") from error
        return _identity(*texts, os.fspath(self.certificate), os.fspath(self.key))


@functools.lru_cache(maxsize=4)
def _identity(certificates: str, key: str, certificate_name: str, key_name: str) -> Identity:
    crypto = _cryptography()
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", certificates, re.DOTALL)
    if not blocks:
        raise ConfigError(f"{certificate_name} holds no certificate in PEM form")
    secret = re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", key, re.DOTALL)
    if secret is None:
        raise ConfigError(f"{key_name} holds no private key in PEM form")
    try:
        leaf = crypto.x509.load_pem_x509_certificate(blocks[0].encode())
    except ValueError as error:
        raise ConfigError(f"{certificate_name} holds no usable certificate: {error}") from error
    try:
        private = crypto.serialization.load_pem_private_key(secret[0].encode(), password=None)
    except (ValueError, TypeError) as error:  # TypeError: it has a password
        raise ConfigError(f"{key_name} holds no usable private key: {error}") from error
    if _public(crypto, private.public_key()) != _public(crypto, leaf.public_key()):
        raise ConfigError(f"the key {key_name} does not belong to the certificate {certificate_name}")
    now = datetime.datetime.now(datetime.UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise ConfigError(
            f"the certificate {certificate_name} is not valid today (until {leaf.not_valid_after_utc:%F})"
        )
    plain = private.private_bytes(
        crypto.serialization.Encoding.PEM,
        crypto.serialization.PrivateFormat.PKCS8,
        crypto.serialization.NoEncryption(),
    )
    return Identity("\n".join(blocks) + "\n", plain.decode(), _algorithm(crypto, private, key_name))


def _public(crypto: Any, key: Any) -> bytes:
    serialization = crypto.serialization
    found: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return found


def _algorithm(crypto: Any, key: Any, name: str) -> str:
    if isinstance(key, crypto.ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, crypto.ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, crypto.rsa.RSAPrivateKey):
        return "ps256"
    raise ConfigError(f"{name}: C2PA takes keys of EC P-256, P-384 and P-521, Ed25519 and RSA")


def config_folder() -> Path:
    """The user's folder of settings."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.environ.get("APPDATA")
    return (Path(base) if base else Path.home() / ".config") / "semo-sdk"


def _make_local(path: Path) -> None:
    """Writes a key and its certificates into one file, readable by the user alone. The first of several wins."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(_local_pem())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was first: its key is as good
        except OSError:  # a file system without links
            os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(
            f"the key that signs videos cannot be kept in {path.parent} ({error.strerror}): make that folder writable, "
            f"set XDG_CONFIG_HOME, or give a certificate of your own ({CERTIFICATE_VARIABLE}, {KEY_VARIABLE})"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _local_pem() -> bytes:
    """A new private key, its certificate, and that of the authority which signed it."""
    crypto = _cryptography()
    x509, ec, serialization = crypto.x509, crypto.ec, crypto.serialization
    number = secrets.token_hex(4)
    names = [
        # c2pa refuses signers without an organisation
        x509.Name(
            [
                x509.NameAttribute(x509.oid.NameOID.ORGANIZATION_NAME, LOCAL_ORGANISATION),
                x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, f"semo-sdk {role} {number}"),
            ]
        )
        for role in ("authority", "signer")
    ]
    root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in names)
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    made = []
    for name, key in zip(names, (root, own), strict=True):
        authority = key is root
        usage = {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
        unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        others = dict.fromkeys((*unused, "encipher_only", "decipher_only"), False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=366 * YEARS))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
            .add_extension(x509.KeyUsage(**usage, **others), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
        )
        if not authority:
            use = x509.ExtendedKeyUsage([x509.ObjectIdentifier(EMAIL_PROTECTION)])
            builder = builder.add_extension(use, critical=False)
        made.append(builder.sign(root, crypto.hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    secret = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return b"".join((secret, made[1], made[0]))


def _cryptography() -> Any:
    """What is needed of the package ``cryptography``."""
    from types import SimpleNamespace

    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    except ImportError as error:
        raise MissingDependencyError(
            f"the package cryptography, which signs videos, does not work here ({error}): pip install cryptography, or "
            "write videos without a manifest: provenance=False, --no-provenance"
        ) from error
    return SimpleNamespace(x509=x509, hashes=hashes, serialization=serialization, ec=ec, ed25519=ed25519, rsa=rsa)
