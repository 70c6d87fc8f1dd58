"""Rollouts through the flow, on a prediction log with a known law: canary, shadow, blue-green and operators between."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

MODEL = "toy_binary"
START = datetime(2013, 6, 1, tzinfo=UTC)


def at(days: float) -> str:
    return (START + timedelta(days=days)).isoformat()


def variant(version):
    from trellis.rollout import Variant

    return Variant(version, "canary", 0.0, f"/a/{version}", f"d{version}")


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch):
    """A champion that answers; the registry, which is not what is tested, is left out."""
    from pipelines import rollout
    from pipelines.plugins import plugin_named
    from pipelines.stores import plans
    from trellis.rollout import first_plan

    monkeypatch.setattr(rollout, "mirror", lambda model: None)
    plans().save(first_plan(MODEL, variant("1"), salt="s"), expected_revision=0, who="platform", why="first")
    plugin = plugin_named(MODEL)

    def declare(**policy):
        spec = replace(plugin.spec, rollout=replace(plugin.spec.rollout, **policy))
        monkeypatch.setattr(type(plugin), "spec", spec)
        return spec.rollout

    return declare


@pytest.fixture
def traffic(home: Path):
    """Answer and label a day of requests under the plan as it is; a version in ``bad`` predicts the opposite."""
    from pipelines.stores import plans
    from trellis.adapters.prediction_log import LabelLog, PredictionLog, ShadowLog

    rng = np.random.default_rng(5)

    def serve(day: float, bad: tuple[str, ...] = (), rows: int = 600, unit=None) -> None:
        plan = plans().current(MODEL)
        logs = [made(home, MODEL, flush_seconds=1) for made in (PredictionLog, LabelLog, ShadowLog)]
        predictions, labels, shadows = logs
        for i in range(rows):
            moment = START + timedelta(days=day + i / rows / 2)
            key = f"{day}-{i}"
            drawn = unit() if unit is not None else key
            chosen = plan.assign(drawn)
            truth = int(rng.random() < 0.5)
            right = rng.random() < (0.2 if chosen.version in bad else 0.8)
            score = 0.8 if bool(truth) == right else 0.2
            common = {"time": moment.isoformat(), "received_at": datetime.now(UTC).isoformat()}
            predictions.append(
                {"id": key, "model": MODEL, "version": chosen.version, "variant": chosen.role, "unit": drawn, **common}
                | {
                    "revision": plan.revision,
                    "request": {"x": 1.0, "z": "ab"[i % 2]},
                    "features": {},
                    "feature_times": {},
                }
                | {"overrides": [], "outputs": {"probability": score}, "latency_ms": 1.0}
            )
            for shadow in plan.shadows:
                said = {
                    "probability": 0.8
                    if bool(truth) == (rng.random() < (0.2 if shadow.version in bad else 0.8))
                    else 0.2
                }
                shadows.append(
                    {"id": key, "model": MODEL, "version": shadow.version, "primary_version": chosen.version, **common}
                    | {"revision": plan.revision, "unit": key, "primary": {"probability": score}, "outputs": said}
                )
            labels.append({"id": key, "value": "yes" if truth else "no", "observed_at": moment.isoformat()} | common)
        for log in logs:
            log.close()

    return serve


def start(policy, *versions, **more):
    from pipelines.rollout import controller

    return controller().start(MODEL, [variant(v) for v in versions], policy, who="anna", why="try", **more)


def look(day: float):
    from pipelines.rollout import advance_rollout
    from pipelines.stores import plans

    decision = advance_rollout(MODEL, at(day))
    return (decision.verdict.outcome if decision else None), plans().current(MODEL)


def story(days, traffic, bad=()):
    """Serve and look day by day until the rollout is over; return the outcomes and the last plan."""
    from pipelines.rollout import controller

    outcomes = []
    for day in range(days):
        traffic(day, bad)
        outcome, plan = look(day + 0.9)
        outcomes.append(outcome)
        if controller().store.current(MODEL).final:
            break
    return outcomes, plan


def test_a_shadow_then_a_canary_then_a_champion(world, traffic):
    from pipelines.rollout import controller
    from pipelines.stores import decisions

    policy = world(steps=(0.2, 0.5), shadow_rate=0.5, shadow_days=1.0)
    start(policy, "2")
    assert look(-0.5)[0] == "HOLD"  # nothing is shadowed yet
    outcomes, plan = story(20, traffic)
    kinds = [d.kind for d in decisions().list(MODEL)]
    assert kinds[:3] == ["shadow", "shadow", "canary"]  # a day in the shadow since the first look
    assert outcomes[-1] == "PROMOTE"
    assert plan.champion.version == "2"
    moves = [(t.state.stage, t.state.step) for t in controller().store.history(MODEL)]
    assert moves == [("shadow", 0), ("shadow", 0), ("trial", 0), ("trial", 1), ("champion", 1)]
    decided = controller().store.history(MODEL)[-1]
    assert decided.decision.startswith("canary-")
    # The canary stays in its own shadow: the rows that the champion answered are pairs, from the first day on.
    pairs = [d.inputs["inputs"]["pairs"]["rows"] for d in decisions().list(MODEL) if d.kind == "canary"]
    assert pairs == sorted(pairs)
    assert pairs[0] > 600
    # A look taken again changes nothing.
    before = controller().plans.history(MODEL)
    assert look(19.9)[1] == plan
    assert controller().plans.history(MODEL) == before


def test_a_gates_promise_is_remembered_through_the_shadow(world, traffic, monkeypatch):
    """The flow begins a rollout with the gate's decision; the canary's verdict, stages later, still knows it."""
    from pipelines import rollout
    from pipelines.stores import plans
    from trellis.decision import Verdict, decision_of

    world(steps=(0.5,), shadow_rate=1.0, shadow_days=1.0)
    gate = decision_of(
        "gate", model=MODEL, subject="2", at=at(0), inputs={}, policy={}, verdict=Verdict("PROMOTE", "better in June")
    )
    assert rollout.begin_rollout(MODEL, variant("2"), gate) == 2
    assert plans().history(MODEL)[-1].why == f"{gate.id}: better in June"
    asked = []
    monkeypatch.setattr(rollout, "_expectation", lambda trial: (asked.append(trial.gate), (-0.3, 0.01))[1])
    outcomes, plan = story(4, traffic)
    assert set(asked) == {gate.id}
    assert (outcomes[-1], plan.champion.version) == ("ROLL_BACK", "1")
    rollout.begin_rollout(MODEL, variant("2"), gate)
    rollout.begin_rollout(MODEL, variant("3"), gate)  # the newer candidate of a flow supersedes the older
    assert [s.version for s in plans().current(MODEL).shadows] == ["3"]
    assert [t.state.stage for t in rollout.controller().store.history(MODEL)[-2:]] == ["superseded", "shadow"]


def test_a_bad_shadow_never_answers_anyone(world, traffic):
    from pipelines.stores import decisions
    from trellis.explain import replay, same

    start(world(strategy="ab", steps=(0.5,), shadow_rate=1.0, shadow_days=1.0), "3", "2")
    traffic(0, ("2",))
    outcome, plan = look(0.9)
    assert (outcome, plan.shadows, len(plan.variants)) == ("ROLL_BACK", (), 1)
    decision = decisions().list(MODEL)[-1]
    assert same(replay(decision), decision.verdict)
    assert "on the same 600 rows" in decision.verdict.reason


def test_a_bad_canary_is_rolled_back_and_a_paused_one_waits(world, traffic):
    from pipelines.rollout import controller

    policy = world(steps=(0.2, 0.5))
    start(policy, "2")
    controller().override(MODEL, "pause", policy, who="anna", why="the labels are late")
    traffic(0, ("2",))
    outcome, plan = look(0.9)
    assert outcome == "ROLL_BACK"
    assert plan.canary is not None  # decided and recorded, but paused
    controller().override(MODEL, "resume", policy, who="anna", why="they came", now=at(0.95))
    outcome, plan = look(1.0)
    assert (outcome, plan.canary, plan.champion.version) == ("ROLL_BACK", None, "1")


def test_blue_green_switches_at_once_and_keeps_the_old_version_warm(world, traffic):
    policy = world(strategy="blue_green", rollback_days=2.0)
    start(policy, "2")
    traffic(0)
    look(0.9)
    _, plan = look(1.0)
    assert [(v.version, v.role) for v in plan.variants] == [("2", "champion"), ("1", "standby")]
    traffic(2)
    outcome, plan = look(2.8)
    assert (outcome, len(plan.variants)) == ("HOLD", 2)
    outcome, plan = look(3.0)
    assert (outcome, [(v.version, v.role) for v in plan.variants]) == ("PROMOTE", [("2", "champion")])


def test_blue_green_goes_back_where_no_worker_answers_with_the_new_version(world, traffic, monkeypatch):
    """A version that cannot be loaded leaves every worker on the plan before, and the log says so."""
    from pipelines.stores import decisions, plans
    from trellis.adapters.plan_store import PlanStore
    from trellis.explain import replay, same

    policy = world(strategy="blue_green", rollback_days=1.0)
    start(policy, "2")
    before = plans().current(MODEL)
    assert look(0.9)[1].champion.version == "2"
    with monkeypatch.context() as held:
        held.setattr(PlanStore, "current", lambda self, model: before)
        traffic(1.1)
    outcome, plan = look(2.1)
    assert (outcome, [v.version for v in plan.variants]) == ("ROLL_BACK", ["1"])
    decision = decisions().list(MODEL, "window")[-1]
    assert "0 of 600 rows since the switch were answered by version 2" in decision.verdict.reason
    assert same(replay(decision), decision.verdict)


def test_a_newer_candidate_that_makes_no_sense_ends_no_rollout(world, traffic):
    from pipelines.rollout import controller
    from pipelines.stores import plans
    from trellis.errors import InvalidPlanError

    policy = world(strategy="blue_green", rollback_days=2.0)
    start(policy, "2")
    look(0.9)
    before, plan = controller().store.current(MODEL), plans().current(MODEL)
    with pytest.raises(InvalidPlanError, match="against version 1"):
        start(policy, "1", supersede=True)  # what answers again once version 2 has left
    assert (controller().store.current(MODEL), plans().current(MODEL)) == (before, plan)


def test_blue_green_counts_what_was_asked_since_the_switch_and_no_fault_of_the_features(world, traffic, home):
    from pipelines.stores import plans
    from trellis.adapters.prediction_log import PredictionLog

    def ask(name, rows, day, **more):
        log, revision = PredictionLog(home, MODEL, flush_seconds=1), plans().current(MODEL).revision
        for i in range(rows):
            times = {"time": (START + timedelta(days=day)).isoformat(), "received_at": datetime.now(UTC).isoformat()}
            common = {"id": f"{name}{i}#0", "model": MODEL, "variant": "x", "unit": f"{name}{i}", "revision": revision}
            log.append(common | times | {"request": {"x": 1.0, "z": "a"}, "features": {}, "feature_times": {}}
                       | {"overrides": [], "outputs": {"probability": 0.5}, "latency_ms": 1.0} | more)  # fmt: skip
        log.close()

    policy = world(strategy="blue_green", rollback_days=1.0)
    start(policy, "2")
    ask("before", 900, 1.5, version="1")  # about a later day
    look(0.9)
    ask("since", 200, 1.5, version="2")
    ask("stale", 300, 1.5, version="default", instead_of="2", stale={"toy": "fall_back"})
    outcome, plan = look(1.95)
    assert (outcome, [(v.version, v.role) for v in plan.variants]) == ("PROMOTE", [("2", "champion")])


@pytest.mark.parametrize("strategy", ["canary", "ab", "bandit"])
def test_a_row_of_another_century_does_not_end_a_rollout(world, traffic, strategy):
    """Callers send the event time; a trial that looked a century old was past its time at the first look."""
    policy = world(strategy=strategy, min_labels=500, steps=(0.5,))
    start(policy, "2")
    traffic(0)
    traffic(-41_000, rows=3)
    outcome, plan = look(0.9)
    assert (outcome, len(plan.canaries)) == ("HOLD", 1)


def test_a_rollout_by_caller_counts_callers_and_survives_a_busy_one(world, traffic):
    """One caller makes half of the rows; by row this was a broken split on the first day."""
    from pipelines.rollout import controller
    from pipelines.stores import decisions
    from trellis.explain import replay, same

    policy = world(unit="z", min_labels=50)
    start(policy, "2")
    assert controller().plans.current(MODEL).unit == "z"
    rng = np.random.default_rng(1)
    volume = np.array([0.5, *([0.5 / 99] * 99)])
    for day in range(3):
        traffic(day, unit=lambda: f"caller-{rng.choice(100, p=volume)}")
        outcome, _ = look(day + 0.9)
        assert outcome in ("HOLD", "PROMOTE")
    decision = decisions().list(MODEL, "canary")[-1]
    split = next(c for c in decision.verdict.checks if c.name == "sample_ratio")
    assert "of 100 draws of callers" in split.text
    assert decision.inputs["inputs"]["units"]["failures"]["rows"] == 1_800
    assert "errors_by_request" in [c.name for c in decision.verdict.checks]
    assert decision.inputs["inputs"]["stream"]["rows"] == 1_800
    assert same(replay(decision), decision.verdict)


def test_an_experiment_of_two_arms_knows_what_segments_cost_before(world, traffic):
    """Version 3 is worse: harm ends the experiment; the decision replays; the covariate comes from the days before."""
    from pipelines.rollout import controller
    from pipelines.stores import decisions
    from trellis.explain import replay, same

    traffic(-2, rows=1_000)
    policy = world(strategy="ab", steps=(0.6,), min_labels=50)
    start(policy, "2", "3")
    traffic(0, ("3",))
    outcome, plan = look(0.9)
    assert (outcome, plan.champion.version) == ("ROLL_BACK", "1")
    decision = decisions().list(MODEL, "ab")[-1]
    assert same(replay(decision), decision.verdict)
    assert "Version 3" in decision.verdict.reason
    streams = [arm["inputs"]["stream"] for arm in decision.inputs["inputs"]["arms"]]
    assert all(stream["covariate"] > 0 for stream in streams)
    assert controller().store.history(MODEL)[-1].decision == decision.id


def test_an_experiment_by_caller_compares_requests_with_callers_as_clusters(world, traffic):
    from pipelines.stores import decisions
    from trellis.explain import replay, same

    start(world(strategy="ab", steps=(0.5,), unit="z", min_labels=50), "2")
    rng = np.random.default_rng(1)
    traffic(0, unit=lambda: f"caller-{rng.integers(100)}")
    look(0.9)
    decision = decisions().list(MODEL, "ab")[-1]
    units = decision.inputs["inputs"]["arms"][0]["inputs"]["units"]
    assert units["canary"] + units["champion"] == 100
    assert units["failures"]["rows"] == units["slowness"]["rows"] == 600
    assert "errors_by_request/2" in [c.name for c in decision.verdict.checks]
    assert same(replay(decision), decision.verdict)


def test_a_bandit_moves_the_traffic_and_writes_it_into_the_plan(world, traffic):
    from pipelines.rollout import controller
    from pipelines.stores import decisions
    from trellis.explain import replay, same

    policy = world(strategy="bandit", floor=0.1, min_labels=50, margin=0.05)
    start(policy, "2", "3")
    traffic(0, ("3", "1"), rows=400)
    look(0.9)
    shares = {v.version: v.weight for v in controller().plans.current(MODEL).variants}
    history = controller().plans.history(MODEL)
    assert shares["2"] > 0.75 or len(history[-1].plan.variants) == 1
    outcomes, plan = story(10, traffic, ("3", "1")) if len(shares) > 1 else (["PROMOTE"], history[-1].plan)
    assert (outcomes[-1], plan.champion.version) == ("PROMOTE", "2")
    for decision in decisions().list(MODEL, "bandit"):
        assert same(replay(decision), decision.verdict)


@pytest.mark.parametrize("strategy", ["canary", "ab", "bandit", "shadow", "blue_green"])
def test_a_verdict_is_never_carried_out_on_a_candidate_that_it_is_not_about(world, traffic, strategy):
    """While one was weighed somebody started another, at the same share and in the same stage."""
    from pipelines.rollout import controller, follow_verdict, weigh_canary, weigh_shadow, weigh_window
    from pipelines.stores import plans
    from trellis.errors import StaleRevisionError

    more = {"shadow_rate": 1.0, "shadow_days": 0.0} if strategy == "shadow" else {"strategy": strategy}
    policy = world(steps=(0.5,), rollback_days=0.1, **more)
    start(policy, "2")
    if strategy == "blue_green":
        look(0.1)
    for day in (0.2, 0.8):
        traffic(day, ("2",) if strategy in ("ab", "bandit") else ())
    revision = plans().current(MODEL).revision
    weigh = {"shadow": weigh_shadow, "blue_green": weigh_window}.get(strategy, weigh_canary)
    decision = weigh(MODEL, at(1.9))
    assert decision.verdict.outcome in ("PROMOTE", "ROLL_BACK"), decision.verdict
    start(policy, "3", supersede=True)
    if strategy == "blue_green":
        look(2.0)
    before, plan = controller().store.current(MODEL), plans().current(MODEL)
    with pytest.raises(StaleRevisionError, match="is about revision"):
        follow_verdict(MODEL, decision, revision)
    assert (controller().store.current(MODEL), plans().current(MODEL)) == (before, plan)


def test_a_verdict_on_another_share_is_stale(world, traffic):
    from pipelines.rollout import follow_verdict, weigh_canary
    from pipelines.stores import plans
    from trellis.errors import StaleRevisionError
    from trellis.rollout import with_canary

    world(steps=(0.2, 0.5))
    plan = plans().current(MODEL)
    one = plans().save(with_canary(plan, variant("2"), 0.2), expected_revision=1, who="platform", why="gate: good")
    traffic(0)
    decision = weigh_canary(MODEL, at(0.9))
    two = plans().save(with_canary(one, variant("2"), 0.5), expected_revision=2, who="anna", why="faster")
    with pytest.raises(StaleRevisionError, match="is about revision 2"):
        follow_verdict(MODEL, decision, one.revision)
    assert plans().current(MODEL) == two
