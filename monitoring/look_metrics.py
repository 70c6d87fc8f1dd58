"""More of a look as metrics: intervals of the metrics, the expected loss, labels not due yet, age of the features."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge

from trellis.adapters.look_store import Look

# Of fewer due labels a share says little; as many as the ledger asks for before it corrects an estimate.
_FEWEST_DUE = 30


def add_look(registry: CollectorRegistry, look: Look) -> None:
    """Register a look's figures: of every version and quantity the newest."""

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, ["model", *labels], registry=registry)

    low = gauge("trellis_model_metric_low", "Lower end of a metric's 95 % interval.", "version", "metric")
    high = gauge("trellis_model_metric_high", "Upper end of a metric's 95 % interval.", "version", "metric")
    for figure in look.performance:  # oldest first, so that the newest stays
        if not figure.segment and figure.quantity != "loss" and figure.low is not None and figure.high is not None:
            low.labels(look.model, figure.version, figure.quantity).set(figure.low)
            high.labels(look.model, figure.version, figure.quantity).set(figure.high)
    if look.expected_loss is not None:
        gauge("trellis_model_loss_expected", "Mean loss expected from training.").labels(look.model).set(
            look.expected_loss
        )
    pending = gauge("trellis_labels_pending", "Predictions whose label is not there and not due yet.")
    pending.labels(look.model).set(sum(s.predictions - s.labelled - s.overdue for s in look.labels))
    _due(look, gauge)
    age = gauge("trellis_feature_age_seconds", "Median age of a view's features when they were used.", "view")
    for view, hours in look.ages_hours.items():
        age.labels(look.model, view).set(hours * 3600)


def _due(look: Look, gauge: Callable[..., Gauge]) -> None:
    """Register what came of labels that are due: of the newest window that can tell, so that a mended feed is well."""
    told = [state for state in look.labels if state.due >= _FEWEST_DUE]
    if not told:
        return
    newest = told[-1]
    for name, text, value in (
        ("trellis_labels_due", "Predictions past the declared delay, newest window with 30 such.", newest.due),
        ("trellis_labels_overdue", "Of these, predictions without a label.", newest.overdue),
        ("trellis_label_coverage", "Of these, share with a label.", 1 - newest.overdue / newest.due),
    ):
        gauge(name, text).labels(look.model).set(value)
