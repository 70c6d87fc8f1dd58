"""`trellis keys`: a key is printed once; lists and history never show it."""

import json

import pytest
from typer.testing import CliRunner

from trellis.adapters.api_keys import KeyStore, split
from trellis.cli import app
from trellis.errors import ConfigError
from trellis.settings import settings


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path))
    settings.cache_clear()

    def call(*arguments):
        result = CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    yield call
    settings.cache_clear()


def test_create_list_rotate_revoke(run):
    made = run("create", "dashboard", "--scope", "read", "--scope", "predict", "--why", "the new dashboard")
    key = made.stdout.strip()
    name, secret = split(key)
    [kept] = KeyStore(settings().database_url).known()
    assert kept.opens_with(secret)
    assert kept.scopes == {"read", "predict"}
    listed = run("list", "--json").stdout
    assert secret not in listed
    assert json.loads(listed)[0]["state"] == "good"
    assert "API keys" in run("list").stdout
    assert secret not in run("list").stdout
    new = json.loads(run("rotate", name, "--why", "quarterly", "--grace-hours", "0", "--json").stdout)
    assert split(new["key"])[0] == new["id"] != name
    run("revoke", new["id"], "--why", "leaked", "--who", "bob")
    states = {k["id"]: k["state"] for k in json.loads(run("list", "--json").stdout)}
    assert states == {name: "expired", new["id"]: "revoked"}
    history = run("history").stdout
    assert "bob: leaked" in history
    assert secret not in history
    assert [a["action"] for a in json.loads(run("history", "--json").stdout)] == [
        "create",
        "create",
        "rotate",
        "revoke",
    ]


def test_a_reason_is_needed_and_nonsense_is_named(run):
    refused = CliRunner().invoke(app, ["keys", "create", "x", "--scope", "read"])
    assert refused.exit_code == 2
    with pytest.raises(ConfigError, match="is no scope"):
        run("create", "x", "--scope", "everything", "--why", "w")
    with pytest.raises(ConfigError, match="There is no key"):
        run("revoke", "nobody", "--why", "w")
