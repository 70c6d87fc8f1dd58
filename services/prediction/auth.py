"""Who may ask for what, and how often: API keys as bearer tokens (RFC 6750), a limit for each key.

Keys are read from the store with every look at the plans, so a revoked one stops within a second; a request is checked
in memory. Where the store is away, the keys last read stay in force, and their expiry with them.

A limit is shared out: each of a service's processes holds a key to an even part of it, and tells it what is left of
that part, for it knows nothing of the others. Services on several machines (replicas) each have the whole limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

from starlette.types import Scope

from services.prediction.errors import UnavailableError
from services.prediction.metrics import Metrics
from trellis.adapters.api_keys import ApiKey, split
from trellis.errors import RequestError, StorageError

_REMEDY = "Send a key as: Authorization: Bearer trellis_…"
_NOBODY = ApiKey(
    "",
    "",
    bytes(16),
    bytes(32),
    frozenset(),
    0,
    datetime(2000, 1, 1, tzinfo=UTC),
    None,
    datetime(2000, 1, 1, tzinfo=UTC),
)

Headers = tuple[tuple[bytes, bytes], ...]


class RefusedError(RequestError):
    """A caller may not do this, or not now (401, 403 or 429).

    Args:
        reason: Why.
        status: HTTP status.
        remedy: What would help.
        headers: Of the answer.
    """

    def __init__(self, reason: str, *, status: int, remedy: str, headers: Mapping[str, str]) -> None:
        self.headers = headers
        super().__init__("authorization", reason, status=status, remedy=remedy)


class Keys(Protocol):
    """Where the keys are."""

    def known(self) -> list[ApiKey]:
        """Return every key; StorageError where they cannot be read."""


class _Bucket:
    """Requests that a key may still make: refilled evenly, full after a minute (a token bucket)."""

    def __init__(self, per_minute: int) -> None:
        self.size = per_minute
        self.left = float(per_minute)
        self.at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.left = min(float(self.size), self.left + (now - self.at) * self.size / 60)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def headers(self) -> Headers:
        """Return the limit's fields (draft-ietf-httpapi-ratelimit-headers-06): all, left, seconds until all again."""
        reset = math.ceil((self.size - self.left) * 60 / self.size)
        return (
            (b"ratelimit-limit", b"%d" % self.size),
            (b"ratelimit-remaining", b"%d" % self.left),
            (b"ratelimit-reset", b"%d" % reset),
        )


class Guard:
    """Checks requests; used from the event loop only, apart from ``refresh``.

    Args:
        keys: Where the keys are; None lets everybody do everything.
        metrics: Counts refusals.
        processes: How many answer together; each takes its share of a key's limit, but at least one request a minute.
    """

    def __init__(self, keys: Keys | None, metrics: Metrics, processes: int = 1) -> None:
        self._store = keys
        self._metrics = metrics
        self._processes = processes
        self._keys: dict[str, ApiKey] | None = None
        self._buckets: dict[str, _Bucket] = {}

    @property
    def is_on(self) -> bool:
        """Whether a key is needed."""
        return self._store is not None

    def refresh(self) -> None:
        """Read the keys; those last read stay where the store does not answer."""
        if self._store is None:
            return
        try:
            self._keys = {key.id: key for key in self._store.known()}
        except StorageError:
            self._metrics.store_failures.labels("keys").inc()

    def check(self, scope: Scope, needed: str) -> Headers:
        """Let a request pass, and return what its answer has to tell about the key's limit.

        Raises:
            RefusedError: It has no key that is good for ``needed`` (401, 403), or has used up its limit (429).
            UnavailableError: The keys have not been read yet.
        """
        if self._store is None:
            return ()
        if self._keys is None:
            raise UnavailableError("The API keys have not been read yet.", remedy="Try again in a second.")
        key = self._found(scope, self._keys)
        if needed not in key.scopes:
            self._count("scope")
            raise RefusedError(
                f"this key has not the scope {needed!r}",
                status=403,
                remedy=f"Use a key with the scope {needed!r}.",
                headers={"www-authenticate": f'Bearer error="insufficient_scope", scope="{needed}"'},
            )
        if not key.per_minute:
            return ()
        share = max(1, key.per_minute // self._processes)
        bucket = self._buckets.get(key.id)
        if bucket is None or bucket.size != share:
            bucket = self._buckets[key.id] = _Bucket(share)
        if bucket.take():
            return bucket.headers()
        self._count("limit")
        wait = max(1, math.ceil((1 - bucket.left) * 60 / bucket.size))
        told = {name.decode(): value.decode() for name, value in bucket.headers()}
        part = f", {share} of them at each of {self._processes} processes" if self._processes > 1 else ""
        raise RefusedError(
            f"this key may make {key.per_minute} requests a minute{part}",
            status=429,
            remedy=f"Try again in {wait} s.",
            headers={**told, "retry-after": str(wait)},
        )

    def _found(self, scope: Scope, keys: Mapping[str, ApiKey]) -> ApiKey:
        given = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                given = value
                break
        kind, _, token = given.partition(b" ")
        parts = split(token.strip().decode("latin-1")) if kind.lower() == b"bearer" else None
        if parts is None:
            self._count("no_key")
            raise RefusedError(
                "a key is needed", status=401, remedy=_REMEDY, headers={"www-authenticate": 'Bearer realm="trellis"'}
            )
        # An unknown id is hashed and compared like a known one, so that time does not tell them apart; nor does the
        # answer, which is the same for a wrong secret, a revoked key and one that never was.
        key = keys.get(parts[0], _NOBODY)
        good = key.opens_with(parts[1])
        ended = key.ended(datetime.now(UTC))
        if not good or ended:
            self._count(ended if good and ended else "wrong_key")
            raise RefusedError(
                "this key is not valid, or no longer",
                status=401,
                remedy="Ask the operator for a key: trellis keys create.",
                headers={"www-authenticate": 'Bearer error="invalid_token"'},
            )
        return key

    def _count(self, reason: str) -> None:
        self._metrics.refused.labels(reason).inc()
