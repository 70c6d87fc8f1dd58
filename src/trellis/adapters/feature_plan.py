"""What a feature service is made of, resolved once; and how the answers of an online store become columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.adapters.feast_encoding import KeyEncoder
from trellis.contract import Batch
from trellis.freshness import sla_of


@dataclass(frozen=True)
class Rows:
    """The entities of a request, each once, and which one each row is."""

    unique: dict[tuple[Any, ...], int]
    take: NDArray[np.intp]


# Per entity the event time and the values, in the order of the view's features; no time where there is no row.
Answers = list[tuple[np.datetime64 | None, list[Any]]]


class View:
    """A batch view, as much of it as a read needs."""

    def __init__(self, view: Any, projection: Any) -> None:
        self.view = view
        self.name: str = view.name
        self.keys = join_keys(view)
        self.features = tuple(f.name for f in projection.features)
        self.dtypes = {f.name: _dtype(f) for f in projection.features}
        self.ttl: timedelta | None = view.ttl or None
        self._types = [e.dtype.to_value_type() for e in view.entity_columns]

    @cached_property
    def encoder(self) -> KeyEncoder:
        """What turns key values into Feast's bytes."""
        return KeyEncoder(self.keys, [kind.name for kind in self._types])

    def entity_key(self, values: tuple[Any, ...]) -> Any:
        """Turn key values into Feast's key."""
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value
        from feast.value_type import ValueType

        def proto(value: Any, kind: Any) -> Any:
            if kind == ValueType.STRING:
                return Value(string_val="" if value is None else str(value))
            return Value(int32_val=int(value)) if kind == ValueType.INT32 else Value(int64_val=int(value))

        protos = [proto(value, kind) for value, kind in zip(values, self._types, strict=True)]
        return EntityKey(join_keys=list(self.keys), entity_values=protos)


class Derived:
    """An on-demand view, as much of it as a read needs."""

    def __init__(self, view: Any, projection: Any) -> None:
        self.view = view
        self.reads = tuple(view.get_request_data_schema())
        self.features = tuple(f.name for f in projection.features)
        self.dtypes = {f.name: _dtype(f) for f in projection.features}


class ServicePlan:
    """What a feature service is made of, resolved once."""

    def __init__(self, store: Any, service: Any) -> None:
        batch = {v.name: v for v in store.list_feature_views()}
        derived = {v.name: v for v in store.list_on_demand_feature_views()}
        used = service.feature_view_projections
        self.views = [View(batch[p.name], p) for p in used if p.name in batch]
        self.derived = [Derived(derived[p.name], p) for p in used if p.name in derived]
        parts: list[View | Derived] = [*self.views, *self.derived]
        self.features = tuple(name for part in parts for name in part.features)
        self.keys = tuple(dict.fromkeys(key for view in self.views for key in view.keys))
        self.request = tuple(dict.fromkeys(name for part in self.derived for name in part.reads))
        promised = [sla_of(v.name, v.features, v.view.tags) for v in self.views]
        self.slas = tuple(sla for sla in promised if sla is not None)
        self.time_field: str | None = service.tags.get("time_field")
        self.named = {view.name: view for view in self.views}
        self._lives = {view.name: np.timedelta64(view.ttl, "us") for view in self.views if view.ttl}
        forms = [view_form(v.view) for v in self.views]
        forms += [{"name": d.view.name, "code": d.view.feature_transformation.udf_string} for d in self.derived]
        self.digest = digest_of({"service": service.name, "features": self.features, "views": forms})

    def too_old(self, times: Batch, now: NDArray[Any] | None) -> dict[str, NDArray[np.bool_]]:
        """Tell which event times lie further back than their view's ttl; never where there is no time.

        Returns:
            The views with at least one such row, each with n booleans.
        """
        if now is None or not self._lives:
            return {}
        old = np.stack([times[name] + life for name, life in self._lives.items()]) < now
        return {name: rows for name, rows in zip(self._lives, old, strict=True) if rows.any()} if old.any() else {}


def rows_of(keys: Sequence[str], given: Mapping[str, NDArray[Any]], n: int) -> Rows:
    """Return the entities that n rows name by their keys."""
    rows = list(zip(*(given[key].tolist() for key in keys), strict=True)) if keys else [()] * n
    unique = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    return Rows(unique, np.fromiter((unique[row] for row in rows), dtype=np.intp, count=n))


def columns_of(view: View, rows: Rows, answers: Answers) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Spread the answers over the rows, as columns; and the event time of each row."""
    when = np.array([np.datetime64("NaT") if moment is None else moment for moment, _ in answers], "datetime64[us]")
    blank = [None] * len(view.dtypes)  # becomes NaN in a column of numbers
    cells = zip(*(values or blank for _, values in answers), strict=True)
    columns = {name: np.array(column, dtype) for (name, dtype), column in zip(view.dtypes.items(), cells, strict=True)}
    if len(rows.take) == 1:
        return columns, when
    return {name: column[rows.take] for name, column in columns.items()}, when[rows.take]


def join_keys(view: Any) -> tuple[str, ...]:
    """Return the names of a view's keys."""
    return tuple(e.name for e in view.entity_columns)


def view_form(view: Any) -> dict[str, Any]:
    """What makes a view the view it is."""
    return {
        "name": view.name,
        "keys": join_keys(view),
        "features": {f.name: str(f.dtype) for f in view.features},
        "ttl": view.ttl.total_seconds() if view.ttl else None,
        "time": view.batch_source.timestamp_field,
        "created": view.batch_source.created_timestamp_column,
        "mapping": dict(view.batch_source.field_mapping or {}),
    }


def digest_of(form: Any) -> str:
    """Return what a definition is known by."""
    return "sha256:" + hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()


def _dtype(field: Any) -> np.dtype[Any]:
    """Numbers are floats, so that missing is NaN; anything else is an object."""
    kind = str(field.dtype)
    return np.dtype(
        {"Float32": "float32", "Float64": "float64", "Int32": "float64", "Int64": "float64"}.get(kind, object)
    )


def blank(dtype: np.dtype[Any]) -> Any:
    """Return what stands for a missing value."""
    return None if dtype.kind == "O" else np.nan


def python_value(value: Any) -> Any:
    """Return what one of Feast's values holds; None where it holds nothing."""
    kind = value.WhichOneof("val") if value is not None else None
    if kind is None or kind in ("float_val", "double_val", "int32_val", "int64_val", "bool_val", "string_val"):
        return getattr(value, kind) if kind else None
    from feast.type_map import feast_value_type_to_python_type

    return feast_value_type_to_python_type(value)
