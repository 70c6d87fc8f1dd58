"""The core of a point-in-time join: keys and times become integers, merged in order. Knows no Feast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trellis.errors import DataError, MissingFeatureError

_MOST_KEYS = 2**31  # numbers of keys, before they are numbered anew
_LARGEST = 2**62  # of a key and a moment in one integer


class Asked:
    """What an entity frame asks of the views with certain keys: its distinct (key, time), in that order.

    Attributes:
        key: The distinct rows' keys as numbers, ``(m,)`` int64.
        time: Their times in microseconds, ``(m,)`` int64.
        position: Which of them each row of the frame is, ``(n,)``; -1 where its key or time is null.
    """

    def __init__(self, table: pa.Table, keys: Sequence[str], time_column: str) -> None:
        missing = [column for column in keys if column not in table.column_names]
        if missing:
            raise MissingFeatureError(
                f"The entity frame lacks the join keys {missing}.", remedy=f"It has {table.column_names}."
            )
        self._names = keys
        columns = [encoded(table[name]) for name in keys]
        self._values = [column.dictionary.unique() for column in columns]
        self._known: dict[int, NDArray[np.int64]] = {}
        key, valid = self.number(columns, table.num_rows, learn=True)
        time, timed = microseconds(table[time_column])
        rows = np.flatnonzero(valid & timed)
        key, time = key[rows], time[rows]
        (at,) = ordinals([key], [time])
        order = np.argsort(at)
        new = _differs(at[order])
        self.position = np.full(table.num_rows, -1, np.int64)
        self.position[rows[order]] = np.cumsum(new) - 1
        self.key, self.time = key[order][new], time[order][new]

    def number(
        self, columns: Sequence[pa.DictionaryArray], n: int, *, learn: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Number n keys, given column by column, and tell which of them are in the entity frame at all."""
        number, valid, size = np.zeros(n, np.int64), np.ones(n, np.bool_), 1
        for i, (column, values) in enumerate(zip(columns, self._values, strict=True)):
            codes = _codes(column, values, self._names[i])
            valid &= codes >= 0
            number = number * len(values) + codes
            size *= len(values)
            if size > _MOST_KEYS:  # number those that occur, or the product of many columns would not fit
                if learn:
                    self._known[i] = np.unique(number[valid])
                known = self._known[i]
                place = np.searchsorted(known, number)
                place[place == len(known)] = 0
                valid &= known[place] == number if len(known) else False
                number, size = place, len(known)
        return number, valid


def encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Return a column as codes and the values they stand for."""
    array = column.combine_chunks()
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def _codes(column: pa.DictionaryArray, values: pa.Array, name: str) -> NDArray[np.int64]:
    """Return each item's place among ``values``, -1 where it is not there or null."""
    mine = column.dictionary
    try:
        kinds = [pa.schema([(name, mine.type)]), pa.schema([(name, values.type)])]
        common = pa.unify_schemas(kinds, promote_options="permissive").field(0).type
        place = pc.index_in(mine.cast(common), values.cast(common), skip_nulls=True).take(column.indices)
    except (pa.ArrowTypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"The join key {name!r} is {values.type} in the entity frame and {mine.type} in a view's table.",
            remedy="Give the entity frame the table's type.",
        ) from error
    return np.asarray(place.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)


def microseconds(times: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return times as microseconds since 1970, and which of them are not null."""
    whole = times.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    return whole.fill_null(0).to_numpy(), whole.is_valid().to_numpy()


def creation_times(created: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return creation times as microseconds and which are known; a row that does not say comes before all others."""
    made, known = microseconds(created)
    return np.where(known, made, np.iinfo(np.int64).min), known


def ordinals(keys: Sequence[NDArray[np.int64]], times: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Turn pairs of key (0 or more) and time into integers of the same order: by key, then by time."""
    some = [t for t in times if len(t)]
    low, high = min((int(t.min()) for t in some), default=0), max((int(t.max()) for t in some), default=0)
    most = max((int(k.max()) for k in keys if len(k)), default=0) + 1
    if (high - low + 1) * most > _LARGEST:  # the distinct moments are fewer than the microseconds between them
        ranks = np.unique(np.concatenate(times), return_inverse=True)[1]
        times = np.split(ranks, np.cumsum([len(t) for t in times])[:-1])
        low, high = 0, int(ranks.max())
    return [key * (high - low + 1) + (time - low) for key, time in zip(keys, times, strict=True)]


def _differs(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which of sorted values differ from the one before."""
    return np.concatenate([np.ones(min(1, len(values)), np.bool_), values[1:] != values[:-1]])


def best_rows(
    key: NDArray[np.int64],
    time: NDArray[np.int64],
    made: NDArray[np.int64] | None,
    at: NDArray[np.int64],
    known_only: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the moments of change, sorted, and which row holds from each of them on.

    A later event is better, then a later creation, then a later place in the file. Where rows become available in
    another order than that of their events (``known_only``), what holds is the best one so far of the key.
    """
    order = np.argsort(at)
    last = np.roll(_differs(at[order]), -1)  # the first always differs, so this is True for the last of each moment
    if made is not None and known_only:
        rank = np.empty(len(at), np.int64)
        best_last = np.lexsort((made, time, key))
        rank[best_last] = np.arange(len(at))
        # Ranks grow from key to key, so the best of the key before never outlives it.
        return at[order][last], best_last[np.maximum.accumulate(rank[order])][last]
    if not last.all():  # only a table with two rows of one key and moment pays for sorting them out
        order = np.lexsort((at,) if made is None else (made, at))
    return at[order][last], order[last]
