"""Features from Redis in one round trip per request, whatever the number of views, in Feast's own form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from trellis.adapters.feast_encoding import KeyEncoder, decode_time, decode_value, hash_field
from trellis.errors import ConfigError

# A store that hangs is worse than one that is away: requests then wait for nothing.
_TIMEOUTS = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}


@dataclass(frozen=True)
class Asked:
    """What a request wants of one view.

    Attributes:
        view: Its name.
        features: Names, in order.
        encoder: Of its join keys.
        keys: Their values, one tuple per entity.
    """

    view: str
    features: tuple[str, ...]
    encoder: KeyEncoder
    keys: Sequence[tuple[Any, ...]]


Found = list[tuple[np.datetime64 | None, list[Any]]]


class RedisReader:
    """Reads what Feast's Redis store has written; safe for threads.

    Args:
        connection: Feast's connection string, ``host:port,parameter=value,…``.
        project: Feast's project.
    """

    def __init__(self, connection: str, project: str) -> None:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        address, *rest = connection.split(",")
        host, _, port = address.rpartition(":")
        options = {**_TIMEOUTS, **{name: _value(text) for name, _, text in (part.partition("=") for part in rest)}}
        # One more try, for a connection that the server has closed meanwhile.
        self._client = Redis(host=host, port=int(port), retry=Retry(NoBackoff(), 1), **options)
        self._project = project.encode()
        self._fields: dict[tuple[str, tuple[str, ...]], list[bytes]] = {}

    def read(self, asked: Sequence[Asked]) -> list[Found]:
        """Return, per view and entity, the event time and the features' values, in one round trip.

        Views with the same join keys share one hash per entity, which is read once.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        wanted: dict[bytes, list[bytes]] = {}
        places: list[list[tuple[bytes, int]]] = []
        for one in asked:
            fields = self._fields_of(one)
            place = []
            for values in one.keys:
                key = one.encoder(values) + self._project
                have = wanted.setdefault(key, [])
                place.append((key, len(have)))
                have += fields
            places.append(place)
        with self._client.pipeline(transaction=False) as pipe:
            for key, fields in wanted.items():
                pipe.hmget(key, fields)
            answers = dict(zip(wanted, pipe.execute(), strict=True))
        found: list[Found] = []
        for one, place in zip(asked, places, strict=True):
            rows: Found = []
            for key, start in place:
                cells = answers[key][start : start + len(one.features) + 1]
                time = decode_time(cells[0])
                rows.append((time, [decode_value(cell) for cell in cells[1:]] if time is not None else []))
            found.append(rows)
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _fields_of(self, one: Asked) -> list[bytes]:
        known = self._fields.get((one.view, one.features))
        if known is None:
            known = [f"_ts:{one.view}".encode(), *(hash_field(one.view, feature) for feature in one.features)]
            self._fields[(one.view, one.features)] = known
        return known


def connection_string(url: str) -> str:
    """Turn ``redis://[user:password@]host[:port][/db]`` (``rediss`` with TLS) into Feast's connection string.

    Raises:
        ConfigError: It is no such URL, or a part holds a comma, which Feast's form cannot carry.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 6379
        database = int(parts.path.strip("/") or 0)
    except ValueError as error:
        raise ConfigError(f"The Redis URL cannot be read: {error}.", remedy="Write redis://host:port/0.") from error
    if parts.scheme not in ("redis", "rediss") or not host or parts.query or parts.fragment:
        raise ConfigError("The online store is neither sqlite nor a Redis URL.", remedy="Write redis://host:port/0.")
    options: dict[str, Any] = {"db": database, **_TIMEOUTS}
    if parts.scheme == "rediss":
        options["ssl"] = True
    for name, text in (("username", parts.username), ("password", parts.password)):
        if text is not None:
            if "," in unquote(text):
                raise ConfigError(f"The Redis {name} holds a comma, which Feast cannot read.", remedy="Choose another.")
            options[name] = unquote(text)
    return ",".join([f"{host}:{port}", *(f"{name}={json.dumps(value)}" for name, value in options.items())])


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
