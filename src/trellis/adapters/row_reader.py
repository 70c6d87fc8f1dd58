"""The features of one row, the way nearly every request asks: compiled once per service, decoded without arrays.

``FeatureStore.online`` works on columns, which suits many rows and costs a single one ten times what it is worth: a
column of one element for every feature, event time and check. Here a row stays Python's own numbers from Redis' bytes
on. Both ways give the same values, times and ages; a test compares them over every type and age.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from trellis.adapters.feast_encoding import decode_micros, decode_value, hash_field
from trellis.adapters.feature_plan import Derived, ServicePlan, View
from trellis.adapters.online_loop import LoopRedis
from trellis.adapters.online_redis import RedisReader, bulk, hmget
from trellis.freshness import Sla

# Packed commands and computed features that are kept; an entity is asked for again and again.
_KEPT = 4096
_TAG_FLOAT = b"\x35"
_FLOAT_BYTES = {5}
_MICROSECOND = timedelta(microseconds=1)
_NAN = float("nan")


class StoredRow(NamedTuple):
    """What the store has for a row.

    Attributes:
        cells: Feature to its value, in the service's order; NaN (numbers) or None where there is none.
        times: Batch view to the event time of its values, microseconds since 1970 in UTC; None without a row.
        old: Views whose values were left out as older than their ttl.
    """

    cells: dict[str, Any]
    times: dict[str, int | None]
    old: tuple[str, ...]


Decode = Callable[[Sequence[bytes | None]], list[Any]]


class _Part:
    """One view's cells within the answer to one command: its event time first, then its features."""

    def __init__(self, view: View, start: int) -> None:
        self.name = view.name
        self.features = view.features
        self.start = start
        self.end = start + 1 + len(view.features)
        self.life = view.ttl // _MICROSECOND if view.ttl else None
        self.blank = [_blank(dtype) for dtype in view.dtypes.values()]
        self.decode = _decoder(list(view.dtypes.values()))


class _Group:
    """The views that share their join keys, and so one hash in Redis and one command."""

    def __init__(self, views: Sequence[View], project: bytes) -> None:
        self.keys = views[0].keys
        self.parts: list[_Part] = []
        fields: list[bytes] = []
        for view in views:
            self.parts.append(_Part(view, len(fields)))
            fields += [f"_ts:{view.name}".encode(), *(hash_field(view.name, feature) for feature in view.features)]
        packed = [(len(fields), b"".join(bulk(field) for field in fields))]
        encode = views[0].encoder

        @lru_cache(_KEPT)
        def command(values: tuple[Any, ...]) -> bytes:
            return hmget(encode(values) + project, packed)

        self.command = command


