"""The loop as a state machine: what may follow what, as one pure function of state and event.

::

    watching ──RETRAIN──▶ training ──▶ gating ──▶ rollout ──▶ verifying ──▶ watching
                             │           │           │            │
                             ▼           ▼           ▼            ▼ regressed
                           failed   held|rejected  rolled_back  returning ──▶ watching

A retraining under way is a ``Cycle``; every way out of it leads back to ``watching``, with the outcome kept. The driver
does the work that a stage asks for, hands the result over as an event, and writes what follows in one transaction. Work
is idempotent under the cycle's id, so after a kill the next turn does the same work again and finds it done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trellis.contract import RetrainPolicy
from trellis.errors import ClockError, LoopError
from trellis.loop.decide import PERIOD_DAYS, Request, read_moment

Stage = Literal["watching", "training", "gating", "rollout", "verifying", "returning"]
Outcome = Literal["promoted", "held", "rejected", "failed", "rolled_back", "regressed", "superseded", "cancelled"]
# What counts towards the circuit breaker: the retraining cost its budget and led to no better version.
FRUITLESS: frozenset[str] = frozenset({"held", "rejected", "failed", "rolled_back", "regressed"})
_GATED: Mapping[str, Outcome] = {"HOLD": "held", "REJECT": "rejected"}


@dataclass(frozen=True)
class Cycle:
    """One retraining, from the decision to its end.

    Attributes:
        id: ``<model>-cycle-<number>``.
        decision: Id of the decision behind it; one decision begins one cycle.
        trigger: Its dominant signal.
        at: Event time of the decision, RFC 3339.
        champion: Version that answered then; it comes back if the new one regresses.
        attempts: How often the stage's work was begun.
        work: What the training handed over, JSON: the candidate.
        result: What the gate handed over, JSON: version, decision, verdict.
        version: The registered version; empty before the gate.
        entered_at: Event time at which the stage was entered.
        outcome: How it ended; empty while it lasts.
        why: The last move's reason.
    """

    id: str
    decision: str
    trigger: str
    at: str
    champion: str
    attempts: int = 0
    work: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    entered_at: str = ""
    outcome: str = ""
    why: str = ""


@dataclass(frozen=True)
class Loop:
    """Where a model's loop stands.

    Attributes:
        model: The model.
        stage: See the module's picture.
        cycle: The retraining that is going on, or the last one.
        cycles: How many there have been.
        starts: Event times at which cycles of the budget's period began.
        failures: Cycles in a row that led to no better version.
        broken_since: Event time at which the circuit breaker opened; empty while it is closed.
        paused: Whether a person has paused it.
        request: A person's word that is waiting.
        number: Transitions so far; the store compares and sets it.
        moved_at: Event time of the last move; empty before the first.
    """

    model: str
    stage: Stage = "watching"
    cycle: Cycle | None = None
    cycles: int = 0
    starts: tuple[str, ...] = ()
    failures: int = 0
    broken_since: str = ""
    paused: bool = False
    request: Request | None = None
    number: int = 0
    moved_at: str = ""

    @property
    def open(self) -> Cycle | None:
        """The retraining that is going on."""
        return self.cycle if self.stage != "watching" else None


@dataclass(frozen=True)
class Weighed:
    """A retraining was decided on.

    Attributes:
        decision: Id of the decision.
        outcome, why: Of its verdict.
        trigger: Its dominant signal.
        champion: Version that answers.
        request: Id of the request it serves; empty without.
    """

    decision: str
    outcome: str
    why: str
    trigger: str
    champion: str
    request: str = ""


@dataclass(frozen=True)
class Begun:
    """The work of ``training`` or ``gating`` is about to begin.

    It is written before the work is done, so that one that kills its process every time is not tried forever.
    """


@dataclass(frozen=True)
class Trained:
    """A candidate is there."""

    work: Mapping[str, Any]


@dataclass(frozen=True)
class Gated:
    """The gate has spoken; ``planned`` says whether the rollout plan names the version."""

    version: str
    outcome: str
    why: str
    result: Mapping[str, Any]
    planned: bool


@dataclass(frozen=True)
class Followed:
    """Where the version's rollout stands: ``open``, ``champion`` or how it ended."""

    place: str
    why: str


@dataclass(frozen=True)
class Verified:
    """The new champion was held against the old one."""

    outcome: str
    why: str
    decision: str


