"""`trellis audit`: whatever an operator did, and nothing that could not be pinned on somebody."""

import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from trellis.adapters.audit_trail import AuditTrail
from trellis.adapters.plan_store import PlanStore
from trellis.adapters.signing import verify_artifact
from trellis.artifact import SIGNATURE, seal
from trellis.cli import app
from trellis.errors import ConfigError, DigestMismatchError
from trellis.rollout.plan import Variant, first_plan
from trellis.settings import settings

ROOT = Path(__file__).parents[3]
MODEL = "toy_binary"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path))
    monkeypatch.setenv("TRELLIS_MODELS", str(ROOT / "tests" / "pipelines" / "toys"))
    monkeypatch.setenv("COLUMNS", "250")
    settings.cache_clear()
    store = PlanStore(settings().database_url)
    for number, version in enumerate(("2", "1")):
        directory = tmp_path / "artifacts" / version
        directory.mkdir(parents=True)
        (directory / "toy.json").write_text(f"[0.1, 0.{version}]")
        sealed = seal(directory, model=MODEL, plugin_version="1", recipe="r", seed=1, inputs=("x",), outputs=("y",))
        plan = first_plan(MODEL, Variant(version, "champion", 1.0, str(directory), sealed.digest), salt="s")
        store.save(plan, expected_revision=number, who="platform", why=f"version {version}")
    yield tmp_path
    settings.cache_clear()


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def good(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def audited(*arguments):
    return [(d["action"], d["subject"], d["who"], d["why"]) for d in json.loads(good("audit", "--json", *arguments))]


def test_every_verb_of_an_operator_is_there_once_in_order_with_who_and_why(home):
    assert "by hand" in good("audit")
    good("keys", "create", "shop", "--scope", "predict", "--why", "a new shop", "--who", "anna")
    [key] = json.loads(good("keys", "list", "--json"))
    good("rollout", "start", MODEL, 2, "--why", "it won in June", "--who", "ben")
    good("rollout", "pause", MODEL, "--why", "labels are late", "--who", "ben")
    good("rollout", "resume", MODEL, "--why", "they came")
    good("rollout", "promote", MODEL, "--why", "known from elsewhere", "--who", "anna")
    good("rollout", "rollback", MODEL, "--why", "it was wrong", "--who", "ben")
    good("keys", "revoke", key["id"], "--why", "the shop closed", "--who", "anna")
    found = audited()
    assert [(a, w, y) for a, _, w, y in found] == [
        ("key create", "anna", "a new shop"),
        ("rollout", "ben", "it won in June"),
        ("rollout", "ben", "labels are late"),
        ("rollout", "operator", "they came"),
        ("rollout", "anna", "known from elsewhere"),
        ("plan", "ben", "it was wrong"),
        ("key revoke", "anna", "the shop closed"),
    ]
    assert found[0][1] == found[-1][1] == key["id"]
    assert "paused" in found[2][1]
    assert found[5][1] == f"{MODEL}: v1 100% (champion)"
    assert [a for a, *_ in audited("--who", "anna")] == ["key create", "rollout", "key revoke"]
    assert len(audited("--platform")) == 9, "the two plans that the platform wrote"
    last = json.loads(good("audit", "--json"))[-1]["at"]
    assert [a for a, *_ in audited("--since", last)] == ["key revoke"]
    assert "the shop closed" in good("audit")


def test_a_moment_that_is_none_is_named(home):
    for wrong in ("yesterday", "2026-11-22T09:00:00"):
        assert isinstance(run("audit", "--since", wrong).exception, ConfigError)


def test_nothing_is_done_without_a_name_and_a_reason(home):
    trail = AuditTrail(settings().database_url)
    for who, why in ((" ", "x"), ("x", " ")):
        with pytest.raises(ConfigError, match="a name and a reason"):
            trail.record("artifact sign", "m", who=who, why=why)
        named = ("--who", who, "--why", why)
        assert isinstance(run("keys", "create", "shop", "--scope", "predict", *named).exception, ConfigError)
    assert audited() == []
    assert json.loads(good("keys", "list", "--json")) == []


def test_signing_a_version_by_hand_is_in_the_trail(home, monkeypatch):
    made = ec.generate_private_key(ec.SECP256R1())
    (home / "key.pem").write_bytes(
        made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (home / "key.pub").write_bytes(
        made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    sign = ("models", "sign", MODEL, "1", "--why", "keys are new", "--who", "anna")
    refused = run(*sign)
    assert refused.exit_code == 1
    assert "TRELLIS_SIGNING_KEY" in refused.stderr
    monkeypatch.setenv("TRELLIS_SIGNING_KEY", str(home / "key.pem"))
    settings.cache_clear()
    assert "is signed" in good(*sign)
    directory = home / "artifacts" / "1"
    assert verify_artifact(directory, key=home / "key.pub")
    [(action, subject, who, why)] = audited()
    assert (action, who, why) == ("artifact sign", "anna", "keys are new")
    assert subject.startswith(f"{MODEL} v1 ")
    copied = PlanStore(settings().database_url).history(MODEL)[0].plan.champion
    copy = home / "artifacts" / copied.digest
    shutil.copytree(copied.location, copy)
    monkeypatch.setattr("trellis.cli.batch._located", lambda found: (found.version, copy, found.digest))
    refused = run("models", "sign", MODEL, "2", "--why", "x")
    assert "object store" in refused.stderr, "a signature on a copy would sign nothing"
    monkeypatch.undo()
    monkeypatch.setenv("TRELLIS_HOME", str(home))
    monkeypatch.setenv("TRELLIS_SIGNING_KEY", str(home / "key.pem"))
    (home / "artifacts" / "2" / "toy.json").write_text("[]")
    assert run("models", "sign", MODEL, "2", "--why", "x").exit_code == 1
    assert not (home / "artifacts" / "2" / SIGNATURE).exists()
    assert len(audited()) == 1, "what was refused was not done"


def test_a_rollout_of_an_unsigned_version_is_refused_where_a_key_is_configured(home, monkeypatch):
    made = ec.generate_private_key(ec.SECP256R1())
    (home / "key.pub").write_bytes(
        made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    monkeypatch.setenv("TRELLIS_VERIFY_KEY", str(home / "key.pub"))
    settings.cache_clear()
    refused = run("rollout", "start", MODEL, 2, "--why", "x")
    assert "is not signed" in str(refused.exception)
    assert not isinstance(refused.exception, DigestMismatchError)
    assert audited() == []
