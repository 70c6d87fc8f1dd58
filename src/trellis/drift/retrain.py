"""Whether the loop trains again by itself: RETRAIN, WAIT or REFUSE."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from trellis.contract import RetrainPolicy
from trellis.decision import Check, Verdict


@dataclass(frozen=True)
class RetrainInputs:
    """All that a retraining decision is made of.

    Attributes:
        model: The model's name.
        now: Event time of the decision, RFC 3339.
        drift_outcome: Outcome of the drift verdict that asks.
        drift_action: Its recommended action: ``retrain``, ``watch``, ``fix upstream``, ``wait`` or ``none``.
        drift_reason: Its sentence.
        trained_at: Event times of earlier trainings of this loop, RFC 3339, the first deployment's included.
        new_labels: Labels newer than the champion's training data.
    """

    model: str
    now: str
    drift_outcome: str
    drift_action: str
    drift_reason: str = ""
    trained_at: tuple[str, ...] = ()
    new_labels: int = 0


def decide_retrain(inputs: RetrainInputs, policy: RetrainPolicy) -> Verdict:
    """Decide on a retraining; pure.

    An upstream fault is refused: a model trained on it would learn the fault. Without drift that asks for it nothing is
    trained. Otherwise cooldown, monthly budget and new labels each have to allow it, or it waits and says for what.
    """
    if inputs.drift_outcome == "UPSTREAM_FAULT":
        check = Check("trigger", False, f"{inputs.drift_outcome}: {inputs.drift_reason}")
        return Verdict(
            "REFUSE", "Training on an upstream fault would teach it to the model; fix the feed first.", (check,)
        )
    asked = inputs.drift_outcome == "DRIFT" and inputs.drift_action == "retrain"
    trigger = Check(
        "trigger", asked, f"drift verdict {inputs.drift_outcome}, action {inputs.drift_action}: {inputs.drift_reason}"
    )
    if not asked:
        return Verdict("WAIT", f"Nothing asks for a retraining (drift verdict {inputs.drift_outcome}).", (trigger,))
    now = _moment(inputs.now)
    ages = sorted(age for t in inputs.trained_at if (age := (now - _moment(t)).total_seconds() / 86_400) >= 0)
    last = ages[0] if ages else None
    recent = [age for age in ages if age < 30]
    checks = (
        trigger,
        Check(
            "cooldown",
            last is None or last >= policy.cooldown_days,
            "never trained before"
            if last is None
            else f"{last:.1f} days since the last training, {policy.cooldown_days:g} needed",
            last,
            policy.cooldown_days,
        ),
        Check(
            "budget",
            len(recent) < policy.budget_per_month,
            f"{len(recent)} trainings in the last 30 days, at most {policy.budget_per_month}",
            len(recent),
            policy.budget_per_month,
        ),
        Check(
            "labels",
            inputs.new_labels >= policy.min_new_labels,
            f"{inputs.new_labels} labels newer than the training data, {policy.min_new_labels} needed",
            inputs.new_labels,
            policy.min_new_labels,
        ),
    )
    needs: dict[str, float] = {}
    days = 0.0 if last is None else max(0.0, policy.cooldown_days - last)
    if not checks[2].passed:
        # The oldest training that has to leave the last 30 days.
        days = max(days, 30 - sorted(recent)[policy.budget_per_month - 1] if policy.budget_per_month else 30.0)
    if days > 0:
        needs["days"] = days
    if not checks[3].passed:
        needs["labels"] = float(policy.min_new_labels - inputs.new_labels)
    blocked = [c for c in checks if not c.passed]
    if blocked:
        return Verdict(
            "WAIT", "Drift asks for a retraining, but " + "; ".join(c.text for c in blocked) + ".", checks, needs
        )
    return Verdict("RETRAIN", f"Drift asks for it, and {'; '.join(c.text for c in checks[1:])}.", checks)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
