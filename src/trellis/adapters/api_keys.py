"""API keys: made once, shown once, kept only as salted hashes; every change with who, when and why.

A key is ``trellis_<id>_<secret>``. The id is public and finds the row; the secret is 256 random bits. At rest there is
its BLAKE2b hash (RFC 7693) under a salt of its own. A slow hash (scrypt, Argon2) makes guessing *passwords* dear; there
is no dictionary of 2²⁵⁶ random secrets to guess from, so it would buy nothing here, cost every request milliseconds,
and give whoever sends wrong keys a lever against the service.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

import sqlalchemy as sa

from trellis.adapters.database import Database, engine
from trellis.errors import ConfigError, close_matches

Scope = Literal["predict", "label", "read", "operate"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "trellis_"

_metadata = sa.MetaData()

_keys = sa.Table(
    "api_keys",
    _metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("salt", sa.String(64), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("per_minute", sa.Integer, nullable=False),
    sa.Column("created_at", sa.String(40), nullable=False),
    sa.Column("expires_at", sa.String(40)),
    sa.Column("revoked_at", sa.String(40)),
)

_actions = sa.Table(
    "api_key_actions",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key_id", sa.String(16), nullable=False),
    sa.Column("action", sa.String(20), nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class ApiKey:
    """What is kept of a key.

    Attributes:
        id: Public part.
        name: Whose it is or what for.
        salt, digest: Of the secret.
        scopes: What it may do: ``predict``, ``label``, ``read`` (models and metrics), ``operate`` (change something,
            which no route of the service does yet: operators have the command line).
        per_minute: Most requests a minute of one replica, whose processes share them; 0 for no limit.
        created_at, expires_at, revoked_at: Moments in UTC; None for never.
    """

    id: str
    name: str
    salt: bytes
    digest: bytes
    scopes: frozenset[str]
    per_minute: int
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def opens_with(self, secret: str) -> bool:
        """Tell, in a time that does not depend on where they differ, whether a secret is this key's."""
        return hmac.compare_digest(_hash(secret, self.salt), self.digest)

    def ended(self, now: datetime) -> str | None:
        """Return ``revoked`` or ``expired``, or None where the key is good."""
        if self.revoked_at is not None and self.revoked_at <= now:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return None


@dataclass(frozen=True)
class Action:
    """One line of the audit trail.

    Attributes:
        key_id: Which key.
        action: ``create``, ``rotate`` or ``revoke``.
        at: RFC 3339 in UTC.
        who, why: As the operator gave them.
    """

    key_id: str
    action: str
    at: str
    who: str
    why: str


def split(key: str) -> tuple[str, str] | None:
    """Part a key into id and secret, or return None where it has not the form of one."""
    if not key.startswith(PREFIX) or len(key) > 200:
        return None
    name, parted, secret = key[len(PREFIX) :].partition("_")
    return (name, secret) if parted and name and secret and key.isascii() else None


