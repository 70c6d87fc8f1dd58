"""The loop in a stack: a light flow that looks and decides, and one that retrains when its event is heard.

``watch_model`` runs for every model on a schedule, ``TRELLIS_LOOP_MINUTES``. What it finds and decides it says as
Prefect events; an automation, which comes with the deployment of ``retrain_model``, runs that one on a decision to
retrain. Events may be lost, doubled or late: the loop's own store is what counts. A decision begins one cycle in it,
whoever hears of it; ``retrain_model`` does the stages of that decision's cycle under the loop's lease and finds nothing
to do where they are done; and as long as a cycle has not got through them, every further look says its event again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from pipelines.data import Tables
from pipelines.following import follow_rollout, leave_to_holder
from pipelines.loop import Look, Work, announce, look, time_of_turn
from pipelines.plugins import plugin_named
from pipelines.retraining import Retraining
from pipelines.rollout import mirror
from pipelines.steps import flow, nothing_to_do, step
from pipelines.stores import decisions, loops, plans
from pipelines.training import Recipe
from trellis.decision import Decision
from trellis.errors import LeaseHeldError
from trellis.loop import LONG, Loop, begin, go_on
from trellis.settings import settings

# The automation expects ``trellis.retrain.*``: the last part is the trigger, ``drift`` or ``labels`` say.
RETRAIN = "trellis.retrain"
LOOKED = "trellis.looked"


@dataclass(frozen=True)
class Watched:
    """What one look in a stack came to.

    Attributes:
        look: What was found.
        retrain: Whether to train again, and why.
        loop: Where the loop stands.
        event: Name of the event that asks for the retraining's work; empty where there is none.
        rollout: What was decided on a rollout that no retraining of the loop began; None without one.
    """

    look: Look
    retrain: Decision
    loop: Loop
    event: str
    rollout: Decision | None = None


@flow
def watch_model(model: str, now: str = "", report: bool = True, paced: bool = False) -> Watched | None:
    """Look once, decide, follow a rollout that is going on, and say what was decided.

    Args:
        model: Whose loop.
        now: Event time of the look, RFC 3339; now if not given, or when paced the newest request's.
        report: Whether the look writes a report, which takes some seconds.
        paced: As schedules ask: drift is judged only when the model's next declared look is due; and what has no
            turn to take, a model that nobody has planned or asked yet, or whose loop another turn holds, is left alone.

    Returns:
        What it came to; None where a paced turn had nothing to do.
    """
    home = settings().directory()
    asked = any(any((home / log / model).glob("*")) for log in ("predictions", "failures"))
    if paced and (plans().current(model) is None or not asked):
        nothing_to_do()
        return None
    at = now or ("latest" if paced else datetime.now(UTC).isoformat(timespec="seconds"))
    mirror(model)
    found = look(model, at, report, paced)
    work = Work(model, found, Retraining(model))
    if paced:
        at = time_of_turn(found, loops().current(model))
    try:
        state = begin(loops(), work, plugin_named(model).spec.retrain, model, at)
    except LeaseHeldError:
        if not paced:
            raise
        leave_to_holder(model, at)
        return None
    announce(state)
    verdict = found.decision.verdict
    say(f"{LOOKED}.{verdict.outcome.lower()}", model, found.decision.id, {"action": found.action, "at": at})
    event = ""
    if state.open is not None and state.stage in LONG:
        event = ask_for_work(state, at)
    return Watched(found, work.decision, state, event, follow_rollout(model, at, paced))


@flow
def retrain_model(
    model: str, decision: str, now: str, recipe: Recipe | None = None, since: str = "", tables: Tables | None = None
) -> Loop:
    """Do the retraining that a decision began, as far as the world allows; said twice, it is done once.

    Args:
        model: Whose loop.
        decision: Id of the decision to retrain.
        now: Event time, RFC 3339.
        recipe: How to train; the spec's first recipe if not given.
        since: Start of the training period, RFC 3339; empty for what the policy's method says.
        tables: Raw tables to use instead of a fresh ingest.
    """
    decisions().get(decision)  # an id that nobody took is refused by name
    work = Work(model, None, Retraining(model, recipe, since, tables))
    state = go_on(loops(), work, plugin_named(model).spec.retrain, model, now, decision)
    announce(state)
    return state


def ask_for_work(state: Loop, looked: str) -> str:
    """Say that a cycle waits for its work; return the event's name.

    Args:
        state: Where the loop stands.
        looked: Event time of the look that says so, RFC 3339.
    """
    cycle = state.open
    assert cycle is not None
    event = f"{RETRAIN}.{cycle.trigger or 'unknown'}"
    at = state.moved_at or cycle.at
    details = {"cycle": cycle.id, "at": at, "stage": state.stage, "looked": looked}
    say(event, state.model, cycle.decision, details)
    return event


@step(keep=False)
def say(event: str, model: str, decision: str, details: dict[str, str]) -> None:
    """Emit a Prefect event about a model; without a server nobody hears it, and nothing depends on that."""
    if settings().orchestrator != "prefect":
        return
    from prefect.events import emit_event

    emit_event(
        event,
        resource={"prefect.resource.id": f"trellis.model.{model}", "prefect.resource.name": model},
        payload={"model": model, "decision": decision, **details},
        # The same look's saying is the same event, however often a killed run repeats it; the server takes an id once,
        # and leaves it out for half an hour, so a further look's has to be another.
        id=uuid5(NAMESPACE_URL, f"{event}/{decision}/{details.get('at', '')}/{details.get('looked', '')}"),
    )


def retraining_trigger() -> Any:
    """Return the automation that runs ``retrain_model`` on a decision to retrain; it comes with the deployment."""
    from prefect.events import DeploymentEventTrigger

    return DeploymentEventTrigger(
        name="trellis: retrain on a decision",
        description="Runs the retraining that a decision of the loop asks for; the loop's store sees to it being once.",
        expect={f"{RETRAIN}.*"},
        match={"prefect.resource.id": "trellis.model.*"},
        for_each={"prefect.resource.id"},
        parameters={name: f"{{{{ event.payload.{key} }}}}" for name, key in
                    (("model", "model"), ("decision", "decision"), ("now", "at"))},
    )  # fmt: skip
