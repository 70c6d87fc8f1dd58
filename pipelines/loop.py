"""The loop: look → decide → train → gate → rollout → verify, as far as the world allows in one turn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from pipelines.data import Tables
from pipelines.following import follow_rollout, leave_to_holder
from pipelines.moments import moment, utc
from pipelines.plugins import plugin_named
from pipelines.retraining import Retraining
from pipelines.rollout import advance_rollout, controller, mirror
from pipelines.steps import flow, step
from pipelines.stores import decisions, loops, plans, registry
from pipelines.training import Outcome, Recipe
from pipelines.verify import verify_inputs
from trellis.adapters.loop_alerts import keep_loop_alerts
from trellis.adapters.prediction_log import read_labels, read_predictions
from trellis.decision import Decision, decision_of
from trellis.errors import DataError, LeaseHeldError, RegistryError
from trellis.loop import (
    Cycle,
    Followed,
    Gated,
    Loop,
    RetrainInputs,
    Returned,
    Signal,
    Trained,
    Verified,
    Weighed,
    decide_retrain,
    decide_verify,
    dominant,
    label_signal,
    schedule_signal,
    turn,
)
from trellis.settings import settings

# The watch job tells its verdict by its exit code; anything else is a failure of the job itself.
_VERDICTS = {0, 3, 4, 5}
_LOOK = TypeAdapter(Decision)
_OUTCOME = TypeAdapter(Outcome)


@dataclass(frozen=True)
class Look:
    """What one look found.

    Attributes:
        decision: The drift decision; of a paced look between two due ones the newest on record, if one stands.
        action: What it recommends: ``retrain``, ``watch``, ``fix upstream``, ``wait`` or ``none``.
        signals: What of it speaks for a retraining, or does not.
        report: The Evidently workspace, if a report was written.
        alert: File of the open alert, if there is one.
        at: End of the window that was looked at, event time, RFC 3339.
        recorded: Whether the decision is on record; a paced look's that asked nothing is not.
    """

    decision: Decision
    action: str
    signals: tuple[Signal, ...]
    report: str | None
    alert: str | None
    at: str = ""
    recorded: bool = True


@dataclass(frozen=True)
class Turn:
    """What one turn of the loop did.

    Attributes:
        look: What was found.
        retrain: Whether to train again, and why.
        loop: Where the loop stands now.
        outcome: What the gate said of the retraining that the decision began; None without one.
        rollout: What was decided on a rollout that no retraining of the loop began; None without one.
    """

    look: Look
    retrain: Decision
    loop: Loop
    outcome: Outcome | None
    rollout: Decision | None = None


@step(keep=False)
def look(model: str, until: str, report: bool = True, paced: bool = False) -> Look:
    """Run the watch job in its own process and keep its decision.

    Args:
        model: Whose.
        until: Event time of the look, RFC 3339, or ``latest``: the newest request's, answered or not.
        report: Whether a look that judges writes a report.
        paced: Whether to judge only when the model's next declared look is due.

    Raises:
        DataError: The job failed.
    """
    command = [sys.executable, "-m", "monitoring", "watch", model, "--until", until, "--json"]
    command += ([] if report else ["--no-report"]) + (["--paced"] if paced else [])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in _VERDICTS:
        raise DataError(
            f"The watch job of {model!r} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}",
            where=" ".join(command[1:]),
            remedy="Run it by hand to see more.",
        )
    result: dict[str, Any] = json.loads(done.stdout)
    decision = _LOOK.validate_python(result["decision"])
    recorded = result["evidence"] is not None
    if recorded:
        decisions().record(decision)
    found = result["diagnosis"]
    signals = _signals(decision, found)
    return Look(decision, found["action"], signals, result["report"], result["alert"], result["end"], recorded)


@step(keep=False)
def weigh_retraining(model: str, now: str, found: Look) -> Decision:
    """Decide whether to train again, from what the look found, the trainings so far and the labels since."""
    policy = plugin_named(model).spec.retrain
    state = loops().current(model)
    taken = _taken(state, now)
    if taken is not None:  # this turn was killed, or is run again: what was decided is finished, not weighed anew
        return taken
    until = _champion_until(model)
    trained = tuple(sorted({utc(t) for t in (*state.starts, until) if t}))
    new_labels = _new_labels(model, until, now)
    others = (label_signal(policy, new_labels), schedule_signal(policy, now, trained))
    verdict = found.decision.verdict
    inputs = RetrainInputs(
        model=model,
        now=now,
        signals=(*found.signals, *(s for s in others if s is not None)),
        fault=f"{verdict.outcome}: {verdict.reason}" if found.action == "fix upstream" else "",
        trained_at=trained,
        new_labels=new_labels,
        request=state.request,
        cycle=state.open.id if state.open else "",
        stage=state.stage if state.open else "",
        failures=state.failures,
        broken_since=state.broken_since,
        paused=state.paused,
    )
    decision = decision_of(
        "retrain",
        model=model,
        subject=f"after {found.decision.id}" if found.recorded else "without a verdict on record",
        at=now,
        inputs=inputs,
        policy=policy,
        verdict=decide_retrain(inputs, policy),
        who=state.request.who if state.request else "platform",
    )
    decisions().record(decision)
    return decision


@flow
def turn_loop(
    model: str,
    now: str,
    recipe: Recipe | None = None,
    since: str = "",
    tables: Tables | None = None,
    report: bool = True,
    paced: bool = False,
) -> Turn | None:
    """Look once, decide, and go on with the retraining that is going on, as far as the world allows.

    Args:
        model: Whose loop.
        now: Event time of the look, RFC 3339; ``latest``, for a paced turn, is the newest request's.
        recipe: How to train; the spec's first recipe if not given.
        since: Start of the training period, RFC 3339; empty for what the policy's method says.
        tables: Raw tables to use instead of a fresh ingest.
        report: Whether the look writes a report, which takes some seconds.
        paced: Whether it judges drift only when the model's next declared look is due; the newest verdict on record
            stands until then. For schedules, which come more often than that; where another turn holds the loop, that
            one is left to it.

    Returns:
        What it did; None where a paced turn found the loop held.

    Raises:
        LeaseHeldError: Another turn is under way, and this one is not paced.
    """
    mirror(model)
    found = look(model, now, report, paced)
    work = Work(model, found, Retraining(model, recipe, since, tables))
    at = time_of_turn(found, loops().current(model)) if paced else now
    try:
        state = turn(loops(), work, plugin_named(model).spec.retrain, model, at)
    except LeaseHeldError:
        if not paced:
            raise
        leave_to_holder(model, at)
        return None
    announce(state)
    rollout = follow_rollout(model, at, paced)
    return Turn(found, work.decision, state, _outcome(state, work.decision), rollout)


def time_of_turn(found: Look, state: Loop) -> str:
    """Return the event time of a paced turn: the look's, or the loop's last move where somebody took a later one."""
    return max(found.at, state.moved_at or found.at, key=moment)


def announce(state: Loop) -> None:
    """See to it that the loop's alerts are those of its state, after every turn: one that was killed is made up for.

    Where that changed one, the channels are told. Should that be lost, by a kill, the next look tells them.
    """
    if keep_loop_alerts(settings().directory("alerts"), state):
        # The channels are monitoring's; what they do not take now stays in their outbox.
        subprocess.run([sys.executable, "-m", "monitoring", "alerts", "deliver"], capture_output=True, check=False)


class Work:
    """What the stages of the loop ask for, done with the flows.

    Args:
        model: Whose loop.
        found: What the look found; None where nothing is weighed.
        retraining: How a candidate is made.
    """

    def __init__(self, model: str, found: Look | None, retraining: Retraining) -> None:
        self._model, self._found, self._retraining = model, found, retraining
        self._spec = plugin_named(model).spec
        self.decision: Decision

    def weigh(self, state: Loop, now: str) -> Weighed:  # noqa: ARG002 (read anew where the decision is taken)
        """Decide whether to train again."""
        assert self._found is not None
        self.decision = weigh_retraining(self._model, now, self._found)
        inputs = TypeAdapter(RetrainInputs).validate_python(self.decision.inputs["inputs"])
        leading, verdict = dominant(inputs), self.decision.verdict
        return Weighed(
            self.decision.id,
            verdict.outcome,
            verdict.reason,
            leading.trigger if leading else "",
            self._champion,
            inputs.request.id if inputs.request else "",
        )

    def train(self, cycle: Cycle) -> Trained:
        """Make the candidate; the seed follows from the decision, so that doing it again makes the same."""
        return Trained(self._retraining.train(cycle))

    def gate(self, cycle: Cycle) -> Gated:
        """Judge the candidate on rows it has not seen, register it and plan its rollout."""
        outcome = self._retraining.gate(cycle)
        result = _OUTCOME.dump_python(outcome, mode="json")
        return Gated(outcome.version, outcome.verdict, outcome.reason, result, outcome.revision > 0)

    def follow(self, cycle: Cycle, now: str) -> Followed:
        """Look at the rollout once, and say where the version stands."""
        state = controller().current(self._model, self._spec.rollout)
        if state is not None and not state.final:
            advance_rollout(self._model, now)
            state = controller().current(self._model, self._spec.rollout)
        mine = state is not None and cycle.version in {c.version for c in state.candidates}
        if state is not None and mine and not state.final:
            return Followed("open", f"Version {cycle.version} is in its {state.stage} ({state.id}).")
        if self._champion == cycle.version:
            return Followed("champion", f"Version {cycle.version} answers everything.")
        moves = [t for t in controller().store.history(self._model) if t.state.final]
        ended = [t for t in moves if cycle.version in {c.version for c in t.state.candidates}]
        place = ended[-1].state.stage if ended else "superseded"
        if place == "champion":  # it was, and is not any more
            place = "rolled_back" if self._champion == cycle.champion else "superseded"
        return Followed(place, ended[-1].why if ended else f"Version {self._champion} answers instead.")

    def verify(self, cycle: Cycle, now: str) -> Verified:
        """Hold the new champion against the one it replaced, on the labels known now."""
        rollouts = controller().store.history(self._model)
        won = [t.state.moved_at for t in rollouts if t.state.stage == "champion" and t.state.winner == cycle.version]
        taken_over = won[-1] if won and won[-1] else cycle.entered_at
        inputs = verify_inputs(self._spec, cycle, now, taken_over, plans().history(self._model))
        policy = self._spec.retrain
        decision = decision_of(
            "verify",
            model=self._model,
            subject=f"v{cycle.version} after v{cycle.champion}",
            at=now,
            inputs=inputs,
            policy=policy,
            verdict=decide_verify(inputs, policy),
        )
        decisions().record(decision)
        return Verified(decision.verdict.outcome, decision.verdict.reason, decision.id)

    def give_back(self, cycle: Cycle) -> Returned:
        """Let the version before answer again; a rollout on top of the one that regressed ends before."""
        why = f"Version {cycle.version} regressed: {cycle.why}"
        for _ in range(2):
            if self._champion == cycle.version:
                controller().rollback(self._model, self._spec.rollout, who="platform", why=why)
        mirror(self._model)
        back = f"Version {self._champion} answers again"
        return Returned(f"{back}, with the features, the thresholds and the drift baseline that it was released with.")

    @property
    def _champion(self) -> str:
        plan = plans().current(self._model)
        if plan is None:
            raise RegistryError(
                f"{self._model!r} has no rollout plan.", remedy=f"Train it with: trellis flow train {self._model}"
            )
        return plan.champion.version


def _signals(decision: Decision, found: Mapping[str, Any]) -> tuple[Signal, ...]:
    """Return what of a look's findings speaks for a retraining, with its numbers."""
    policy, verdict = decision.inputs["policy"], decision.verdict
    loudest = max((float(s["psi"]) for s in found["shifts"]), default=0.0)
    drift = Signal(
        "drift",
        verdict.outcome == "DRIFT" and found["action"] == "retrain",
        loudest,
        float(policy["psi_alarm"]),
        f"drift verdict {verdict.outcome}, action {found['action']}: {verdict.reason}",
    )
    harm = found["harm"]
    if harm is None:
        return (drift,)
    bound = float(policy["max_loss_increase"])
    text = f"mean loss {harm['increase']:+.4f} against training on {harm['labels']:,} labels, {bound:+.4f} is harm"
    return drift, Signal("performance", bool(harm["real"]), float(harm["increase"]), bound, text)


