"""Signatures: made and checked offline, and every way around them is refused by name."""

import base64
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from trellis.adapters.loading import load_predictor
from trellis.adapters.signing import sign_artifact, verify_artifact
from trellis.artifact import MANIFEST, SIGNATURE, seal, verify
from trellis.catalog import Catalogue
from trellis.errors import ArtifactError, ConfigError, DigestMismatchError, SignatureError, UnsafeFormatError
from trellis.patterns import export_model

TOYS = Path(__file__).parents[2] / "services" / "toys"


def write_keys(directory, name="key", made=None, password=None):
    made = made or ec.generate_private_key(ec.SECP256R1())
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    private.write_bytes(made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    public.write_bytes(
        made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path)


def reseal(directory, **changes):
    how = {"model": "toy_linear", "plugin_version": "1", "recipe": "r", "seed": 7}
    return seal(directory, **{**how, **changes}, inputs=("x", "rate", "size"), outputs=("probability",))


@pytest.fixture
def artifact(tmp_path):
    directory = tmp_path / "artifact"
    (directory / "notes").mkdir(parents=True)
    (directory / "weights.json").write_text('{"a": 1.0, "b": 1.0, "c": 0.0}')
    (directory / "notes" / "card.md").write_text("hello")
    reseal(directory)
    return directory


def test_a_signed_artifact_is_taken_wherever_it_lies_and_its_digest_stays(artifact, keys, tmp_path):
    before = verify(artifact).digest
    sign_artifact(artifact, keys[0])
    assert verify_artifact(artifact, before, keys[1]).digest == before
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(artifact, moved)
    assert verify_artifact(moved, before, keys[1]).digest == before
    sign_artifact(moved, keys[0])  # again
    assert verify_artifact(moved, before, keys[1])
    assert verify_artifact(moved, before), "without a key nobody asks"


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name)
def test_other_curves_and_encrypted_keys_work(artifact, tmp_path, curve):
    private, public = write_keys(tmp_path, "other", ec.generate_private_key(curve), password=b"open sesame")
    sign_artifact(artifact, private, "open sesame")
    assert verify_artifact(artifact, key=public)
    with pytest.raises(ConfigError, match="private key"):
        sign_artifact(artifact, private)
    with pytest.raises(ConfigError) as raised:
        sign_artifact(artifact, private, "wrong word")
    assert "wrong word" not in str(raised.value)


