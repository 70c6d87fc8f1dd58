"""The drift verdict: STABLE, DRIFT, UPSTREAM_FAULT or INSUFFICIENT, with its diagnosis.

A feature counts as shifted when the shift is both large (PSI, corrected for its bias) and sure (a chi-square test on
effective rows, Holm-adjusted over all questions of one look, at the level that spends the policy's false-alarm budget
over the looks of a month). So more rows make a verdict surer, not more frequent.

Two stories are then told apart. A *population change* (season, growth, new habits) moves several features of a kind, no
faster from one window to the next than training data moved by themselves. An *upstream fault* is abrupt and sits in one
feature view: a column vanishes, goes null or constant, stops being refreshed, changes its unit, or jumps while every
other view stays calm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from trellis.contract import DriftPolicy
from trellis.decision import Check, Verdict
from trellis.drift.faults import PREDICTION, Fault, find_faults
from trellis.drift.reference import Reference
from trellis.drift.shift import Shift, compare, trend
from trellis.drift.statistics import holm, normal_sf
from trellis.drift.summary import Window
from trellis.sums import LossSums

_RETRAIN, _WATCH, _FIX, _WAIT, _NONE = "retrain", "watch", "fix upstream", "wait", "none"


@dataclass(frozen=True)
class DriftInputs:
    """All that a drift verdict is made of.

    Attributes:
        model: The model's name.
        version: The version whose training data are the reference.
        reference: Its baseline.
        windows: Consecutive windows of served rows, oldest first; the last is judged, the others are its history.
        views: Feature view of every column; ``request`` for what callers send, ``prediction`` for the score.
        losses: Loss of every window as far as labels are known, parallel to ``windows``; empty without labels.
        units: Declared unit by column, where there is one.
        sla_hours: Largest healthy age of the features by view, in hours.
    """

    model: str
    version: str
    reference: Reference
    windows: tuple[Window, ...]
    views: dict[str, str]
    losses: tuple[LossSums, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    sla_hours: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Harm:
    """What the shift costs, where labels tell.

    Attributes:
        window: Index of the newest window with enough labels.
        labels: Labelled rows in it.
        increase: Mean loss minus the reference's.
        low: Lower end of its 95 % interval.
        p_value: One-sided: that the loss has not risen.
        real: Whether the increase is both above the policy's and sure.
    """

    window: int
    labels: int
    increase: float
    low: float
    p_value: float
    real: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """A verdict's findings in a form that programs can read.

    Attributes:
        outcome: STABLE, DRIFT, UPSTREAM_FAULT or INSUFFICIENT.
        kind: ``none``, ``gradual``, ``sudden``, ``concept`` (loss without shift) or the fault's kind.
        action: ``none``, ``watch``, ``retrain``, ``fix upstream`` or ``wait``.
        reason: One sentence with the numbers.
        shifts: Every watched column, strongest first.
        faults: Every fault found.
        views: Views concerned.
        since: Start of the first window concerned.
        harm: None where labels do not allow to say.
        alpha: Level at which the look was taken.
        missing_rows: Rows still needed for a verdict.
    """

    outcome: str
    kind: str
    action: str
    reason: str
    shifts: tuple[Shift, ...] = ()
    faults: tuple[Fault, ...] = ()
    views: tuple[str, ...] = ()
    since: str | None = None
    harm: Harm | None = None
    alpha: float = 1.0
    missing_rows: int = 0


def look_alpha(policy: DriftPolicy) -> float:
    """Chance of any false alarm that one look may take, in (0, 0.5]: the month's budget over its looks."""
    return min(0.5, policy.false_alarms_per_month / max(1.0, policy.looks_per_month))


def decide(inputs: DriftInputs, policy: DriftPolicy) -> Verdict:
    """Judge the last window; pure, and replayable from the inputs' JSON."""
    found = diagnose(inputs, policy)
    checks = [
        Check(f"diagnosis.{found.kind}", None, found.reason),
        *_fault_checks(found),
        *_shift_checks(found, policy),
    ]
    if found.harm is not None:
        checks.append(_harm_check(found.harm, inputs, policy))
    checks.append(Check(f"action.{found.action.replace(' ', '_')}", None, _action_text(found)))
    needs = {"rows": float(found.missing_rows)} if found.missing_rows else {}
    return Verdict(found.outcome, found.reason, tuple(checks), needs)


