"""An offline store for Feast: point-in-time joins over Parquet, each an as-of merge of two sorted columns of integers.

Feast's own DuckDB store joins every entity row with every older feature row of its key and then keeps the newest, which
takes half a minute and gigabytes where few keys have many rows. Here key and time of a row become one integer, equal
entity rows are asked for once, both sides are sorted, and the newest older row is found by a search that goes through
them in order, so that neighbours find what they need in the processor's cache. DuckDB's ``ASOF JOIN`` finds the same
rows and needs several times as long: it takes in and gives out tables, where two columns of integers are enough. A
view's columns have to fit in memory, as its result has to anyway. Configured by class path::

    offline_store:
      type: trellis.adapters.feast_asof.AsofOfflineStore

What an entity row gets from a view: of the rows of its key with ``event_timestamp`` <= its own, the one with the latest
event timestamp, among those the latest created timestamp, among those the last in the file; null if that one is older
than the view's ttl. This is what Feast's DuckDB store gives wherever that one is defined; here rows keep their order.
Timestamps are compared in microseconds; those without a zone are read as UTC. Imported by Feast only: it imports Feast.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.types import from_feast_to_pyarrow_type

from trellis.adapters.asof import Asked, best_rows, creation_times, encoded, microseconds, ordinals
from trellis.adapters.feast_tables import path_of, pull, read, write
from trellis.errors import DataError

_ROW = "__row"
_UTC = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AsofOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Options in ``feature_store.yaml``.

    Attributes:
        type: Class path of the store.
        threads: How many views are joined at a time; 0 takes every core.
    """

    type: str = "trellis.adapters.feast_asof.AsofOfflineStore"
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
        path = path_of(storage.to_data_source(), self._repo_path)
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        write(self.to_arrow(timeout=timeout), path)


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
            table = pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata(None)
            table = table.set_column(
                table.column_names.index(time_column), time_column, pa.Array.from_pandas(times, type=_UTC)
            )
            alike: dict[tuple[str, ...], list[FeatureView]] = {}  # views that ask the entity frame the same
            for view in feature_views:
                alike.setdefault(tuple(sorted(_join_keys(view).values())), []).append(view)

            def join(keys: tuple[str, ...]) -> dict[str, pa.Table]:
                asked = Asked(table, keys, time_column)
                return {
                    view.projection.name_to_use(): _join(
                        config, asked, view, feature_refs, full_feature_names, filter_by_created_timestamp
                    )
                    for view in alike[keys]
                }

            # What reads the request alone need not wait for the joins.
            early = [view for view in on_demand if not view.source_feature_view_projections]
            with ThreadPoolExecutor(config.offline_store.threads or os.cpu_count()) as pool:
                joining = pool.map(join, alike)
                derived = {view.name: _derive(table, view, feature_refs, full_feature_names) for view in early}
                joined = {name: part for parts in joining for name, part in parts.items()}
            for view in feature_views:
                table = _append(table, joined[view.projection.name_to_use()])
            for view in on_demand:
                part = derived.get(view.name)
                if part is None:
                    part = _derive(table, view, feature_refs, full_feature_names)
                table = _append(table, part)
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

        def run() -> pa.Table:
            columns = [*join_key_columns, *feature_name_columns]
            table = pull(config, data_source, columns, timestamp_field, created_timestamp_column, start_date, end_date)
            time, _ = microseconds(table[timestamp_field])
            made = (
                creation_times(table[created_timestamp_column])[0] if created_timestamp_column else np.zeros_like(time)
            )
            order = np.lexsort((made, time))
            if not join_key_columns:
                return table.take(pa.array(order[-1:]))
            rows = table.select(join_key_columns).append_column(_ROW, pa.array(np.arange(len(time)))).take(order)
            last = rows.group_by(join_key_columns, use_threads=False).aggregate([(_ROW, "last")])
            return table.take(last[f"{_ROW}_last"])

        return AsofRetrievalJob(run, repo_path=config.repo_path)

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

        def run() -> pa.Table:
            columns = [*join_key_columns, *feature_name_columns]
            return pull(config, data_source, columns, timestamp_field, created_timestamp_column, start_date, end_date)

        return AsofRetrievalJob(run, repo_path=config.repo_path)

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
        path = path_of(feature_view.batch_source, config.repo_path)
        old = pq.read_table(path) if path.exists() else table.slice(0, 0)
        if sorted(old.column_names) != sorted(table.column_names):
            raise DataError(
                f"The rows for {feature_view.name!r} have the columns {table.column_names}.",
                where=path,
                remedy=f"Give the file's: {old.column_names}.",
            )
        write(pa.concat_tables([old, table.select(old.column_names).cast(old.schema)]), path)
        if progress is not None:
            progress(table.num_rows)


def _utc(times: pd.Series) -> pd.Series:
    """Turn timestamps of any kind into ``datetime64[us, UTC]``; those without a zone are UTC already."""
    if times.dtype == "datetime64[us, UTC]":
        return times
    return pd.to_datetime(times, utc=True).astype("datetime64[us, UTC]")


def _join_keys(view: FeatureView) -> dict[str, str]:
    """Map a view's key columns to those of the entity frame."""
    return dict(view.projection.join_key_map) or {e.name: e.name for e in view.entity_columns}


def _join(
    config: RepoConfig,
    asked: Asked,
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
    source = view.batch_source
    created = source.created_timestamp_column
    moments = [source.timestamp_field, *([created] if created else ())]
    table = read(config, source, view.name, list(keys), wanted, moments)

    key, found = asked.number(
        [encoded(table[theirs]) for theirs, _ in sorted(keys.items(), key=itemgetter(1))], table.num_rows
    )
    time, timed = microseconds(table[source.timestamp_field])
    made, marked = creation_times(table[created]) if created else (None, None)
    rows = np.flatnonzero(found & timed if marked is None or not known_only else found & timed & marked)
    key, time, made = key[rows], time[rows], None if made is None else made[rows]

    available = np.maximum(time, made) if known_only and made is not None else time
    entity_at, row_at = ordinals([asked.key, key], [asked.time, available])
    at, best = best_rows(key, time, made, row_at, known_only)
    match = np.full(len(asked.key), -1, np.int64)
    newest = np.searchsorted(at, entity_at, side="right") - 1
    n = np.flatnonzero(newest >= 0)
    row = best[newest[n]]
    fits = key[row] == asked.key[n]  # before the first row of a key lies the last one of the key before
    if view.ttl:
        fits &= time[row] + view.ttl // timedelta(microseconds=1) >= asked.time[n]
    match[n[fits]] = rows[row[fits]]
    take = np.where(asked.position < 0, -1, match[asked.position]) if len(match) else asked.position
    columns = table.select(wanted).take(pa.array(take, mask=take < 0))
    return columns.rename_columns([f"{alias}__{w}" if full_names else w for w in wanted])


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
    if view.tags.get("arrays") == "true":  # says that it takes arrays as well as lists
        inputs = {c: given[c].to_numpy() for c in given.column_names}
        made = pa.table({c: pa.array(v, from_pandas=True) for c, v in view.feature_transformation.udf(inputs).items()})
        made = made.rename_columns(
            [f"{view.projection.name_to_use()}__{c}" if full_names else c for c in made.column_names]
        )
    else:
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
