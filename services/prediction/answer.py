"""From validated rows to an answer: features, split, scores, merge, and a record of each before it is given."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.prediction.cache import AnswerCache
from services.prediction.columns import batch, column, rfc3339, to_json
from services.prediction.errors import UnavailableError
from services.prediction.features import Found, OnlineFeatures, find
from services.prediction.metrics import Metrics
from services.prediction.runtime import Active, LoadedVersion, ModelRuntime, score
from trellis.contract import row_count, take
from trellis.errors import ContractError, RequestError, StorageError
from trellis.rollout.plan import RolloutPlan, Variant

logger = logging.getLogger(__name__)

Outputs = dict[str, NDArray[Any]]

# The last link of the fallback chain: no version's answer, so it is never counted as one's.
_ROLE: Any = "default"
_DEFAULT = Variant("default", _ROLE, 0.0, "", "")


class Log(Protocol):
    """Where records go."""

    def extend(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Accept records, all or none; StorageError where they cannot be kept."""


class ShadowQueue(Protocol):
    """Where answered records go for the plan's shadows."""

    def offer(self, plan: RolloutPlan, records: Sequence[Mapping[str, Any]]) -> None:
        """Take what is sampled of the records; never waits and never raises."""


class Answerer:
    """Answers requests; safe for several threads.

    Args:
        features: The online store, or None where no model needs one.
        log: Gives a model's prediction log.
        metrics: The counters.
        shadows: Scores a sample again, apart from the answering; None leaves a plan's shadows out.
        cache: Answers given a short while ago; None keeps none.
    """

    def __init__(
        self,
        features: OnlineFeatures | None,
        log: Callable[[str], Log],
        metrics: Metrics,
        shadows: ShadowQueue | None = None,
        cache: AnswerCache | None = None,
    ) -> None:
        self._features = features
        self._log = log
        self._metrics = metrics
        self._shadows = shadows
        self._cache = cache or AnswerCache(0)
        self._warned: set[tuple[str, str]] = set()
        self._warned_lock = threading.Lock()

    def answer(
        self, model: ModelRuntime, rows: Sequence[Any], request_id: str, *, version: str | None = None
    ) -> dict[str, Any]:
        """Score the rows and log them.

        Args:
            model: Which model.
            rows: Validated pydantic rows of its request type.
            request_id: Names the request; row ``i`` becomes the prediction ``<request_id>#i``.
            version: Answer from this loaded version, whatever the plan's split says.

        Returns:
            The body of the answer, see ``schema.model_schema``.

        Raises:
            RequestError: An entity or version is unknown.
            UnavailableError: The champion cannot score, or the feature store is needed and away.
            StorageError: The records cannot be kept; then no answer is given.
        """
        started = time.perf_counter()
        received = datetime.now(UTC)
        active = model.active
        assert active is not None
        values = [row.__dict__ for row in rows]
        found = find(model.spec, self._features, values, [row.model_fields_set for row in rows], self._metrics)
        plan = active.plan
        ids = [f"{request_id}#{i}" for i in range(len(rows))]
        # Without a unit each row is drawn by itself: rows of one request must not share their luck (see LossStream).
        units = ids if plan.unit is None else [str(to_json(row[plan.unit])) for row in values]
        variants = [_pinned(active, version)] * len(rows) if version else [active.assign(unit) for unit in units]
        links: dict[str, str] = {}
        if found.fallback:
            # Such a row is not scored: what it would be scored on is known to be no good.
            links["default"] = next(iter(found.fallback.values()))
        wanted = [_DEFAULT if i in found.fallback else v for i, v in enumerate(variants)]
        outputs, answered = self._score(model, active, self._inputs(model, values, found), wanted, links)
        cells = {name: values.tolist() for name, values in outputs.items()}
        given = [{name: column[i] for name, column in cells.items()} for i in range(len(rows))]
        spent = (time.perf_counter() - started) * 1000
        records = self._records(model, active, ids, units, values, found, variants, answered, given, received, spent)
        if "cache" in links:
            records = [{**record, "cached": True} for record in records]
        try:
            self._log(model.name).extend(records)
        except StorageError:
            self._metrics.log_failures.labels(model.name).inc()
            raise
        if plan.shadows and self._shadows is not None:
            self._shadows.offer(plan, [r for r in records if r["version"] != _DEFAULT.version])
        for variant in {v.version: v for v in answered}.values():
            many = sum(v.version == variant.version for v in answered)
            self._metrics.predicted(model.name, variant.version, variant.role, many)
        one = answered[0] if len({v.version for v in answered}) == 1 else None
        told = {"fallback": [{"link": link, "why": why} for link, why in links.items()]} if links else {}
        return {
            "model": model.name,
            "version": one.version if one else None,
            "variant": one.role if one else None,
            "revision": plan.revision,
            "request_id": request_id,
            "predictions": [
                {"id": ids[i], **given[i], "version": v.version, "variant": v.role} | _marks(found, i)
                for i, v in enumerate(answered)
            ],
            **told,
        }

    @staticmethod
    def _inputs(model: ModelRuntime, rows: Sequence[Mapping[str, Any]], found: Found) -> dict[str, NDArray[Any]]:
        spec = model.spec
        sent = batch(spec.fields, [name for name in spec.inputs if name not in found.columns], rows)
        return {name: found.columns[name] if name in found.columns else sent[name] for name in spec.inputs}

    def _score(
        self,
        model: ModelRuntime,
        active: Active,
        inputs: Mapping[str, NDArray[Any]],
        variants: Sequence[Variant],
        links: dict[str, str],
    ) -> tuple[Outputs, list[Variant]]:
        """Score each row on its variant and merge in the rows' order; the champion stands in for a broken canary."""
        first = variants[0]
        if all(v is first for v in variants):
            cached = self._cache.is_on and len(variants) == 1 and first is not _DEFAULT
            key = self._cache.key(model.name, active.versions[first.version].digest, inputs) if cached else b""
            kept = self._cache.get(key) if cached else None
            if kept is not None:
                links["cache"] = "the same inputs were scored by this version a short while ago"
                return kept, [first]
            outputs, variant = self._score_on(model, active, first, inputs, links)
            if cached and variant is first:
                self._cache.put(key, outputs)
            return outputs, [variant] * len(variants)
        merged: Outputs = {}
        answered = list(variants)
        for variant in {v.version: v for v in variants}.values():
            index = np.array([i for i, v in enumerate(variants) if v is variant])
            outputs, by = self._score_on(model, active, variant, take(inputs, index), links)
            for i in index:
                answered[i] = by
            for name, values in outputs.items():
                if name not in merged:
                    merged[name] = np.empty((len(variants), *values.shape[1:]), values.dtype)
                merged[name][index] = values
        return merged, answered

    def _score_on(
        self,
        model: ModelRuntime,
        active: Active,
        variant: Variant,
        inputs: Mapping[str, NDArray[Any]],
        links: dict[str, str],
    ) -> tuple[Outputs, Variant]:
        if variant is _DEFAULT:
            return _default(model, inputs), variant
        try:
            return self._timed(model, active.versions[variant.version], inputs), variant
        except ContractError as error:
            self._metrics.variant_errors.labels(model.name, variant.version).inc()
            self._warn(model.name, variant.version, error)
            champion = active.plan.champion
            if variant.version != champion.version:
                try:
                    outputs = self._timed(model, active.champion, inputs)
                    links["champion"] = f"version {variant.version} failed"
                    return outputs, champion
                except ContractError as second:
                    self._metrics.variant_errors.labels(model.name, champion.version).inc()
                    error = second
            if active.previous is not None:
                try:
                    outputs = self._timed(model, active.previous, inputs)
                    links["previous"] = f"version {champion.version} failed"
                    return outputs, _standing_in(active.previous)
                except ContractError:
                    self._metrics.variant_errors.labels(model.name, active.previous.version).inc()
            if model.spec.default is not None:
                links["default"] = f"version {champion.version} failed, and no other is held"
                return _default(model, inputs), _DEFAULT
            raise UnavailableError(
                f"The champion of {model.name} cannot score this request: {error.what}",
                remedy="Try again later; the owner can see the cause in the service's log.",
            ) from error

    def _timed(self, model: ModelRuntime, version: LoadedVersion, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
        started = time.perf_counter()
        outputs = score(model.spec, version, inputs)
        self._metrics.scored(model.name, version.version, time.perf_counter() - started)
        return outputs

    def _warn(self, model: str, version: str, error: ContractError) -> None:
        with self._warned_lock:
            first = (model, version) not in self._warned
            self._warned.add((model, version))
        logger.log(logging.ERROR if first else logging.DEBUG, "%s %s failed on a request: %s", model, version, error)

    @staticmethod
    def _records(
        model: ModelRuntime,
        active: Active,
        ids: Sequence[str],
        units: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        found: Found,
        assigned: Sequence[Variant],
        answered: Sequence[Variant],
        outputs: Sequence[Mapping[str, Any]],
        received: datetime,
        latency_ms: float,
    ) -> list[dict[str, Any]]:
        spec = model.spec
        features = {name: column.tolist() for name, column in found.columns.items()}
        times = {view: [to_json(moment) for moment in column] for view, column in found.times.items()}
        stamp = rfc3339(received)
        records = []
        for i, row in enumerate(rows):
            moment = row[spec.time_field] if spec.time_field else None
            record = {
                "id": ids[i],
                "model": spec.name,
                "version": answered[i].version,
                "variant": answered[i].role,
                "revision": active.plan.revision,
                "time": rfc3339(moment) if moment is not None else stamp,
                "received_at": stamp,
                "unit": units[i],
                "request": {f.name: row[f.name] for f in spec.request},
                "features": {name: column[i] for name, column in features.items()},
                "feature_times": {view: column[i] for view, column in times.items()},
                "overrides": found.overrides[i],
                "outputs": outputs[i],
                "latency_ms": round(latency_ms, 3),
                **_marks(found, i),
            }
            if answered[i] is not assigned[i]:
                record["instead_of"] = assigned[i].version
            records.append(record)
        return records


def _marks(found: Found, row: int) -> dict[str, Any]:
    """Return what an answer and its record say about the features that a row was scored on; nothing if all is well."""
    marks: dict[str, Any] = {}
    if found.degraded[row]:
        marks["degraded"] = list(found.degraded[row])
    if row in found.stale:
        marks["stale"] = dict(found.stale[row])
    return marks


def _default(model: ModelRuntime, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
    declared = model.spec.default
    assert declared is not None
    rows = row_count(inputs)
    return {f.name: column(f, [declared[f.name]] * rows) for f in model.spec.outputs}


def _standing_in(version: LoadedVersion) -> Variant:
    role: Any = "previous"
    return Variant(version.version, role, 0.0, "", version.digest)


def _pinned(active: Active, version: str) -> Variant:
    for variant in active.plan.variants:
        if variant.version == version and version in active.versions:
            return variant
    known = ", ".join(active.versions)
    raise RequestError("version", f"{version[:60]!r} is not loaded", status=404, remedy=f"Loaded: {known}.")
