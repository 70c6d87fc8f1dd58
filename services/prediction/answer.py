"""From validated rows to an answer: features, split, scores, merge, and a record of each before it is given."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.prediction.cache import AnswerCache
from services.prediction.columns import batch, column, rfc3339, to_json
from services.prediction.errors import UnavailableError, VersionError
from services.prediction.failures import Attempt, Log, failure_records, keep
from services.prediction.feature_versions import find_each
from services.prediction.features import Found, OnlineFeatures
from services.prediction.identity import without_unit
from services.prediction.metrics import Metrics
from services.prediction.runtime import Active, ModelRuntime
from services.prediction.versions import LoadedVersion, score
from trellis.contract import ModelSpec, row_count, take
from trellis.errors import RequestError, StorageError
from trellis.rollout.plan import RolloutPlan, Variant

logger = logging.getLogger(__name__)

Outputs = dict[str, NDArray[Any]]

# The last link of the fallback chain: no version's answer, so it is never counted as one's.
_ROLE: Any = "default"
_DEFAULT = Variant("default", _ROLE, 0.0, "", "")


class ShadowQueue(Protocol):
    """Where answered records go for the plan's shadows."""

    def offer(self, plan: RolloutPlan, logged: Sequence[tuple[Mapping[str, Any], bytes]]) -> None:
        """Take what is sampled of the records, each with its line of JSON; never waits and never raises."""


