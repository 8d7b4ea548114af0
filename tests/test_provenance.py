"""Files say that they are AI-generated, whoever made them; `semo verify` reads what they say."""

from __future__ import annotations

import datetime
import json
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import semo_sdk
from semo_sdk import MissingDependencyError, Signer, Verification, verify
from semo_sdk.animator import Animator
from semo_sdk.bundle import Bundle
from semo_sdk.cli import app
from semo_sdk.errors import ConfigError, VideoError
from semo_sdk.media.video import VideoWriter
from semo_sdk.pipeline.graphs import Graphs
from semo_sdk.provenance import manifest, signing
from semo_sdk.provenance.policy import Provenance
from tests.conftest import random_speech

CHECKSUM = "5e" * 32


@pytest.fixture(scope="module")
def signed(portrait: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A marked and signed video of a portrait that does not move."""
    path = tmp_path_factory.mktemp("signed") / "signed.mp4"
    provenance = Provenance("semo-tiny", CHECKSUM)
    with VideoWriter(path, (256, 256), audio=random_speech(6 * 640), seal=provenance) as writer:
        writer.write(provenance.watermark(np.repeat(portrait.crop[None], 6, axis=0)))
    return path


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of settings."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "semo-sdk"


def issue(
    folder: Path, kind: str = "ec", *, use: str = signing.EMAIL_PROTECTION, days: int = 30
) -> tuple[Signer, Path]:
    """A signer whose certificate an own root signed, and the root's certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    root = ec.generate_private_key(ec.SECP256R1())
    key: Any = {
        "ec": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "rsa": lambda: rsa.generate_private_key(public_exponent=65_537, key_size=2048),
    }[kind]()
    now = datetime.datetime.now(datetime.UTC)

    def certificate(organisation: str, public: Any, *, authority: bool) -> bytes:
        def name(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(x509.oid.NameOID.ORGANIZATION_NAME, text)])

        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(organisation))
            .issuer_name(name("Example Root"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not authority,
                    key_cert_sign=authority,
                    crl_sign=authority,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
        )
        if not authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(use)]), critical=False)
        return builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    chain, secret, trust = folder / "chain.pem", folder / "key.pem", folder / "root.pem"
    chain.write_bytes(certificate("Example Studio", key.public_key(), authority=False))
    trust.write_bytes(certificate("Example Root", root.public_key(), authority=True))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Signer(chain, secret), trust


def test_a_file_says_what_made_it_and_that_nobody_vouches_for_it(signed: Path) -> None:
    found = verify(signed)
    assert isinstance(found, Verification) and found.ok and found.ai_generated and found.model == "semo-tiny"
    told = found.manifest
    assert told is not None and told.valid and told.ai_generated and told.local and not told.trusted
    assert told.generator == f"semo-sdk {semo_sdk.__version__}"
    assert (told.model, told.checksum, told.problems) == ("semo-tiny", CHECKSUM, ())
    text = str(found)
    assert "AI-generated" in text and "not on a trust list" in text and "watermark: found" in text
    assert [item.name for item in signed.parent.iterdir()] == ["signed.mp4"]


