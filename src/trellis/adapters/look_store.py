"""What every look at a model found, as one small JSON file per window: ``<home>/looks/<model>/<window end>.json``.

Written by the watch job, read by the pages and the exporter: numbers that are ready to be shown, so that a page never
reads the prediction log. Verdicts are taken from decisions, never from here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ColumnDrift:
    """One column against training.

    Attributes:
        name, view: The column and its feature view (``request`` for what callers send).
        psi: Population stability index with its bias taken off, at least 0.
        adjusted: p-value adjusted over all questions of the look, in [0, 1].
        level: 0 not shifted, 1 shifted, 2 strongly shifted.
        null_rate, reference_null_rate: Share of rows without a value, now and in training.
        fault: Kind of an upstream fault found in it; empty for none.
    """

    name: str
    view: str
    psi: float
    adjusted: float
    level: int
    null_rate: float
    reference_null_rate: float
    fault: str = ""


@dataclass(frozen=True)
class Figure:
    """One point of a performance series.

    Attributes:
        start, end: The window, RFC 3339.
        version: The version that answered.
        segment, value: Column and value of a segment; both empty for all rows.
        quantity: ``loss`` (mean per-row loss) or the name of a metric.
        stage: How it is known: ``estimated`` without labels, ``corrected`` with a few, ``realised``.
        point: The figure; low and high: its two-sided 95 % interval, None where the rows do not allow one.
        predictions: Predictions made.
        labels: How many of them have a label.
    """

    start: str
    end: str
    version: str
    segment: str
    value: str
    quantity: str
    stage: str
    point: float
    low: float | None
    high: float | None
    predictions: int
    labels: int


@dataclass(frozen=True)
class LabelState:
    """The labels of one window's predictions: those known, those not due yet, and those overdue.

    A label is overdue when the model's declared delay has passed without it, and one that came before is not due yet;
    ``due`` counts predictions for which it has passed, with a label or without.
    """

    start: str
    end: str
    predictions: int
    labelled: int
    overdue: int
    due: int = 0


@dataclass(frozen=True)
class Look:
    """What one look at a model found.

    Attributes:
        model, version: Whose, and the version whose training data are the baseline.
        owner, description: As the model declares them.
        start, end: The window that was judged, RFC 3339; event time.
        rows: Predictions in the window.
        outcome, kind, action, reason, since: The diagnosis, see ``trellis.drift.Diagnosis``.
        decision: Id of the drift decision.
        next_look: When the next look is due by the model's policy, RFC 3339; event time.
        psi_warn, psi_alarm: The policy's bands.
        metric: The metric the model is judged by; floor: its worst acceptable value.
        expected_loss: Mean loss on unseen rows at training; None where it is not known.
        label_delay_hours: How long the truth usually takes, in hours.
        drift: Every watched column, strongest shift first.
        performance: All figures of the windows looked at, oldest window first.
        labels: State of the labels by window, oldest first.
        findings: Labels left out of the ledger, by reason.
        ages_hours: Median age of the features when they were used, by view.
    """

    model: str
    version: str
    owner: str
    description: str
    start: str
    end: str
    rows: int
    outcome: str
    kind: str
    action: str
    reason: str
    since: str | None
    decision: str
    next_look: str
    psi_warn: float
    psi_alarm: float
    metric: str
    floor: float
    expected_loss: float | None
    label_delay_hours: float
    drift: tuple[ColumnDrift, ...] = ()
    performance: tuple[Figure, ...] = ()
    labels: tuple[LabelState, ...] = ()
    findings: Mapping[str, int] = field(default_factory=dict)
    ages_hours: Mapping[str, float] = field(default_factory=dict)


_LOOK = TypeAdapter(Look)


class LookStore:
    """The looks of one home, read; a file that has not changed is parsed once.

    Args:
        home: Trellis's home.
    """

    def __init__(self, home: Path) -> None:
        self._directory = home / "looks"
        self._read: dict[Path, tuple[tuple[int, int], Look]] = {}

    def path(self, look: Look) -> Path:
        """Return the file of a look; one at the same window has the same."""
        return self._directory / look.model / f"{look.end.replace(':', '').replace('-', '')}.json"

    def models(self) -> list[str]:
        """Return the models that were looked at, sorted."""
        if not self._directory.is_dir():
            return []
        return sorted(path.name for path in self._directory.iterdir() if path.is_dir())

    def latest(self, model: str, count: int = 1) -> list[Look]:
        """Return the newest looks by window, oldest of them first; a file that cannot be read is told and left out."""
        paths = sorted((self._directory / model).glob("[0-9]*.json"))[-count:]
        return [look for path in paths if (look := self._load(path)) is not None]

    def _load(self, path: Path) -> Look | None:
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            kept = self._read.get(path)
            if kept is not None and kept[0] == stamp:
                return kept[1]
            look = _LOOK.validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            logger.warning("%s cannot be read and is left out: %s", path, str(error).splitlines()[0])
            return None
        self._read[path] = (stamp, look)
        return look