class KeyStore:
    """API keys in the platform's SQL database; safe for many processes.

    Args:
        url: SQLAlchemy URL.

    Raises:
        StorageError: The database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(engine(url), _metadata, "key store")

    def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        who: str,
        why: str,
        lifetime: timedelta | None = None,
        per_minute: int = 6_000,
    ) -> tuple[str, ApiKey]:
        """Make a key.

        Args:
            name: Whose it is or what for.
            scopes: What it may do.
            who: Who makes it.
            why: The reason, one sentence.
            lifetime: After which it expires; None for never.
            per_minute: Most requests a minute of one replica, whose processes share them; 0 for no limit.

        Returns:
            The key, which cannot be had again, and what is kept of it.

        Raises:
            ConfigError: The name is empty or a scope, a lifetime or a limit makes no sense.
            StorageError: The database refuses.
        """
        _check(name, scopes, lifetime, per_minute)
        now = datetime.now(UTC)
        with self._database.writing() as connection:
            return self._insert(connection, name, scopes, per_minute, now, lifetime, who, why)

    def adopt(self, key: str, name: str, scopes: Sequence[str], *, who: str, why: str) -> ApiKey:
        """Keep a key that was made elsewhere, as a stack's secrets are; keeping it again changes nothing.

        Args:
            key: A whole key, as ``create`` would have made it; it never expires and has no limit.
            name: Whose it is or what for.
            scopes: What it may do.
            who: Who keeps it.
            why: The reason, one sentence.

        Raises:
            ConfigError: It has not the form of a key, its secret is short, or its id means another secret.
            StorageError: The database refuses.
        """
        _check(name, scopes, None, 0)
        found = split(key)
        if found is None or len(found[0]) > 16 or len(found[1]) < 43:
            form = f"{PREFIX}<id>_<secret>, the secret of 256 random bits"
            raise ConfigError("What is to be adopted is no key.", remedy=f"Its form is {form}.")
        with self._database.writing() as connection:
            row = connection.execute(sa.select(_keys).where(_keys.c.id == found[0])).one_or_none()
            if row is not None:
                if not _key(row).opens_with(found[1]):
                    what = f"The key {found[0]!r} has another secret."
                    remedy = "Give the new key an id of its own; revoke the old one."
                    raise ConfigError(what, where=self._database.where, remedy=remedy)
                return _key(row)
            return self._insert(connection, name, scopes, 0, datetime.now(UTC), None, who, why, found)[1]

    def known(self) -> list[ApiKey]:
        """Return every key, oldest first.

        Raises:
            StorageError: The database does not answer.
        """
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(_keys).order_by(_keys.c.created_at, _keys.c.id)).all()
        return [_key(row) for row in rows]

    def revoke(self, key_id: str, *, who: str, why: str) -> None:
        """End a key at once; every serving process has heard of it within its poll.

        Raises:
            ConfigError: There is no such key.
            StorageError: The database refuses.
        """
        with self._database.writing() as connection:
            key = self._get(connection, key_id)
            if key.revoked_at is None:
                now = datetime.now(UTC)
                connection.execute(_keys.update().where(_keys.c.id == key_id).values(revoked_at=now.isoformat()))
                _note(connection, key_id, "revoke", now, who, why)

    def rotate(self, key_id: str, *, grace: timedelta, who: str, why: str) -> tuple[str, ApiKey]:
        """Make a successor with the same name, scopes, limit and lifetime; the old key works on for ``grace``.

        Returns:
            The new key, which cannot be had again, and what is kept of it.

        Raises:
            ConfigError: There is no such key, or it has ended.
            StorageError: The database refuses.
        """
        if grace < timedelta(0):
            raise ConfigError("The time that a rotated key works on cannot be negative.", remedy="Give 0 or more.")
        now = datetime.now(UTC)
        with self._database.writing() as connection:
            old = self._get(connection, key_id)
            ended = old.ended(now)
            if ended:
                raise ConfigError(
                    f"The key {key_id!r} is {ended}.", where=self._database.where, remedy="Create a new one."
                )
            lifetime = None if old.expires_at is None else old.expires_at - old.created_at
            end = now + grace if old.expires_at is None else min(old.expires_at, now + grace)
            connection.execute(_keys.update().where(_keys.c.id == key_id).values(expires_at=end.isoformat()))
            scopes = sorted(old.scopes)
            made = self._insert(connection, old.name, scopes, old.per_minute, now, lifetime, who, why)
            _note(connection, key_id, "rotate", now, who, f"{why} (by {made[1].id})")
            return made

    def history(self) -> list[Action]:
        """Return the audit trail, oldest first.

        Raises:
            StorageError: The database does not answer.
        """
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(_actions).order_by(_actions.c.number)).all()
        return [Action(row.key_id, row.action, row.at, row.who, row.why) for row in rows]

    def _insert(
        self,
        connection: sa.Connection,
        name: str,
        scopes: Sequence[str],
        per_minute: int,
        now: datetime,
        lifetime: timedelta | None,
        who: str,
        why: str,
        given: tuple[str, str] | None = None,
    ) -> tuple[str, ApiKey]:
        key_id, secret = given or (secrets.token_hex(6), secrets.token_urlsafe(32))
        salt = secrets.token_bytes(16)
        connection.execute(
            _keys.insert().values(
                id=key_id,
                name=name,
                salt=salt.hex(),
                digest=_hash(secret, salt).hex(),
                scopes=",".join(sorted(set(scopes))),
                per_minute=per_minute,
                created_at=now.isoformat(),
                expires_at=None if lifetime is None else (now + lifetime).isoformat(),
            )
        )
        _note(connection, key_id, "create", now, who, why)
        return f"{PREFIX}{key_id}_{secret}", self._get(connection, key_id)

    def _get(self, connection: sa.Connection, key_id: str) -> ApiKey:
        row = connection.execute(sa.select(_keys).where(_keys.c.id == key_id)).one_or_none()
        if row is None:
            known = connection.execute(sa.select(_keys.c.id)).scalars()
            hint = close_matches(key_id[:60], known)
            raise ConfigError(f"There is no key {key_id[:60]!r}.", where=self._database.where, remedy=hint)
        return _key(row)


def _check(name: str, scopes: Sequence[str], lifetime: timedelta | None, per_minute: int) -> None:
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no scope.", remedy=close_matches(unknown[0], SCOPES))
    if not scopes:
        raise ConfigError("A key without a scope may do nothing.", remedy=f"Give some of {', '.join(SCOPES)}.")
    if not name.strip() or len(name) > 100:
        raise ConfigError("A key needs a name of at most 100 characters.", remedy="Say whose it is or what for.")
    if lifetime is not None and lifetime <= timedelta(0):
        raise ConfigError("A key's lifetime has to be above zero.", remedy="Give a positive number of days.")
    if per_minute < 0:
        raise ConfigError("A key's limit cannot be negative.", remedy="Give requests a minute, or 0 for no limit.")


def _note(connection: sa.Connection, key_id: str, action: str, at: datetime, who: str, why: str) -> None:
    if not who.strip() or not why.strip():
        raise ConfigError("An action by hand needs a name and a reason.", remedy='Give --who and --why "…".')
    connection.execute(_actions.insert().values(key_id=key_id, action=action, at=at.isoformat(), who=who, why=why))


def _key(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    def moment(text: str | None) -> datetime | None:
        return None if text is None else datetime.fromisoformat(text)

    return ApiKey(
        row.id,
        row.name,
        bytes.fromhex(row.salt),
        bytes.fromhex(row.digest),
        frozenset(row.scopes.split(",")),
        row.per_minute,
        datetime.fromisoformat(row.created_at),
        moment(row.expires_at),
        moment(row.revoked_at),
    )


def _hash(secret: str, salt: bytes) -> bytes:
    return hashlib.blake2b(secret.encode(), key=salt, digest_size=32, person=b"trellis-api-key").digest()
