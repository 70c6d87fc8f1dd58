"""A small typed client of the prediction service, on the standard library alone.

    with Client("http://127.0.0.1:3000") as client:
        answer = client.predict("flight_delay", [{"carrier": "UA", ...}])
        answer.predictions[0].outputs["probability"]

Retries are safe: every call gets one request id, and the service answers the same id and body the same and logs it
once; labels may arrive twice without harm. What the service refuses (4xx) is never sent again.
"""

from __future__ import annotations

import http.client
import json
import math
import queue
import random
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

from trellis.errors import ConfigError, RequestError, TrellisError, UnavailableError, UnknownModelError

_PASSING = (502, 503, 504)  # of the way or the moment, so worth another try
_BESIDE_OUTPUTS = {"id", "version", "variant", "degraded", "stale"}


@dataclass(frozen=True)
class Prediction:
    """One row's answer.

    Attributes:
        id: By which a label refers to it.
        outputs: The model's outputs by name.
        version, variant: Who answered, and its role.
        degraded: Feature views that had no data.
        stale: Feature views past their freshness SLA, and what was done: served, imputed or fell_back.
    """

    id: str
    outputs: Mapping[str, Any]
    version: str
    variant: str
    degraded: tuple[str, ...] = ()
    stale: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fallback:
    """A link of the fallback chain that answered in the place of the assigned version.

    Attributes:
        link: ``cache``, ``champion``, ``previous`` or ``default``.
        why: The reason, one clause.
    """

    link: str
    why: str


@dataclass(frozen=True)
class Answer:
    """Predictions in the order of the rows.

    Attributes:
        model: Who was asked.
        version, variant: Who answered; None where rows went to several.
        revision: Of the rollout plan.
        request_id: The call's id.
        predictions: One per row.
        fallback: Where others than the assigned version answered; empty if none did.
    """

    model: str
    version: str | None
    variant: str | None
    revision: int
    request_id: str
    predictions: tuple[Prediction, ...]
    fallback: tuple[Fallback, ...] = ()


@dataclass(frozen=True)
class Label:
    """The truth about one prediction.

    Attributes:
        id: The prediction's.
        value: Class index or name, or the number.
        observed_at: When it became known, with its zone.
    """

    id: str
    value: int | float | str
    observed_at: datetime


@dataclass(frozen=True)
class ModelInfo:
    """One served model; ``version`` is the champion's."""

    name: str
    task: str
    description: str
    owner: str
    version: str
    revision: int


