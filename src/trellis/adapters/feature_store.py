"""The feature store: point-in-time training sets, online reads and materialisation, over Feast."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.adapters.feast_setting import declared, import_feast, online_store_config, surroundings
from trellis.adapters.feature_plan import (
    Answers,
    Rows,
    ServicePlan,
    View,
    blank,
    columns_of,
    digest_of,
    join_keys,
    python_value,
    rows_of,
    view_form,
)
from trellis.contract import Batch, row_count
from trellis.errors import ConfigError, DataError, MissingFeatureError, close_matches
from trellis.freshness import Sla, sla_of

if TYPE_CHECKING:
    from trellis.adapters.online_loop import LoopRedis
    from trellis.adapters.online_redis import RedisReader
    from trellis.adapters.row_reader import RowReader

_START = datetime(1970, 1, 1, tzinfo=UTC)


class FeatureStore:
    """What is declared in a feature repository, with its tables and stores below one home directory.

    Feature tables are ``<home>/features/VIEW.parquet``; Feast's registry is in ``<home>/feast``, and so is the online
    store, unless it is a Redis. One instance may be shared by threads.

    Args:
        repo: Directory with ``feature_store.yaml`` and ``definitions.py``.
        home: Directory of everything Trellis writes.
        online_store: ``sqlite`` or a Redis URL.

    Raises:
        ConfigError: ``repo`` is no feature repository, or the online store is neither.
    """

    def __init__(self, repo: Path, home: Path, online_store: str = "sqlite") -> None:
        self._repo = repo.resolve()
        self._home = home.resolve()
        self._online_store = online_store_config(self._home, online_store)
        self._lock = threading.Lock()
        self._plans: dict[str, ServicePlan] = {}
        for name in ("feature_store.yaml", "definitions.py"):
            if not (self._repo / name).is_file():
                raise ConfigError(
                    f"The feature repository has no {name}.", where=repo, remedy="Set TRELLIS_FEATURE_REPO."
                )

    def apply(self) -> None:
        """Bring the registry and the online store in line with the definitions; doing it twice changes nothing.

        Raises:
            ConfigError: A view's freshness tags mean nothing.
        """
        (self._home / "feast").mkdir(parents=True, exist_ok=True)
        with self._surroundings():
            found = declared(self._repo / "definitions.py")
            for one in found:
                sla_of(one.name, (), one.tags)  # a promise that means nothing is refused before anything is changed
            store = self._feast
            old = [*store.list_feature_services(), *store.list_on_demand_feature_views(), *store.list_feature_views()]
            old += [e for e in store.list_entities() if e.name != "__dummy"]
            names = {(type(x), x.name) for x in found}
            store.apply(found, objects_to_delete=[x for x in old if (type(x), x.name) not in names], partial=False)
        self._let_readers_in()
        self._plans.clear()

    def training_set(self, service: str, rows: Batch, time: NDArray[np.datetime64]) -> dict[str, NDArray[Any]]:
        """Join the features of a service to rows, each as of its own time.

        Args:
            service: Name of a feature service.
            rows: The service's keys and request fields; other columns are ignored.
            time: ``datetime64[us]`` UTC, one per row.

        Returns:
            The feature columns only, in the order of ``describe``, row for row as given; missing values are NaN.

        Raises:
            MissingFeatureError: The service, a table, a key column or a feature is missing.
        """
        plan = self._plan(service)
        needed = [*plan.keys, *(name for name in plan.request if name not in plan.keys)]
        absent = [name for name in needed if name not in rows]
        if absent:
            raise MissingFeatureError(f"The rows for {service!r} lack {absent}.", remedy=f"They have {sorted(rows)}.")
        frame = pd.DataFrame({name: rows[name] for name in needed})
        if "event_timestamp" in frame:
            raise DataError("A row's field cannot be called event_timestamp.", remedy="Rename it.")
        frame["event_timestamp"] = pd.to_datetime(time.astype("datetime64[us]"), utc=True)
        with self._surroundings():
            job = self._feast.get_historical_features(frame, self._feast.get_feature_service(service))
            table = job.to_arrow()
        return {name: table[name].to_numpy() for name in plan.features}

    def online(
        self, service: str, keys: Batch, request: Batch
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Read the latest materialised features of a service, and derive its on-demand ones.

        A value older than its view's ttl at the request's time (the field named by the service's tag ``time_field``) is
        missing, as it is in a training set; Feast's own online read would return it.

        Args:
            service: Name of a feature service.
            keys: The join keys, n rows.
            request: What on-demand views read, n rows; timestamps ``datetime64[us]`` UTC.

        Returns:
            The features by name, in the order of ``describe``; and per batch view the event time of the values found,
            ``datetime64[us]`` UTC, NaT where there are none.

        Raises:
            MissingFeatureError: The service is unknown, or a key or request field is missing.
        """
        plan = self._plan(service)
        given = {**request, **keys}
        absent = [name for name in (*plan.keys, *plan.request) if name not in given]
        if absent:
            raise MissingFeatureError(f"The request for {service!r} lacks {absent}.", remedy=f"It has {sorted(given)}.")
        n = row_count(given)
        now = given.get(plan.time_field) if plan.time_field else None
        out: dict[str, NDArray[Any]] = {}
        times: dict[str, NDArray[Any]] = {}
        alike = {keys: rows_of(keys, given, n) for keys in {view.keys for view in plan.views}}
        rows = [alike[view.keys] for view in plan.views]
        for view, asked, answers in zip(plan.views, rows, self._fetch(plan.views, rows), strict=True):
            found, times[view.name] = columns_of(view, asked, answers)
            out.update(found)
        for name, old in plan.too_old(times, now).items():
            for feature, dtype in plan.named[name].dtypes.items():
                out[feature][old] = blank(dtype)
        out.update(self._derive(plan, given))
        return {name: out[name] for name in plan.features}, times

    def derived(self, service: str, request: Batch) -> dict[str, NDArray[Any]]:
        """Compute only the on-demand features of a service: they need the request and no store.

        Args:
            service: Name of a feature service.
            request: What its on-demand views read, n rows.

        Raises:
            MissingFeatureError: The service is unknown, or a request field is missing.
        """
        plan = self._plan(service)
        absent = [name for name in plan.request if name not in request]
        if absent:
            raise MissingFeatureError(
                f"The request for {service!r} lacks {absent}.", remedy=f"It has {sorted(request)}."
            )
        return self._derive(plan, request)

    def stale(self, service: str, times: Batch, request: Batch) -> dict[str, NDArray[np.bool_]]:
        """Tell which rows' values ``online`` left out because they were older than their view's ttl.

        Args:
            service: Name of a feature service.
            times: The event times per view that ``online`` gave, n rows.
            request: The request that it was given.

        Returns:
            The views with at least one such row, each with n booleans.

        Raises:
            MissingFeatureError: The service is unknown.
        """
        plan = self._plan(service)
        return plan.too_old(times, request.get(plan.time_field) if plan.time_field else None)

    def slas(self, service: str) -> tuple[Sla, ...]:
        """Return what the service's batch views promise about the age of their values at an online read.

        Raises:
            MissingFeatureError: The service is unknown.
            ConfigError: A view's tags mean nothing.
        """
        return self._plan(service).slas

    def row_reader(self, service: str) -> RowReader | None:
        """Return what reads a service's features a row at a time; None where the online store is no plain Redis."""
        plan = self._plan(service)
        if self._redis is None:
            return None
        from trellis.adapters.row_reader import RowReader

        return RowReader(plan, self._redis, self._loop_redis, self._feast.config.project)

    @staticmethod
    def _derive(plan: ServicePlan, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        out: dict[str, NDArray[Any]] = {}
        for derived in plan.derived:
            made = derived.view.transform_dict({name: given[name].tolist() for name in derived.reads})
            out.update({name: np.asarray(made[name], dtype=derived.dtypes[name]) for name in derived.features})
        return out

    def materialize(self, until: datetime, since: datetime | None = None) -> dict[str, int]:
        """Bring the online store up to what was known at ``until``; an older event never overwrites a newer one.

        Only rows later than the last call's are read and written (a watermark per view is kept beside the store), so a
        call costs what has changed. A call that was cut short is made good by the next one.

        Args:
            until: The latest event timestamp to take, inclusive; without a zone it is UTC.
            since: Take rows from here on again, whatever the watermark says.

        Returns:
            How many keys were written, per view.
        """
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        marks = self._marks()
        written: dict[str, int] = {}
        with self._surroundings(), self._lock:
            for view in self._feast.list_feature_views():
                digest = digest_of(view_form(view) | self._place)
                mark = marks.get(view.name, {})
                done = datetime.fromisoformat(mark["until"]) if mark.get("digest") == digest else _START
                start = (since if since.tzinfo else since.replace(tzinfo=UTC)) if since else done
                written[view.name] = self._write(view, start, until) if start <= until else 0
                marks[view.name] = {"until": max(done, until).isoformat(), "digest": digest}
        part = self._marks_path.with_suffix(".part")
        part.write_text(json.dumps(marks, indent=1, sort_keys=True))
        os.replace(part, self._marks_path)
        return written

    def views(self) -> list[tuple[str, str, str, tuple[str, ...]]]:
        """Return every view's name, owner, freshness SLA (ISO 8601 duration) and join keys, by name."""
        feast = self._feast
        batch = [(v.name, v.owner, v.tags.get("freshness_sla", ""), join_keys(v)) for v in feast.list_feature_views()]
        derived = [(v.name, v.owner, v.tags.get("freshness_sla", ""), ()) for v in feast.list_on_demand_feature_views()]
        return sorted([*batch, *derived])

    def describe(self, service: str) -> dict[str, Any]:
        """Return ``features`` in order, ``views``, ``keys``, ``request`` and ``digest``, the version of the definition.

        Raises:
            MissingFeatureError: There is no such service.
        """
        plan = self._plan(service)
        return {
            "features": list(plan.features),
            "views": [*(v.name for v in plan.views), *(d.view.name for d in plan.derived)],
            "keys": list(plan.keys),
            "request": list(plan.request),
            "digest": plan.digest,
        }

    def close(self) -> None:
        """Close what is open to a Redis, on the event loop that asked it; what is asked later opens it again."""
        for client in filter(None, map(vars(self).get, ("_loop_redis", "_redis"))):
            client.close()

    def _surroundings(self) -> AbstractContextManager[None]:
        return surroundings(self._home, self._online_store)

    @cached_property
    def _feast(self) -> Any:
        with self._surroundings():
            feast = import_feast()
            from feast.repo_config import load_repo_config

            return feast.FeatureStore(config=load_repo_config(self._repo, self._repo / "feature_store.yaml"))

    def _plan(self, service: str) -> ServicePlan:
        plan = self._plans.get(service)
        if plan is None:
            with self._surroundings():
                services = {s.name: s for s in self._feast.list_feature_services()}
                if service not in services:
                    hint = close_matches(service, services) if services else "Apply the feature repository first."
                    raise MissingFeatureError(
                        f"There is no feature service {service!r}.", where=self._repo, remedy=hint
                    )
                plan = self._plans[service] = ServicePlan(self._feast, services[service])
        return plan

    def _fetch(self, views: list[View], rows: list[Rows]) -> list[Answers]:
        """Read several views, each entity once: from Redis all in one round trip."""
        if self._redis is not None:
            from trellis.adapters.online_redis import Asked

            asked = [Asked(v.name, v.features, v.encoder, list(r.unique)) for v, r in zip(views, rows, strict=True)]
            return self._redis.read(asked)
        return [self._fetch_one(view, one) for view, one in zip(views, rows, strict=True)]

    def _fetch_one(self, view: View, rows: Rows) -> Answers:
        with self._lock:
            answers = self._provider.online_read(
                self._feast.config, view.view, [view.entity_key(row) for row in rows.unique], list(view.features)
            )
        found: Answers = []
        for moment, values in answers:
            if values is None or not moment.timestamp():  # Feast's Redis says "no row" by a time of 0
                found.append((None, []))
                continue
            at = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
            found.append((np.datetime64(at, "us"), [python_value(values.get(name)) for name in view.features]))
        return found

    def _write(self, view: Any, start: datetime, until: datetime) -> int:
        """Write the newest row of each key in [start, until], unless the store has a newer one."""
        from feast.utils import _convert_arrow_to_proto

        source = view.batch_source
        keys = join_keys(view)
        job = self._provider.offline_store.pull_latest_from_table_or_query(
            self._feast.config,
            source,
            list(keys),
            [f.name for f in view.features],
            source.timestamp_field,
            source.created_timestamp_column or None,
            start,
            until,
        )
        table = job.to_arrow()
        if not table.num_rows:
            return 0
        rows = _convert_arrow_to_proto(table, view, {e.name: e.dtype.to_value_type() for e in view.entity_columns})
        fresh = []
        for i in range(0, len(rows), 500):  # SQLite takes a limited number of keys at a time
            chunk = rows[i : i + 500]
            have = self._provider.online_read(self._feast.config, view, [row[0] for row in chunk], None)
            fresh += [
                row for row, (at, _) in zip(chunk, have, strict=True) if at is None or _aware(at) <= _aware(row[2])
            ]
        self._provider.online_write_batch(self._feast.config, view, fresh, None)
        return len(fresh)

    @cached_property
    def _redis(self) -> RedisReader | None:
        """The reader of Feast's Redis, where that is the online store (a cluster or sentinels go through Feast)."""
        online = self._feast.config.online_store
        if online.type != "redis" or str(online.redis_type.value) != "redis":
            return None
        from trellis.adapters.online_redis import RedisReader

        return RedisReader(online.connection_string, self._feast.config.project)

    @cached_property
    def _loop_redis(self) -> LoopRedis | None:
        """The same Redis for an event loop, where the connection is plain enough."""
        from trellis.adapters.online_loop import LoopRedis, can_ask

        redis = self._redis
        return LoopRedis(redis.options, redis.circuit) if redis is not None and can_ask(redis.options) else None

    @cached_property
    def _provider(self) -> Any:
        return self._feast._get_provider()

    @property
    def _place(self) -> dict[str, str]:
        """Where the online store is, if not in the home: what was written to one place is not yet in another."""
        online = self._feast.config.online_store
        return {} if online.type == "sqlite" else {"online": online.connection_string.partition(",")[0]}

    @property
    def _marks_path(self) -> Path:
        return self._home / "feast" / "watermarks.json"

    def _marks(self) -> dict[str, dict[str, str]]:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return dict(json.loads(self._marks_path.read_text()))
        return {}

    def _let_readers_in(self) -> None:
        """Put SQLite in write-ahead mode, so that reads go on while a materialisation writes."""
        online = self._feast.config.online_store
        if online.type == "sqlite":
            with closing(sqlite3.connect(online.path)) as db:
                db.execute("PRAGMA journal_mode = WAL")


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)
