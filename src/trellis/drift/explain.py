"""A diagnosis in lines that people read: every check with what was measured and what it was compared with."""

from __future__ import annotations

from collections.abc import Sequence

from trellis.contract import DriftPolicy
from trellis.decision import Check
from trellis.drift.findings import Diagnosis, DriftInputs, Harm
from trellis.drift.outcomes import OutcomeShift
from trellis.drift.summary import NumericSummary


def checks_of(found: Diagnosis, inputs: DriftInputs, policy: DriftPolicy) -> tuple[Check, ...]:
    """Return all the arithmetic of a diagnosis, deciding lines first."""
    checks = [
        Check(f"diagnosis.{found.kind}", None, found.reason),
        *_fault_checks(found),
        *_shift_checks(found, policy),
        *_invalid_checks(found, inputs),
        *(
            Check(f"joint.{s.name}", s.p_value > found.alpha or s.effect < s.bound, s.text, s.effect, s.bound)
            for s in found.signals
        ),
    ]
    if found.links is not None:
        checks += _link_checks(found.links)
    if found.harm is not None:
        checks.append(_harm_check(found.harm, inputs, policy))
    for name, fired in sorted(inputs.streams.items()):
        text = f"{name} fired {len(fired)} times on the labelled losses" + (f", last at {fired[-1]}" if fired else "")
        checks.append(Check(f"stream.{name}", None, text, float(len(fired))))
    if found.cause != "none":
        drivers = names(list(found.drivers)) or "no single column"
        where = f"; worst in {names(list(found.segments))}" if found.segments else ""
        checks.append(Check("cause", None, f"{found.cause}, driven by {drivers}{where}; severity {found.severity}"))
    checks.append(Check(f"action.{found.action.replace(' ', '_')}", None, action_text(found)))
    return tuple(checks)


def _invalid_checks(found: Diagnosis, inputs: DriftInputs) -> list[Check]:
    """Values that are no finite number are said, however few."""
    named = {f.column for f in found.faults if f.kind == "invalid"}
    columns = dict(sorted(inputs.windows[-1].columns.items())) if inputs.windows else {}
    return [
        Check(
            f"invalid.{name}", None, f"{name} holds {now.invalid} values that are no finite number", float(now.invalid)
        )
        for name, now in columns.items()
        if isinstance(now, NumericSummary) and now.invalid and name not in named
    ]


def _link_checks(links: OutcomeShift) -> list[Check]:
    lines = (
        ("prediction", "mix of predictions", links.prediction),
        ("label", "mix of labels", links.label),
        ("score_given_label", "scores where the label is known", links.score_given_label),
        ("label_given_score", "labels where the score is known", links.label_given_score),
    )
    checks = [
        Check(f"outcome.{name}", None, f"{text}: Cohen's w {effect:.2f}, p {p:.2g} on {links.labels} labels", effect)
        for name, text, (effect, p) in lines
    ]
    if links.estimated:
        shares = ", ".join(f"{q:.3f} ± {e:.3f}" for q, e in zip(links.estimated, links.error, strict=True))
        checks.append(Check("outcome.estimated_labels", None, f"mix of labels estimated from scores alone: {shares}"))
    return checks


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


def action_text(found: Diagnosis) -> str:
    """Say what to do."""
    if found.action == "fix upstream":
        columns = names(sorted({f.column for f in found.faults}))
        feeds = " and ".join(found.views)
        return f"Fix the feed of {feeds}; until then quarantine {columns}. Do not retrain on these rows."
    return {
        "retrain": "Retrain on newer rows: the shift is strong or costs accuracy.",
        "watch": "Keep watching: the shift is moderate and costs nothing that labels show.",
        "wait": "Wait for more rows.",
        "none": "Nothing to do.",
    }[found.action]


def names(columns: Sequence[str]) -> str:
    """List up to five names."""
    return ", ".join(columns[:5]) + (f" and {len(columns) - 5} more" if len(columns) > 5 else "")
