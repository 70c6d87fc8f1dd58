"""The drift verdict: STABLE, DRIFT, UPSTREAM_FAULT or INSUFFICIENT, with its diagnosis.

A feature counts as shifted when the shift is both large (PSI, corrected for its bias) and sure (a chi-square test on
effective rows). The same holds for every other family of evidence: the loss, the mix of predictions, scores and labels
together, ties between columns. All questions of one look share its part of the month's false-alarm budget (see
``trellis.drift.budget``). So more rows, more columns and more tests make a verdict surer, not more frequent.

Two stories are then told apart. A *population change* (season, growth, new habits) moves several features of a kind, no
faster from one window to the next than training data moved by themselves. An *upstream fault* is abrupt and sits in one
feature view: a column vanishes, goes null or constant, stops being refreshed, changes its unit, or jumps while every
other view stays calm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trellis.contract import DriftPolicy
from trellis.decision import Verdict
from trellis.drift.budget import former_alpha, spread_weights, weighted_holm
from trellis.drift.causes import (
    CONCEPT,
    DATA,
    LABEL,
    LEAST_EFFECT,
    NONE,
    UPSTREAM,
    HarmEstimate,
    cause_of_links,
    driving_segments,
    severity_of,
)
from trellis.drift.explain import checks_of, names
from trellis.drift.faults import PREDICTION, Fault, find_faults
from trellis.drift.findings import Diagnosis, DriftInputs, Harm
from trellis.drift.joint import Signal
from trellis.drift.outcomes import OutcomeShift, compare_outcomes
from trellis.drift.shift import Shift, compare, trend
from trellis.drift.statistics import student_sf
from trellis.metrics import t_quantile
from trellis.sums import LossSums

_LEAST_LABELS = 200  # in a window, for it to say anything
_RETRAIN, _WATCH, _FIX, _WAIT, _NONE = "retrain", "watch", "fix upstream", "wait", "none"


@dataclass(frozen=True)
class _Evidence:
    """The answers to all questions of a look, adjusted."""

    shifts: tuple[Shift, ...]
    harm: Harm | None
    scores: OutcomeShift | None
    scores_moved: bool
    links: OutcomeShift | None
    links_cause: str
    signals: tuple[Signal, ...]
    alpha: float

    @property
    def moved(self) -> tuple[Shift, ...]:
        return tuple(s for s in self.shifts if s.level)

    @property
    def harmed(self) -> bool:
        return self.harm is not None and self.harm.real

    @property
    def loosened(self) -> tuple[Signal, ...]:
        """Joint tests that are both large and sure."""
        return tuple(s for s in self.signals if s.p_value <= self.alpha and s.effect >= s.bound)


def decide(inputs: DriftInputs, policy: DriftPolicy) -> Verdict:
    """Judge the last window; pure, and replayable from the inputs' JSON."""
    found = diagnose(inputs, policy)
    needs = {"rows": float(found.missing_rows)} if found.missing_rows else {}
    return Verdict(found.outcome, found.reason, checks_of(found, inputs, policy), needs)


def diagnose(inputs: DriftInputs, policy: DriftPolicy) -> Diagnosis:
    """Do the arithmetic of ``decide`` and return it structured."""
    alpha = former_alpha(policy, inputs.looks) if inputs.level is None else inputs.level
    if not inputs.windows or inputs.windows[-1].rows < policy.min_rows:
        rows = inputs.windows[-1].rows if inputs.windows else 0
        text = f"The window holds {rows} rows; a verdict needs {policy.min_rows}."
        return Diagnosis("INSUFFICIENT", "none", _WAIT, text, alpha=alpha, missing_rows=policy.min_rows - rows)
    if not alpha:
        return _between(inputs, policy)
    evidence = _weigh(inputs, policy, alpha)
    faults, sudden = find_faults(
        inputs.reference, inputs.windows, inputs.views, inputs.units, inputs.sla_hours, evidence.moved
    )
    found = Diagnosis("STABLE", "none", _NONE, "", evidence.shifts, harm=evidence.harm, alpha=alpha)
    found = replace(found, links=evidence.links, signals=evidence.signals)
    if faults and _borne_out(inputs, faults, evidence, policy):
        sudden = sudden | {f.column: f.since for f in faults}
        faults = ()
    if faults:
        found = _fault_diagnosis(replace(found, faults=faults), evidence.moved)
    elif evidence.moved:
        found = _shift_diagnosis(inputs, found, evidence, sudden, policy)
    else:
        found = _quiet_diagnosis(inputs, found, evidence, policy)
    harm = evidence.harm
    known = None if harm is None else HarmEstimate(harm.increase, harm.low, harm.high or harm.increase)
    severity = severity_of(found.cause, inputs.estimate or known, policy)
    segments = driving_segments(inputs.segments, policy) if found.cause != NONE else ()
    confirmed = tuple(
        name for name, at in sorted(inputs.streams.items()) if found.since and any(t >= found.since for t in at)
    )
    return replace(found, severity=severity, segments=segments, confirmed=confirmed)


