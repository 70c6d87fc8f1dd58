"""Segments of JSON lines as a flat frame; what has been parsed once is kept in Parquet beside the segments.

A segment only ever grows, so its first bytes, once parsed, need not be parsed again. Every stretch of a segment that
was large enough to be worth it becomes one file ``.parsed/<segment>.<start>-<end>.parquet``, which carries the SHA-256
of the bytes that it stands for: where the bytes are others they are parsed again, so the cache can be deleted, damaged
or absent at any time and changes nothing but the time it takes. The JSON lines stay the only truth.

A stretch is kept only where Parquet gives back exactly what the JSON said; a column with mixed types, nested objects or
integers beyond 64 bits leaves its stretch uncached.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import secrets
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from trellis.errors import DataError

SUFFIX = ".jsonl"
CACHE = ".parsed"
_NESTED = ("request", "features", "feature_times", "outputs", "primary", "stale")
_TIMES = ("time", "received_at", "observed_at")
_WORTH = 250_000  # bytes of JSON; less is parsed faster than a file is opened
_FORM = b"1"  # of the cached files; another form is parsed again

Columns = dict[str, Any]


def read_frame(directory: Path, fixed: Sequence[str]) -> pd.DataFrame:
    """Read every segment of a directory.

    Nested parts become columns ``part.name``; moments become ``datetime64[ns, UTC]``.

    Args:
        directory: Where the segments are.
        fixed: Columns that are there even if no record has them.

    Returns:
        One row per record in the order of the segments; ``attrs`` has ``torn``, the count of cut-off last lines.

    Raises:
        DataError: A line other than a segment's last is damaged.
    """
    collecting = gc.isenabled()
    gc.disable()  # a million small objects come to stay; looking through them again and again takes a quarter longer
    try:
        torn = 0
        parts: list[pa.Table | _Plain] = []
        for path in sorted(directory.glob(f"*{SUFFIX}")):
            data = path.read_bytes()
            end = data.rfind(b"\n") + 1
            torn += end < len(data)
            parts += _segment(path, memoryview(data)[:end])
        frame = _together(parts, fixed)
        frame.attrs = {"torn": torn, "duplicates": 0}
        return frame
    finally:
        if collecting:
            gc.enable()


class _Plain:
    """Columns as lists, where Arrow would not give them back unchanged."""

    def __init__(self, columns: dict[str, list[Any]], rows: int) -> None:
        self.columns = columns
        self.rows = rows


def _segment(path: Path, data: memoryview) -> list[pa.Table | _Plain]:
    """Return a segment's parts: what is cached, then the rest, parsed (and cached where that is worth it)."""
    parts: list[pa.Table | _Plain] = []
    start = 0
    for first, last, file in _cached(path):
        if first != start or last > len(data):
            continue
        table = _load(file, data[first:last])
        if table is not None:
            parts.append(table)
            start = last
    rest = bytes(data[start:])
    if rest.strip():
        before = bytes(data[:start]).count(b"\n")
        plain = _flat(_records(path, rest, before))
        table = _table(plain)
        if table is not None and len(rest) >= _WORTH:
            _store(path, start, start + len(rest), rest, table)
        parts.append(plain if table is None else table)
    return parts


def _cached(path: Path) -> list[tuple[int, int, Path]]:
    found = []
    for file in (path.parent / CACHE).glob(f"{path.name}.*.parquet"):
        first, _, last = file.name.removeprefix(f"{path.name}.").removesuffix(".parquet").partition("-")
        if first.isdigit() and last.isdigit():
            found.append((int(first), int(last), file))
    return sorted(found)


def _load(file: Path, data: memoryview) -> pa.Table | None:
    try:
        table = pq.read_table(file, partitioning=None)
    except (OSError, pa.ArrowException):
        return None
    meta = table.schema.metadata or {}
    known = meta.get(b"form") == _FORM and meta.get(b"sha256") == hashlib.sha256(data).hexdigest().encode()
    return table if known else None


