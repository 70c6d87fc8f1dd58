"""Training/serving skew: features as they were served, beside the same ones recomputed offline as of their moment.

A value that differs is asked three things. Is it what the offline store has for the *event* that was served? Then it is
only older than it should be: within the view's freshness SLA that is how materialisation works; past it, the job is
stale; and where other rows prove that the job had run past a newer event that this row lacks, the data came late. Else
the value itself is wrong, and a cast, a time zone, a formula or a lost value has to explain it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Batch, QualityPolicy
from trellis.quality.causes import Cause, by_cast, by_formula, by_null, by_shift, first_of, same

_HOURS = tuple(h for h in range(-14, 15) if h)
_SAMPLE = 300

Mask = NDArray[np.bool_]
Times = NDArray[np.datetime64]


class Recompute(Protocol):
    """The offline store, for the rows of one log."""

    def __call__(self, rows: NDArray[np.int64], time: Times, shift_hours: int = 0) -> Batch:
        """Return every feature of some rows as of ``time`` each.

        ``shift_hours`` moves the timestamps that the request carries as well, for features computed from them.
        """


@dataclass(frozen=True)
class Served:
    """What a log holds of some predictions.

    Attributes:
        ids: Their ids, shape ``(n,)``.
        time: Their event times, ``datetime64[us]``, rising.
        features: Served values by feature, in the declared order, ``(n,)`` each.
        views: View of every feature.
        view_times: Event time of what each batch view served, ``datetime64[us]``; NaT where nothing.
        ignored: Rows by feature that say nothing about the store: sent by the caller, say.
        sla_hours: Largest healthy age by view, in hours.
    """

    ids: NDArray[np.str_]
    time: Times
    features: Mapping[str, NDArray[Any]]
    views: Mapping[str, str]
    view_times: Mapping[str, Times]
    ignored: Mapping[str, Mask] = field(default_factory=dict)
    sla_hours: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SkewFinding:
    """One cause of differences in one view.

    Attributes:
        cause: ``stale_job``, ``late_data``, ``dtype``, ``time_zone``, ``changed_transform``, ``missing_online`` or
            ``missing_offline``.
        view: The feature view.
        features: Its features concerned, in declared order.
        rows: Rows concerned.
        since: Event time of the first, RFC 3339.
        example: Its prediction's id.
        text: What was found, with numbers.
    """

    cause: str
    view: str
    features: tuple[str, ...]
    rows: int
    since: str
    example: str
    text: str


@dataclass(frozen=True)
class SkewReport:
    """What a replay found.

    Attributes:
        rows: Predictions replayed.
        mismatched: Of these, with at least one differing feature.
        rate: Their share.
        slo: Largest acceptable share.
        passed: Whether the rate keeps the SLO; None where no prediction was replayed, which tells nothing.
        lagging: Rows with a value older than offline, yet within its SLA; they do not count as mismatched.
        first_feature: The feature that differs first in time, in declared order; empty where none does.
        first_id: Id of the prediction where it does.
        first_at: Its event time, RFC 3339.
        findings: Every cause, most rows first.
    """

    rows: int
    mismatched: int
    rate: float
    slo: float
    passed: bool | None
    lagging: int
    first_feature: str
    first_id: str
    first_at: str
    findings: tuple[SkewFinding, ...]


def find_skew(served: Served, recompute: Recompute, policy: QualityPolicy) -> SkewReport:
    """Replay predictions and name what differs."""
    n = len(served.ids)
    if not n:
        return SkewReport(0, 0, 0.0, policy.max_skew, None, 0, "", "", "", ())
    everything = np.arange(n)
    exact = recompute(everything, served.time)
    differs: dict[str, Mask] = {}
    lagging = np.zeros(n, dtype=bool)
    causes: dict[tuple[str, str], list[tuple[str, Mask, str]]] = {}

    def note(cause: str, feature: str, rows: Mask, text: str) -> None:
        if rows.any():
            causes.setdefault((cause, served.views[feature]), []).append((feature, rows, text))

    replay = _Replay(served, recompute, policy)
    for name, values in served.features.items():
        unlike = ~same(values, exact[name], policy.skew_tolerance) & ~served.ignored.get(name, np.zeros(n, dtype=bool))
        differs[name] = unlike
        if not unlike.any():
            continue
        older, late, healthy = replay.age(name, unlike)
        lagging |= healthy
        differs[name] = unlike & ~healthy
        note("late_data", name, late, "lacked an event that the view had passed: it came late")
        note("stale_job", name, older & ~late, replay.age_text(name, older & ~late))
        wrong = differs[name] & ~older & ~late
        if wrong.any():
            found = replay.cause(name, wrong, exact[name])
            note(found.kind, name, wrong, found.text)
    first = first_of(list(differs), differs)
    bad = first >= 0
    where = int(np.argmax(bad)) if bad.any() else -1
    rate = float(bad.mean())
    return SkewReport(
        n,
        int(bad.sum()),
        rate,
        policy.max_skew,
        rate <= policy.max_skew,
        int((lagging & ~bad).sum()),
        list(differs)[int(first[where])] if bad.any() else "",
        str(served.ids[where]) if bad.any() else "",
        _iso(served.time[where]) if bad.any() else "",
        _findings(served, causes),
    )


class _Replay:
    """Questions to the offline store about rows that differ."""

    def __init__(self, served: Served, recompute: Recompute, policy: QualityPolicy) -> None:
        self.served, self.recompute, self.tolerance = served, recompute, policy.skew_tolerance
        self._known: dict[tuple[str, str], Mapping[str, NDArray[Any]]] = {}

    def age(self, name: str, unlike: Mask) -> tuple[Mask, Mask, Mask]:
        """Tell which differing rows are right but old: past their SLA, late, and healthy."""
        served, view = self.served, self.served.views[name]
        nothing = np.zeros(len(unlike), dtype=bool)
        if view not in served.view_times:
            return nothing, nothing, nothing
        used = served.view_times[view]
        timed = unlike & ~np.isnat(used)
        if not timed.any():
            return nothing, nothing, nothing
        sla = served.sla_hours.get(view)
        age = (served.time - used) / np.timedelta64(1, "h")
        overdue = timed & (age > sla) if sla is not None else nothing
        then = self._as_of("used", view, np.where(np.isnat(used), served.time, used))[name]
        right = timed & same(served.features[name], then, self.tolerance)
        # A value too old to be used is served as missing; its age explains that.
        gone = np.array([v is None or v != v for v in served.features[name]])
        right |= overdue & gone
        # How far the view's job had provably come by each request.
        passed = np.maximum.accumulate(np.where(np.isnat(used), np.datetime64(0, "us"), used))
        passed = np.minimum(passed, served.time)
        by_then = self._as_of("passed", view, np.maximum(passed, np.where(np.isnat(used), passed, used)))[name]
        late = right & ~same(served.features[name], by_then, self.tolerance) & ~gone
        return right & overdue & ~late, late, right & ~overdue & ~late

    def age_text(self, name: str, rows: Mask) -> str:
        view = self.served.views[name]
        if not rows.any():
            return ""
        age = (self.served.time[rows] - self.served.view_times[view][rows]) / np.timedelta64(1, "h")
        bound = self.served.sla_hours.get(view, 0.0)
        return f"came from events up to {float(np.max(age)):.1f} h old, {bound:g} are allowed: the job is stale"

    def cause(self, name: str, wrong: Mask, exact: NDArray[Any]) -> Cause:
        """Name why values are wrong."""
        rows = np.flatnonzero(wrong)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(np.int64))]
        served = self.served
        values, offline = served.features[name][rows], exact[rows]
        nulls = by_null(values, offline)
        if nulls is not None:
            return nulls
        narrowed = by_cast(values, offline, self.tolerance)
        if narrowed is not None:
            return narrowed
        shifted = {h: self._shifted(rows, h)[name] for h in _HOURS}
        return by_shift(values, shifted, self.tolerance) or by_formula(values, offline, self.tolerance)

    def _as_of(self, what: str, view: str, time: Times) -> Mapping[str, NDArray[Any]]:
        if (what, view) not in self._known:
            self._known[what, view] = self.recompute(np.arange(len(time)), time)
        return self._known[what, view]

    def _shifted(self, rows: NDArray[np.int64], hours: int) -> Mapping[str, NDArray[Any]]:
        key = (f"{hours} {hash(rows.tobytes())}", "")
        if key not in self._known:
            time = self.served.time[rows] + np.timedelta64(hours, "h")
            self._known[key] = self.recompute(rows, time, shift_hours=hours)
        return self._known[key]


def _findings(
    served: Served, causes: Mapping[tuple[str, str], Sequence[tuple[str, Mask, str]]]
) -> tuple[SkewFinding, ...]:
    found = []
    for (cause, view), parts in causes.items():
        rows = np.logical_or.reduce([rows for _, rows, _ in parts])
        first = int(np.argmax(rows))
        name, _, text = max(parts, key=lambda part: int(part[1].sum()))
        names = tuple(feature for feature, _, _ in parts)
        more = f" (and {len(names) - 1} more of {view})" if len(names) > 1 else ""
        since, example, told = _iso(served.time[first]), str(served.ids[first]), f"{name} {text}{more}"
        found.append(SkewFinding(cause, view, names, int(rows.sum()), since, example, told))
    return tuple(sorted(found, key=lambda f: (-f.rows, f.cause, f.view)))


def _iso(moment: np.datetime64) -> str:
    return str(moment.astype("datetime64[s]")) + "Z"
