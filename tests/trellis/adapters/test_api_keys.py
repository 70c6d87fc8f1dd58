"""API keys: kept only as hashes, ended by revocation, expiry and rotation, every change with who and why."""

import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.adapters.api_keys import KeyStore, split
from trellis.errors import ConfigError, StorageError

BY = {"who": "ann", "why": "a test"}


@pytest.fixture
def store(url):
    return KeyStore(url)


def test_a_key_opens_with_its_secret_and_nothing_else(store):
    key, kept = store.create("client", ["predict", "label"], **BY)
    other, other_kept = store.create("client", ["predict"], **BY)
    name, secret = split(key)
    assert name == kept.id
    assert kept.scopes == {"predict", "label"}
    assert kept.opens_with(secret)
    assert not kept.opens_with(split(other)[1])
    assert not kept.opens_with(secret[:-1])
    assert not kept.opens_with("")
    assert kept.salt != other_kept.salt
    assert len(secret) >= 43, "256 bits"
    assert [k.id for k in store.known()] == [kept.id, other_kept.id]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_secrets_are_nowhere_in_the_database(store, tmp_path):
    key, kept = store.create("client", ["predict"], **BY)
    secret = split(key)[1]
    dump = "\n".join(sqlite3.connect(tmp_path / "trellis.db").iterdump())
    assert kept.id in dump
    assert secret not in dump
    assert secret not in repr(kept)
    assert all(secret not in path.read_bytes().decode("latin-1") for path in tmp_path.iterdir())


def test_expiry_and_revocation_end_a_key(store):
    now = datetime.now(UTC)
    _, kept = store.create("client", ["read"], lifetime=timedelta(hours=1), **BY)
    assert kept.ended(now) is None
    assert kept.ended(now + timedelta(hours=1, seconds=1)) == "expired"
    store.revoke(kept.id, **BY)
    store.revoke(kept.id, who="bob", why="again")  # saying it twice changes nothing
    [again] = store.known()
    assert again.ended(datetime.now(UTC)) == "revoked"
    assert [(a.action, a.who) for a in store.history()] == [("create", "ann"), ("revoke", "ann")]


def test_a_rotated_key_has_a_successor_and_works_on_for_its_grace(store):
    key, old = store.create("client", ["predict", "read"], lifetime=timedelta(days=30), per_minute=7, **BY)
    new_key, new = store.rotate(old.id, grace=timedelta(hours=2), who="bob", why="quarterly")
    assert new_key != key
    assert (new.name, new.scopes, new.per_minute) == (old.name, old.scopes, 7)
    assert new.expires_at - new.created_at == timedelta(days=30)
    before = next(k for k in store.known() if k.id == old.id)
    now = datetime.now(UTC)
    assert before.opens_with(split(key)[1])
    assert before.ended(now) is None
    assert before.ended(now + timedelta(hours=2, seconds=1)) == "expired"
    assert [a.action for a in store.history()] == ["create", "create", "rotate"]
    assert new.id in store.history()[-1].why
    store.revoke(old.id, **BY)
    with pytest.raises(ConfigError, match="is revoked"):
        store.rotate(old.id, grace=timedelta(0), **BY)


@pytest.mark.parametrize(
    ("name", "scopes", "more", "message"),
    [
        ("", ["read"], {}, "needs a name"),
        ("x" * 101, ["read"], {}, "needs a name"),
        ("a", [], {}, "without a scope"),
        ("a", ["raed"], {}, "Did you mean 'read'"),
        ("a", ["read"], {"lifetime": timedelta(0)}, "lifetime"),
        ("a", ["read"], {"per_minute": -1}, "limit"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_kept(store, name, scopes, more, message):
    with pytest.raises(ConfigError) as caught:
        store.create(name, scopes, **BY, **more)
    assert message in str(caught.value)
    assert store.known() == []
    assert store.history() == []


def test_unknown_keys_and_closed_databases_are_named(store, tmp_path):
    _, kept = store.create("client", ["read"], **BY)
    with pytest.raises(ConfigError, match="There is no key"):
        store.revoke(kept.id[:-1], **BY)
    with pytest.raises(ConfigError, match="cannot be negative"):
        store.rotate(kept.id, grace=timedelta(seconds=-1), **BY)
    with pytest.raises(StorageError, match="key store"):
        KeyStore(f"sqlite:///{tmp_path}/no/such/folder/trellis.db")


@given(st.text(max_size=60) | st.text(max_size=60).map("trellis_{}".format))
def test_any_text_is_parted_or_refused_without_an_error(text):
    parts = split(text)
    assert parts is None or f"trellis_{parts[0]}_{parts[1]}" == text
