"""Whether the loop trains again: RETRAIN, WAIT or REFUSE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from trellis.contract import RetrainPolicy
from trellis.decision import Check, Verdict
from trellis.errors import ClockError

Trigger = Literal["manual", "drift", "performance", "labels", "schedule"]
PERIOD_DAYS = 30.0


@dataclass(frozen=True)
class Signal:
    """One reason to train again, whether it speaks or not.

    Attributes:
        trigger: Its kind.
        asks: Whether it asks for a retraining.
        score: What was measured.
        threshold: What it was held against; above zero.
        text: Both in a sentence.
    """

    trigger: Trigger
    asks: bool
    score: float
    threshold: float
    text: str

    @property
    def strength(self) -> float:
        """Score over threshold: how loud it is, in a unit that kinds share."""
        return self.score / self.threshold


@dataclass(frozen=True)
class Request:
    """A person's word that a model be trained again.

    Attributes:
        id: Unique; one request is served once.
        who, why: Kept.
        at: Wall clock, RFC 3339.
        force: Cooldown, budget, labels, the circuit breaker and a fault do not hold it back.
    """

    id: str
    who: str
    why: str
    at: str
    force: bool = False


@dataclass(frozen=True)
class RetrainInputs:
    """All that a retraining decision is made of.

    Attributes:
        model: The model's name.
        now: Event time of the decision, RFC 3339.
        signals: What speaks for it.
        fault: What is wrong upstream, in a sentence; empty where nothing is.
        trained_at: Event times of earlier trainings of this loop, RFC 3339, the first deployment's included.
        new_labels: Labels newer than the champion's training data.
        request: A person's word, if there is one.
        cycle: Id of the retraining that is going on; empty without.
        stage: Where that one stands.
        failures: Retrainings in a row that led to no better version.
        broken_since: Event time at which the circuit breaker opened; empty while it is closed.
        paused: Whether a person has paused the loop.
    """

    model: str
    now: str
    signals: tuple[Signal, ...] = ()
    fault: str = ""
    trained_at: tuple[str, ...] = ()
    new_labels: int = 0
    request: Request | None = None
    cycle: str = ""
    stage: str = ""
    failures: int = 0
    broken_since: str = ""
    paused: bool = False


def schedule_signal(policy: RetrainPolicy, now: str, trained_at: Sequence[str]) -> Signal | None:
    """Return what the schedule says; None where the policy has none."""
    if policy.schedule_days is None:
        return None
    ages = _ages(now, trained_at)
    age = min(ages) if ages else policy.schedule_days
    text = f"{age:.1f} days since the last training, scheduled every {policy.schedule_days:g}"
    return Signal("schedule", age >= policy.schedule_days, age, policy.schedule_days, text)


def label_signal(policy: RetrainPolicy, new_labels: int) -> Signal | None:
    """Return what the number of new labels says; None where the policy does not ask."""
    if policy.label_volume is None:
        return None
    text = f"{new_labels:,} labels newer than the training data, {policy.label_volume:,} ask for a training"
    return Signal("labels", new_labels >= policy.label_volume, float(new_labels), float(policy.label_volume), text)


def dominant(inputs: RetrainInputs) -> Signal | None:
    """Return the signal that asks most: a person's word, else the one furthest above its threshold."""
    if inputs.request is not None:
        by = inputs.request
        return Signal("manual", True, 1.0, 1.0, f"{by.who} asks: {by.why}")
    asking = [s for s in inputs.signals if s.asks]
    return max(asking, key=lambda s: s.strength, default=None)


def decide_retrain(inputs: RetrainInputs, policy: RetrainPolicy) -> Verdict:
    """Decide on a retraining; pure.

    An upstream fault is refused: a model trained on it would learn the fault. Without a signal that asks nothing is
    trained. Otherwise nothing else may be going on, the circuit breaker must be closed, and cooldown, budget and new
    labels each have to allow it, or the decision is to wait, and for what. A request of a person supersedes a
    retraining that has reached its rollout; a forced one is held back by a pause alone.

    Raises:
        ClockError: A moment is none.
    """
    leading = dominant(inputs)
    force = inputs.request is not None and inputs.request.force
    if inputs.fault and not force:
        check = Check("fault", False, inputs.fault)
        return Verdict(
            "REFUSE", "Training on an upstream fault would teach it to the model; fix the feed first.", (check,)
        )
    others = tuple(_told(s) for s in inputs.signals if s is not leading)
    if leading is None:
        check = Check("trigger", False, "no signal asks for a retraining")
        return Verdict("WAIT", "Nothing asks for a retraining.", (check, *others))
    trigger = Check(
        f"trigger.{leading.trigger}",
        True,
        f"{leading.text} ({leading.trigger} signal, {leading.strength:.2f} of its threshold)",
        leading.score,
        leading.threshold,
    )
    bounds, needs = _bounds(inputs, policy)
    checks = [_free(inputs, force), *(_overridden(c, inputs.request) if force else c for c in bounds)]
    blocked = [c for c in checks if not c.passed]
    arithmetic = (trigger, *checks, *others, Check("method", None, _method(policy)))
    what = leading.trigger if leading.trigger != "labels" else "label volume"
    if blocked:
        waits = {} if force else needs
        why = f"{what.capitalize()} asks for a retraining, but {'; '.join(c.text for c in blocked)}."
        return Verdict("WAIT", why, arithmetic, waits)
    return Verdict("RETRAIN", f"{what.capitalize()} asks for it, and {'; '.join(c.text for c in checks)}.", arithmetic)


