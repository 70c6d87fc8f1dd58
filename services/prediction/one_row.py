"""The features of a request of one row, without columns until the model needs them; most requests are such.

It decides what ``features.find`` decides, row by row and in numbers instead of arrays: which views are past their SLA
and what is done about it, what is missing and whether that may be. A test draws stores, ages and declarations at random
and holds the two against each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, timedelta
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from services.prediction.columns import to_json
from services.prediction.errors import StaleFeaturesError
from services.prediction.features import Found, refuse
from services.prediction.freshness import DONE, late_sentence
from services.prediction.metrics import Metrics
from trellis.contract import Field, ModelSpec
from trellis.freshness import Sla

logger = logging.getLogger(__name__)

_SECOND = 1_000_000
_MICROSECOND = timedelta(microseconds=1)
_RETRY_SECONDS = 30.0


class Stored(Protocol):
    """What the store has for a row; see ``trellis.adapters.row_reader.StoredRow``."""

    cells: dict[str, Any]
    times: dict[str, int | None]
    old: tuple[str, ...]


class RowReader(Protocol):
    """The verbs of ``trellis.adapters.row_reader.RowReader``."""

    needs: tuple[str, ...]
    slas: tuple[Sla, ...]
    dtypes: Mapping[str, np.dtype[Any]]
    is_for_loops: bool

    async def fetch(self, row: Mapping[str, Any]) -> Any:
        """Read a row on an event loop."""

    def read(self, row: Mapping[str, Any]) -> Any:
        """Read a row, and wait for it."""


@runtime_checkable
class RowFeatures(Protocol):
    """A feature store that can read row by row."""

    def row_reader(self, service: str) -> RowReader | None:
        """Return what reads a service's features; None where the store is none that can."""


