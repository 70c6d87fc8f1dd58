"""What the last look found, as Prometheus metrics: a text file per model (node exporter's format) and an exporter."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import copy
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from monitoring.look_metrics import add_look
from monitoring.performance import Standing, newest
from trellis.adapters.files import write_atomically
from trellis.adapters.look_store import Look
from trellis.drift import Diagnosis
from trellis.ledger import Point
from trellis.quality import QualityFinding, SkewReport

# More would make a metric of every customer.
_MOST_SEGMENTS = 40
# A model's name has no hyphen, so none can take another's file.
_FILE = "look-{}.prom"
OUTCOMES = ("STABLE", "DRIFT", "UPSTREAM_FAULT", "INSUFFICIENT")


def publish(
    directory: Path,
    look: Look,
    found: Diagnosis,
    standing: Standing,
    quality: Sequence[QualityFinding] = (),
    skew: SkewReport | None = None,
    *,
    allowed: float,
) -> None:
    """Write a model's metrics into its text file, so that looks at two models at once cannot lose either's.

    Args:
        directory: Where the files are; the model's is replaced as a whole.
        look: What the look found.
        found: The diagnosis of the window judged.
        standing: What is known of performance; the newest window of every version and stage is published.
        quality: What was wrong with the window's rows.
        skew: Its features beside their recomputation; what was said of them last stays where nothing was recomputed.
        allowed: Increase of the mean loss that the model's policy does not call harm yet.
    """
    model, version = look.model, look.version
    _split(directory)
    path = directory / _FILE.format(model)
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
    gauge("trellis_watch_rows", "Predictions in the window judged.").labels(model).set(look.rows)
    end = gauge("trellis_watch_window_end_seconds", "End of the window judged, event time, Unix seconds.")
    end.labels(model).set(_seconds(look.end))
    gauge("trellis_watch_run_seconds", "When the last look was taken, Unix seconds.").labels(model).set(time.time())
    if found.harm is not None:
        harm = gauge("trellis_model_loss_increase", "Mean loss minus the one expected from training.", "version")
        harm.labels(model, version).set(found.harm.increase)
        low = gauge("trellis_model_loss_increase_low", "Lower end of its 95 % interval.", "version")
        low.labels(model, version).set(found.harm.low)
        most = gauge("trellis_model_loss_increase_allowed", "The increase that the policy allows.", "version")
        most.labels(model, version).set(allowed)
    _performance(own, model, standing.series.points)
    _stages(own, model, version, standing)
    _rows(own, model, quality)
    if skew is not None and skew.rows:
        _skew(own, model, skew)
    else:
        for family in _read(path):
            if family.name.startswith("trellis_skew_"):
                own.register(_Fixed(family))
    wrong = gauge("trellis_label_findings", "Labels left out of the ledger, by reason.", "kind")
    for finding in standing.findings:
        wrong.labels(model, finding.kind).set(finding.count)
    add_look(own, look)

    write_atomically(path, generate_latest(own).decode())


def _performance(registry: CollectorRegistry, model: str, series: Sequence[Point]) -> None:
    labels = ["model", "version"]
    loss = Gauge("trellis_model_loss", "Mean loss of the newest labelled window.", labels, registry=registry)
    value = Gauge(
        "trellis_model_metric", "Metric of the newest labelled window.", [*labels, "metric"], registry=registry
    )
    for point in series:  # oldest first, so that the newest stays
        if point.loss is None:
            continue
        loss.labels(model, point.version).set(point.loss)
        for name, number in point.metrics.items():
            value.labels(model, point.version, name).set(number)


def _stages(registry: CollectorRegistry, model: str, version: str, standing: Standing) -> None:
    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, ["model", *labels], registry=registry)

    known = standing.series
    ends = {
        "": gauge("trellis_performance_loss", "Mean loss of the newest window of a stage.", "version", "stage"),
        "low": gauge("trellis_performance_loss_low", "Lower end of its 95 % interval.", "version", "stage"),
        "high": gauge("trellis_performance_loss_high", "Upper end of its 95 % interval.", "version", "stage"),
    }
    flag = gauge("trellis_performance_flag", "An assumption of the newest window that fails.", "version", "flag")
    for point in known.points:  # oldest first, so that the newest stays
        complete = point.realised if point.stage == "realised" else None
        for stage, e in (("estimated", point.estimated), ("corrected", point.corrected), ("realised", complete)):
            if e is not None:
                for name, value in (("", e.value), ("low", e.low), ("high", e.high)):
                    ends[name].labels(model, point.version, stage).set(value)
    latest = {p.version: p for p in newest(known.points)}
    for point in latest.values():
        for name in point.flags:
            flag.labels(model, point.version, name).set(1)
    part = gauge("trellis_segment_loss", "Mean loss of the newest window.", "version", "segment", "value", "stage")
    last = [p for p in known.segments if latest[p.version].end == p.end and p.best is not None]
    for point in sorted(last, key=lambda p: -p.predictions)[:_MOST_SEGMENTS]:
        assert point.best is not None
        part.labels(model, point.version, point.segment, point.value, point.stage).set(point.best.value)
    scored = gauge("trellis_estimates_scored", "Windows whose first estimate was held against the truth.", "version")
    held = gauge("trellis_estimates_held", "Of these, windows whose interval held it.", "version")
    for track in known.tracks:
        scored.labels(model, track.version).set(track.scored)
        held.labels(model, track.version).set(track.held)
    if standing.harm is not None:
        harm = gauge("trellis_performance_harm", "Change of the mean loss against the reference.", "version", "stage")
        low = gauge("trellis_performance_harm_low", "Lower end of its 95 % interval.", "version", "stage")
        harm.labels(model, version, standing.harm.stage).set(standing.harm.change)
        low.labels(model, version, standing.harm.stage).set(standing.harm.low)


def _rows(registry: CollectorRegistry, model: str, quality: Sequence[QualityFinding]) -> None:
    wrong = Gauge("trellis_data_quality", "Share of rows with a fault.", ["model", "kind", "column"], registry=registry)
    for item in quality:
        wrong.labels(model, item.kind, item.column).set(item.share)


def _skew(registry: CollectorRegistry, model: str, skew: SkewReport) -> None:
    for name, text, value in (
        ("trellis_skew_rate", "Share of rows with a feature other than its recomputation.", skew.rate),
        ("trellis_skew_slo", "Largest acceptable share.", skew.slo),
        ("trellis_skew_rows", "Rows replayed.", skew.rows),
    ):
        Gauge(name, text, ["model"], registry=registry).labels(model).set(value)
    cause = Gauge("trellis_skew_finding", "Rows a cause concerns.", ["model", "cause", "view"], registry=registry)
    for found in skew.findings:
        cause.labels(model, found.cause, found.view).set(found.rows)


def read_families(directory: Path) -> list[Metric]:
    """Read what the last looks wrote, of every model; families of one name are together, as the format demands."""
    together: dict[str, Metric] = {}
    for path in sorted(directory.glob(_FILE.format("*"))):
        for family in _read(path):
            kept = together.setdefault(family.name, family)
            if kept is not family:
                kept.samples += family.samples
    return list(together.values())


def _read(path: Path) -> list[Metric]:
    """Read a file; nothing where it is not there or is damaged (the next look writes it anew)."""
    try:
        return [f for f in text_string_to_metric_families(path.read_text(encoding="utf-8")) if f.samples]
    except (OSError, ValueError):
        return []


class LookMetrics:
    """A collector that reads the text files at every scrape.

    Args:
        directory: Where they are.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterator[Metric]:
        """Yield what the last looks wrote."""
        yield from read_families(self._directory)


class _Fixed:
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _split(directory: Path) -> None:
    """Give every model of the one file that looks shared before its own, and take that file away."""
    shared = directory / "watch.prom"
    if not shared.exists():
        return
    families = _read(shared)
    for model in sorted({s.labels["model"] for f in families for s in f.samples if "model" in s.labels}):
        own = CollectorRegistry()
        for family in families:
            part = copy(family)
            part.samples = [s for s in family.samples if s.labels.get("model") == model]
            if part.samples:
                own.register(_Fixed(part))
        path = directory / _FILE.format(model)
        if not path.exists():
            write_atomically(path, generate_latest(own).decode())
    shared.unlink(missing_ok=True)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