def diagnose(inputs: DriftInputs, policy: DriftPolicy) -> Diagnosis:
    """Do the arithmetic of ``decide`` and return it structured."""
    alpha = look_alpha(policy)
    if not inputs.windows or inputs.windows[-1].rows < policy.min_rows:
        rows = inputs.windows[-1].rows if inputs.windows else 0
        text = f"The window holds {rows} rows; a verdict needs {policy.min_rows}."
        return Diagnosis("INSUFFICIENT", "none", _WAIT, text, alpha=alpha, missing_rows=policy.min_rows - rows)
    harm = _harm(inputs)
    shifts = compare(inputs.reference, inputs.windows[-1], inputs.views)
    adjusted = holm([s.p_value for s in shifts] + ([harm.p_value] if harm else []))
    if harm is not None:
        real = adjusted[-1] <= alpha and harm.increase >= policy.max_loss_increase
        harm = Harm(harm.window, harm.labels, harm.increase, harm.low, adjusted[-1], real)
    judged = tuple(
        sorted(
            (s.judged(p, alpha, policy.psi_warn, policy.psi_alarm) for s, p in zip(shifts, adjusted, strict=False)),
            key=lambda s: (-s.level, -s.psi, s.name),
        )
    )
    moved = tuple(s for s in judged if s.level)
    faults, sudden = find_faults(inputs.reference, inputs.windows, inputs.views, inputs.units, inputs.sla_hours, moved)
    if faults:
        return _fault_diagnosis(judged, moved, faults, harm, alpha)
    return _shift_diagnosis(inputs, judged, moved, sudden, harm, alpha, policy)


def _fault_diagnosis(
    judged: tuple[Shift, ...], moved: tuple[Shift, ...], faults: tuple[Fault, ...], harm: Harm | None, alpha: float
) -> Diagnosis:
    since = min(f.since for f in faults)
    views = tuple(sorted({f.view for f in faults}))
    broken = {f.column for f in faults}
    rest = [s.name for s in moved if s.name not in broken and s.view != PREDICTION]
    text = f"Upstream fault in {' and '.join(views)} since {since}: {'; '.join(f.text for f in faults[:3])}"
    text += f"; and {len(faults) - 3} more." if len(faults) > 3 else "."
    if rest:
        text += f" Besides, {_names(rest)} moved without a fault."
    kinds = [f.kind for f in faults]
    return Diagnosis(
        "UPSTREAM_FAULT",
        max(set(kinds), key=lambda k: (kinds.count(k), k)),
        _FIX,
        text,
        judged,
        faults,
        views,
        since,
        harm,
        alpha,
    )


def _shift_diagnosis(
    inputs: DriftInputs,
    judged: tuple[Shift, ...],
    moved: tuple[Shift, ...],
    sudden: Mapping[str, str],
    harm: Harm | None,
    alpha: float,
    policy: DriftPolicy,
) -> Diagnosis:
    harmed = harm is not None and harm.real
    if not moved and not harmed:
        worst = judged[0] if judged else None
        text = f"None of {len(judged)} columns shifted" + (
            f" (largest PSI {worst.psi:.3f} in {worst.name} against {policy.psi_warn:g}, adjusted p "
            f"{worst.adjusted:.2g} against {alpha:.2g})."
            if worst
            else "."
        )
        return Diagnosis("STABLE", "none", _NONE, text, judged, harm=harm, alpha=alpha)
    cost = ""
    if harm is not None:
        cost = (
            f" The loss changed by {harm.increase:+.4f} on {harm.labels} labels (bound {policy.max_loss_increase:+g})."
        )
    if not moved:
        start = inputs.windows[harm.window].start if harm else None
        text = f"No column shifted, yet the model has become worse since {start}.{cost}"
        return Diagnosis("DRIFT", "concept", _RETRAIN, text, judged, since=start, harm=harm, alpha=alpha)
    views = tuple(sorted({s.view for s in moved}))
    strong = [s for s in moved if s.level == 2 and s.view != PREDICTION]
    action = _RETRAIN if strong or harmed else _WATCH
    shown = ", ".join(f"{s.name} (PSI {s.psi:.2f})" for s in moved[:4])
    since = _since(inputs, {s.name for s in moved}, policy)
    jumped = [s.name for s in moved if s.name in sudden]
    if jumped and all(s.name in sudden or s.view == PREDICTION for s in moved):
        kind = "sudden"
        start = min(sudden[n] for n in jumped)
        since = start
        story = f"Sudden population change since {start}, with no sign of a data fault"
    else:
        kind = "gradual"
        turns = [trend(inputs.reference, inputs.windows, s.name) for s in moved]
        steady = sum(1 for t in turns if abs(t) >= 0.6)
        story = f"Gradual population change since {since}: no step between windows exceeds those within training data"
        if steady:
            story += f", {steady} of {len(moved)} columns move steadily one way over {len(inputs.windows)} windows"
    text = f"{story}; {len(moved)} of {len(judged)} columns shifted (views: {', '.join(views)}), most {shown}.{cost}"
    return Diagnosis("DRIFT", kind, action, text, judged, (), views, since, harm, alpha)