class OneRow:
    """Finds the features of single rows of a model; see ``of``."""

    def __init__(self, spec: ModelSpec, reader: RowReader) -> None:
        self._spec = spec
        self.reader = reader
        self._forms = [(name, _form(spec.fields[name])) for name in reader.needs]
        names = [f.name for f in spec.features]
        self._needed = frozenset(f.name for f in spec.features if not f.nullable)
        kinds = {name: reader.dtypes[name] for name in names}
        self._floats = [(dt, [n for n in names if kinds[n] == dt]) for dt in (np.dtype("f4"), np.dtype("f8"))]
        self._floats = [(dtype, those) for dtype, those in self._floats if those]
        self._objects = [n for n in names if kinds[n].kind == "O"]
        self._names = names
        self.names = frozenset(names)
        self._by_kind = [n for n in names if n not in self._objects] + self._objects
        self._slas = []
        for sla in reader.slas:
            used = tuple(name for name in sla.features if name in spec.fields)
            if used:  # a view of which the model uses nothing cannot be late for it
                needs = bool(self._needed.intersection(used))
                self._slas.append((sla, sla.view, sla.age // _MICROSECOND, used, needs))

    @classmethod
    def of(cls, spec: ModelSpec, reader: RowReader | None) -> OneRow | None:
        """Return what finds a model's features, or None where a row needs what only columns can do."""
        if reader is None or any(f.name not in reader.dtypes for f in spec.features):
            return None
        asked = {f.name for f in spec.request} | set(spec.entity_keys)
        if any(name not in asked or spec.fields[name].kind == "tensor" for name in reader.needs):
            return None
        if any(reader.dtypes[f.name] not in (np.float32, np.float64, object) for f in spec.features):
            return None
        return cls(spec, reader)

    def asks(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a validated row that the reader needs, in its form."""
        return {name: form(row.get(name)) for name, form in self._forms}

    def found(self, row: Mapping[str, Any], stored: Stored, metrics: Metrics) -> Found:
        """Return what ``features.find`` would, for a row of which the caller sent no features.

        Raises:
            RequestError, StaleFeaturesError: As there.
        """
        spec, cells, times = self._spec, stored.cells, stored.times
        old: dict[str, None] = dict.fromkeys(stored.old)
        told, fallback = self._settled(row, stored, metrics) if self._slas else ({}, None)
        if told:
            for _, view, _, used, _ in self._slas:
                if told.get(view) == "imputed":
                    for name in used:
                        cells[name] = None if self.reader.dtypes[name].kind == "O" else np.nan
            old = {view: None for view in times if view in old or told.get(view) == "imputed"}
        columns: dict[str, NDArray[Any]] = {}
        values: dict[str, Any] = {}
        for dtype, names in self._floats:
            block = np.array([cells[name] for name in names], dtype)
            columns.update(zip(names, block[:, None], strict=True))
            values.update(zip(names, block.tolist(), strict=True))
        gaps = [name for name, value in values.items() if value != value]
        for name in self._objects:
            values[name] = value = cells[name]
            columns[name] = np.array((value,), object)
            if value is None or (isinstance(value, str) and not value):
                gaps.append(name)
        degraded: tuple[str, ...] = ()
        if gaps:
            if fallback is None:
                for name in self._by_kind:
                    if name in self._needed and name in gaps:
                        keys = {key: (row.get(key),) for key in spec.entity_keys}
                        refuse(spec, name, 0, keys, None)
            gone = [(view, "no_row") for view, at in times.items() if at is None]
            gone += [(view, "stale") for view in old]
            for view, reason in gone:
                metrics.lacked(spec.name, view, reason)
            degraded = tuple(dict.fromkeys(view for view, _ in gone))
        return Found(
            columns,
            {},
            _NOTHING,
            (degraded,),
            {0: told} if told else {},
            {} if fallback is None else {0: fallback},
            ({name: values[name] for name in self._names}, {view: _text(at) for view, at in times.items()}),
        )

    def _settled(self, row: Mapping[str, Any], stored: Stored, metrics: Metrics) -> tuple[dict[str, str], str | None]:
        """Follow the declared actions of late views, as ``freshness.settle`` does; return them and why to fall back."""
        spec = self._spec
        now: int | None = int(time.time()) * _SECOND
        if spec.time_field is not None:
            moment = row[spec.time_field]
            now = None if moment is None else _micros(moment)
        told: dict[str, str] = {}
        fallback = None
        if now is None:
            return told, fallback
        for sla, view, age, _, needs in self._slas:
            at = stored.times.get(view)
            if at is None or now - at <= age:
                continue
            action: str = sla.action
            if action == "serve" and view in stored.old:
                action = "impute"
            if action == "impute" and needs:
                action = "fall_back"
            if action == "reject" or (action == "fall_back" and spec.default is None):
                metrics.settled(spec.name, view, "rejected")
                raise StaleFeaturesError(late_sentence(sla, timedelta(seconds=(now - at) // _SECOND)), 0)
            if action == "fall_back":
                fallback = f"{view} is past its SLA"
            told[view] = DONE[action]
        for view, done in told.items():
            metrics.settled(spec.name, view, done)
        return told, fallback


_NOTHING: tuple[tuple[str, ...], ...] = ((),)
_EPOCH = np.datetime64(0, "us").item().replace(tzinfo=UTC)


def _micros(moment: Any) -> int:
    return int((moment - _EPOCH) // _MICROSECOND)


@lru_cache(4096)
def _text(at: int | None) -> str | None:
    """Return an event time as the log has it."""
    return None if at is None else str(to_json(np.datetime64(at, "us")))


def _form(field: Field) -> Callable[[Any], Any]:
    """Return what a validated value is as an element of its column (see ``columns.column``)."""
    if field.kind == "timestamp":
        return lambda v: None if v is None else v.astimezone(UTC).replace(tzinfo=None)
    if field.kind in ("category", "text"):
        return lambda v: "" if v is None else v
    if field.kind == "float":
        return lambda v: np.nan if v is None else float(v)
    return lambda v: np.nan if v is None else v


class OneRows:
    """What finds single rows, by model; made beside the answering.

    Args:
        store: The feature store; one that cannot read row by row leaves every request to ``features.find``.
    """

    def __init__(self, store: object) -> None:
        self._store = store
        self._made: dict[str, OneRow | None] = {}
        self._retry_at: dict[str, float] = {}

    def prepare(self, specs: Iterable[ModelSpec]) -> None:
        """Make what finds the rows of models that have nothing yet; the first time this may take seconds.

        What fails (definitions that were not applied before the service was started) is tried again after a while.
        """
        now = time.monotonic()
        for spec in specs:
            if spec.name in self._made or now < self._retry_at.get(spec.name, 0.0):
                continue
            if spec.feature_service is None or not isinstance(self._store, RowFeatures):
                self._made[spec.name] = None
                continue
            try:
                self._made[spec.name] = OneRow.of(spec, self._store.row_reader(spec.feature_service))
            except Exception as error:  # requests meet it again and are answered as far as that goes
                self._retry_at[spec.name] = now + _RETRY_SECONDS
                logger.warning("single rows of %s: %s: %s", spec.name, type(error).__name__, error)

    def read(self, spec: ModelSpec, rows: Sequence[Any], work: Callable[[Any], bytes], metrics: Metrics) -> Read | None:
        """Return how a request's features are read; None where ``features.find`` has to.

        Args:
            spec: The model.
            rows: The validated rows.
            work: Answers, given the features or why they could not be read.
            metrics: Counts late views and missing data.
        """
        if len(rows) != 1 or spec.feature_service is None:
            return None
        one = self._made.get(spec.name)
        if one is None or not one.names.isdisjoint(rows[0].model_fields_set):
            return None
        return Read(one, rows[0].__dict__, work, metrics)


class Read:
    """The read of one request's features, and what follows from it."""

    def __init__(self, one: OneRow, row: Mapping[str, Any], work: Callable[[Any], bytes], metrics: Metrics) -> None:
        self._one = one
        self._row = row
        self._work = work
        self._metrics = metrics
        self.is_for_loops = one.reader.is_for_loops

    async def fetch(self) -> Any:
        """Read on the event loop."""
        return await self._one.reader.fetch(self._one.asks(self._row))

    def finish(self, stored: Any) -> bytes:
        """Answer, given what was read or the exception that reading raised."""
        if isinstance(stored, Exception):
            return self._work(stored)
        return self._work(self._one.found(self._row, stored, self._metrics))

    def wait(self) -> bytes:
        """Read in a thread, and answer."""
        try:
            stored = self._one.reader.read(self._one.asks(self._row))
        except Exception as error:  # whatever the store's client raises, the answer decides what to do without it
            stored = error
        return self.finish(stored)