def _taken(state: Loop, now: str) -> Decision | None:
    """Return the decision of this very moment that the newest cycle came from, unless a person has asked since.

    Paced turns come at the same moment for as long as no request does: their evidence begins no second cycle, while a
    person's word is weighed. A decision that began no cycle is not looked for: on the same evidence it is taken again.
    """
    if state.cycle is None or state.request is not None:
        return None
    mine, taken = state.cycle.decision, decisions().list(state.model, "retrain")
    return next((d for d in taken if d.id == mine and d.at == now), None)


def _outcome(state: Loop, decision: Decision) -> Outcome | None:
    cycle = state.cycle
    if cycle is None or cycle.decision != decision.id or not cycle.result:
        return None
    return _OUTCOME.validate_python(cycle.result)


def _champion_until(model: str) -> str:
    """Return until when the champion's data reach; empty where its lineage does not tell."""
    plan = plans().current(model)
    return registry().version(model, plan.champion.version).tags.get("until", "") if plan else ""


def _new_labels(model: str, since: str, now: str) -> int:
    """Count predictions made since the champion's training data whose label is known."""
    home, until = settings().directory(), moment(now)
    start = moment(since) if since else until - timedelta(days=3650)
    made = read_predictions(home, model, since=start, until=until)["id"].to_numpy(str)
    labels = read_labels(home, model)
    known = labels.loc[pd.to_datetime(labels["observed_at"], utc=True) <= pd.Timestamp(until), "id"].to_numpy(str)
    return int(np.isin(made, known).sum())
