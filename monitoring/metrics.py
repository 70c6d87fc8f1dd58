"""What the last look found, as Prometheus metrics: a text file (node exporter's textfile format) and an exporter."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from monitoring.files import write_atomically
from monitoring.performance import Point
from trellis.drift import Diagnosis, Window
from trellis.ledger import Finding

OUTCOMES = ("STABLE", "DRIFT", "UPSTREAM_FAULT", "INSUFFICIENT")


def publish(
    path: Path,
    model: str,
    version: str,
    window: Window,
    found: Diagnosis,
    series: Sequence[Point],
    findings: Sequence[Finding],
) -> None:
    """Write a model's metrics into the text file; other models' stay.

    Args:
        path: The file, replaced as a whole.
        model: The model.
        version: The version watched.
        window: The window judged.
        found: Its diagnosis.
        series: ``Point`` rows; the newest labelled one of every version is published.
        findings: What was wrong with labels.
    """
    registry = CollectorRegistry()
    for family in _kept(path, model):
        registry.register(_Fixed(family))

    own = CollectorRegistry()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, ["model", *labels], registry=own)

    outcome = gauge("trellis_drift_outcome", "1 for the outcome of the last look, 0 for the others.", "outcome")
    for name in OUTCOMES:
        outcome.labels(model, name).set(name == found.outcome)
    info = gauge("trellis_drift_info", "Kind and recommended action of the last look.", "version", "kind", "action")
    info.labels(model, version, found.kind, found.action).set(1)
    psi = gauge("trellis_drift_psi", "Population stability index against training, bias corrected.", "column", "view")
    nulls = gauge("trellis_drift_null_ratio", "Share of rows without a value.", "column", "view")
    level = gauge("trellis_drift_level", "0 not shifted, 1 shifted, 2 strongly shifted.", "column", "view")
    for shift in found.shifts:
        psi.labels(model, shift.name, shift.view).set(shift.psi)
        nulls.labels(model, shift.name, shift.view).set(shift.null_rate)
        level.labels(model, shift.name, shift.view).set(shift.level)
    fault = gauge("trellis_drift_fault", "Signs of an upstream fault in the last look.", "column", "view", "kind")
    for item in found.faults:
        fault.labels(model, item.column, item.view, item.kind).set(1)
    gauge("trellis_watch_rows", "Predictions in the window judged.").labels(model).set(window.rows)
    end = gauge("trellis_watch_window_end_seconds", "End of the window judged, event time, Unix seconds.")
    end.labels(model).set(_seconds(window.end))
    gauge("trellis_watch_run_seconds", "When the last look was taken, Unix seconds.").labels(model).set(time.time())
    if found.harm is not None:
        harm = gauge("trellis_model_loss_increase", "Mean loss minus the one expected from training.", "version")
        harm.labels(model, version).set(found.harm.increase)
    _performance(own, model, series)
    wrong = gauge("trellis_label_findings", "Labels left out of the ledger, by reason.", "kind")
    for finding in findings:
        wrong.labels(model, finding.kind).set(finding.count)

    families = [*registry.collect(), *own.collect()]
    write_atomically(path, _render(families))


def _performance(registry: CollectorRegistry, model: str, series: Sequence[Point]) -> None:
    labels = ["model", "version"]
    loss = Gauge("trellis_model_loss", "Mean loss of the newest labelled window.", labels, registry=registry)
    coverage = Gauge(
        "trellis_label_coverage", "Share of predictions with a label, same window.", labels, registry=registry
    )
    value = Gauge(
        "trellis_model_metric", "Metric of the newest labelled window.", [*labels, "metric"], registry=registry
    )
    for point in series:  # oldest first, so that the newest stays
        if point.loss is None:
            continue
        loss.labels(model, point.version).set(point.loss)
        coverage.labels(model, point.version).set(point.labels / point.predictions)
        for name, number in point.metrics.items():
            value.labels(model, point.version, name).set(number)


def read_families(path: Path) -> list[Metric]:
    """Read the text file; nothing where it is not there or is damaged (the next look writes it anew)."""
    try:
        return list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []


class TextFile:
    """A collector that reads the text file at every scrape."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        """Yield what the last look wrote."""
        yield from read_families(self._path)


class _Fixed:
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _kept(path: Path, model: str) -> Iterator[Metric]:
    for family in read_families(path):
        family.samples = [s for s in family.samples if s.labels.get("model") != model]
        if family.samples:
            yield family


def _render(families: Sequence[Metric]) -> str:
    """Render families, those of one name together, as the format demands."""
    together: dict[str, Metric] = {}
    for family in families:
        if family.name in together:
            together[family.name].samples += family.samples
        else:
            together[family.name] = family
    registry = CollectorRegistry()
    for family in together.values():
        if family.samples:
            registry.register(_Fixed(family))
    return generate_latest(registry).decode()


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
