"""The world outside: flights that ask for a prediction when due to leave, and tell the truth when they land."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from numpy.typing import NDArray

from trellis.contract import Dataset, Field, ModelSpec
from trellis.errors import DataError

if TYPE_CHECKING:
    from trellis.adapters.feature_store import FeatureStore

HOUR = timedelta(hours=1)


@dataclass
class Tally:
    """What went over the wire."""

    predictions: int = 0
    labels: int = 0
    degraded: int = 0


class Traffic:
    """Replays real rows against the service, hour by hour of event time.

    Every hour the feature job brings the online store up to date, the flights of the hour ask for their prediction, and
    the flights that have landed meanwhile report whether they were late.

    Args:
        spec: The model's declaration.
        rows: Labelled rows with their times.
        store: The feature store whose online side is kept current.
        url: The service.
        key: An API key, if the service asks for one.
    """

    def __init__(self, spec: ModelSpec, rows: Dataset, store: FeatureStore, url: str, key: str | None = None) -> None:
        assert rows.time is not None
        assert rows.known is not None
        self._spec = spec
        self._rows = rows.take(np.argsort(rows.time, kind="stable"))
        self._store = store
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=url, timeout=30, headers=headers)
        self._landing: list[tuple[np.datetime64, str, int]] = []
        self.tally = Tally()

    def days(self, first: datetime, days: int) -> Iterator[datetime]:
        """Serve whole days; yields after each, with the moment it ended."""
        for day in range(days):
            start = first + timedelta(days=day)
            for hour in range(24):
                self.hour(start + hour * HOUR)
            yield start + timedelta(days=1)

    def hour(self, start: datetime) -> None:
        """Serve the flights that are due to leave within an hour, after the labels of those that have landed."""
        self._store.materialize(start)
        self._land(_moment(start))
        times = self._rows.time
        assert times is not None
        low, high = np.searchsorted(times, [_moment(start), _moment(start + HOUR)])
        if low == high:
            return
        request_id = f"flights-{start:%Y%m%dT%H}"
        rows = [self._request(i) for i in range(low, high)]
        answer = self._post("predict", {"id": request_id, "rows": rows})
        known = self._rows.known
        assert known is not None
        for i, prediction in zip(range(low, high), answer["predictions"], strict=True):
            heapq.heappush(self._landing, (known[i], prediction["id"], int(self._rows.target[i])))
            self.tally.degraded += "degraded" in prediction
        self.tally.predictions += len(rows)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _land(self, now: np.datetime64) -> None:
        landed = []
        while self._landing and self._landing[0][0] <= now:
            known, prediction, late = heapq.heappop(self._landing)
            landed.append({"id": prediction, "value": late, "observed_at": _text(known)})
        for start in range(0, len(landed), 500):
            self._post("labels", {"labels": landed[start : start + 500]})
        self.tally.labels += len(landed)

    def _request(self, row: int) -> dict[str, Any]:
        return {field.name: _json(self._rows.columns[field.name], row, field) for field in self._spec.request}

    def _post(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self._client.post(f"/v1/models/{self._spec.name}/{verb}", json=body)
        if response.status_code != 200:
            raise DataError(f"The service answered {response.status_code}: {response.text[:300]}", where=response.url)
        answer: dict[str, Any] = response.json()
        return answer


def _json(column: NDArray[Any], row: int, field: Field) -> Any:
    value = column[row]
    if field.kind == "timestamp":
        return _text(value)
    if field.kind in ("category", "text"):
        return str(value) or None if value is not None else None
    return value.item()


def _moment(when: datetime) -> np.datetime64:
    return np.datetime64(when.astimezone(UTC).replace(tzinfo=None), "us")


def _text(moment: np.datetime64) -> str:
    return f"{np.datetime_as_string(moment, unit='s')}Z"
