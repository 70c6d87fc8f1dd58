"""What the service counts, for Prometheus."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SCORE_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5)


class _BulkHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add observations, counted by bucket (the last is +Inf), and their sum."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class _Tally:
    """Counts in plain memory, brought to Prometheus by ``flush``.

    Writing one number where several workers share their metrics takes some microseconds, and a request has six.
    """

    def __init__(self, child: Counter | _BulkHistogram, bounds: Sequence[float] = ()) -> None:
        self._child = child
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._counts[0] += count

    def observe(self, value: float) -> None:
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[bucket] += 1
            self._total += value

    def flush(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, [0] * len(self._counts)
            total, self._total = self._total, 0.0
        if not any(counts):
            return
        if isinstance(self._child, _BulkHistogram):
            self._child.add(counts, total)
        else:
            self._child.inc(counts[0])


class Metrics:
    """The service's metrics, made once per process.

    What requests count (the methods from ``answered`` on) is gathered in memory and reaches Prometheus with ``flush``,
    which a scrape does for the worker that it meets, and every worker does with each look at the plans.

    Where ``PROMETHEUS_MULTIPROC_DIR`` is set before ``prometheus_client`` is imported, the workers of a service write
    into that directory and any of them answers a scrape for all.

    Args:
        registry: Where to register them; a fresh one for every test.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self._tallies: dict[tuple[str, ...], _Tally] = {}
        self.requests = Counter("trellis_requests", "Answered requests.", ["model", "code"], registry=registry)
        self.request_seconds = _BulkHistogram(
            "trellis_request_seconds", "Time to answer, body read.", ["model"], buckets=_SECONDS, registry=registry
        )
        self.predictions = Counter(
            "trellis_predictions", "Rows answered.", ["model", "version", "variant"], registry=registry
        )
        self.score_seconds = _BulkHistogram(
            "trellis_score_seconds",
            "Time of one call of a predictor.",
            ["model", "version"],
            buckets=_SCORE_SECONDS,
            registry=registry,
        )
        self.variant_errors = Counter(
            "trellis_variant_errors", "Calls in which a version raised.", ["model", "version"], registry=registry
        )
        self.degraded = Counter(
            "trellis_degraded", "Rows answered without a view's data.", ["model", "view", "reason"], registry=registry
        )
        self.stale = Counter(
            "trellis_stale",
            "Rows for which a view was past its freshness SLA, by what was done: served, imputed, rejected, fell_back.",
            ["model", "view", "action"],
            registry=registry,
        )
        self.shadows = Counter(
            "trellis_shadows",
            "Sampled rows by what became of them in a shadow: scored, failed, lost, dropped, resting.",
            ["model", "version", "outcome"],
            registry=registry,
        )
        self.refused = Counter(
            "trellis_refused", "Requests refused for their key, by reason.", ["reason"], registry=registry
        )
        self.repeats = Counter("trellis_repeats", "Requests answered from memory.", ["model"], registry=registry)
        self.labels = Counter("trellis_labels", "Labels taken in.", ["model"], registry=registry)
        self.load_failures = Counter(
            "trellis_load_failures", "Versions that could not be loaded.", ["model"], registry=registry
        )
        self.store_failures = Counter(
            "trellis_store_failures", "Reads that a store did not answer.", ["store"], registry=registry
        )
        self.log_failures = Counter(
            "trellis_log_failures", "Requests refused because they could not be logged.", ["model"], registry=registry
        )
        self.revision = Gauge(
            "trellis_plan_revision",
            "Revision of the plan being executed; 0 where a model has one and is not answered yet.",
            ["model"],
            registry=registry,
            multiprocess_mode="min",
        )
        self.in_flight = Gauge(
            "trellis_requests_in_flight",
            "Requests that wait for a thread or are worked on by one.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.log_pending = Gauge(
            "trellis_log_pending",
            "Answered predictions not yet on the disk.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def expect(self, model: str, versions: Iterable[str]) -> None:
        """Begin a model's counts of failures at zero: that a series has risen which begins at one, nobody can tell."""
        for counter in (self.log_failures, self.load_failures):
            counter.labels(model)
        for version in versions:
            self.variant_errors.labels(model, version)

    def answered(self, model: str, code: int, seconds: float) -> None:
        """Count an answered request."""
        self._tally("requests", model, str(code)).add(1)
        self._tally("request_seconds", model).observe(seconds)

    def scored(self, model: str, version: str, seconds: float) -> None:
        """Count one call of a predictor."""
        self._tally("score_seconds", model, version).observe(seconds)

    def predicted(self, model: str, version: str, role: str, rows: int) -> None:
        """Count answered rows."""
        self._tally("predictions", model, version, role).add(rows)

    def settled(self, model: str, view: str, action: str) -> None:
        """Count a row for which a view was past its SLA."""
        self._tally("stale", model, view, action).add(1)

    def lacked(self, model: str, view: str, reason: str, rows: int = 1) -> None:
        """Count rows answered without a view's data."""
        self._tally("degraded", model, view, reason).add(rows)

    def shadowed(self, model: str, version: str, outcome: str, rows: int) -> None:
        """Count sampled rows by what became of them in a shadow."""
        self._tally("shadows", model, version, outcome).add(rows)

    def flush(self) -> None:
        """Bring what was gathered to Prometheus."""
        for tally in list(self._tallies.values()):
            tally.flush()

    def _tally(self, *key: str) -> _Tally:
        tally = self._tallies.get(key)
        if tally is None:
            bounds = {"request_seconds": _SECONDS, "score_seconds": _SCORE_SECONDS}.get(key[0], ())
            made = _Tally(getattr(self, key[0]).labels(*key[1:]), bounds)
            tally = self._tallies.setdefault(key, made)
        return tally

    def exposition(self) -> bytes:
        """Return the metrics of all workers in Prometheus's text format."""
        self.flush()
        # A registry of one's own is answered from memory, whoever else in the process has set the variable.
        if self._registry is REGISTRY and "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            from prometheus_client.multiprocess import MultiProcessCollector

            together = CollectorRegistry()
            MultiProcessCollector(together)  # type: ignore[no-untyped-call]
            return generate_latest(together)
        return generate_latest(self._registry)