def _store(path: Path, first: int, last: int, data: bytes, table: pa.Table) -> None:
    """Keep a parsed stretch; whoever may not write here parses again next time."""
    digest = hashlib.sha256(data).hexdigest()
    table = table.replace_schema_metadata({"form": _FORM.decode(), "sha256": digest})
    folder = path.parent / CACHE
    part = folder / f"{secrets.token_hex(8)}.part"
    try:
        folder.mkdir(exist_ok=True)
        pq.write_table(table, part, compression="zstd")
        os.replace(part, folder / f"{path.name}.{first}-{last}.parquet")
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _records(path: Path, data: bytes, before: int) -> list[dict[str, Any]]:
    try:
        # One call for the whole stretch is several times faster than one per line.
        records: list[dict[str, Any]] = from_json(
            b"[" + data.rstrip(b"\n").replace(b"\n", b",") + b"]", cache_strings=True
        )
        return records
    except ValueError:
        for number, line in enumerate(data.splitlines(), start=before + 1):
            try:
                from_json(line)
            except ValueError as error:
                raise DataError(
                    f"Line {number} is damaged: {error}.",
                    where=path,
                    remedy="Restore the segment from a copy, or move it away to go on without it.",
                ) from error
        raise


def _flat(records: list[dict[str, Any]]) -> _Plain:
    """Flatten column by column, several times faster than record by record."""
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(chain.from_iterable(records)):
        if name in _NESTED:
            parts = [r.get(name) or {} for r in records]
            for inner in dict.fromkeys(chain.from_iterable(parts)):
                columns[f"{name}.{inner}"] = [part.get(inner) for part in parts]
        else:
            columns[name] = [r.get(name) for r in records]
    return _Plain(columns, len(records))


def _table(plain: _Plain) -> pa.Table | None:
    """Return columns as Arrow, or None where one of them would not come back as it went in."""
    columns = {}
    for name, values in plain.columns.items():
        try:
            if name in _TIMES:
                columns[name] = pa.array(_moments(values), from_pandas=True)
                continue
            column = pa.array(values, from_pandas=False)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return None
        kind = column.type
        inner, parts = (kind.value_type, [p for p in values if p]) if pa.types.is_list(kind) else (kind, [values])
        # Arrow makes 1 and True into 1.0 beside a 0.5; pandas tells them apart, and all segments have to agree first.
        if not all(_is_exactly(inner, part) for part in parts):
            return None
        columns[name] = column
    return pa.table(columns)


def _is_exactly(kind: pa.DataType, values: list[Any]) -> bool:
    """Tell whether a type gives every value back as the very one it was."""
    python = {pa.bool_(): bool, pa.int64(): int, pa.float64(): float, pa.string(): str, pa.null(): type(None)}
    return kind in python and set(map(type, values)) <= {python[kind], type(None)}


def _together(parts: list[pa.Table | _Plain], fixed: Sequence[str]) -> pd.DataFrame:
    names = [name for part in parts for name in (part.columns if isinstance(part, _Plain) else part.column_names)]
    names = list(dict.fromkeys(chain(fixed, names)))
    # A nested part's columns stand together, also where one of them appears only later.
    group = {name: name.partition(".")[0] if name.partition(".")[0] in _NESTED else name for name in names}
    first = {head: i for i, head in reversed(list(enumerate(group[name] for name in names)))}
    names.sort(key=lambda name: first[group[name]])
    return pd.DataFrame({name: _times(name, parts) if name in _TIMES else _column(name, parts) for name in names})


def _moments(values: Any) -> pd.Series:
    return pd.to_datetime(pd.Series(values, dtype=object), utc=True, format="ISO8601").dt.as_unit("ns")


def _times(name: str, parts: list[pa.Table | _Plain]) -> pd.Series:
    columns = [_moments([])]
    for part in parts:
        if isinstance(part, pa.Table) and name in part.column_names:
            columns.append(part[name].to_pandas())
        elif isinstance(part, pa.Table):
            columns.append(_moments([None] * part.num_rows))
        else:
            columns.append(_moments(part.columns.get(name) or [None] * part.rows))
    return pd.concat(columns, ignore_index=True)


def _column(name: str, parts: list[pa.Table | _Plain]) -> Any:
    """Return one column of all parts, as pandas would infer it from the values together."""
    chunks: list[pa.ChunkedArray] = []
    for part in parts:
        if isinstance(part, _Plain) or (name in part.column_names and pa.types.is_list(part[name].type)):
            break
        chunks.append(part[name] if name in part.column_names else pa.nulls(part.num_rows))
    else:
        kinds = {chunk.type for chunk in chunks} - {pa.null()}
        if len(kinds) == 1:
            [kind] = kinds
            arrays = [array for chunk in chunks for array in pa.chunked_array(chunk).cast(kind).chunks]
            return pa.chunked_array(arrays, kind).to_pandas().array
    values: list[Any] = []
    for part in parts:
        if isinstance(part, _Plain):
            values += part.columns.get(name) or [None] * part.rows
        else:
            values += part[name].to_pylist() if name in part.column_names else [None] * part.num_rows
    return values