def _since(inputs: DriftInputs, names: set[str], policy: DriftPolicy) -> str:
    """Start of the first of the unbroken run of windows, up to the last, in which one of ``names`` was shifted."""
    start = inputs.windows[-1].start
    for window in reversed(inputs.windows[:-1]):
        if not any(
            s.psi >= policy.psi_warn for s in compare(inputs.reference, window, inputs.views) if s.name in names
        ):
            break
        start = window.start
    return start


def _harm(inputs: DriftInputs, *, least: int = 200) -> Harm | None:
    """Compare the newest window with enough labels with the reference's loss; days are the units of variation."""
    expected = inputs.reference.loss
    if expected is None or not expected.rows:
        return None
    for index in range(len(inputs.losses) - 1, -1, -1):
        seen = inputs.losses[index]
        error = math.hypot(seen.standard_error, 0.0 if math.isnan(expected.standard_error) else expected.standard_error)
        if seen.rows >= least and not math.isnan(error):
            increase = seen.mean - expected.mean
            p_value = normal_sf(increase / error) if error > 0 else float(increase <= 0)
            return Harm(index, seen.rows, increase, increase - 1.96 * error, p_value)
    return None


def _fault_checks(found: Diagnosis) -> list[Check]:
    return [Check(f"fault.{f.kind}.{f.column}", False, f.text, f.value, f.bound) for f in found.faults]


def _shift_checks(found: Diagnosis, policy: DriftPolicy) -> list[Check]:
    return [
        Check(
            f"shift.{s.name}",
            s.level == 0,
            f"{s.name} ({s.view}): PSI {s.psi:.3f} against {policy.psi_warn:g}, adjusted p {s.adjusted:.2g} against "
            f"{found.alpha:.2g}, Jensen-Shannon {s.jensen_shannon:.3f}, moved {s.moved:.2f} spreads, "
            f"nulls {s.null_rate:.1%} (training {s.reference_null_rate:.1%}), unseen {s.unseen:.1%}",
            s.psi,
            policy.psi_warn,
        )
        for s in found.shifts
    ]


def _harm_check(harm: Harm, inputs: DriftInputs, policy: DriftPolicy) -> Check:
    window = inputs.windows[harm.window]
    text = (
        f"loss increase {harm.increase:+.4f} (95 % interval from {harm.low:+.4f}) on {harm.labels} labels of "
        f"{window.start}, adjusted p {harm.p_value:.2g}, bound {policy.max_loss_increase:+g}"
    )
    return Check("harm", not harm.real, text, harm.increase, policy.max_loss_increase)


def _action_text(found: Diagnosis) -> str:
    if found.action == _FIX:
        columns = _names(sorted({f.column for f in found.faults}))
        feeds = " and ".join(found.views)
        return f"Fix the feed of {feeds}; until then quarantine {columns}. Do not retrain on these rows."
    return {
        _RETRAIN: "Retrain on newer rows: the shift is strong or costs accuracy.",
        _WATCH: "Keep watching: the shift is moderate and costs nothing that labels show.",
        _WAIT: "Wait for more rows.",
        _NONE: "Nothing to do.",
    }[found.action]


def _names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
