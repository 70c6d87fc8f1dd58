"""From a model's state to what its page says: tables, tiles and charts, no markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.console.plots import Chart, colours_of, newest_figures, performance_chart
from services.console.reading import ModelState
from services.console.upcoming import Upcoming, upcoming
from trellis.adapters.look_store import ColumnDrift, Figure, LabelState, Look
from trellis.rollout.document import Rollout

_FEW_LABELS = 30  # below, a mean loss says little and is shown last


@dataclass(frozen=True)
class ColumnRow:
    """A column's drift: now, and its level at every look shown, oldest first (-1 where it was not watched)."""

    now: ColumnDrift
    history: tuple[int, ...]
    psis: tuple[float, ...]


@dataclass(frozen=True)
class SegmentRow:
    """A segment's loss in the newest labelled window against that of all rows.

    Attributes:
        segment, value: The column and its value.
        version: Whose answers.
        share: Its share of predictions, now; before: the same in the oldest window shown, None where unknown.
        figure: Its mean loss.
        whole: The mean loss of all rows.
        worse: Whether its interval lies wholly above that.
    """

    segment: str
    value: str
    version: str
    share: float
    before: float | None
    figure: Figure
    whole: float
    worse: bool


@dataclass(frozen=True)
class Stop:
    """A stop on a rollout's way: ``done``, ``here`` or ``ahead``."""

    name: str
    state: str


@dataclass(frozen=True)
class ModelView:
    """What a model's page shows beside its state."""

    state: ModelState
    next: tuple[Upcoming, ...]
    headline: Figure | None
    charts: tuple[Chart, ...]
    colours: Mapping[str, int]
    table: tuple[Figure, ...]
    columns: tuple[ColumnRow, ...]
    looks: tuple[str, ...]
    segments: tuple[SegmentRow, ...]
    labels: tuple[LabelState, ...]
    outstanding: int
    overdue: int
    stops: tuple[Stop, ...]


def view_of(state: ModelState) -> ModelView:
    """Put a model's page together."""
    look = state.look
    figures = newest_figures(state.looks)
    labels = look.labels if look else ()
    serving = [*state.plan.variants, *state.plan.shadows] if state.plan else []
    colours = colours_of([*(f.version for f in figures), *(v.version for v in serving)])
    return ModelView(
        state=state,
        next=tuple(upcoming(state)),
        headline=_headline(figures, look, state),
        charts=_charts(figures, look, colours),
        colours=colours,
        table=tuple(f for f in reversed(figures) if look and f.quantity in (look.metric, "loss") and not f.segment),
        columns=_columns(state.looks),
        looks=tuple(one.end[:10] for one in state.looks),
        segments=_segments(figures, state),
        labels=labels,
        outstanding=sum(s.predictions - s.labelled for s in labels),
        overdue=sum(s.overdue for s in labels),
        stops=_stops(state),
    )


def _headline(figures: Sequence[Figure], look: Look | None, state: ModelState) -> Figure | None:
    if look is None:
        return None
    champion = state.plan.champion.version if state.plan else look.version
    mine = [f for f in figures if f.quantity == look.metric and not f.segment]
    return next((f for f in reversed(mine) if f.version == champion), None)


def _charts(figures: Sequence[Figure], look: Look | None, colours: Mapping[str, int]) -> tuple[Chart, ...]:
    if look is None:
        return ()
    metric = performance_chart(
        figures, look.metric, f"{look.metric}, by window", colours, rule=look.floor, rule_text=f"floor {look.floor:g}"
    )
    expected = look.expected_loss
    loss = performance_chart(
        figures,
        "loss",
        "Mean loss, by window (lower is better)",
        colours,
        rule=expected,
        rule_text="" if expected is None else f"expected from training {expected:.3f}",
    )
    return tuple(chart for chart in (metric, loss) if chart is not None)


def _columns(looks: Sequence[Look]) -> tuple[ColumnRow, ...]:
    if not looks:
        return ()
    by_look = [{c.name: c for c in look.drift} for look in looks]
    rows = [
        ColumnRow(
            now,
            tuple(_level(seen.get(now.name)) for seen in by_look),
            tuple(seen[now.name].psi if now.name in seen else 0.0 for seen in by_look),
        )
        for now in looks[-1].drift
    ]
    return tuple(sorted(rows, key=lambda r: (not r.now.fault, -r.now.level, -r.now.psi)))


def _level(column: ColumnDrift | None) -> int:
    return -1 if column is None else 3 if column.fault else column.level


def _segments(figures: Sequence[Figure], state: ModelState) -> tuple[SegmentRow, ...]:
    """Compare the champion's segments in its newest window that has labels."""
    losses = [f for f in figures if f.quantity == "loss"]
    champion = state.plan.champion.version if state.plan else state.look.version if state.look else ""
    whole = next((f for f in reversed(losses) if not f.segment and f.version == champion), None)
    whole = whole or next((f for f in reversed(losses) if not f.segment), None)
    if whole is None:
        return ()
    here = [f for f in losses if f.segment and (f.start, f.end, f.version) == (whole.start, whole.end, whole.version)]
    before = _shares(losses)
    rows = [
        SegmentRow(
            f.segment,
            f.value,
            f.version,
            f.predictions / whole.predictions,
            before.get((f.segment, f.value)),
            f,
            whole.point,
            f.low is not None and f.low > whole.point,
        )
        for f in here
    ]
    return tuple(sorted(rows, key=lambda r: (not r.worse, r.figure.labels < _FEW_LABELS, -r.figure.point)))


def _shares(losses: Sequence[Figure]) -> dict[tuple[str, str], float]:
    """Return every segment's share of the predictions in the oldest window, all versions together."""
    if not losses:
        return {}
    first = min(f.end for f in losses)
    total = sum(f.predictions for f in losses if f.end == first and not f.segment)
    shares: dict[tuple[str, str], float] = {}
    for f in losses:
        if f.end == first and f.segment and total:
            key = (f.segment, f.value)
            shares[key] = shares.get(key, 0.0) + f.predictions / total
    return shares


def _stops(state: ModelState) -> tuple[Stop, ...]:
    """Return the stops of the newest rollout, with what lies behind and ahead of it."""
    rollout = state.rollout
    if rollout is None:
        return ()
    told = state.latest.get(rollout.strategy)
    way = _way(rollout, tuple(told.policy.get("steps", ())) if told is not None else ())
    if rollout.stage in ("rolled_back", "aborted", "superseded"):
        return (Stop("gate", "done"), Stop(rollout.stage.replace("_", " "), "failed"))
    here = f"trial {rollout.step}" if rollout.stage == "trial" and rollout.strategy == "canary" else rollout.stage
    keys = [key for key, _ in way]
    at = keys.index(here) if here in keys else len(keys) - 1
    last = len(keys) - 1
    return tuple(
        Stop(name, "done" if n < at or at == last else "here" if n == at else "ahead")
        for n, (_, name) in enumerate(way)
    )


def _way(rollout: Rollout, steps: Sequence[float]) -> list[tuple[str, str]]:
    way = [("gate", "gate")]
    if rollout.stage == "shadow":
        way.append(("shadow", "shadow"))
    if rollout.strategy == "blue_green":
        way += [("warm", "warm"), ("window", "rollback window")]
    elif rollout.strategy == "canary" and steps:
        way += [(f"trial {n}", f"{share:.0%}") for n, share in enumerate(steps)]
    else:
        way.append(("trial" if rollout.strategy != "canary" else f"trial {rollout.step}", "trial"))
    return [*way, ("champion", "champion")]
