# ruff: noqa: S608 (identifiers are quoted by ``_name``, paths by ``_text``)
"""An offline store for Feast: point-in-time joins over Parquet by DuckDB's ``ASOF LEFT JOIN``.

Feast's own DuckDB store joins every entity row with every older feature row of its key and then keeps the newest, which
takes minutes and gigabytes where few keys have many rows. ``ASOF`` finds the newest directly, by one sort and merge per
view. Configured by class path::

    offline_store:
      type: trellis.adapters.feast_asof.AsofOfflineStore

What an entity row gets from a view: of the rows of its key with ``event_timestamp`` <= its own, the one with the latest
event timestamp, among those the latest created timestamp, among those the last in the file; null if that one is older
than the view's ttl. This is what Feast's DuckDB store gives wherever that one is defined; here rows keep their order.
Timestamps are compared in microseconds; those without a zone are read as UTC. Imported by Feast only: it imports Feast.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.types import from_feast_to_pyarrow_type

from trellis.errors import DataError, MissingFeatureError

_ROW, _TIME, _CREATED = "__row", "__time", "__created"


class AsofOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Options in ``feature_store.yaml``.

    Attributes:
        type: Class path of the store.
        memory_limit: What DuckDB may hold before it spills to disk.
        threads: Threads of DuckDB; 0 takes every core.
    """

    type: str = "trellis.adapters.feast_asof.AsofOfflineStore"
    memory_limit: str = "1GB"
    threads: int = 0


class AsofRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A query that runs when its result is asked for."""

    def __init__(
        self,
        run: Callable[[], pa.Table],
        *,
        metadata: RetrievalMetadata | None = None,
        full_feature_names: bool = False,
        repo_path: Path | None = None,
    ) -> None:
        self._run = run
        self._metadata = metadata
        self._full_feature_names = full_feature_names
        self._repo_path = repo_path

    @property
    def full_feature_names(self) -> bool:
        """Whether features are called ``view__feature``."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Always empty: the query has already applied them, each to the columns it reads."""
        return []

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """The request, for Feast's lineage."""
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 (Feast's signature)
        return self._run()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:  # noqa: ARG002
        return pd.DataFrame(self._run().to_pandas())

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result to a Parquet file, whole or not at all."""
        if not isinstance(storage, SavedDatasetFileStorage):
            raise DataError(f"Cannot save to {type(storage).__name__}.", remedy="Use SavedDatasetFileStorage.")
        path = _path(storage.to_data_source(), self._repo_path)
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        _write(self.to_arrow(timeout=timeout), path)


class AsofOfflineStore(OfflineStore):  # type: ignore[misc]
    """Feast's offline store interface over Parquet files."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Join each view to the entity frame as of each row's time; rows keep their order and number.

        Raises:
            DataError: The entity frame is not a DataFrame, or has a column named like a feature.
            MissingFeatureError: A table, a feature or a join key is missing.
        """
        if not isinstance(entity_df, pd.DataFrame):
            raise DataError("The entity frame has to be a pandas DataFrame.", remedy="Run the query yourself.")
        time_column = infer_event_timestamp_from_entity_df(dict(zip(entity_df.columns, entity_df.dtypes, strict=True)))
        times = _utc(entity_df[time_column])
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)

        def run() -> pa.Table:
            table = pa.Table.from_pandas(entity_df.assign(**{time_column: times}), preserve_index=False)
            table = table.replace_schema_metadata(None)
            with _connect(config) as db:
                _register_keys(db, table, time_column, feature_views)
                for view in feature_views:
                    table = _append(
                        table, _join(db, config, view, feature_refs, full_feature_names, filter_by_created_timestamp)
                    )
            for view in on_demand:
                table = _append(table, _derive(table, view, feature_refs, full_feature_names))
            return table

        metadata = RetrievalMetadata(
            features=feature_refs,
            keys=[c for c in entity_df.columns if c != time_column],
            min_event_timestamp=None if times.empty else times.min().to_pydatetime(),
            max_event_timestamp=None if times.empty else times.max().to_pydatetime(),
        )
        return AsofRetrievalJob(
            run, metadata=metadata, full_feature_names=full_feature_names, repo_path=config.repo_path
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return the newest row of every key with an event timestamp in [start, end]: what materialisation writes."""
        keys = ", ".join(_name(k) for k in join_key_columns)
        newest = f"{_name(timestamp_field)} DESC"
        if created_timestamp_column:
            newest += f", {_name(created_timestamp_column)} DESC NULLS LAST"
        partition = f"PARTITION BY {keys} " if keys else ""
        latest = f"QUALIFY row_number() OVER ({partition}ORDER BY {newest}, file_row_number DESC) = 1"
        columns = [*join_key_columns, *feature_name_columns, timestamp_field]
        return _pull(
            config, data_source, columns, timestamp_field, created_timestamp_column, start_date, end_date, latest
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return every row with an event timestamp in [start, end]; an open end is None."""
        columns = [*join_key_columns, *feature_name_columns, timestamp_field]
        return _pull(config, data_source, columns, timestamp_field, created_timestamp_column, start_date, end_date, "")

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to a view's file; readers see the old file or the new one.

        Raises:
            DataError: The columns are not the file's.
        """
        path = _path(feature_view.batch_source, config.repo_path)
        old = pq.read_table(path) if path.exists() else table.slice(0, 0)
        if sorted(old.column_names) != sorted(table.column_names):
            raise DataError(
                f"The rows for {feature_view.name!r} have the columns {table.column_names}.",
                where=path,
                remedy=f"Give the file's: {old.column_names}.",
            )
        _write(pa.concat_tables([old, table.select(old.column_names).cast(old.schema)]), path)
        if progress is not None:
            progress(table.num_rows)


@cache
def _database(memory_limit: str, threads: int) -> duckdb.DuckDBPyConnection:
    """Return this process's database for these options; every query has its own cursor on it."""
    db = duckdb.connect()
    db.execute(f"SET memory_limit = {_text(memory_limit)}")
    if threads:
        db.execute(f"SET threads = {threads:d}")
    # DuckDB cannot see how many rows an Arrow table has, takes it for tiny and joins by nested loops: minutes.
    db.execute("SET GLOBAL asof_loop_join_threshold = 0")
    # A file that is replaced twice within a second would be read from memory, and wrongly.
    db.execute("SET GLOBAL enable_external_file_cache = false")
    return db


def _connect(config: RepoConfig) -> duckdb.DuckDBPyConnection:
    return _database(config.offline_store.memory_limit, config.offline_store.threads).cursor()


def _utc(times: pd.Series) -> pd.Series:
    """Turn timestamps of any kind into ``datetime64[us, UTC]``; those without a zone are UTC already."""
    return pd.to_datetime(times, utc=True).astype("datetime64[us, UTC]")


def _join_keys(view: FeatureView) -> dict[str, str]:
    """Map a view's key columns to those of the entity frame."""
    return dict(view.projection.join_key_map) or {e.name: e.name for e in view.entity_columns}


def _register_keys(
    db: duckdb.DuckDBPyConnection, table: pa.Table, time_column: str, views: Sequence[FeatureView]
) -> None:
    """Register as ``entities`` only what the joins need: key columns, time and row number."""
    used = sorted({column for view in views for column in _join_keys(view).values()})
    missing = [column for column in used if column not in table.column_names]
    if missing:
        raise MissingFeatureError(
            f"The entity frame lacks the join keys {missing}.", remedy=f"It has {table.column_names}."
        )
    keys = table.select(used)
    keys = keys.append_column(_TIME, table[time_column].cast(pa.timestamp("us")).cast(pa.int64()))
    db.register("entities", keys.append_column(_ROW, pa.array(range(table.num_rows), pa.int64())))


def _join(
    db: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    view: FeatureView,
    feature_refs: Sequence[str],
    full_names: bool,
    known_only: bool,
) -> pa.Table:
    """Return the requested features of one view, one row per entity row in its order."""
    name = view.projection.name_to_use()
    wanted = [ref.split(":", 1)[1] for ref in feature_refs if ref.startswith(f"{name}:")]
    alias = view.projection.name_alias or view.name
    keys = _join_keys(view)
    rows = _point_in_time_rows(db, config, view, list(keys), wanted, known_only)
    ttl = ""
    if view.ttl:
        microseconds = view.ttl.days * 86_400_000_000 + view.ttl.seconds * 1_000_000 + view.ttl.microseconds
        ttl = f"f.{_TIME} + {microseconds} >= e.{_TIME}"
    columns = [
        (f"CASE WHEN {ttl} THEN f.{_name(w)} END" if ttl else f"f.{_name(w)}")
        + f" AS {_name(f'{alias}__{w}' if full_names else w)}"
        for w in wanted
    ]
    conditions = [f"e.{_name(mine)} = f.{_name(theirs)}" for theirs, mine in keys.items()]
    conditions.append(f"e.{_TIME} >= f.{'__available' if known_only else _TIME}")
    query = f"""
        SELECT {", ".join(columns)} FROM entities e ASOF LEFT JOIN ({rows}) f ON {" AND ".join(conditions)}
        ORDER BY e.{_ROW}"""
    return db.execute(query).to_arrow_table()


def _point_in_time_rows(
    db: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    view: FeatureView,
    keys: Sequence[str],
    wanted: Sequence[str],
    known_only: bool,
) -> str:
    """Return a query for a view's rows, at most one per key and moment, its time column called ``__time``.

    With ``known_only`` there is also ``__available``: from then on, the row is the best of those that had been created.
    """
    source = view.batch_source
    relation, have = _relation(db, source, config, view.name)
    created = source.created_timestamp_column
    missing = [c for c in (*keys, *wanted, source.timestamp_field, *([created] if created else ())) if c not in have]
    if missing:
        raise MissingFeatureError(
            f"The table of the view {view.name!r} lacks {missing}.",
            where=_path(source, config.repo_path),
            remedy="Build the features again, or mend the view's definition.",
        )
    columns = ", ".join([*(_name(k) for k in keys), *(_name(w) for w in wanted if w not in keys)])
    time = f"epoch_us({_name(source.timestamp_field)}) AS {_TIME}"  # casts between zones cost more than the join
    made = f"epoch_us({_name(created)})" if created else "NULL::BIGINT"
    rows = f"SELECT {columns}, {time}, {made} AS {_CREATED}, file_row_number FROM {relation}"
    rows += f" WHERE {_name(source.timestamp_field)} IS NOT NULL"
    group = ", ".join(_name(k) for k in keys)
    partition = f"PARTITION BY {group} " if group else ""
    order = f"{_CREATED} DESC NULLS LAST, file_row_number DESC"
    if known_only and created:
        # The best row so far, in order of becoming available; its time only grows, so ASOF on availability is right.
        values = ", ".join(f"{_name(c)} := {_name(c)}" for c in (*wanted, _TIME))
        best = f"arg_max(struct_pack({values}), struct_pack(a := {_TIME}, b := {_CREATED}, c := file_row_number))"
        moment = f"greatest({_TIME}, {_CREATED})"
        return f"""
            SELECT {group + "," if group else ""} moment AS __available, unnest(best) FROM (
                SELECT {group + "," if group else ""} moment, {best} OVER (
                    {partition}ORDER BY moment RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS best
                FROM (SELECT *, {moment} AS moment FROM ({rows}) WHERE {_CREATED} IS NOT NULL))
            QUALIFY row_number() OVER (PARTITION BY {group + "," if group else ""} moment) = 1"""
    # Only a table that has two rows of one key and moment pays for sorting them out.
    distinct = f"{group}, {_TIME}" if group else _TIME
    doubled = db.execute(f"SELECT count(*) > count(DISTINCT hash({distinct})) FROM ({rows})").fetchone()
    if doubled and doubled[0]:
        by = f"PARTITION BY {distinct}"
        rows = f"SELECT * FROM ({rows}) QUALIFY row_number() OVER ({by} ORDER BY {order}) = 1"
    return f"SELECT *, {_TIME} AS __available FROM ({rows})" if known_only else rows


def _relation(
    db: duckdb.DuckDBPyConnection, source: DataSource, config: RepoConfig, view: str | None = None
) -> tuple[str, list[str]]:
    """Return a subquery over a source's file with its fields renamed, and the names of its columns."""
    path = _path(source, config.repo_path)
    if not path.exists():
        raise MissingFeatureError(
            f"The table of the view {view or source.name!r} is missing.",
            where=path,
            remedy="Build the features first.",
        )
    files = _text(path / "*.parquet" if path.is_dir() else path)
    have = [row[0] for row in db.execute(f"DESCRIBE SELECT * FROM read_parquet({files})").fetchall()]
    renamed: Mapping[str, str] = source.field_mapping or {}
    listed = ", ".join(f"{_name(c)} AS {_name(renamed.get(c, c))}" for c in have)
    return f"(SELECT {listed}, file_row_number FROM read_parquet({files}, file_row_number = true))", [
        renamed.get(c, c) for c in have
    ]


def _pull(
    config: RepoConfig,
    source: DataSource,
    columns: Sequence[str],
    timestamp_field: str,
    created: str | None,
    start: datetime | None,
    end: datetime | None,
    qualify: str,
) -> RetrievalJob:
    def run() -> pa.Table:
        with _connect(config) as db:
            relation, _ = _relation(db, source, config)
            time = _name(timestamp_field)
            moments = [timestamp_field, *([created] if created else ())]
            kinds = dict(
                db.execute(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {relation})").fetchall()
            )
            missing = [c for c in (*columns, *moments) if c not in kinds]
            if missing:
                raise MissingFeatureError(
                    f"A table lacks {missing}.",
                    where=_path(source, config.repo_path),
                    remedy="Build the features again, or mend the view's definition.",
                )
            # Compared in the column's own type, so that whole row groups of the file can be skipped.
            zone = "+00" if "TIME ZONE" in kinds[timestamp_field] else ""
            kind = kinds[timestamp_field]
            bounds = [f"{time} {s} {_text(_moment(at) + zone)}::{kind}" for s, at in ((">=", start), ("<=", end)) if at]
            where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
            listed = ", ".join(_name(c) for c in dict.fromkeys((*columns, *moments)))
            table = db.execute(f"SELECT {listed} FROM {relation}{where} {qualify}").to_arrow_table()
            for name in moments:
                index = table.column_names.index(name)
                table = table.set_column(index, name, table[name].cast(pa.timestamp("us", tz="UTC"), safe=False))
            return table

    return AsofRetrievalJob(run, repo_path=config.repo_path)


def _derive(table: pa.Table, view: OnDemandFeatureView, feature_refs: Sequence[str], full_names: bool) -> pa.Table:
    """Apply an on-demand view to the columns it reads, and return the features asked for.

    Feast hands such a view every column of the training set as Python lists, which takes longer than the whole join.
    """
    sources = [f.name for projection in view.source_feature_view_projections.values() for f in projection.features]
    full = [f"{p.name}__{f.name}" for p in view.source_feature_view_projections.values() for f in p.features]
    reads = [*view.get_request_data_schema(), *sources, *full]
    given = table.select([c for c in reads if c in table.column_names])
    # A time without a zone becomes a Python datetime three times faster; it is UTC either way.
    for index, field in enumerate(given.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz is not None:
            given = given.set_column(index, field.name, given[field.name].cast(pa.timestamp("us")))
    rows: pa.Array | None = None
    if given.num_columns == 1:  # a view works row by row, so equal rows need only be worked out once
        encoded = given.column(0).combine_chunks().dictionary_encode(null_encoding="encode")
        given, rows = pa.table({given.column_names[0]: encoded.dictionary}), encoded.indices
    made = view.transform_arrow(given, full_names)
    made = made if rows is None else made.take(rows)
    name = view.projection.name_to_use()
    wanted = [ref.split(":", 1)[1] for ref in feature_refs if ref.split(":", 1)[0] in (name, view.name)]
    made = made.select([f"{name}__{w}" if full_names else w for w in wanted])
    types = {f.name: from_feast_to_pyarrow_type(f.dtype) for f in view.features}
    return made.cast(pa.schema([(c, types[w]) for c, w in zip(made.column_names, wanted, strict=True)]))


def _append(table: pa.Table, more: pa.Table) -> pa.Table:
    """Add columns to a table of as many rows."""
    for column in more.column_names:
        if column in table.column_names:
            raise DataError(
                f"The entity frame already has a column {column!r}, which is also a feature.",
                remedy="Rename it, or ask for full feature names.",
            )
        table = table.append_column(column, more[column])
    return table


def _path(source: DataSource | None, repo_path: Path | None) -> Path:
    if not isinstance(source, FileSource):
        raise DataError(f"Cannot read a {type(source).__name__}.", remedy="Use a FileSource over Parquet.")
    path = Path(source.path.removeprefix("file://"))
    return path if path.is_absolute() or repo_path is None else Path(repo_path) / path


def _write(table: pa.Table, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    pq.write_table(table, part, compression="zstd")
    os.replace(part, path)


def _moment(at: datetime) -> str:
    # As in Feast's stores, a bound without a zone is local time.
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