def _weigh(inputs: DriftInputs, policy: DriftPolicy, alpha: float) -> _Evidence:
    """Ask every question of the look, and adjust all answers together."""
    harm, shifts = _harm(inputs), compare(inputs.reference, inputs.windows[-1], inputs.views)
    scores, links = _outcomes(inputs)
    families = ["prediction" if s.view == PREDICTION else "features" for s in shifts]
    p_values = [s.p_value for s in shifts]
    for family, asked in (
        ("harm", [] if harm is None else [harm.p_value]),
        ("prediction", [] if scores is None else [scores.prediction[1]]),
        ("outcome", [] if links is None else [links.label[1], links.score_given_label[1], links.label_given_score[1]]),
        ("joint", [s.p_value for s in inputs.signals]),
    ):
        families += [family] * len(asked)
        p_values += asked
    answers = iter(weighted_holm(p_values, spread_weights(families)))
    judged = [s.judged(next(answers), alpha, policy.psi_warn, policy.psi_alarm) for s in shifts]
    if harm is not None:
        adjusted = next(answers)
        harm = replace(harm, p_value=adjusted, real=adjusted <= alpha and harm.increase >= policy.max_loss_increase)
    scores_moved = scores is not None and next(answers) <= alpha and scores.prediction[0] >= LEAST_EFFECT
    cause = NONE if links is None else cause_of_links(links, [next(answers) for _ in range(3)], alpha)
    signals = tuple(replace(s, p_value=next(answers)) for s in inputs.signals)
    ordered = tuple(sorted(judged, key=lambda s: (-s.level, -s.psi, s.name)))
    return _Evidence(ordered, harm, scores, scores_moved, links, cause, signals, alpha)


def _borne_out(inputs: DriftInputs, faults: Sequence[Fault], evidence: _Evidence, policy: DriftPolicy) -> bool:
    """Whether labels bear out what jumped: the scores moved and still mean what they meant, so the world did move."""
    links = evidence.links
    if links is None or any(f.kind != "jump" for f in faults):
        return False
    seen = min(f.since for f in faults) <= _labelled_since(inputs, evidence, policy)
    return seen and links.score_given_label[0] >= LEAST_EFFECT > links.label_given_score[0]


def _outcomes(inputs: DriftInputs, *, least: int = _LEAST_LABELS) -> tuple[OutcomeShift | None, OutcomeShift | None]:
    """Compare the last window's scores, and the newest labelled window's scores with labels."""
    known = inputs.reference.outcomes
    if known is None or len(inputs.outcomes) != len(inputs.windows):
        return None, None
    scores = compare_outcomes(known, inputs.outcomes[-1])
    for now in reversed(inputs.outcomes):
        if now.table.sum() >= least:
            return scores, compare_outcomes(known, now)
    return scores, None


def _between(inputs: DriftInputs, policy: DriftPolicy) -> Diagnosis:
    """Look for what needs no test to be believed, and so takes no part of the budget."""
    faults, _ = find_faults(inputs.reference, inputs.windows, inputs.views, inputs.units, inputs.sla_hours, ())
    if not faults:
        text = "The next look is not due; until then only certain faults are looked for, and there is none."
        return Diagnosis("INSUFFICIENT", "none", _WAIT, text, alpha=0.0)
    found = _fault_diagnosis(Diagnosis("UPSTREAM_FAULT", "none", _FIX, "", faults=faults, alpha=0.0), ())
    return replace(found, severity=severity_of(found.cause, inputs.estimate, policy))