def _free(inputs: RetrainInputs, force: bool) -> Check:
    """Say whether the loop may begin: not paused, and nothing going on that this may not supersede."""
    if inputs.paused:
        return Check("free", False, "the loop is paused")
    if not inputs.cycle:
        return Check("free", True, "nothing is going on")
    if force or (inputs.request is not None and inputs.stage in ("rollout", "verifying")):
        return Check("free", True, f"{inputs.cycle} ({inputs.stage}) is superseded by a person's word")
    return Check("free", False, f"{inputs.cycle} is going on ({inputs.stage})")


def _bounds(inputs: RetrainInputs, policy: RetrainPolicy) -> tuple[list[Check], dict[str, float]]:
    """Return the four things that hold a retraining back, and what is still missing."""
    ages = _ages(inputs.now, inputs.trained_at)
    last = ages[0] if ages else None
    recent = [age for age in ages if age < PERIOD_DAYS]
    broken = _ages(inputs.now, [inputs.broken_since] if inputs.broken_since else [])
    cooldown = Check(
        "cooldown",
        last is None or last >= policy.cooldown_days,
        "never trained before"
        if last is None
        else f"{last:.1f} days since the last training, {policy.cooldown_days:g} needed",
        last,
        policy.cooldown_days,
    )
    budget = Check(
        "budget",
        len(recent) < policy.budget_per_month,
        f"{len(recent)} trainings in the last 30 days, at most {policy.budget_per_month}",
        len(recent),
        policy.budget_per_month,
    )
    labels = Check(
        "labels",
        inputs.new_labels >= policy.min_new_labels,
        f"{inputs.new_labels} labels newer than the training data, {policy.min_new_labels} needed",
        inputs.new_labels,
        policy.min_new_labels,
    )
    closed = not inputs.broken_since or (bool(broken) and broken[0] >= policy.breaker_days)
    state = "closed" if not inputs.broken_since else "half open" if closed else "open"
    breaker = Check(
        "breaker",
        closed,
        f"the circuit breaker is {state} after {inputs.failures} retrainings without a better version",
        inputs.failures,
        policy.max_failures,
    )
    days = 0.0 if last is None else max(0.0, policy.cooldown_days - last)
    if not budget.passed:
        # The oldest training that has to leave the period.
        days = max(days, PERIOD_DAYS - recent[policy.budget_per_month - 1] if policy.budget_per_month else PERIOD_DAYS)
    if not closed:
        days = max(days, policy.breaker_days - (broken[0] if broken else 0.0))
    needs = {"days": days} if days > 0 else {}
    if not labels.passed:
        needs["labels"] = float(policy.min_new_labels - inputs.new_labels)
    return [breaker, cooldown, budget, labels], needs


def _overridden(check: Check, request: Request | None) -> Check:
    if check.passed or request is None:
        return check
    return Check(check.name, True, f"{check.text} (overridden by {request.who})", check.value, check.bound)


def _told(signal: Signal) -> Check:
    return Check(f"signal.{signal.trigger}", signal.asks, signal.text, signal.score, signal.threshold)


def _method(policy: RetrainPolicy) -> str:
    return {
        "full": "from nothing, on every row",
        "window": f"from nothing, on the rows of the last {policy.window_days:g} days",
        "incremental": "the champion learns the rows since its own",
        "online": f"the champion learns the rows since its own in their order, {policy.online_rows} at a time",
        "ensemble": f"a member from nothing on the rows of the last {policy.window_days:g} days joins the champion's, "
        f"at most {policy.members}, weighed on the newest rows with a half-life of {policy.decay_days:g} days",
    }[policy.method]


def _ages(now: str, moments: Sequence[str]) -> list[float]:
    """Return how many days ago each was, newest first; what lies ahead is left out."""
    at = read_moment(now)
    return sorted(age for t in moments if (age := (at - read_moment(t)).total_seconds() / 86_400) >= 0)


def read_moment(text: str) -> datetime:
    """Read a moment; one without a zone is UTC.

    Raises:
        ClockError: It is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ClockError(f"{text!r} is no moment.", remedy="Give it as RFC 3339, 2013-07-01T00:00:00Z.") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