def test_the_projects_own_command_verifies_it(artifact, keys):
    """Somebody else's implementation of nothing but the format: the command line of model_signing."""
    sign_artifact(artifact, keys[0])
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(artifact)]
    command += ["--signature", str(artifact / SIGNATURE), "--public_key", str(keys[1])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (artifact / "weights.json").write_text("{}")
    assert subprocess.run(command, capture_output=True, text=True).returncode != 0


def test_an_unsigned_artifact_is_refused_by_name(artifact, keys):
    with pytest.raises(SignatureError, match=r"'toy_linear' is not signed.*trellis models sign"):
        verify_artifact(artifact, key=keys[1])


def test_the_wrong_key_is_refused(artifact, keys, tmp_path):
    sign_artifact(artifact, write_keys(tmp_path, "stranger")[0])
    with pytest.raises(SignatureError, match="does not hold"):
        verify_artifact(artifact, key=keys[1])


def test_a_stranger_who_claims_the_trusted_keys_hint_is_refused(artifact, keys, tmp_path):
    sign_artifact(artifact, keys[0])
    hint = json.loads((artifact / SIGNATURE).read_text())["verificationMaterial"]
    sign_artifact(artifact, write_keys(tmp_path, "stranger")[0])
    forged = json.loads((artifact / SIGNATURE).read_text())
    (artifact / SIGNATURE).write_text(json.dumps({**forged, "verificationMaterial": hint}))
    with pytest.raises(SignatureError):
        verify_artifact(artifact, key=keys[1])


def test_a_file_changed_and_sealed_again_has_a_good_digest_and_no_good_signature(artifact, keys):
    sign_artifact(artifact, keys[0])
    (artifact / "weights.json").write_text('{"a": 9.0, "b": 1.0, "c": 0.0}')
    with pytest.raises(DigestMismatchError):
        verify_artifact(artifact, key=keys[1])
    digest = reseal(artifact).digest
    assert verify(artifact, digest)
    with pytest.raises(SignatureError, match="does not hold"):
        verify_artifact(artifact, digest, keys[1])


def test_a_manifest_changed_alone_or_a_signature_of_another_artifact_is_refused(artifact, keys):
    sign_artifact(artifact, keys[0])
    old = (artifact / SIGNATURE).read_bytes()
    digest = reseal(artifact, seed=8).digest  # the same files, another story
    with pytest.raises(SignatureError):
        verify_artifact(artifact, digest, keys[1])
    sign_artifact(artifact, keys[0])
    assert verify_artifact(artifact, digest, keys[1])
    (artifact / SIGNATURE).write_bytes(old)
    with pytest.raises(SignatureError):
        verify_artifact(artifact, digest, keys[1])


def test_a_payload_that_was_edited_is_refused(artifact, keys):
    sign_artifact(artifact, keys[0])
    bundle = json.loads((artifact / SIGNATURE).read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    (artifact / "weights.json").unlink()
    payload["predicate"]["resources"] = payload["predicate"]["resources"][:1]
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    (artifact / SIGNATURE).write_text(json.dumps(bundle))
    digest = reseal(artifact).digest
    with pytest.raises(SignatureError):
        verify_artifact(artifact, digest, keys[1])


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"{}", b"\x80\x04.", b'{"mediaType": "x"}', b"null"])
def test_a_signature_that_is_none_is_refused(artifact, keys, junk):
    (artifact / SIGNATURE).write_bytes(junk)
    with pytest.raises(SignatureError):
        verify_artifact(artifact, key=keys[1])


def test_a_signature_that_is_a_link_is_refused(artifact, keys, tmp_path):
    sign_artifact(artifact, keys[0])
    (artifact / SIGNATURE).rename(tmp_path / "elsewhere.sig")
    (artifact / SIGNATURE).symlink_to(tmp_path / "elsewhere.sig")
    with pytest.raises(UnsafeFormatError, match="is a link"):
        verify_artifact(artifact, key=keys[1])


def test_only_a_sealed_artifact_is_signed(artifact, keys):
    (artifact / "weights.json").write_text("{}")
    with pytest.raises(DigestMismatchError):
        sign_artifact(artifact, keys[0])
    assert not (artifact / SIGNATURE).exists()
    (artifact / MANIFEST).unlink()
    with pytest.raises(ArtifactError):
        sign_artifact(artifact, keys[0])


def test_keys_that_cannot_be_used_are_named_and_not_shown(artifact, keys, tmp_path):
    sign_artifact(artifact, keys[0])
    edwards = write_keys(tmp_path, "edwards", ed25519.Ed25519PrivateKey.generate())
    (tmp_path / "junk.pem").write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    for private in (edwards[0], tmp_path / "junk.pem", tmp_path / "nowhere.pem", keys[1]):
        with pytest.raises(ConfigError, match=private.name) as raised:
            sign_artifact(artifact, private)
        assert "c2VjcmV0" not in str(raised.value)
    for public in (edwards[1], tmp_path / "junk.pem", tmp_path / "nowhere.pub"):
        with pytest.raises(ConfigError, match=public.name):
            verify_artifact(artifact, key=public)


def test_every_way_of_loading_asks_for_the_signature(artifact, keys, tmp_path):
    plugin = Catalogue([TOYS], entry_points=False).plugin("toy_linear")
    with pytest.raises(SignatureError):
        load_predictor(plugin, artifact, key=keys[1])
    with pytest.raises(SignatureError):
        export_model(plugin.spec, artifact, tmp_path / "out", version="1", key=keys[1])
    assert not (tmp_path / "out").exists()
    sign_artifact(artifact, keys[0])
    assert load_predictor(plugin, artifact, key=keys[1])[1] == "python"
