"""The Parquet tables behind Feast's views: read whole or in a range of time, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

from trellis.adapters.asof import microseconds
from trellis.errors import DataError, MissingFeatureError

_UTC = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read(
    config: RepoConfig,
    source: DataSource,
    view: str,
    keys: Sequence[str],
    wanted: Sequence[str],
    moments: Sequence[str],
) -> pa.Table:
    """Read the columns of a view's table under their names in the view."""
    path = _existing(source, config, view)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    renamed: Mapping[str, str] = source.field_mapping or {}
    have = {renamed.get(field.name, field.name): field for field in pq.read_schema(files[0])} if files else {}
    columns = list(dict.fromkeys([*keys, *wanted, *moments]))
    missing = [column for column in columns if column not in have]
    if missing:
        raise MissingFeatureError(
            f"The table of the view {view!r} lacks {missing}.",
            where=path,
            remedy="Build the features again, or mend the view's definition.",
        )
    # Keys that are text come as numbers into a list of the distinct ones, as the file has them.
    coded = [have[k].name for k in keys if k not in wanted and pa.types.is_string(have[k].type)]
    table = pq.read_table(files, columns=[have[c].name for c in columns], read_dictionary=coded, partitioning=None)
    return table.rename_columns([renamed.get(c, c) for c in table.column_names]).select(columns)


def _existing(source: DataSource, config: RepoConfig, view: str | None = None) -> Path:
    path = path_of(source, config.repo_path)
    if not path.exists():
        raise MissingFeatureError(
            f"The table of the view {view or source.name!r} is missing.",
            where=path,
            remedy="Build the features first.",
        )
    return path


def pull(
    config: RepoConfig,
    source: DataSource,
    columns: Sequence[str],
    timestamp_field: str,
    created: str | None,
    start: datetime | None,
    end: datetime | None,
) -> pa.Table:
    """Read the rows with an event timestamp in [start, end], from only the row groups that can have one."""
    path = _existing(source, config)
    moments = [timestamp_field, *([created] if created else ())]
    columns = list(dict.fromkeys((*columns, *moments)))
    renamed: Mapping[str, str] = source.field_mapping or {}
    low, high = (None if at is None else _moment(at) for at in (start, end))
    parts = []
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        with pq.ParquetFile(file) as opened:
            raw = {renamed.get(name, name): name for name in opened.schema_arrow.names}
            missing = [column for column in columns if column not in raw]
            if missing:
                raise MissingFeatureError(
                    f"A table lacks {missing}.",
                    where=path,
                    remedy="Build the features again, or mend the view's definition.",
                )
            groups = [
                i
                for i in range(opened.num_row_groups)
                if _overlaps(opened.metadata.row_group(i), raw[timestamp_field], low, high)
            ]
            part = opened.read_row_groups(groups, columns=[raw[c] for c in columns])
        part = part.rename_columns([renamed.get(c, c) for c in part.column_names]).select(columns)
        time, keep = microseconds(part[timestamp_field])
        if low is not None:
            keep = keep & (time >= low)
        if high is not None:
            keep = keep & (time <= high)
        parts.append(part.filter(pa.array(keep)))
    if not parts:
        raise MissingFeatureError("A table has no files.", where=path, remedy="Build the features first.")
    table = pa.concat_tables(parts)
    for name in moments:
        table = table.set_column(table.column_names.index(name), name, table[name].cast(_UTC, safe=False))
    return table


def _overlaps(group: pq.RowGroupMetaData, column: str, low: int | None, high: int | None) -> bool:
    """Tell whether a row group may have a time in [low, high]; only whole columns of it are told apart by name."""
    names = [group.column(i).path_in_schema for i in range(group.num_columns)]
    stats = group.column(names.index(column)).statistics if column in names else None
    if stats is None or not stats.has_min_max or not isinstance(stats.min, datetime):
        return True
    return (low is None or _moment(stats.max, UTC) >= low) and (high is None or _moment(stats.min, UTC) <= high)


def path_of(source: DataSource | None, repo_path: Path | None) -> Path:
    """Return where a source's table is.

    Raises:
        DataError: It is no file.
    """
    if not isinstance(source, FileSource):
        raise DataError(f"Cannot read a {type(source).__name__}.", remedy="Use a FileSource over Parquet.")
    path = Path(source.path.removeprefix("file://"))
    return path if path.is_absolute() or repo_path is None else Path(repo_path) / path


def write(table: pa.Table, path: Path) -> None:
    """Write a table; readers see the old file or the new one."""
    part = path.with_name(f".{path.name}.part")
    pq.write_table(table, part, compression="zstd")
    os.replace(part, path)


def _moment(at: datetime, zone: tzinfo | None = None) -> int:
    """Return microseconds since 1970. Without a zone it is local time unless one is given, as in Feast's stores."""
    at = at.replace(tzinfo=zone) if zone and at.tzinfo is None else at
    return (at.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