class Client:
    """Talks to one service; may be shared by threads.

    A try that fails on the way (refused, reset, timed out) or with 502, 503 or 504 is made again after a wait drawn
    uniformly from 0 to ``backoff * 2**n`` seconds ("full jitter", M. Brooker, *Exponential Backoff and Jitter*, AWS
    Architecture Blog, 2015), or after what ``Retry-After`` says if that is longer.

    Args:
        url: The service's root.
        api_key: Sent as a bearer token.
        timeout: Longest wait of one try for the connection and for each part of the answer, seconds.
        deadline: No try begins, and no wait ends, later than this after the call began, seconds.
        tries: Most tries of one call.
        backoff: Scale of the waits, seconds.

    Raises:
        ConfigError: The URL is no http(s) URL.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        api_key: str | None = None,
        timeout: float = 5.0,
        deadline: float = 30.0,
        tries: int = 4,
        backoff: float = 0.1,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is no http or https URL.", remedy="Give one like http://127.0.0.1:3000.")
        self._url, self._parts, self._prefix = url, parts, parts.path.rstrip("/")
        self._timeout, self._deadline, self._tries, self._backoff = timeout, deadline, tries, backoff
        self._headers = {"content-type": "application/json", "accept": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()

    def predict(self, model: str, rows: Iterable[Mapping[str, Any]], *, id: str | None = None) -> Answer:
        """Score rows.

        Args:
            model: Its name.
            rows: Field name to value; aware datetimes, numpy values and NaN are written as the service reads them.
            id: Names the request; the same id and rows, in another call too, are logged once. Made if not given.

        Raises:
            RequestError: The service refuses the rows; the field and reason are its.
            UnknownModelError: It does not serve the model.
            UnavailableError: It did not answer within the tries and the deadline.
        """
        body = {"rows": [_plain(row, f"rows.{i}") for i, row in enumerate(rows)], "id": id or secrets.token_hex(16)}
        found = self._call("POST", f"/v1/models/{quote(model, safe='')}/predict", body)
        predictions = tuple(
            Prediction(
                id=p["id"],
                outputs={name: value for name, value in p.items() if name not in _BESIDE_OUTPUTS},
                version=p["version"],
                variant=p["variant"],
                degraded=tuple(p.get("degraded", ())),
                stale=dict(p.get("stale", {})),
            )
            for p in found["predictions"]
        )
        fallback = tuple(Fallback(part["link"], part["why"]) for part in found.get("fallback", ()))
        names = ("model", "version", "variant", "revision", "request_id")
        return Answer(**{name: found[name] for name in names}, predictions=predictions, fallback=fallback)

    def label(self, model: str, labels: Sequence[Label]) -> int:
        """Send the truth about earlier predictions; return how many were accepted.

        Raises:
            RequestError, UnknownModelError, UnavailableError: As for ``predict``.
        """
        body = {
            "labels": [
                _plain({"id": x.id, "value": x.value, "observed_at": x.observed_at}, f"labels.{i}")
                for i, x in enumerate(labels)
            ]
        }
        return int(self._call("POST", f"/v1/models/{quote(model, safe='')}/labels", body)["accepted"])

    def models(self) -> list[ModelInfo]:
        """Return the served models.

        Raises:
            UnavailableError: The service did not answer.
        """
        names = ModelInfo.__dataclass_fields__
        return [ModelInfo(**{name: m[name] for name in names}) for m in self._call("GET", "/v1/models")["models"]]

    def ready(self) -> bool:
        """Return whether the service takes requests; one try, and no answer means no."""
        try:
            status, _, _ = self._send("GET", "/v2/health/ready", None)
        except (OSError, http.client.HTTPException):
            return False
        return status == 200

    def close(self) -> None:
        """Close idle connections; the client can still be used."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """Send until there is an answer; the body, and so the request id in it, is the same in every try."""
        payload = None if body is None else json.dumps(body, allow_nan=False).encode()
        end = time.monotonic() + self._deadline
        for attempt in range(self._tries):
            least = 0.0
            try:
                status, headers, content = self._send(method, path, payload)
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if status not in _PASSING:
                    return self._read(status, content)
                why, least = f"{status}: {_problem(status, content).what}", _retry_after(headers)
            wait = max(least, random.uniform(0, self._backoff * 2**attempt))  # noqa: S311 - spreads callers, no secret
            if attempt + 1 == self._tries or time.monotonic() + wait > end:
                break
            time.sleep(wait)
        raise UnavailableError(
            f"The service did not answer in {attempt + 1} tries; the last: {why}",
            where=self._url,
            remedy="Try again later; with the same id nothing is logged twice.",
        )

    def _send(self, method: str, path: str, payload: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        """Make one try on an idle connection or a new one."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
            assert self._parts.hostname is not None
            connection = kind(self._parts.hostname, self._parts.port, timeout=self._timeout)
        try:
            connection.request(method, self._prefix + path, payload, self._headers)
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._idle.put(connection)
        return response.status, {name.lower(): value for name, value in response.getheaders()}, content

    def _read(self, status: int, content: bytes) -> Any:
        if status >= 400:
            raise _problem(status, content)
        try:
            if status == 200:
                return json.loads(content)
        except ValueError:
            pass
        raise ConfigError(
            f"What answers there ({status}) is no prediction service.", where=self._url, remedy="Check the URL."
        )


def _problem(status: int, content: bytes) -> TrellisError:
    """Return the error that an answer's body describes."""
    try:
        parts = json.loads(content)["error"]
        field, reason, remedy = str(parts["field"]), str(parts["reason"]), str(parts["remedy"])
    except (ValueError, KeyError, TypeError):
        field, reason, remedy = "", content[:200].decode(errors="replace") or http.client.responses.get(status, ""), ""
    if status >= 500:
        return UnavailableError(reason, remedy=remedy or None)
    if status == 404 and field == "model":
        return UnknownModelError(reason, remedy=remedy or None)
    return RequestError(field, reason, status=status, remedy=remedy or None)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return what ``Retry-After`` asks for, in seconds from now (RFC 9110, section 10.2.3); 0 where it says nothing."""
    value = (headers.get("retry-after") or "").strip()
    if value.isdigit():
        return float(value[:6])
    try:
        moment = parsedate_to_datetime(value)
        return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _plain(value: Any, place: str) -> Any:
    """Return a value as JSON has it: numpy as Python, NaN and NaT as null, moments as RFC 3339."""
    if getattr(getattr(value, "dtype", None), "kind", "") == "M":  # numpy's moments carry no zone and are UTC
        moment = value.astype("datetime64[us]").item()
        return None if moment is None else f"{moment.isoformat()}Z"
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part, f"{place}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, place) for part in value]
    if value is None or value != value:  # NaN, and pandas' NaT
        return None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise RequestError(place, "has no zone", remedy="Give an aware datetime, for example in UTC.")
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and math.isinf(value):
        raise RequestError(place, "is not finite", remedy="Send a number, or None where it is missing.")
    if isinstance(value, str | int | float):
        return value
    raise RequestError(place, f"a {type(value).__name__} has no place in JSON", remedy="Send plain values.")