@dataclass(frozen=True)
class Returned:
    """The version before answers again, with all that it was released with."""

    why: str


@dataclass(frozen=True)
class Failed:
    """The work of the stage raised an error."""

    why: str


Event = Weighed | Begun | Trained | Gated | Followed | Verified | Returned | Failed


@dataclass(frozen=True)
class Move:
    """What follows, and why in one sentence; the state is the same object where nothing does."""

    state: Loop
    why: str
    decision: str = ""


def next_state(state: Loop, event: Event, policy: RetrainPolicy, now: str) -> Move:
    """Say what follows from an event; pure.

    An event that does not belong to the stage moves nothing: it was said already, by a process that has been killed
    since, or that was too slow.

    Args:
        state: Where the loop stands.
        event: What has happened.
        policy: The model's retraining policy.
        now: Event time, RFC 3339.

    Raises:
        ClockError: ``now`` lies before the last move.
    """
    if state.moved_at and read_moment(now) < read_moment(state.moved_at):
        raise ClockError(
            f"It is {now}, before the last move of the loop of {state.model!r} at {state.moved_at}.",
            remedy="Mend the clock, or give a later moment.",
        )
    if isinstance(event, Weighed):
        return _weighed(state, event, now)
    cycle = state.open
    if cycle is None:
        return Move(state, "Nothing is going on.")
    if isinstance(event, Failed):
        return _failed(state, cycle, event, policy, now)
    if state.stage in ("training", "gating") and isinstance(event, Begun):
        if cycle.attempts >= policy.max_attempts:
            why = f"The {state.stage} was begun {cycle.attempts} times and never came to its end."
            return _ended(state, cycle, "failed", why, policy, now)
        return _moved(state, replace(cycle, attempts=cycle.attempts + 1), f"Attempt {cycle.attempts + 1}.", now)
    if state.stage == "training" and isinstance(event, Trained):
        return _entered(state, replace(cycle, work=event.work), "gating", "Trained.", now)
    if state.stage == "gating" and isinstance(event, Gated):
        gated = replace(cycle, version=event.version, result=event.result)
        if event.planned:
            return _entered(state, gated, "rollout", event.why, now)
        return _ended(state, gated, _GATED.get(event.outcome, "superseded"), event.why, policy, now)
    if state.stage == "rollout" and isinstance(event, Followed):
        return _followed(state, cycle, event, policy, now)
    if state.stage == "verifying" and isinstance(event, Verified | Followed):
        return _verified(state, cycle, event, policy, now)
    if state.stage == "returning" and isinstance(event, Returned):
        return _ended(state, cycle, "regressed", event.why, policy, now)
    return Move(state, f"{type(event).__name__} says nothing to a loop that is {state.stage}.")


def asked(state: Loop, request: Request) -> Move:
    """Return the state in which a person's word waits for the next turn.

    Raises:
        LoopError: It has no reason, or another one is waiting.
    """
    _reason(request.why)
    if state.request is not None:
        raise LoopError(
            f"A request of {state.request.who!r} is waiting for {state.model!r} already: {state.request.why}.",
            remedy=f"Take it back with: trellis loop cancel {state.model} --why …",
        )
    return _changed(state, f"{request.who} asks for a retraining: {request.why}", request=request)


def cancelled(state: Loop, why: str, policy: RetrainPolicy) -> Move:
    """Return the state after a person took the waiting request back and ended the retraining that was going on.

    Raises:
        LoopError: No reason is given, or there is nothing to cancel.
    """
    _reason(why)
    if state.open is None:
        if state.request is None:
            raise LoopError(f"Nothing is going on for {state.model!r}, and no request is waiting.")
        return _changed(state, why, request=None)
    ended = _ended(state, state.open, "cancelled", why, policy, state.moved_at)
    return replace(ended, state=replace(ended.state, request=None))


def paused(state: Loop, why: str, *, on: bool = True) -> Move:
    """Return the state in which no retraining begins, or may again; one that is going on goes on.

    Raises:
        LoopError: No reason is given, or it is so already.
    """
    _reason(why)
    if state.paused == on:
        raise LoopError(f"The loop of {state.model!r} is {'paused' if on else 'not paused'} already.")
    return _changed(state, why, paused=on)


