"""What happens next to a model, and who does it: a pure reading of its state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from services.console.reading import ModelState


@dataclass(frozen=True)
class Upcoming:
    """Something that is going to happen.

    Attributes:
        at: When it is due at the latest, RFC 3339, event time; empty where it is due now or only evidence decides.
        what: What is going to happen.
        because: Why, or what it waits for.
        who: ``platform`` or ``you``.
    """

    at: str
    what: str
    because: str
    who: str = "platform"


def upcoming(state: ModelState) -> list[Upcoming]:
    """Return what comes next, a person's part first, then by time; what only evidence decides last."""
    found = [*_for_a_person(state), *_rollout(state), *_watching(state), *_retraining(state), *_labels(state)]
    return sorted(found, key=lambda item: (item.who != "you", not item.at, item.at))


def _for_a_person(state: ModelState) -> list[Upcoming]:
    found = []
    if state.plan is None:
        found.append(
            Upcoming("", "Deploy a first version", f"no plan yet: trellis flow train {state.model}", who="you")
        )
    if state.look is not None and state.look.action == "fix upstream":
        found.append(Upcoming("", "Fix the feed upstream; do not retrain on these rows", state.look.reason, who="you"))
    if state.rollout is not None and state.rollout.paused and not state.rollout.final:
        found.append(
            Upcoming(
                "", "Resume, promote or abort the paused rollout", f"trellis rollout resume {state.model}", who="you"
            )
        )
    if state.loop is not None and state.loop.broken_since:
        why = f"{state.loop.failures} retrainings in a row led to no better version"
        found.append(Upcoming("", "Find out why retraining does not help; its circuit breaker is open", why, who="you"))
    if state.loop is not None and state.loop.paused:
        found.append(Upcoming("", "Let the paused loop go on", f"trellis loop resume {state.model}", who="you"))
    return found


def _rollout(state: ModelState) -> list[Upcoming]:
    rollout = state.rollout
    if rollout is None or rollout.final:
        return []
    newcomer = f"version {rollout.newcomer.version}"
    told = state.latest.get(rollout.stage if rollout.stage in ("shadow", "window") else rollout.strategy)
    # A verdict on an earlier rollout says nothing about this one.
    told = told if told is not None and rollout.started_at and told.at >= rollout.started_at else None
    policy = told.policy if told is not None else {}
    if rollout.stage == "window":
        at = _after(rollout.entered_at, policy.get("rollback_days"))
        return [Upcoming(at, f"{newcomer} is final and the version before is let go", "the rollback window ends")]
    needs = ", ".join(f"{value:,.0f} {name}" for name, value in told.verdict.needs.items()) if told is not None else ""
    reason = f"still needed: {needs}" if needs else told.verdict.reason if told is not None else "no look at it yet"
    found = [Upcoming("", f"Next verdict on {newcomer}", reason)]
    deadline = _after(rollout.started_at, policy.get("max_days"))
    if deadline:
        ends = "waits for a person" if policy.get("on_timeout") == "pause" else "is rolled back"
        found.append(Upcoming(deadline, f"{newcomer} {ends}", "the rollout's time is up unless there is a verdict"))
    return found


def _watching(state: ModelState) -> list[Upcoming]:
    if state.plan is None:
        return []
    if state.look is None:
        return [Upcoming("", "First look at its traffic", f"trellis watch {state.model}")]
    return [Upcoming(state.look.next_look, "Next look at drift and performance", "by the model's drift policy")]


def _retraining(state: ModelState) -> list[Upcoming]:
    told = state.latest.get("retrain")
    cycle = state.loop.open if state.loop is not None else None
    if state.loop is not None and cycle is not None:
        what = f"Retraining {state.loop.cycles} goes on: {state.loop.stage}"
        return [Upcoming("", what, cycle.why or f"asked for by {cycle.trigger}")]
    if told is None:
        return []
    if told.verdict.outcome == "RETRAIN":
        at = _after(told.at, told.policy.get("cooldown_days"))
        return [
            Upcoming(at, "A retraining is possible again", "the cooldown ends") if at else _asked(told.verdict.reason)
        ]
    days = told.verdict.needs.get("days")
    if days:
        return [Upcoming(_after(told.at, days), "A retraining is possible again", told.verdict.reason)]
    return [_asked(told.verdict.reason)] if told.verdict.needs else []


def _asked(reason: str) -> Upcoming:
    return Upcoming("", "Retraining is weighed again at the next look", reason)


def _labels(state: ModelState) -> list[Upcoming]:
    look = state.look
    if look is None:
        return []
    waiting = sum(s.predictions - s.labelled - s.overdue for s in look.labels)
    if not waiting:
        return []
    at = _after(look.end, look.label_delay_hours / 24)
    return [Upcoming(at, f"The last of {waiting:,} labels are due", "by the model's declared label delay")]


def _after(moment: str, days: float | None) -> str:
    if not moment or days is None:
        return ""
    return (datetime.fromisoformat(moment) + timedelta(days=float(days))).isoformat(timespec="seconds")