class RowReader:
    """Reads one row's features of one service; may be shared by threads and used on an event loop.

    Args:
        plan: The service.
        redis: For threads.
        loop_redis: For an event loop; None where the connection needs what only ``redis`` can do.
        project: Feast's project.
    """

    def __init__(self, plan: ServicePlan, redis: RedisReader, loop_redis: LoopRedis | None, project: str) -> None:
        self._redis = redis
        self._loop_redis = loop_redis
        together: dict[tuple[str, ...], list[View]] = {}
        for view in plan.views:
            together.setdefault(view.keys, []).append(view)
        self._groups = [_Group(views, project.encode()) for views in together.values()]
        self._derived = [_derived(one) for one in plan.derived]
        self._order = dict.fromkeys(plan.features, _NAN)
        self._views = dict.fromkeys(view.name for view in plan.views)
        self._time_field = plan.time_field
        self.slas: tuple[Sla, ...] = plan.slas
        self.dtypes: dict[str, np.dtype[Any]] = {}
        parts: list[View | Derived] = [*plan.views, *plan.derived]
        for part in parts:
            self.dtypes |= part.dtypes
        self.needs = (*plan.keys, *plan.request, *((plan.time_field,) if plan.time_field else ()))

    @property
    def is_for_loops(self) -> bool:
        """Whether ``fetch`` can be used."""
        return self._loop_redis is not None

    async def fetch(self, row: Mapping[str, Any]) -> StoredRow:
        """Read a row without holding up the event loop; requests that ask together share the connection.

        Args:
            row: The fields that ``needs`` names: text as ``str``, numbers, moments as naive ``datetime`` in UTC.

        Raises:
            redis.exceptions.RedisError: Redis does not answer, or did not a moment ago.
        """
        assert self._loop_redis is not None
        commands = [group.command(tuple([row[key] for key in group.keys])) for group in self._groups]
        return self._stored(await self._loop_redis.ask(b"".join(commands), len(commands)), row)

    def read(self, row: Mapping[str, Any]) -> StoredRow:
        """Read a row and wait for it; see ``fetch``."""
        commands = [group.command(tuple([row[key] for key in group.keys])) for group in self._groups]
        return self._stored(self._redis.exchange(b"".join(commands), len(commands)), row)

    def _stored(self, answers: Sequence[Sequence[bytes | None]], row: Mapping[str, Any]) -> StoredRow:
        moment = row.get(self._time_field) if self._time_field else None
        now = micros(moment) if moment is not None else None
        cells, times, old = self._order.copy(), self._views.copy(), []
        for group, answer in zip(self._groups, answers, strict=True):
            for part in group.parts:
                at = times[part.name] = decode_micros(answer[part.start])
                values = part.blank
                if at is not None:
                    if now is None or part.life is None or at + part.life >= now:
                        values = part.decode(answer[part.start + 1 : part.end])
                    else:
                        old.append(part.name)
                cells.update(zip(part.features, values, strict=True))
        for compute in self._derived:
            cells.update(compute(row))
        if len(old) > 1:
            old = [name for name in times if name in old]
        return StoredRow(cells, times, tuple(old))


def micros(moment: Any) -> int:
    """Return a naive moment in UTC as microseconds since 1970."""
    return int((moment - _EPOCH) // _MICROSECOND)


_EPOCH = np.datetime64(0, "us").item()


def _blank(dtype: np.dtype[Any]) -> Any:
    return None if dtype.kind == "O" else _NAN


def _decoder(dtypes: Sequence[np.dtype[Any]]) -> Decode:
    """Return what decodes a view's cells; where all are 32-bit floats and none is missing, they are read in one go."""
    kinds = [dtype.kind for dtype in dtypes]

    def one_by_one(cells: Sequence[bytes | None]) -> list[Any]:
        found = [decode_value(cell) for cell in cells]
        return [
            value if kind == "O" else _NAN if value is None else float(value)
            for value, kind in zip(found, kinds, strict=True)
        ]

    if any(dtype != np.float32 for dtype in dtypes):
        return one_by_one
    count = len(dtypes)
    tags, unpack = _TAG_FLOAT * count, struct.Struct("<" + "xf" * count).unpack

    def together(cells: Sequence[bytes | None]) -> list[Any]:
        if None not in cells and set(map(len, cells)) == _FLOAT_BYTES:  # type: ignore[arg-type]  # just checked
            data: bytes = b"".join(cells)  # type: ignore[arg-type]
            if data[::5] == tags:
                return list(unpack(data))
        return one_by_one(cells)

    return together


def _derived(one: Derived) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what computes an on-demand view for a row; one that is declared ``pure`` remembers what it computed."""

    def compute(*values: Any) -> dict[str, Any]:
        made = one.view.transform_dict({name: [value] for name, value in zip(one.reads, values, strict=True)})
        columns = {name: np.asarray(made[name], dtype=one.dtypes[name]) for name in one.features}
        return {name: column.tolist()[0] for name, column in columns.items()}

    if one.view.tags.get("pure") == "true":
        compute = lru_cache(_KEPT)(compute)
    return lambda row: compute(*[row[name] for name in one.reads])