def test_the_manifest_uses_the_words_of_the_standard(signed: Path) -> None:
    import c2pa

    with c2pa.Reader(str(signed)) as reader:
        store = json.loads(reader.json())
    active = store["manifests"][store["active_manifest"]]
    actions = next(one["data"]["actions"] for one in active["assertions"] if one["label"].startswith("c2pa.actions"))
    assert [action["action"] for action in actions] == ["c2pa.created"]
    assert actions[0]["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert {problem["code"] for problem in store["validation_status"]} == {"signingCredential.untrusted"}
    assert "signed.mp4" not in json.dumps(store)  # no file names, and nothing else of the user's


def test_a_changed_file_is_called_invalid_and_its_watermark_is_still_found(signed: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.mp4"
    data = bytearray(signed.read_bytes())
    data[-40] ^= 1
    changed.write_bytes(data)
    found = verify(changed)
    assert found.manifest is not None and not found.manifest.valid and found.manifest.problems
    assert found.watermark.found and found.ai_generated and not found.ok
    assert "INVALID" in str(found)


def test_a_file_without_marks_is_not_called_real(tmp_path: Path, portrait: Any) -> None:
    with VideoWriter(tmp_path / "plain.mp4", (256, 256)) as writer:
        writer.write(portrait.crop)
    found = verify(tmp_path / "plain.mp4")
    assert found.manifest is None and not found.watermark.found and not found.ok and found.model == ""
    assert "does not show that it is real" in str(found)
    with pytest.raises(VideoError):
        verify(Path(__file__))
    with pytest.raises(VideoError):
        verify(tmp_path / "missing.mp4")


def test_clips_are_signed_pasted_back_or_not_unless_told_otherwise(
    animator: Animator, portrait: Any, tmp_path: Path
) -> None:
    clip = animator.from_audio(random_speech(2 * 640))
    for name, paste_back in (("crop.mp4", False), ("photo.mp4", True)):
        told = manifest.read_manifest(clip.save(tmp_path / name, paste_back=paste_back))
        assert told is not None and told.valid and told.model == animator.config.name
    plain = Animator.from_graphs(portrait, Graphs(animator.graphs.engines, animator.config, provenance=False))
    assert plain.provenance is None
    path = plain.from_audio(random_speech(2 * 640)).save(tmp_path / "plain.mp4")
    assert manifest.read_manifest(path) is None


def test_a_photo_that_a_face_is_pasted_into_is_marked_as_a_whole(animator: Animator, tmp_path: Path) -> None:
    path = animator.from_audio(random_speech(4 * 640)).save(tmp_path / "photo.mp4", paste_back=True)
    found = verify(path)
    assert found.watermark.found and found.model == animator.config.name


def test_an_animator_s_files_name_their_bundle(portrait: Any) -> None:
    opened = Bundle.open("semo-tiny")
    with Animator(portrait, bundle=opened) as animator:
        assert animator.provenance is not None
        assert (animator.provenance.model, animator.provenance.checksum) == (opened.name, opened.fingerprint)
        assert animator.with_portrait(portrait).provenance is animator.provenance
    with Animator(portrait, bundle=opened, provenance=False) as animator:
        assert animator.provenance is None


def test_the_local_key_is_made_once_and_only_its_user_can_read_it(own_config: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        signers = [pool.submit(Signer.default) for _ in range(4)]
    file = own_config / signing.LOCAL_FILE
    assert [item.name for item in own_config.iterdir()] == [file.name]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    identities = {signer.result().identity() for signer in signers}
    assert len(identities) == 1 and next(iter(identities)).algorithm == "es256"
    before = file.read_bytes()
    Signer.default()
    assert file.read_bytes() == before and before.count(b"PRIVATE KEY") == 2  # the authority's key is nowhere
    assert "PRIVATE" not in repr(identities)


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="SEMO_SIGN_CERT"):
        Signer.default()


@pytest.mark.parametrize("kind", ["ec", "ed25519", "rsa"])
def test_a_certificate_of_one_s_own_is_named_and_may_be_trusted(kind: str, signed: Path, tmp_path: Path) -> None:
    signer, root = issue(tmp_path, kind)
    provenance = Provenance("semo-tiny", signer=signer)
    provenance.check()
    provenance.seal(signed, tmp_path / "ours.mp4")
    told = manifest.read_manifest(tmp_path / "ours.mp4")
    assert told is not None and told.valid and not told.trusted and not told.local and told.signer == "Example Studio"
    trusted = manifest.read_manifest(tmp_path / "ours.mp4", roots=root.read_text())
    assert trusted is not None and trusted.valid and trusted.trusted


def test_the_environment_may_name_the_certificate(
    own_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer, _ = issue(tmp_path)
    monkeypatch.setenv("SEMO_SIGN_CERT", str(signer.certificate))
    with pytest.raises(ConfigError, match="belong together"):
        Signer.default()
    monkeypatch.setenv("SEMO_SIGN_KEY", str(signer.key))
    assert Signer.default().identity() == signer.identity()
    assert not own_config.exists()


def bad_signers(folder: Path) -> Iterator[tuple[str, Signer]]:
    good, _ = issue(folder)
    yield "cannot be read", Signer(folder / "missing.pem", good.key)
    yield "no certificate", Signer(good.key, good.key)
    yield "no private key", Signer(good.certificate, good.certificate)
    for name in ("other", "old", "server"):
        (folder / name).mkdir()
    yield "does not belong", Signer(good.certificate, issue(folder / "other")[0].key)
    yield "not valid today", issue(folder / "old", days=-1)[0]
    yield "does not accept", issue(folder / "server", use="1.3.6.1.5.5.7.3.1")[0]  # web servers


def test_a_certificate_that_cannot_sign_is_refused_before_anything_is_drawn(
    animator: Animator, portrait: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for complaint, signer in bad_signers(tmp_path):
        graphs = Graphs(animator.graphs.engines, animator.config, provenance=Provenance("m", signer=signer))
        clip = Animator.from_graphs(portrait, graphs).from_audio(random_speech(640))
        with pytest.raises(ConfigError, match=complaint):
            clip.save(tmp_path / "out" / "out.mp4")
    assert list((tmp_path / "out").iterdir()) == []
    assert "render" not in graphs.stats


def test_without_c2pa_nothing_is_written_unsigned(
    animator: Animator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    manifest.library.cache_clear()
    manifest.try_identity.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match="provenance=False"):
            animator.from_audio(random_speech(640)).save(tmp_path / "out.mp4")
    finally:
        manifest.library.cache_clear()
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_it_in_words_in_json_and_by_its_exit_code(signed: Path, tmp_path: Path, portrait: Any) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["verify", str(signed)])
    assert done.exit_code == 0 and "AI-generated" in done.output
    done = runner.invoke(app, ["verify", str(signed), "--json"])
    told = json.loads(done.stdout)
    assert told["ok"] and told["manifest"]["valid"] and told["watermark"]["model"] == "semo-tiny"
    with VideoWriter(tmp_path / "plain.mp4", (256, 256)) as writer:
        writer.write(portrait.crop)
    assert runner.invoke(app, ["verify", str(tmp_path / "plain.mp4")]).exit_code == 1
    assert runner.invoke(app, ["verify", str(tmp_path / "missing.mp4")]).exit_code == 3
    assert runner.invoke(app, ["verify", str(signed), "--trust", str(tmp_path)]).exit_code == 2


@pytest.mark.parametrize(
    "options", [["--sign-cert", "a.pem"], ["--no-provenance", "--sign-cert", "a.pem", "--sign-key", "b.pem"]]
)
def test_options_that_contradict_each_other_are_refused(options: list[str], portrait_path: Path) -> None:
    done = CliRunner().invoke(app, ["animate", str(portrait_path), "speech.wav", *options])
    assert done.exit_code == 2 and "--sign" in done.output