class Answerer:
    """Answers requests; safe for several threads.

    Args:
        features: The online store, or None where no model needs one.
        log: Gives a model's prediction log.
        failures: Gives a model's failure log.
        metrics: The counters.
        shadows: Scores a sample again, apart from the answering; None leaves a plan's shadows out.
        cache: Answers given a short while ago; None keeps none.
        hide: Turns a unit into what the logs call it.
    """

    def __init__(
        self,
        features: OnlineFeatures | None,
        log: Callable[[str], Log],
        failures: Callable[[str], Log],
        metrics: Metrics,
        shadows: ShadowQueue | None = None,
        cache: AnswerCache | None = None,
        hide: Callable[[str], str] = lambda unit: unit,
    ) -> None:
        self._features = features
        self._log = log
        self._failures = failures
        self._metrics = metrics
        self._shadows = shadows
        self._cache = cache or AnswerCache(0)
        self._hide = hide
        self._warned: set[tuple[str, str]] = set()
        self._warned_lock = threading.Lock()

    def answer(
        self,
        model: ModelRuntime,
        rows: Sequence[Any],
        request_id: str,
        *,
        version: str | None = None,
        attempt: Attempt | None = None,
        found: Found | Exception | None = None,
        started: float | None = None,
    ) -> dict[str, Any]:
        """Score the rows and log them.

        Args:
            model: Which model.
            rows: Validated pydantic rows of its request type.
            request_id: Names the request; row ``i`` becomes the prediction ``<request_id>#i``.
            version: Answer from this loaded version, whatever the plan's split says.
            attempt: Filled on the way, for whoever may have to say what the request was doing.
            found: The rows' features where they have been read, or why they could not be; None reads them.
            started: When the request began, ``time.perf_counter``; now, if not given.

        Returns:
            The body of the answer, see ``schema.model_schema``.

        Raises:
            RequestError: An entity or version is unknown.
            UnavailableError: The champion cannot score, or the feature store is needed and away.
            StorageError: The records cannot be kept; then no answer is given.
        """
        started = time.perf_counter() if started is None else started
        received = datetime.now(UTC)
        active = model.active
        assert active is not None
        values = [row.__dict__ for row in rows]
        plan = active.plan
        ids = [f"{request_id}#{i}" for i in range(len(rows))]
        # Without a unit each row is drawn by itself: rows of one request must not share their luck (see LossStream).
        units = ids if plan.unit is None else [str(to_json(row[plan.unit])) for row in values]
        attempt = Attempt() if attempt is None else attempt
        # In the logs a unit is a hash; a prediction's own id tells nothing of anybody.
        hidden = ids if plan.unit is None else [self._hide(unit) for unit in units]
        variants = [_pinned(active, version)] * len(rows) if version else [plan.assign(unit) for unit in units]
        specs = [active.reads.get(v.version, model.spec) for v in variants] if active.reads else [model.spec]
        if active.reads or not isinstance(found, Found):
            down = None if isinstance(found, Found) else found
            sent = [row.model_fields_set for row in rows]
            found = find_each(specs, self._features, values, sent, self._metrics, down)
        attempt.common = common = partial(_common, model.spec, plan.revision, ids, hidden, values, rfc3339(received))
        if not version:
            attempt.assigned = variants
        if found.fallback:
            # Such a row is not scored: what it would be scored on is known to be no good.
            attempt.links["default"] = next(iter(found.fallback.values()))
        wanted = [_DEFAULT if i in found.fallback else v for i, v in enumerate(variants)]
        outputs, answered = self._scored(model, active, self._inputs(model, values, found), wanted, attempt)
        cells = {name: values.tolist() for name, values in outputs.items()}
        given = [{name: column[i] for name, column in cells.items()} for i in range(len(rows))]
        spent = (time.perf_counter() - started) * 1000
        records = _records(model.spec, common, values, found, variants, answered, given, spent)
        if plan.unit is not None:
            clean = without_unit(model.spec, plan.unit)
            for record in records:
                clean(record["request"], record["unit"])
        marks = {name: True for name, is_so in (("cached", "cache" in attempt.links), ("pinned", version)) if is_so}
        if marks:
            records = [record | marks for record in records]
        try:
            lines = self._log(model.name).extend(records)
        except StorageError:
            self._metrics.log_failures.labels(model.name).inc()
            raise
        if plan.shadows and self._shadows is not None:
            logged = zip(records, lines, strict=True)
            self._shadows.offer(plan, [(r, line) for r, line in logged if r["version"] != _DEFAULT.version])
        for variant in {v.version: v for v in answered}.values():
            many = sum(v.version == variant.version for v in answered)
            self._metrics.predicted(model.name, variant.version, variant.role, many)
        one = answered[0] if len({v.version for v in answered}) == 1 else None
        links = attempt.links
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

    def _scored(
        self,
        model: ModelRuntime,
        active: Active,
        inputs: Mapping[str, NDArray[Any]],
        variants: Sequence[Variant],
        attempt: Attempt,
    ) -> tuple[Outputs, list[Variant]]:
        """Score, and keep what failed on the way, whether there is an answer in the end or not."""
        outputs: Outputs | None = None
        try:
            outputs, answered = self._score(model, active, inputs, variants, attempt)
            return outputs, answered
        finally:
            attempt.scoring = ""
            if attempt.failed:
                self.keep_failures(model, failure_records(attempt, answered=outputs is not None))

    def keep_failures(self, model: ModelRuntime, records: Sequence[Mapping[str, Any]]) -> None:
        """Hand failures over to their log."""
        keep(lambda: self._failures(model.name), records, self._metrics.log_failures.labels(model.name).inc)

    def _score(
        self,
        model: ModelRuntime,
        active: Active,
        inputs: Mapping[str, NDArray[Any]],
        variants: Sequence[Variant],
        attempt: Attempt,
    ) -> tuple[Outputs, list[Variant]]:
        """Score each row on its variant and merge in the rows' order; the champion stands in for a broken canary."""
        first = variants[0]
        if all(v is first for v in variants):
            cached = self._cache.is_on and len(variants) == 1 and first.version in active.versions
            key = self._cache.key(model.name, active.versions[first.version].digest, inputs) if cached else b""
            kept = self._cache.get(key) if cached else None
            if kept is not None:
                attempt.links["cache"] = "the same inputs were scored by this version a short while ago"
                return kept, [first]
            outputs, variant = self._score_on(model, active, first, inputs, range(len(variants)), attempt)
            if cached and variant is first:
                self._cache.put(key, outputs)
            return outputs, [variant] * len(variants)
        merged: Outputs = {}
        answered = list(variants)
        for variant in {v.version: v for v in variants}.values():
            index = np.array([i for i, v in enumerate(variants) if v is variant])
            outputs, by = self._score_on(model, active, variant, take(inputs, index), index.tolist(), attempt)
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
        rows: Sequence[int],
        attempt: Attempt,
    ) -> tuple[Outputs, Variant]:
        """Score on a variant, or what stands behind it: the champion, the champion before, the declared default."""
        if variant is _DEFAULT:
            return _default(model, inputs), variant
        chain = [(variant, active.versions.get(variant.version), "")]
        champion = active.plan.champion
        if variant.version != champion.version:
            chain.append((champion, active.champion, "champion"))
        if active.previous is not None:
            chain.append((_standing_in(active.previous), active.previous, "previous"))
        error: VersionError | None = None
        for number, (asked, version, link) in enumerate(chain):
            attempt.scoring = asked.version
            try:
                if version is None:
                    raise VersionError("It could not be loaded.", "not_loaded", where=f"{model.name} {asked.version}")
                outputs = self._timed(model, version, inputs)
            except VersionError as failed:
                error = failed
                self._metrics.variant_errors.labels(model.name, asked.version).inc()
                self._warn(model.name, asked.version, failed)
                attempt.failed.append((asked.version, asked.role, failed.cause, rows))
                continue
            if link:
                attempt.links[link] = f"version {chain[number - 1][0].version} failed"
            return outputs, asked
        if model.spec.default is not None:
            attempt.links["default"] = f"version {champion.version} failed, and no other is held"
            return _default(model, inputs), _DEFAULT
        raise UnavailableError(
            f"The champion of {model.name} cannot score this request: {error.what if error else ''}",
            remedy="Try again later; the owner can see the cause in the service's log.",
        ) from error

    def _timed(self, model: ModelRuntime, version: LoadedVersion, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
        started = time.perf_counter()
        outputs = score(model.spec, version, inputs)
        self._metrics.scored(model.name, version.version, time.perf_counter() - started)
        return outputs

    def _warn(self, model: str, version: str, error: VersionError) -> None:
        with self._warned_lock:
            first = (model, version) not in self._warned
            self._warned.add((model, version))
        logger.log(logging.ERROR if first else logging.DEBUG, "%s %s failed on a request: %s", model, version, error)


def _common(
    spec: ModelSpec,
    revision: int,
    ids: Sequence[str],
    units: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    stamp: str,
    i: int,
) -> dict[str, Any]:
    """Return what every record of a row says, of an answer or of a failure."""
    moment = rows[i][spec.time_field] if spec.time_field else None
    return {
        "id": ids[i],
        "model": spec.name,
        "revision": revision,
        "time": rfc3339(moment) if moment is not None else stamp,
        "received_at": stamp,
        "unit": units[i],
    }


def _records(
    spec: ModelSpec,
    common: Callable[[int], dict[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    found: Found,
    assigned: Sequence[Variant],
    answered: Sequence[Variant],
    outputs: Sequence[Mapping[str, Any]],
    latency_ms: float,
) -> list[dict[str, Any]]:
    features: dict[str, list[Any]] = {}
    times: dict[str, list[Any]] = {}
    if found.single is None:
        features = {name: column.tolist() for name, column in found.columns.items()}
        times = {view: [to_json(moment) for moment in column] for view, column in found.times.items()}
    records = []
    for i, row in enumerate(rows):
        record = common(i)
        record["version"] = answered[i].version
        record["variant"] = answered[i].role
        record["request"] = {f.name: row[f.name] for f in spec.request}
        if found.single is None:
            record["features"] = {name: column[i] for name, column in features.items()}
            record["feature_times"] = {view: column[i] for view, column in times.items()}
        else:
            record["features"], record["feature_times"] = found.single
        record["overrides"] = found.overrides[i]
        record["outputs"] = outputs[i]
        record["latency_ms"] = round(latency_ms, 3)
        record |= _marks(found, i)
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