def _fault_diagnosis(found: Diagnosis, moved: Sequence[Shift]) -> Diagnosis:
    faults = found.faults
    since = min(f.since for f in faults)
    views = tuple(sorted({f.view for f in faults}))
    broken = {f.column for f in faults}
    rest = [s.name for s in moved if s.name not in broken and s.view != PREDICTION]
    text = f"Upstream fault in {' and '.join(views)} since {since}: {'; '.join(f.text for f in faults[:3])}"
    text += f"; and {len(faults) - 3} more." if len(faults) > 3 else "."
    if rest:
        text += f" Besides, {names(rest)} moved without a fault."
    kinds = [f.kind for f in faults]
    return replace(
        found,
        outcome="UPSTREAM_FAULT",
        kind=max(set(kinds), key=lambda k: (kinds.count(k), k)),
        action=_FIX,
        reason=text,
        views=views,
        since=since,
        cause=UPSTREAM,
        drivers=tuple(dict.fromkeys(f.column for f in faults)),
    )


def _quiet_diagnosis(inputs: DriftInputs, found: Diagnosis, evidence: _Evidence, policy: DriftPolicy) -> Diagnosis:
    """No column moved: what else may have."""
    if evidence.harmed or evidence.links_cause in (CONCEPT, LABEL):
        start = _labelled_since(inputs, evidence, policy)
        label = evidence.links_cause == LABEL
        if label:
            text = f"No column shifted, yet the mix of labels has changed since {start}."
        elif evidence.harmed:
            text = f"No column shifted, yet the model has become worse since {start}."
        else:
            text = f"No column shifted, yet what scores mean for labels has changed since {start}."
        kind, cause = ("label", LABEL) if label else ("concept", CONCEPT)
        text += _cost(evidence, policy)
        return replace(found, outcome="DRIFT", kind=kind, action=_RETRAIN, reason=text, since=start, cause=cause)
    end = inputs.windows[-1]
    if evidence.loosened:
        text = f"No column shifted alone, but {'; '.join(s.text for s in evidence.loosened)}."
        return replace(found, outcome="DRIFT", kind="joint", action=_WATCH, reason=text, since=end.start, cause=DATA)
    if evidence.scores_moved and evidence.scores is not None:
        text = f"No column shifted, but the mix of predictions did (Cohen's w {evidence.scores.prediction[0]:.2f})."
        return replace(found, outcome="DRIFT", kind="scores", action=_WATCH, reason=text, since=end.start, cause=DATA)
    worst = found.shifts[0] if found.shifts else None
    text = f"None of {len(found.shifts)} columns shifted" + (
        f" (largest PSI {worst.psi:.3f} in {worst.name} against {policy.psi_warn:g}, adjusted p "
        f"{worst.adjusted:.2g} against {evidence.alpha:.2g})."
        if worst
        else "."
    )
    return replace(found, reason=text)


def _cost(evidence: _Evidence, policy: DriftPolicy) -> str:
    harm = evidence.harm
    if harm is None:
        return ""
    return f" The loss changed by {harm.increase:+.4f} on {harm.labels} labels (bound {policy.max_loss_increase:+g})."


def _labelled_since(inputs: DriftInputs, evidence: _Evidence, policy: DriftPolicy) -> str:
    """Start of the unbroken run of windows, up to the newest labelled one, in which labels told the same."""
    expected = inputs.reference.loss
    by_loss = evidence.harmed and expected is not None

    def told(index: int) -> bool:
        if by_loss:
            assert expected is not None
            seen = inputs.losses[index]
            return seen.rows >= _LEAST_LABELS and seen.mean - expected.mean >= policy.max_loss_increase
        known = inputs.reference.outcomes
        if known is None or inputs.outcomes[index].table.sum() < _LEAST_LABELS:
            return False
        links = compare_outcomes(known, inputs.outcomes[index])
        return max(links.label[0], links.score_given_label[0], links.label_given_score[0]) >= LEAST_EFFECT

    count = len(inputs.losses if by_loss else inputs.outcomes)
    telling = [i for i in range(count) if told(i)]
    if not telling:
        return inputs.windows[-1].start
    first = telling[-1]
    while first - 1 in telling:
        first -= 1
    return inputs.windows[first].start


