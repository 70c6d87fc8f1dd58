"""What the service counts, for Prometheus."""

from __future__ import annotations

import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SCORE_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5)


class Metrics:
    """The service's metrics, made once per process.

    Where ``PROMETHEUS_MULTIPROC_DIR`` is set before ``prometheus_client`` is imported, the workers of a service write
    into that directory and any of them answers a scrape for all.

    Args:
        registry: Where to register them; a fresh one for every test.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self.requests = Counter("trellis_requests", "Answered requests.", ["model", "code"], registry=registry)
        self.request_seconds = Histogram(
            "trellis_request_seconds", "Time to answer, body read.", ["model"], buckets=_SECONDS, registry=registry
        )
        self.predictions = Counter(
            "trellis_predictions", "Rows answered.", ["model", "version", "variant"], registry=registry
        )
        self.score_seconds = Histogram(
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
            "Revision of the plan being executed.",
            ["model"],
            registry=registry,
            multiprocess_mode="min",
        )
        self.log_pending = Gauge(
            "trellis_log_pending",
            "Answered predictions not yet on the disk.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def exposition(self) -> bytes:
        """Return the metrics of all workers in Prometheus's text format."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            from prometheus_client.multiprocess import MultiProcessCollector

            together = CollectorRegistry()
            MultiProcessCollector(together)  # type: ignore[no-untyped-call]
            return generate_latest(together)
        return generate_latest(self._registry)
