"""Features from Redis in one round trip per request, whatever the number of views, in Feast's own form."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from trellis.adapters.feast_encoding import KeyEncoder, decode_time, decode_value, hash_field
from trellis.errors import ConfigError

# A store that hangs is worse than one that is away: requests then wait for nothing.
_TIMEOUTS = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
# After a failure nobody asks for so many seconds, and then one request alone: were all of them to wait for a store that
# hangs, requests would queue behind them that need not have failed.
_REST_SECONDS = 1.0


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


class Circuit:
    """Whether Redis is to be asked: not for a while after a failure, then by one request alone; safe for threads."""

    def __init__(self) -> None:
        self._resting_until = 0.0
        self._trying = threading.Lock()

    def enter(self) -> bool:
        """Let somebody ask, and return whether it is a trial; ``leave`` must follow.

        Raises:
            redis.exceptions.ConnectionError: Redis rests.
        """
        if not self._resting_until:
            return False
        if time.monotonic() < self._resting_until or not self._trying.acquire(blocking=False):
            from redis.exceptions import ConnectionError as AwayError

            raise AwayError("Redis did not answer a moment ago, and is left alone for a while.")
        return True

    def leave(self, *, failed: bool | None, is_trial: bool) -> None:
        """Say how asking ended; None where nobody waited for it."""
        if failed is not None:
            self._resting_until = time.monotonic() + _REST_SECONDS if failed else 0.0
        if is_trial:
            self._trying.release()


class RedisReader:
    """Reads what Feast's Redis store has written; safe for threads.

    Args:
        connection: Feast's connection string, ``host:port,parameter=value,…``.
        project: Feast's project.
    """

    def __init__(self, connection: str, project: str) -> None:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as ClosedError
        from redis.retry import Retry

        address, *rest = connection.split(",")
        host, _, port = address.rpartition(":")
        options = {**_TIMEOUTS, **{name: _value(text) for name, _, text in (part.partition("=") for part in rest)}}
        self._client = Redis(host=host, port=int(port), retry=Retry(NoBackoff(), 0), **options)
        # One more try, for a connection that the server has closed meanwhile; none where it let the time pass.
        self._retry = Retry(NoBackoff(), 1, supported_errors=(ClosedError,))
        self._project = project.encode()
        self._fields: dict[tuple[str, tuple[str, ...]], tuple[int, bytes]] = {}
        self.circuit = Circuit()
        self.options = {"host": host, "port": int(port), **options}

    def read(self, asked: Sequence[Asked]) -> list[Found]:
        """Return, per view and entity, the event time and the features' values, in one round trip.

        Views with the same join keys share one hash per entity, which is read once.

        Raises:
            redis.exceptions.RedisError: See ``exchange``.
        """
        wanted: dict[bytes, list[tuple[int, bytes]]] = {}
        places: list[list[tuple[bytes, int]]] = []
        for one in asked:
            fields = self._fields_of(one)
            place = []
            for values in one.keys:
                key = one.encoder(values) + self._project
                have = wanted.setdefault(key, [])
                place.append((key, sum(count for count, _ in have)))
                have.append(fields)
            places.append(place)
        commands = b"".join(hmget(key, fields) for key, fields in wanted.items())
        answers = dict(zip(wanted, self.exchange(commands, len(wanted)), strict=True))
        found: list[Found] = []
        for one, place in zip(asked, places, strict=True):
            rows: Found = []
            for key, start in place:
                cells = answers[key][start : start + len(one.features) + 1]
                moment = decode_time(cells[0])
                rows.append((moment, [decode_value(cell) for cell in cells[1:]] if moment is not None else []))
            found.append(rows)
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def exchange(self, commands: bytes, count: int) -> list[list[bytes | None]]:
        """Send packed commands and return their answers.

        Raises:
            redis.exceptions.RedisError: Redis does not answer, or did not a moment ago.
        """
        from redis.exceptions import ConnectionError as AwayError
        from redis.exceptions import TimeoutError as LateError

        is_trial = self.circuit.enter()
        failed = True  # unless it answers, be it with an error
        try:
            answers = self._exchange(commands, count)
            failed = False
        except Exception as error:
            failed = isinstance(error, AwayError | LateError)
            raise
        finally:
            self.circuit.leave(failed=failed, is_trial=is_trial)
        return answers

    def _exchange(self, commands: bytes, count: int) -> list[list[bytes | None]]:
        """Send packed commands and return their answers, on a connection of the pool's.

        The client's own pipeline does the same and spends twice the round trip on parts that a plain read has no use
        for: it packs every field of every command anew, and keeps book on transactions.
        """
        pool = self._client.connection_pool
        connection: Any = pool.get_connection()

        def exchange() -> list[Any]:
            connection.send_packed_command([commands])
            return [connection.read_response(disable_decoding=True) for _ in range(count)]

        try:
            return self._retry.call_with_retry(exchange, lambda _: connection.disconnect())
        except BaseException:
            connection.disconnect()  # an answer that was not read would be taken for the next question's
            raise
        finally:
            pool.release(connection)

    def _fields_of(self, one: Asked) -> tuple[int, bytes]:
        """Return how many fields a view has, and these in the form in which a command carries them."""
        known = self._fields.get((one.view, one.features))
        if known is None:
            fields = [f"_ts:{one.view}".encode(), *(hash_field(one.view, feature) for feature in one.features)]
            known = len(fields), b"".join(bulk(field) for field in fields)
            self._fields[(one.view, one.features)] = known
        return known


def bulk(part: bytes) -> bytes:
    """Return a part of a command as it is sent (Redis serialization protocol, *bulk strings*)."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


def pack(*parts: str) -> bytes:
    """Return a command as it is sent (*arrays*)."""
    return b"*%d\r\n%b" % (len(parts), b"".join(bulk(part.encode()) for part in parts))


def hmget(key: bytes, fields: Sequence[tuple[int, bytes]]) -> bytes:
    """Return the command that reads fields of a hash (Redis serialization protocol, *arrays* and *bulk strings*)."""
    count = 2 + sum(many for many, _ in fields)
    return b"*%d\r\n$5\r\nHMGET\r\n%b%b" % (count, bulk(key), b"".join(packed for _, packed in fields))


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
