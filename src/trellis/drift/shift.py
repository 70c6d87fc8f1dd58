"""How far one window lies from the reference, column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trellis.drift.noise import roots
from trellis.drift.reference import Reference, ReferenceColumn, distance, null_rate, place_and_width
from trellis.drift.statistics import (
    chi_square,
    jensen_shannon,
    ks_on_bins,
    kullback_leibler,
    psi,
    psi_bias,
    wasserstein,
)
from trellis.drift.summary import CategorySummary, NumericSummary, Summary, Window


@dataclass(frozen=True)
class Shift:
    """One column against the reference.

    Attributes:
        name: The column.
        view: Its feature view.
        psi: Population stability index with its expectation under no change taken off, at least 0.
        raw_psi: The same before that.
        p_value: Chi-square on production counts or, where larger, of the column's own noise (``trellis.drift.noise``).
        adjusted: The same, adjusted over all questions of the look.
        ks: Kolmogorov-Smirnov statistic at every cell's edge; 0 for categories.
        jensen_shannon: Distance in [0, 1].
        moved: Wasserstein-1 distance in reference spreads; total variation for categories.
        null_rate: Share of nulls now.
        reference_null_rate: Share of nulls in training.
        unseen: Share of values that training did not have (categories whose whole vocabulary is known).
        effective_rows: Independent rows that would say as much.
        kullback_leibler: Divergence of now from training, in nats.
        wasserstein: Wasserstein-1 distance in the column's own unit; 0 for categories.
        ks_p_value: Of the Kolmogorov-Smirnov statistic, on effective rows; reported, not judged; 1 for categories.
        level: 0 not shifted, 1 shifted, 2 strongly shifted.
    """

    name: str
    view: str
    psi: float
    raw_psi: float
    p_value: float
    ks: float
    jensen_shannon: float
    moved: float
    null_rate: float
    reference_null_rate: float
    unseen: float
    effective_rows: float
    kullback_leibler: float = 0.0
    wasserstein: float = 0.0
    ks_p_value: float = 1.0
    adjusted: float = 1.0
    level: int = 0

    def judged(self, adjusted: float, alpha: float, warn: float, alarm: float) -> Shift:
        """Return it with its adjusted p-value and level: large enough, and sure enough."""
        level = 0 if adjusted > alpha or self.psi < warn else 2 if self.psi >= alarm else 1
        return replace(self, adjusted=adjusted, level=level)


def compare(reference: Reference, window: Window, views: Mapping[str, str]) -> list[Shift]:
    """Compare every column that both sides have and that holds rows, in the reference's order."""
    return [
        _shift(name, views.get(name, "request"), column, window.columns[name])
        for name, column in reference.columns.items()
        if name in window.columns and window.columns[name].rows
    ]


def _shift(name: str, view: str, column: ReferenceColumn, now: Summary) -> Shift:
    before = column.summary
    old, new, noise = before.cells, now.cells, column.noise
    rows = (float(old.sum()) / noise.effect, noise.effective(float(new.sum())))
    raw = psi(old, new)
    cells = int(((old > 0) | (new > 0)).sum())
    unseen, far, ks = 0.0, 0.0, (0.0, 1.0)
    if isinstance(before, CategorySummary) and isinstance(now, CategorySummary) and not before.other:
        unseen = now.other / now.rows
    if isinstance(before, NumericSummary) and isinstance(now, NumericSummary):
        far = wasserstein(before, now)
        fine = bool(before.fine) and len(before.fine) == len(now.fine)
        sides = [np.array(s.fine if fine else s.counts, dtype=np.float64) for s in (before, now)]
        ks = ks_on_bins(sides[0], sides[1], rows=rows)
    return Shift(
        name,
        view,
        max(0.0, raw - psi_bias(cells, *rows)),
        raw,
        _p_value(column, now),
        ks[0],
        jensen_shannon(old, new),
        distance(before, now, before),
        null_rate(now),
        null_rate(before),
        unseen,
        rows[1],
        kullback_leibler(old, new),
        far,
        ks[1],
    )


def _p_value(column: ReferenceColumn, now: Summary) -> float:
    """Rows as if independent, or periods as they differ by themselves: whichever is less surprised.

    A number is asked three times: for its shares, its place and its width; the smallest counts threefold (Bonferroni).
    """
    old, new = column.summary.cells, now.cells
    alone = chi_square(old, new)[2]
    if not column.noise.spectrum:
        return alone
    asked = [column.noise.p_value(roots(new), float(new.sum()))]
    at, rows = place_and_width(now, column.summary), float(now.rows - now.nulls)
    if at is not None and column.place_noise.spectrum:
        noises = (column.place_noise, column.width_noise)
        asked += [noise.p_value(np.array([x]), rows) for noise, x in zip(noises, at, strict=True)]
    return max(alone, min(1.0, len(asked) * min(asked)))


def trend(reference: Reference, windows: Sequence[Window], name: str) -> float:
    """Kendall's rank correlation of a column's place with time, in [-1, 1]; 0 below four windows.

    A number's place is its mean; a category's is its distance from training.
    """
    column = reference.columns[name]
    places: list[float] = []
    for window in windows:
        now = window.columns.get(name)
        if isinstance(now, NumericSummary) and now.mean is not None:
            places.append(now.mean)
        elif isinstance(now, CategorySummary) and now.rows:
            places.append(distance(column.summary, now, column.summary))
    if len(places) < 4:
        return 0.0
    pairs = [(b > a) - (b < a) for i, a in enumerate(places) for b in places[i + 1 :]]
    return sum(pairs) / len(pairs)
