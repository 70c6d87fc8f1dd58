"""Signs of an upstream data fault: a change that data do not make by themselves.

Windows are walked in order and each is compared with the last healthy one, so a fault that lasts is seen for as long as
it lasts, and the return to health is no second fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np

from trellis.drift.reference import Reference, ReferenceColumn, distance, null_rate, scale
from trellis.drift.shift import Shift
from trellis.drift.statistics import shares
from trellis.drift.summary import CategorySummary, NumericSummary, Summary, Window
from trellis.drift.units import UnitMatch, find_conversion, returns_to_grid
from trellis.drift.zones import find_zone_shift

REQUEST, PREDICTION = "request", "prediction"

# A share of nulls or of invalid values that rises by this much between windows has a cause upstream.
_NULL_JUMP = 0.1
# Steps between windows, in training's own largest step. A unit change needs the first from the last healthy window and
# the second from every one; a bare jump needs the third from every one.
_UNIT_STEP, _UNIT_NOVELTY, _JUMP_STEP = 1.0, 0.6, 1.5
# No conversion moves a column by less, in spreads.
_STILL = 0.05
# A column whose spread in some training period was below this share of the whole may well be constant for a window.
_VARIES = 0.15
# Where training cannot tell its own steps: in spreads for numbers, in total variation for categories.
_DEFAULT_STEP, _DEFAULT_CATEGORY_STEP = 0.5, 0.2
# A new code book: this much unknown, and a common value all but gone.
_RECODED, _COMMON, _GONE = 0.2, 0.05, 0.2


@dataclass(frozen=True)
class Fault:
    """One sign of a fault in one column.

    Attributes:
        column: Where (a view's name for ``stale``).
        view: Its feature view.
        kind: ``unit``, ``time_zone``, ``recode``, ``missing``, ``nulls``, ``invalid``, ``constant``, ``stale`` or
            ``jump``.
        since: Start of the first window of the present run.
        text: The finding with its numbers.
        value: What was measured.
        bound: What it was compared with.
        certain: Whether it needs no shift against training to be believed.
    """

    column: str
    view: str
    kind: str
    since: str
    text: str
    value: float | None = None
    bound: float | None = None
    certain: bool = True


def find_faults(
    reference: Reference,
    windows: Sequence[Window],
    views: Mapping[str, str],
    units: Mapping[str, str],
    sla_hours: Mapping[str, float],
    moved: Sequence[Shift],
) -> tuple[tuple[Fault, ...], dict[str, str]]:
    """Look for faults in the last window.

    Args:
        reference: The baseline.
        windows: History and, last, the window in question.
        views: View by column.
        units: Declared unit by column.
        sla_hours: Largest healthy age by view.
        moved: Columns that are shifted against the reference: only they can have jumped or changed their unit.

    Returns:
        The faults, and the columns that jumped without being one: the start of their jump by name.
    """
    faults: list[Fault] = _stale(windows, sla_hours)
    jumps: dict[str, Fault] = {}
    strong, shifted = {s.name for s in moved if s.level == 2}, {s.name for s in moved}
    for name, column in reference.columns.items():
        view = views.get(name, REQUEST)
        if view == PREDICTION:
            continue
        fault = _walk(name, view, column, windows, units.get(name), reference)
        if fault is None:
            continue
        if fault.kind == "jump":
            if name in strong:
                jumps[name] = fault
        elif fault.certain or name in shifted:
            faults.append(fault)
    # A bare jump is a fault only where it is confined to one view; jumps in several views, or in what callers send,
    # are a change of the population.
    broken = {f.view for f in faults}
    concerned = {f.view for f in jumps.values()}
    if concerned and (concerned <= broken or (len(concerned) == 1 and REQUEST not in concerned)):
        return (*faults, *jumps.values()), {}
    return tuple(faults), {name: fault.since for name, fault in jumps.items()}


def _stale(windows: Sequence[Window], sla_hours: Mapping[str, float]) -> list[Fault]:
    """Views whose features were too old when used: past their SLA or, without one, far older than before."""
    last, *earlier = reversed(windows)
    faults: list[Fault] = []
    for view, age in last.ages_hours.items():
        before = [w.ages_hours[view] for w in earlier if view in w.ages_hours]
        if view in sla_hours:
            bound, text = sla_hours[view], f"{sla_hours[view]:g} are allowed"
        elif before:
            usual = sorted(before)[(len(before) - 1) // 2]
            bound, text = max(24.0, 3 * usual), f"{usual:.1f} were usual"
        else:
            continue
        if age > bound:
            story = f"features of {view} were {age:.1f} hours old when used, {text}"
            faults.append(Fault(view, view, "stale", last.start, story, age, bound))
    return faults


def _walk(
    name: str, view: str, column: ReferenceColumn, windows: Sequence[Window], unit: str | None, reference: Reference
) -> Fault | None:
    """Return the fault of the last window, dated to the first window of its unbroken run."""
    healthy = [column.latest] if column.latest is not None else []
    gap = _gap(reference, windows[0]) if healthy else 1.0
    constant_before = False
    pace = _pace(name, column, windows)
    current: Fault | None = None
    for window in windows:
        if not window.rows:
            gap += 1
            continue
        now = window.columns.get(name)
        fault = _fault(name, view, column, healthy, now, window, unit, gap, pace, constant_before)
        if fault is None:
            gap, current = 1.0, None
            if now is not None:
                healthy.append(now)
        else:
            current = fault if current is None or current.kind != fault.kind else _dated(fault, current.since)
            gap += 1
        constant_before = constant_before or (now is not None and now.constant and fault is None)
    return current


def _pace(name: str, column: ReferenceColumn, windows: Sequence[Window]) -> float:
    """Lower median of the steps between windows, 0 below two: the steps of a ramp are alike, a jump stands out."""
    shown = [w.columns[name] for w in windows if w.rows and name in w.columns]
    if column.latest is not None:
        shown.insert(0, column.latest)
    steps = sorted(distance(a, b, column.summary) for a, b in pairwise(shown))
    return steps[(len(steps) - 1) // 2] if len(steps) >= 2 else 0.0


def _dated(fault: Fault, since: str) -> Fault:
    return replace(fault, since=since)


def _gap(reference: Reference, window: Window) -> float:
    """Periods between the end of training and the first window, at least 1."""
    if reference.until is None:
        return 1.0
    between = _moment(window.start) - _moment(reference.until)
    return max(1.0, between.total_seconds() / 86_400 / reference.period_days)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _fault(
    name: str,
    view: str,
    column: ReferenceColumn,
    healthy: Sequence[Summary],
    now: Summary | None,
    window: Window,
    unit: str | None,
    gap: float,
    pace: float,
    constant_before: bool,
) -> Fault | None:
    def fault(
        kind: str, text: str, value: float | None = None, bound: float | None = None, certain: bool = True
    ) -> Fault:
        return Fault(name, view, kind, window.start, f"{name} {text}", value, bound, certain)

    if now is None:
        return fault("missing", "is not in the window at all")
    before = max([column.nulls_peak, *(null_rate(h) for h in healthy[-1:])])
    invalid = now.invalid / now.rows if isinstance(now, NumericSummary) and now.rows else 0.0
    if invalid >= _NULL_JUMP:
        return fault(
            "invalid", f"holds something that is no finite number in {invalid:.0%} of rows", invalid, _NULL_JUMP
        )
    nulls = null_rate(now)
    if nulls - before >= _NULL_JUMP or (nulls == 1.0 and before < 1.0):
        text = f"is missing in {nulls:.0%} of rows, at most {before:.0%} before"
        return fault("nulls", text, nulls, before + _NULL_JUMP)
    if now.constant and not constant_before and column.narrowest > _VARIES and not column.summary.constant:
        return fault("constant", f"holds one value in all {now.rows} rows; in training it varied in every period")
    if not healthy:
        return None
    recoded = _recoded(column.summary, healthy[-1], now)
    if recoded is not None:
        return fault("recode", *recoded)
    # Also from the nearest healthy window: a windy week after a calm one is no jump when an earlier one was as windy.
    last = healthy[-1]
    step, nearest = distance(last, now, column.summary), min(distance(h, now, column.summary) for h in healthy)
    # Over a gap of several periods healthy data may wander further: as far as a random walk of the largest step.
    usual = (column.natural_step or _default_step(now)) * math.sqrt(min(gap, 9.0))
    if (
        step > _STILL
        and isinstance(now, NumericSummary)
        and isinstance(last, NumericSummary)
        and isinstance(column.summary, NumericSummary)
    ):
        far = step > max(0.3, _UNIT_STEP * usual) and nearest > _UNIT_NOVELTY * usual
        spread, quantiles = scale(column.summary), np.array(now.quantiles)
        earlier = np.concatenate(
            [h.quantiles for h in (column.summary, *healthy[:-1]) if isinstance(h, NumericSummary)]
        )
        # The search is a look's dearest part. Near by, only a grid could prove a conversion: where there is none, or
        # the values still lie on it, nothing is to be found.
        match = None
        if far or returns_to_grid(np.array(last.quantiles), quantiles, earlier, spread):
            match = find_conversion(
                np.array(last.quantiles),
                quantiles,
                spread,
                known=np.concatenate([earlier, last.quantiles]),
                unit=unit,
                tolerance=max(0.5, usual),
                exact_only=not far,
            )
        if match is not None:
            return fault("unit", _unit_text(match), match.residual, match.before / 3, match.exact)
        zone = find_zone_shift(np.array(last.quantiles), quantiles, spread, tolerance=max(0.15, usual)) if far else None
        if zone is not None:
            text = (
                f"looks moved by {zone.hours:+g} hours: {zone.before:.2f} spreads from the last healthy window, "
                f"{zone.residual:.2f} once turned back"
            )
            return fault("time_zone", text, zone.residual, zone.before / 3, certain=False)
    bound = max(_default_step(now), _JUMP_STEP * usual, 2 * pace)
    if nearest > bound:
        text = (
            f"jumped by {nearest:.2f} from every healthy window; training never moved more than {usual:.2f} in a period"
        )
        return fault("jump", text, nearest, bound, certain=False)
    return None


def _recoded(whole: Summary, last: Summary, now: Summary) -> tuple[str, float, float] | None:
    """Codes that training never had, in the place of known ones: a new value joins the others, a new code replaces."""
    if not all(isinstance(s, CategorySummary) for s in (whole, last, now)):
        return None
    assert isinstance(whole, CategorySummary)
    assert isinstance(last, CategorySummary)
    assert isinstance(now, CategorySummary)
    if whole.other:  # training's rare values were pooled: an unknown one is no news
        return None
    unseen, before = now.other / max(1, now.rows), last.other / max(1, last.rows)
    if unseen - before < _RECODED:
        return None
    had, has = shares(last.cells[:-2]), now.cells[:-2] / max(1, now.rows - now.nulls)
    if not ((had >= _COMMON) & (has <= _GONE * had)).any():
        return None
    shown = ", ".join(repr(value) for value in now.examples[:3])
    return f"holds codes unknown to training in {unseen:.0%} of rows ({shown})", unseen, before + _RECODED


def _unit_text(match: UnitMatch) -> str:
    text = (
        f"looks converted from {match.conversion} in {match.share:.0%} of rows: {match.before:.2f} spreads from "
        f"the last healthy window, {match.residual:.2f} once undone"
    )
    if match.exact:
        text += ", and the values then lie on the old grid"
    if match.alternatives:
        text += f" (these numbers do not exclude {' or '.join(match.alternatives[:3])})"
    return text


def _default_step(summary: Summary) -> float:
    return _DEFAULT_CATEGORY_STEP if isinstance(summary, CategorySummary) else _DEFAULT_STEP
