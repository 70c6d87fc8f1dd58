"""Units in logs: who a caller is stays a secret, that it is the same one does not."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from trellis.contract import ModelSpec
from trellis.errors import ConfigError, StorageError

KEY_FILE = "unit-hash.key"
_SHORTEST = 16
_LONGEST_NAME = 64
_NAME = re.compile(r"[\w.-]+", re.ASCII)
_STOCK = 512


class UnitHash:
    """Hashes units with a secret key (BLAKE2b, RFC 7693), so that nobody can try out all ids without it.

    The same unit has the same hash for as long as the key stays, across models, processes and rollouts. A plan's salt
    would not do: it changes with every rollout and stands in the plan for everybody to read.

    Args:
        home: Trellis's home. Without a given secret, one is made in ``<home>/unit-hash.key`` at the first use, for the
            owner's eyes only, and shared by every process of this home.
        secret: The secret, at least 16 characters.

    Raises:
        ConfigError: The secret is too short.
    """

    def __init__(self, home: Path, secret: str | None = None) -> None:
        if secret is not None and len(secret) < _SHORTEST:
            raise ConfigError(
                f"The secret that hides units has fewer than {_SHORTEST} characters.",
                where="TRELLIS_UNIT_SECRET",
                remedy="Make one with: openssl rand -hex 32",
            )
        self._path = home / KEY_FILE
        self._secret = secret

    def __call__(self, unit: str) -> str:
        """Return a unit's hash, 32 hexadecimal digits.

        Raises:
            StorageError: The key can neither be read nor made.
        """
        return hashlib.blake2b(unit.encode(), key=self._key, digest_size=16, person=b"trellis-unit").hexdigest()

    @cached_property
    def _key(self) -> bytes:
        if self._secret is not None:
            return hashlib.sha256(self._secret.encode()).digest()
        try:
            if not self._path.exists():
                self._make()
            return hashlib.sha256(self._path.read_bytes()).digest()
        except OSError as error:
            raise StorageError(
                f"The key that hides units in logs cannot be had: {error.strerror or error}.",
                where=self._path,
                remedy="Set TRELLIS_UNIT_SECRET, or make the home writable.",
            ) from error

    def _make(self) -> None:
        """Write a new key whole, or leave the one that another process was faster with."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{KEY_FILE}.{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_hex(32).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(partial, self._path)
        except FileExistsError:
            pass
        finally:
            partial.unlink()


class RandomIds:
    """Names for requests that have none: 16 hexadecimal digits from the system's random numbers, fetched in stock.

    Asking the system for eight bytes lets go of Python's lock, which costs a request more than all else about its name.
    Use it from one thread.
    """

    def __init__(self) -> None:
        self._stock: list[str] = []

    def __call__(self) -> str:
        """Return a name."""
        if not self._stock:
            drawn = secrets.token_hex(8 * _STOCK)
            self._stock = [drawn[i : i + 16] for i in range(0, len(drawn), 16)]
        return self._stock.pop()


def given_name(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the name that a load balancer gave a request, the same over all its tries; None where that is no name."""
    for name, value in headers:
        if name == b"x-prediction-id":
            text = value.decode("latin-1")
            return text if len(text) <= _LONGEST_NAME and _NAME.fullmatch(text) else None
    return None


def without_unit(spec: ModelSpec, unit: str | None) -> Callable[[dict[str, Any], str], None]:
    """Return what hides a unit in a record's request, given the record's fields and the unit's hash.

    A field that the model scores on is data rather than an identity, and stays. Another one is replaced by the hash
    where it is a string, and left out where it is not.
    """
    if unit is None or unit in spec.inputs:
        return lambda _request, _hidden: None
    if spec.fields[unit].kind in ("category", "text"):
        return lambda request, hidden: request.__setitem__(unit, hidden)
    return lambda request, _hidden: request.__delitem__(unit)
