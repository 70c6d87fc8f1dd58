"""Rollout: read what the canary did, decide, and move the plan one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from pipelines.arms import ab_inputs, bandit_inputs, days_since_first, plans_of_trial, shadow_inputs
from pipelines.evidence import guard_counts, unit_counts
from pipelines.moments import moment
from pipelines.plugins import plugin_named
from pipelines.steps import flow, step
from pipelines.stores import decisions, plans, registry
from trellis.adapters.failure_log import read_assigned
from trellis.adapters.plan_store import Change
from trellis.adapters.prediction_log import read_labels, read_shadows
from trellis.adapters.releases import served_definition
from trellis.adapters.rollout_controller import RolloutController
from trellis.contract import ModelSpec
from trellis.decision import Decision, decision_of, dumps
from trellis.gates import GateInputs, paired_difference
from trellis.ledger import labelled
from trellis.rollout import (
    CanaryInputs,
    LossStream,
    RolloutPlan,
    Variant,
    ready_to_step,
)
from trellis.rollout.bandit import BanditInputs, decide_bandit
from trellis.rollout.compare import AbInputs, decide_ab
from trellis.rollout.document import Rollout
from trellis.rollout.pairs import Pairs
from trellis.rollout.shadowing import decide_shadow
from trellis.rollout.verdict import decide
from trellis.rollout.window import WindowInputs, decide_window
from trellis.settings import settings


@dataclass(frozen=True)
class Trial:
    """A canary's trial so far.

    Attributes:
        plan: The plan now.
        since: First revision of the trial.
        shares: The canary's share by revision.
        gate: Id of the gate's decision that let it in; empty if the plan does not tell.
    """

    plan: RolloutPlan
    since: int
    shares: dict[int, float]
    gate: str


def trial_of(history: Sequence[Change]) -> Trial | None:
    """Return the trial that is going on, or None."""
    if not history or history[-1].plan.canary is None:
        return None
    canary = history[-1].plan.canary
    shares: dict[int, float] = {}
    gate = ""
    for change in reversed(history):
        now = change.plan.canary
        if now is None or now.version != canary.version:
            break
        shares[change.plan.revision] = now.weight
        gate = change.why.partition(":")[0]
    return Trial(history[-1].plan, min(shares), shares, gate if gate.startswith("gate-") else "")


@step(keep=False)
def weigh_canary(model: str, now: str) -> Decision | None:
    """Decide on the canaries from the predictions and the labels known at ``now``; None where there is none."""
    trial = trial_of(plans().history(model))
    if trial is None or trial.plan.canary is None:
        return None
    state = controller().store.current(model)
    if state is not None and state.gate and not state.final:
        trial = replace(trial, gate=state.gate)
    spec = plugin_named(model).spec
    home = settings().directory()
    until = moment(now)
    predictions, labels = read_assigned(home, model, until=until), read_labels(home, model)
    arms = plans_of_trial(plans().history(model))
    bandit = state is not None and not state.final and state.strategy == "bandit"
    inputs: CanaryInputs | AbInputs | BanditInputs
    if bandit:
        inputs = bandit_inputs(spec, arms, predictions, labels, until)
        kind, verdict = "bandit", decide_bandit(inputs, spec.rollout)
    elif len(trial.plan.canaries) > 1 or (state is not None and not state.final and state.strategy == "ab"):
        inputs = ab_inputs(spec, arms, predictions, labels, until)
        kind, verdict = "ab", decide_ab(inputs, spec.rollout)
    else:
        inputs = replace(_inputs(spec, trial, predictions, labels, until), pairs=_pairs(spec, trial, labels, until))
        kind, verdict = "canary", decide(inputs, spec.rollout)
    decision = decision_of(
        kind,
        model=model,
        subject=f"{', '.join(f'v{v.version}' for v in trial.plan.canaries)} vs v{trial.plan.champion.version}",
        at=now,
        inputs=inputs,
        policy=spec.rollout,
        verdict=verdict,
    )
    decisions().record(decision)
    return decision


@step(keep=False)
def weigh_shadow(model: str, now: str) -> Decision | None:
    """Decide on a rollout in its shadow stage from the labelled pairs known at ``now``; None where there is none."""
    history = plans().history(model)
    if not history:
        return None
    policy, spec = plugin_named(model).spec.rollout, plugin_named(model).spec
    state = controller().current(model, policy)
    if state is None or state.stage != "shadow":
        return None
    home, plan = settings().directory(), history[-1].plan
    shadows, labels = read_shadows(home, model), read_labels(home, model)
    weighed = []
    for candidate in state.candidates:
        found = shadow_inputs(spec, candidate.version, history, shadows, labels, moment(now))
        weighed.append((decide_shadow(found, policy), found, candidate))
    # Of several the worst decides: none of them answers before all of them may.
    verdict, found, worst = min(weighed, key=lambda one: ("ROLL_BACK", "HOLD", "PROMOTE").index(one[0].outcome))
    decision = decision_of(
        "shadow",
        model=model,
        subject=f"v{worst.version} in the shadow of v{plan.champion.version}",
        at=now,
        inputs=found,
        policy=policy,
        verdict=verdict,
    )
    decisions().record(decision)
    return decision


@step(keep=False)
def weigh_window(model: str, now: str) -> Decision | None:
    """Decide on a blue-green rollout in its window from who answered since the switch; None where there is none."""
    plan, spec = plans().current(model), plugin_named(model).spec
    state = controller().current(model, spec.rollout) if plan is not None else None
    if plan is None or state is None or state.stage != "window":
        return None
    rows = read_assigned(settings().directory(), model, until=moment(now))
    switched = moment(state.entered_at)
    # When a row was asked, and not what it is about: flights that leave after the switch are asked about before it.
    rows = rows[rows["received_at"] >= pd.Timestamp(_switch(state))]
    drawn = (rows["assigned"] == state.winner).to_numpy(dtype=bool)
    own = int((drawn & ~rows["failed"].to_numpy(dtype=bool) & rows["answered"].to_numpy(dtype=bool)).sum())
    days = round((moment(now) - switched).total_seconds() / 86_400, 6)
    found = WindowInputs(state.winner, own, len(rows) - own, days)
    decision = decision_of(
        "window",
        model=model,
        subject=f"v{state.winner} in the place of v{state.champion.version}",
        at=now,
        inputs=found,
        policy=spec.rollout,
        verdict=decide_window(found, spec.rollout),
    )
    decisions().record(decision)
    return decision


@step(keep=False)
def follow_verdict(model: str, decision: Decision, revision: int) -> int:
    """Move the plan as the verdict says, in one transaction, and mirror it in the registry.

    Args:
        model: Whose rollout.
        decision: The verdict.
        revision: Revision of the plan before the evidence was read.

    Returns:
        The revision of the plan afterwards.

    Raises:
        StaleRevisionError: Somebody changed the plan since, and the verdict may be about another candidate; the next
            run decides anew.
    """
    policy = plugin_named(model).spec.rollout
    verdict = decision.verdict
    if decision.kind == "canary":
        inputs = TypeAdapter(CanaryInputs).validate_json(dumps(decision.inputs["inputs"]))
        verdict = replace(verdict, checks=(*verdict.checks, ready_to_step(inputs, policy)))
    after, _why = controller().look(
        model, verdict, policy, decision.at, who=decision.who, decision=decision.id, revision=revision
    )
    mirror(model)
    return after.revision


@step(keep=False)
def pass_time(model: str, now: str) -> int:
    """Move a rollout in a stage that waits for time and no verdict: warm.

    Returns:
        The revision of the plan afterwards.
    """
    plan, _why = controller().look(model, None, plugin_named(model).spec.rollout, now, who="platform")
    mirror(model)
    return plan.revision


def begin_rollout(model: str, candidate: Variant, decision: Decision) -> int:
    """Begin the rollout of a candidate that a gate let in, by the model's strategy; a newer one supersedes an older.

    Returns:
        The revision of the plan afterwards.
    """
    acting = controller()
    policy = plugin_named(model).spec.rollout
    acting.start(
        model, [candidate], policy, who="platform", why=decision.verdict.reason, gate=decision.id, supersede=True
    )
    plan = acting.plans.current(model)
    return plan.revision if plan else 0


@flow
def advance_rollout(model: str, now: str) -> Decision | None:
    """Look at the canary once and follow the verdict; a look that has moved the plan already is not taken twice.

    Args:
        model: Whose rollout.
        now: Event time up to which predictions and labels count, RFC 3339.

    Returns:
        The decision, or None where nothing is on trial.
    """
    mirror(model)
    followed = _followed(model, now)
    if followed is not None:
        return followed
    plan = plans().current(model)
    decision = weigh_canary(model, now) or weigh_shadow(model, now) or weigh_window(model, now)
    if decision is not None and plan is not None:
        follow_verdict(model, decision, plan.revision)
    elif plan is not None:
        pass_time(model, now)
    return decision


def mirror(model: str) -> None:
    """Make the registry's aliases and stages say what the plan says: the plan is the truth, whatever was killed."""
    history = plans().history(model)
    if not history:
        return
    plan = history[-1].plan
    seen = {v.version for change in history for v in (*change.plan.variants, *change.plan.shadows)}
    champions = {change.plan.champion.version for change in history}
    wanted = {version: ("retired" if version in champions else "rolled back") for version in seen}
    wanted |= {shadow.version: "shadow" for shadow in plan.shadows}
    wanted |= {variant.version: variant.role for variant in plan.variants}
    store = registry()
    for version in store.versions(model):
        if version.version in wanted and version.stage != wanted[version.version]:
            store.set_stage(model, version.version, wanted[version.version])
    for alias, variant in (("champion", plan.champion), ("challenger", plan.canary)):
        found = store.with_alias(model, alias)
        if variant is None:
            store.drop_alias(model, alias)
        elif found is None or found.version != variant.version:
            store.set_alias(model, alias, variant.version)


