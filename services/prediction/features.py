"""Features at the moment of the request: from the online store by entity key, unless the caller sends them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.prediction.columns import batch, column, is_missing
from services.prediction.errors import UnavailableError
from services.prediction.freshness import NOTHING, settle
from services.prediction.metrics import Metrics
from trellis.contract import Batch, Field, ModelSpec
from trellis.errors import RequestError
from trellis.freshness import Sla

logger = logging.getLogger(__name__)

STORE = "feature_store"
_SECONDS_BETWEEN_WARNINGS = 1.0


class _Rarely:
    """Says once in a while that it is time, however often it is asked."""

    def __init__(self) -> None:
        self._next = 0.0

    def is_now(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _SECONDS_BETWEEN_WARNINGS
        return True


_rarely = _Rarely()


class OnlineFeatures(Protocol):
    """The verbs of the feature store that serving needs."""

    def online(self, service: str, keys: Batch, request: Batch) -> tuple[Batch, Batch]:
        """Return features by name, and per view the event time (NaT where it has no row for the keys)."""

    def stale(self, service: str, times: Batch, request: Batch) -> Batch:
        """Return the views with rows (bool) whose values were left out as too old."""

    def slas(self, service: str) -> Sequence[Sla]:
        """Return what the service's views promise about the age of their values."""

    def derived(self, service: str, request: Batch) -> Batch:
        """Return the features that are computed from the request alone; needs no online store."""


@dataclass(frozen=True)
class Found:
    """The features of some rows.

    Attributes:
        columns: Every feature of the spec.
        times: Event time of each view's row, ``datetime64[us]``.
        overrides: Per row, the features that the caller sent.
        degraded: Per row, the views without data, or with data too old to use, from which a feature went in as
            missing.
        stale: Row to view to what was done about its being past its freshness SLA.
        fallback: Row to the reason why it is answered by the declared default instead of being scored.
        single: Of a single row found by ``one_row``, its features and the views' event times as the log has them.
    """

    columns: dict[str, NDArray[Any]]
    times: dict[str, NDArray[np.datetime64]]
    overrides: tuple[tuple[str, ...], ...]
    degraded: tuple[tuple[str, ...], ...]
    stale: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    fallback: Mapping[int, str] = field(default_factory=dict)
    single: tuple[Mapping[str, Any], Mapping[str, str | None]] | None = None


def open_store(spec: ModelSpec, store: OnlineFeatures | None, row: Mapping[str, Any]) -> None:
    """Read one row before the first request has to: a store's first read imports and connects, which takes seconds."""
    if spec.feature_service is None or store is None:
        return
    names = [f.name for f in spec.request]
    try:
        store.online(
            spec.feature_service, batch(spec.fields, spec.entity_keys, [row]), batch(spec.fields, names, [row])
        )
    except Exception as error:  # requests meet it again and are answered as far as that goes
        logger.warning("features of %s: %s: %s", spec.name, type(error).__name__, error)


def find(
    spec: ModelSpec,
    store: OnlineFeatures | None,
    rows: Sequence[Mapping[str, Any]],
    sent: Sequence[frozenset[str] | set[str]],
    metrics: Metrics,
    failed: Exception | None = None,
) -> Found:
    """Find the features of validated rows.

    Args:
        spec: The model's declaration.
        store: The online store.
        rows: Field values.
        sent: The fields that the caller sent, per row.
        metrics: Counts rows answered without data.
        failed: Why the store could not be read, where that was tried already.

    Raises:
        RequestError: An entity is unknown and the model needs its features (422).
        StaleFeaturesError: A view is past its freshness SLA, and that is to be refused.
        UnavailableError: The store does not answer, the model needs its features and declares no default.
    """
    count = len(rows)
    nothing = ((),) * count
    if spec.feature_service is None:
        return Found({}, {}, nothing, nothing)
    declared = {f.name: f for f in spec.features}
    overrides = tuple(tuple(name for name in declared if name in names) for names in sent)
    if all(len(names) == len(declared) for names in overrides):
        return Found({name: _own(f, rows) for name, f in declared.items()}, {}, overrides, nothing)
    fields = spec.fields
    keys = batch(fields, spec.entity_keys, rows)
    request = batch(fields, [f.name for f in spec.request], rows)
    down: Exception | None = None
    stored: Batch = {}
    times: Batch = {}
    stale: Batch = {}
    settled = NOTHING
    try:
        if failed is not None:
            raise failed
        if store is None:
            raise RuntimeError("the service was started without a feature store")
        stored, times = store.online(spec.feature_service, keys, request)
        stale = store.stale(spec.feature_service, times, request)
        slas = store.slas(spec.feature_service)
    except Exception as error:  # whatever the store's client raises, the answer decides what to do without it
        metrics.store_failures.labels("features").inc()
        level = logging.WARNING if _rarely.is_now() else logging.DEBUG
        logger.log(level, "features of %s: %s: %s", spec.name, type(error).__name__, error)
        down, stored, times, slas = error, _derived(spec, store, request), {}, ()
    if slas:
        settled = settle(spec, slas, times, stale, _moments(spec, request, count), overrides, metrics)
        if settled is not NOTHING:
            none = np.zeros(count, np.bool_)
            stale = {view: stale.get(view, none) | settled.rows(view, "imputed", count) for view in times}
    fallback = dict(settled.fallback)
    mine = {
        name: np.array([name in names for names in overrides], np.bool_) for name in set().union(*map(set, overrides))
    }
    columns: dict[str, NDArray[Any]] = {}
    for name, f in declared.items():
        # Where the caller sent nothing, the store's value; the column keeps the declared kind.
        values = stored.get(name)
        if values is not None and name in settled.imputed:
            values = np.where(settled.imputed[name], None if values.dtype.kind == "O" else np.nan, values)
        if values is None:
            values = _own(f, rows)
        elif name in mine:
            values = np.where(mine[name], _own(f, rows), values)
        columns[name] = values
    lacking = np.zeros(count, np.bool_)
    for name in _with_gaps(columns):
        missing = is_missing(columns[name])
        if name in mine:
            missing &= ~mine[name]
        if not declared[name].nullable:
            for row in np.flatnonzero(missing).tolist():
                if row in fallback:
                    continue
                if down is None or spec.default is None:
                    refuse(spec, name, row, keys, down)
                fallback[row] = "the feature store does not answer"
        lacking |= missing
    degraded = _degraded(spec, lacking, times, stale, down, metrics)
    return Found(columns, dict(times), overrides, degraded, settled.told, fallback)