def reset(state: Loop, why: str) -> Move:
    """Return the state with the circuit breaker closed.

    Raises:
        LoopError: No reason is given, or no retraining has failed.
    """
    _reason(why)
    if not state.failures and not state.broken_since:
        raise LoopError(f"The circuit breaker of {state.model!r} is closed, and nothing has failed.")
    return _changed(state, why, failures=0, broken_since="")


def _weighed(state: Loop, event: Weighed, now: str) -> Move:
    if event.outcome != "RETRAIN":
        return Move(state, event.why, event.decision)
    if state.cycle is not None and state.cycle.decision == event.decision:
        return Move(state, f"{state.cycle.id} follows that decision already.", event.decision)
    begun = state
    if (older := state.open) is not None:
        begun = replace(state, cycle=replace(older, outcome="superseded"))
    count = state.cycles + 1
    cycle = Cycle(
        f"{state.model}-cycle-{count}",
        event.decision,
        event.trigger,
        now,
        event.champion,
        entered_at=now,
        why=event.why,
    )
    recent = tuple(t for t in state.starts if (read_moment(now) - read_moment(t)).days < PERIOD_DAYS)
    served = begun.request is not None and begun.request.id == event.request
    after = replace(
        begun,
        stage="training",
        cycle=cycle,
        cycles=count,
        starts=(*recent, now),
        request=None if served else begun.request,
        number=state.number + 1,
        moved_at=now,
    )
    why = event.why if older is None else f"{older.id} is superseded. {event.why}"
    return Move(after, why, event.decision)


def _failed(state: Loop, cycle: Cycle, event: Failed, policy: RetrainPolicy, now: str) -> Move:
    if state.stage not in ("training", "gating"):
        # The world did not answer: what was asked is asked again at the next turn, as long as that takes.
        return Move(state, event.why)
    if cycle.attempts >= policy.max_attempts:
        return _ended(state, cycle, "failed", f"Attempt {cycle.attempts}: {event.why}", policy, now)
    return _moved(state, cycle, f"Attempt {cycle.attempts}: {event.why}", now)


def _followed(state: Loop, cycle: Cycle, event: Followed, policy: RetrainPolicy, now: str) -> Move:
    if event.place == "open":
        return Move(state, event.why)
    if event.place == "champion":
        return _entered(state, cycle, "verifying", event.why, now)
    outcome: Outcome = "rolled_back" if event.place == "rolled_back" else "superseded"
    return _ended(state, cycle, outcome, event.why, policy, now)


def _verified(state: Loop, cycle: Cycle, event: Verified | Followed, policy: RetrainPolicy, now: str) -> Move:
    if isinstance(event, Followed):  # somebody else took over, or took it back
        outcome: Outcome = "rolled_back" if event.place == "rolled_back" else "superseded"
        return _ended(state, cycle, outcome, event.why, policy, now)
    if event.outcome == "HOLD":
        return Move(state, event.why, event.decision)
    if event.outcome == "REGRESSED":
        return replace(_entered(state, cycle, "returning", event.why, now), decision=event.decision)
    return replace(_ended(state, cycle, "promoted", event.why, policy, now), decision=event.decision)


def _moved(state: Loop, cycle: Cycle, why: str, now: str, *, stage: Stage | None = None) -> Move:
    after = replace(
        state,
        stage=stage or state.stage,
        cycle=replace(cycle, why=why),
        number=state.number + 1,
        moved_at=now,
    )
    return Move(after, why)


def _entered(state: Loop, cycle: Cycle, stage: Stage, why: str, now: str) -> Move:
    return _moved(state, replace(cycle, entered_at=now, attempts=0), why, now, stage=stage)


def _ended(state: Loop, cycle: Cycle, outcome: Outcome, why: str, policy: RetrainPolicy, now: str) -> Move:
    failures, broken = state.failures, state.broken_since
    if outcome in FRUITLESS:
        failures += 1
        # A try while the breaker is half open that fails opens it anew.
        broken = now if broken or failures >= policy.max_failures else ""
    elif outcome == "promoted":
        failures, broken = 0, ""
    move = _moved(state, replace(cycle, outcome=outcome, entered_at=now), why, now, stage="watching")
    return Move(replace(move.state, failures=failures, broken_since=broken), why)


def _changed(state: Loop, why: str, **changes: Any) -> Move:
    return Move(replace(state, number=state.number + 1, **changes), why)


def _reason(why: str) -> None:
    if not why.strip():
        raise LoopError("A word about the loop needs a reason.", remedy='Give one with --why "…"; it is kept.')