def controller() -> RolloutController:
    """Return the controller of the settings' store."""
    now = settings()
    served = partial(served_definition, now.feature_repo, now.directory(), now.online_store)
    return RolloutController(now.database_url, served=served)


def _switch(state: Rollout) -> datetime:
    """Return the wall clock at which a blue-green rollout switched."""
    history = controller().store.history(state.model)
    return moment(next(t.at for t in history if t.state.id == state.id and t.state.stage == "window"))


def _followed(model: str, now: str) -> Decision | None:
    """Return the canary's decision that the plan stands on, if it was taken at ``now`` or later."""
    history = plans().history(model)
    if not history:
        return None
    found = history[-1].why.partition(":")[0]
    if not found.startswith(("canary-", "ab-", "bandit-", "shadow-", "window-")):
        return None
    decision = decisions().get(found)
    return decision if moment(decision.at) >= moment(now) else None


def _inputs(
    spec: ModelSpec, trial: Trial, predictions: pd.DataFrame, labels: pd.DataFrame, now: datetime
) -> CanaryInputs:
    assert trial.plan.canary is not None
    rows = predictions[predictions["revision"].isin(list(trial.shares))].reset_index(drop=True)
    share = rows["revision"].map(trial.shares).to_numpy(dtype=float)
    canary = (rows["assigned"] == trial.plan.canary.version).to_numpy(dtype=bool)
    by_unit = trial.plan.unit is not None
    stream = LossStream()
    days = 0.0
    if len(rows):
        found = labelled(spec, rows, labels, now)
        days = days_since_first(found.times, now, spec.rollout)
        # In the order in which the labels became known, so that every look sees the stream of the last one, longer.
        order = np.argsort(found.known.observed_at, kind="stable")
        order = order[found.told[order]]
        if len(order):
            unit = found.rows["unit"].to_numpy(dtype=str)[order] if by_unit else None
            stream = stream.update(canary[order], found.loss[order], share[order], unit=unit)
    expected, error = _expectation(trial)
    exposures, latencies = guard_counts(spec, rows, share, canary, by_unit=by_unit)
    return CanaryInputs(
        stream=stream,
        exposures=exposures,
        share=trial.plan.canary.weight,
        days=days,
        expected_difference=expected,
        expected_error=error,
        latencies=latencies,
        units=unit_counts(spec, rows, share, canary) if by_unit else None,
    )


def _pairs(spec: ModelSpec, trial: Trial, labels: pd.DataFrame, now: datetime) -> Pairs | None:
    """Return what the canary scored of the champion's rows since its shadow began, or None where it has none."""
    canary = trial.plan.canary
    if canary is None or canary.version not in {s.version for s in trial.plan.shadows}:
        return None
    shadows = read_shadows(settings().directory(), spec.name)
    found = shadow_inputs(spec, canary.version, plans().history(spec.name), shadows, labels, now)
    return Pairs(found.rows, found.difference, found.square, found.bound)


def _expectation(trial: Trial) -> tuple[float | None, float]:
    """Return the difference the gate saw offline, and its standard error."""
    if not trial.gate:
        return None, 0.0
    gate = decisions().get(trial.gate)
    pair = paired_difference(TypeAdapter(GateInputs).validate_json(dumps(gate.inputs["inputs"])))
    return (None, 0.0) if pair is None else (pair.mean, pair.error)