def _own(f: Field, rows: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
    return column(f, [row.get(f.name) for row in rows])


def _with_gaps(columns: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return the columns that may lack a value: of numbers, which most are, none if none of them all is NaN."""
    numbers = [name for name, values in columns.items() if values.dtype.kind == "f"]
    others = [name for name, values in columns.items() if values.dtype.kind not in "fiub"]
    if numbers and not np.isnan(np.concatenate([columns[name].reshape(-1) for name in numbers])).any():
        numbers = []
    return [*numbers, *others]


def _moments(spec: ModelSpec, request: Batch, count: int) -> NDArray[np.datetime64]:
    """Return the rows' own time: the declared field, or else now."""
    if spec.time_field is None:
        return np.full(count, np.datetime64("now"), "datetime64[us]")
    return request[spec.time_field]


def _derived(spec: ModelSpec, store: OnlineFeatures | None, request: Batch) -> Batch:
    """Return what can be known without the online store."""
    assert spec.feature_service is not None
    try:
        return store.derived(spec.feature_service, request) if store is not None else {}
    except Exception as error:  # the definitions may be away as well; then nothing is known
        logger.warning("on-demand features of %s: %s: %s", spec.name, type(error).__name__, error)
        return {}


def _degraded(
    spec: ModelSpec,
    lacking: NDArray[np.bool_],
    times: Batch,
    stale: Batch,
    down: Exception | None,
    metrics: Metrics,
) -> tuple[tuple[str, ...], ...]:
    if not lacking.any():
        return ((),) * len(lacking)
    # View and reason, and the rows it holds for.
    gone = {(STORE, "store_down"): lacking}
    if down is None:
        gone = {(view, "no_row"): np.isnat(moment) & lacking for view, moment in times.items()}
        gone |= {(view, "stale"): old & lacking for view, old in stale.items()}
    for (view, reason), rows in gone.items():
        if rows.any():
            metrics.lacked(spec.name, view, reason, int(rows.sum()))
    return tuple(tuple(dict.fromkeys(view for (view, _), rows in gone.items() if rows[i])) for i in range(len(lacking)))


def refuse(spec: ModelSpec, feature: str, row: int, keys: Mapping[str, Sequence[Any]], down: Exception | None) -> None:
    """Refuse a request for a feature that its model needs and nobody has.

    Raises:
        RequestError: The store has none for the keys.
        UnavailableError: It did not answer.
    """
    if down is not None:
        raise UnavailableError(
            f"The feature store does not answer, and {spec.name} cannot do without {feature!r}.",
            remedy="Try again, or send the features with the row.",
        ) from down
    entity = ", ".join(f"{name}={keys[name][row]!s:.60}" for name in spec.entity_keys)
    place = f"rows.{row}.{spec.entity_keys[0]}" if spec.entity_keys else f"rows.{row}"
    raise RequestError(
        place,
        f"there are no features for {entity}: {feature!r} is missing",
        remedy=f"Check the keys, or send {feature!r} with the row.",
    )