def _shift_diagnosis(
    inputs: DriftInputs, found: Diagnosis, evidence: _Evidence, sudden: Mapping[str, str], policy: DriftPolicy
) -> Diagnosis:
    moved, judged = evidence.moved, evidence.shifts
    views = tuple(sorted({s.view for s in moved}))
    strong = [s for s in moved if s.level == 2 and s.view != PREDICTION]
    cause = evidence.links_cause if evidence.links_cause in (CONCEPT, LABEL) else DATA
    action = _RETRAIN if strong or evidence.harmed or cause != DATA else _WATCH
    shown = ", ".join(f"{s.name} (PSI {s.psi:.2f})" for s in moved[:4])
    since = _since(inputs, {s.name for s in moved}, policy)
    jumped = [s.name for s in moved if s.name in sudden]
    if jumped and all(s.name in sudden or s.view == PREDICTION for s in moved):
        kind = "sudden"
        since = min(sudden[n] for n in jumped)
        story = f"Sudden population change since {since}, with no sign of a data fault"
    else:
        kind = "gradual"
        turns = [trend(inputs.reference, inputs.windows, s.name) for s in moved]
        steady = sum(1 for t in turns if abs(t) >= 0.6)
        story = f"Gradual population change since {since}: no step between windows exceeds those within training data"
        if steady:
            story += f", {steady} of {len(moved)} columns move steadily one way over {len(inputs.windows)} windows"
    text = f"{story}; {len(moved)} of {len(judged)} columns shifted (views: {', '.join(views)}), most {shown}."
    if cause == CONCEPT:
        kind, text = "concept", f"{text} What scores mean for labels has changed too, beyond what the shift explains."
    elif cause == LABEL:
        kind, text = "label", f"{text} The mix of labels explains it: given the label, scores are as they were."
    return replace(
        found,
        outcome="DRIFT",
        kind=kind,
        action=action,
        reason=text + _cost(evidence, policy),
        views=views,
        since=since,
        cause=cause,
        drivers=tuple(s.name for s in moved if s.view != PREDICTION)[:5],
    )


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


def _harm(inputs: DriftInputs, *, least: int = _LEAST_LABELS) -> Harm | None:
    """Compare the newest window with enough labels with the reference's loss; days are the units of variation."""
    expected = inputs.reference.loss
    if expected is None or not expected.rows:
        return None
    for index in range(len(inputs.losses) - 1, -1, -1):
        seen = inputs.losses[index]
        if seen.rows < least:
            continue
        error, freedom = _error_of_increase(expected, seen)
        if math.isnan(error):
            continue
        increase = seen.mean - expected.mean
        p_value = student_sf(increase / error, freedom) if error > 0 else float(increase <= 0)
        reach = t_quantile(0.975, freedom) * error
        return Harm(index, seen.rows, increase, increase - reach, p_value, high=increase + reach)
    return None


def _error_of_increase(expected: LossSums, seen: LossSums) -> tuple[float, int]:
    """Standard error of the difference of two mean losses, with its degrees of freedom.

    A window has few days, so their own spread is poorly known, and that of a single day not at all: where the
    reference knows how much days differ, a window's days are taken to differ at least as much, and the degrees of
    freedom are the reference's days less one. Otherwise they are Welch's (1947, Biometrika 34).
    """
    before = 0.0 if math.isnan(expected.standard_error) else expected.standard_error
    if 1 < expected.blocks < expected.rows:
        fewer = max(1.0, expected.rows / expected.blocks * seen.blocks / seen.rows)
        usual = before * math.sqrt(expected.blocks / seen.blocks * fewer)
        now = usual if math.isnan(seen.standard_error) else max(usual, seen.standard_error)
        return math.hypot(now, before), expected.blocks - 1
    now = seen.standard_error
    if math.isnan(now):
        return math.nan, 1
    parts = [(e**2, max(1, b - 1)) for e, b in ((before, expected.blocks), (now, seen.blocks))]
    below = sum(square**2 / free for square, free in parts)
    return math.hypot(now, before), max(1, math.floor(sum(e for e, _ in parts) ** 2 / below)) if below > 0 else 1
