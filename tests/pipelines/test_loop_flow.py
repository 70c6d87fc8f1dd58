"""Rollout and loop with the real registry, stores, logs and watch job, on a trained toy whose traffic a test writes."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

ROOT = Path(__file__).parents[2]
TOYS = Path(__file__).parent / "toys"
MODEL = "toy_binary"
LAUNCH = datetime(2013, 5, 1, tzinfo=UTC)


def text(days: float) -> str:
    return (LAUNCH + timedelta(days=days)).isoformat(timespec="seconds").replace("+00:00", "Z")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a champion, version 1, trained until the launch; tests take their turns in it, in their order."""
    from pipelines import plugins, stores
    from trellis import settings

    home = tmp_path_factory.mktemp("loop") / "home"
    kept = (settings.settings, plugins.catalogue, stores.registry, stores.plans, stores.decisions, stores.loops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRELLIS_HOME", str(home))
        patch.setenv("TRELLIS_MODELS", str(TOYS))
        patch.setenv("PYTHONPATH", str(ROOT))
        for cached in kept:
            cached.cache_clear()
        from pipelines.training import Recipe, train_model

        assert train_model(MODEL, Recipe("linear"), until=text(0)).verdict == "PROMOTE"
        yield home
        for cached in kept:
            cached.cache_clear()


def serve(home: Path, day: float, days: float, *, law: float = 0.9, broken: str = "", per_day: int = 400) -> None:
    """Answer ``per_day`` requests a day by the plan as it is, and label each two hours later.

    Args:
        home: Whose logs.
        day, days: First day after the launch, and how many.
        law: P(y = 1 | x > 0) = 1 - P(y = 1 | x <= 0); training saw 0.9.
        broken: Version that predicts the opposite.
        per_day: Requests.
    """
    from pipelines.stores import plans
    from trellis.adapters.prediction_log import LabelLog, PredictionLog

    plan = plans().current(MODEL)
    assert plan is not None
    random = np.random.default_rng([int(day * 24), per_day])
    predictions, labels = (log(home, MODEL, flush_seconds=1) for log in (PredictionLog, LabelLog))
    records, truths = [], []
    for i in range(int(days * per_day)):
        moment = LAUNCH + timedelta(days=day + i / per_day)
        stamp, seen = moment.isoformat(), (moment + timedelta(hours=2)).isoformat()
        key, x = f"{day}-{i}", float(np.float32(random.normal()))
        chosen = plan.assign(key)
        high = (x > 0) != (chosen.version == broken)
        values: dict[str, object] = {"x": None if broken == "feed" else x, "z": "b" if i % 2 else "a", "at": stamp}
        records.append(
            {"id": key, "model": MODEL, "version": chosen.version, "variant": chosen.role, "revision": plan.revision}
            | {"time": stamp, "received_at": stamp, "unit": key, "request": values, "features": {}}
            | {"feature_times": {}, "overrides": [], "outputs": {"probability": 0.9 if high else 0.1}}
            | {"latency_ms": 1.0}
        )
        truth = int(random.random() < (law if x > 0 else 1 - law))
        truths.append({"id": key, "value": truth, "observed_at": seen, "received_at": seen})
    predictions.extend(records)
    labels.extend(truths)
    predictions.close()
    labels.close()


def stages() -> dict[str, str]:
    from pipelines.stores import registry

    return {version.version: version.stage for version in registry().versions(MODEL)}


def test_a_bad_canary_goes_and_a_kill_before_the_registry_heard_of_it_is_mended(trained: Path):
    from pipelines.rollout import advance_rollout, mirror
    from pipelines.stores import decisions, plans, registry
    from pipelines.training import Recipe, train_model
    from trellis.explain import replay, same

    assert advance_rollout(MODEL, text(0)) is None  # nobody is on trial
    second = train_model(MODEL, Recipe("linear", seed=99), until=text(0))
    assert (second.verdict, stages()) == ("PROMOTE", {"1": "champion", "2": "canary"})
    serve(trained, 0, 2, broken="2")

    # Labels count from the moment they were known: an hour after the launch there is none, and the trial goes on.
    early = advance_rollout(MODEL, text(1 / 24))
    assert early is not None
    assert early.verdict.outcome == "HOLD"
    assert early.inputs["inputs"]["stream"]["rows"] == 0
    assert advance_rollout(MODEL, text(1 / 24)) == early  # the same look is the same decision

    killed = (
        "import os, signal, sys; from pipelines import rollout\n"
        "rollout.mirror = lambda model: os.kill(os.getpid(), signal.SIGKILL) if rollout.plans().current(model).canary"
        " is None else None\n"
        f"rollout.advance_rollout({MODEL!r}, {text(3)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", killed], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    plan = plans().current(MODEL)
    assert plan is not None
    assert plan.canary is None
    assert stages()["2"] == "canary"  # what the kill left behind
    revisions = len(plans().history(MODEL))

    advance_rollout(MODEL, text(3))  # the next run, whatever it finds, mends it
    assert stages() == {"1": "champion", "2": "rolled back"}
    assert registry().with_alias(MODEL, "challenger") is None
    assert len(plans().history(MODEL)) == revisions
    (found,) = [d for d in decisions().list(MODEL, "canary") if d.verdict.outcome == "ROLL_BACK"]
    assert same(replay(found), found.verdict)
    mirror(MODEL)
    assert stages() == {"1": "champion", "2": "rolled back"}


def test_a_loop_watches_refuses_faults_and_trains_once_a_turn(trained: Path):
    from pipelines.loop import turn_loop
    from pipelines.plugins import plugin_named
    from pipelines.rollout import controller
    from pipelines.stores import decisions, plans, registry
    from trellis.explain import replay, same

    def versions() -> list[str]:
        return [version.version for version in registry().versions(MODEL)]

    # All is as in training: nothing asks for anything.
    serve(trained, 10, 14)
    calm = turn_loop(MODEL, text(24), report=False)
    assert (calm.look.decision.verdict.outcome, calm.retrain.verdict.outcome) == ("STABLE", "WAIT")
    before = versions()

    # The feed of x dies: never trained on, whatever it costs.
    serve(trained, 24, 7, broken="feed")
    fault = turn_loop(MODEL, text(31), report=False)
    assert fault.look.decision.verdict.outcome == "UPSTREAM_FAULT", fault.look.decision.verdict.reason
    assert (fault.look.action, fault.retrain.verdict.outcome, fault.outcome) == ("fix upstream", "REFUSE", None)
    assert fault.look.alert
    assert versions() == before

    # The world turns round: the same x means the opposite now.
    serve(trained, 31, 21, law=0.1)
    turn = turn_loop(MODEL, text(52), report=False)
    assert (turn.look.decision.verdict.outcome, turn.look.action) == ("DRIFT", "retrain"), turn.look.decision.verdict
    assert turn.retrain.verdict.outcome == "RETRAIN"
    assert turn.outcome is not None
    assert (turn.loop.stage, turn.loop.cycle.version) == ("rollout", turn.outcome.version)
    assert turn.loop.cycle.trigger in ("drift", "performance")
    assert turn.retrain.verdict.checks[0].name == f"trigger.{turn.loop.cycle.trigger}"
    assert len(versions()) == len(before) + 1
    history = len(plans().history(MODEL))
    taken = len(decisions().list(MODEL))

    # The same turn again, as after a kill: the same decisions, the same version.
    again = turn_loop(MODEL, text(52), report=False)
    assert (again.retrain, again.outcome) == (turn.retrain, turn.outcome)
    assert (len(versions()), len(plans().history(MODEL)), len(decisions().list(MODEL))) == (
        len(before) + 1,
        history,
        taken,
    )

    # A later look has to wait for the cooldown, and says for how long.
    later = turn_loop(MODEL, text(54), report=False)
    assert (later.retrain.verdict.outcome, later.outcome) == ("WAIT", None)
    assert later.retrain.verdict.needs["days"] == pytest.approx(14 - 2)
    assert f"{turn.loop.cycle.id} is going on (rollout)" in later.retrain.verdict.reason

    # The rollout ends (here by a person's word), and the new champion is held against the old one.
    old = turn.loop.cycle.champion
    policy = plugin_named(MODEL).spec.rollout
    controller().override(MODEL, "promote", policy, who="anna", why="known elsewhere", now=text(54))
    assert turn_loop(MODEL, text(54), report=False).loop.stage == "verifying"
    serve(trained, 54, 2, law=0.1)
    state = turn_loop(MODEL, text(57), report=False).loop
    assert (state.stage, state.cycle.outcome, state.failures) == ("watching", "promoted", 0)
    assert plans().current(MODEL).champion.version == turn.outcome.version != old
    (verified,) = [d for d in decisions().list(MODEL, "verify") if d.verdict.outcome == "CONFIRMED"]
    assert same(replay(verified), verified.verdict)

    # What regresses goes back, once, and with it what somebody has begun on top of it.
    from pipelines.loop import Work
    from pipelines.retraining import Retraining

    work = Work(MODEL, turn.look, Retraining(MODEL))
    from trellis.rollout import Variant

    newer = Variant("99", "canary", 0.0, "/artifacts/99", "99")
    controller().start(MODEL, [newer], policy, who="anna", why="tries something else")
    first, revision = work.give_back(state.cycle), plans().current(MODEL).revision
    assert work.give_back(state.cycle) == first
    assert [v.version for v in plans().current(MODEL).variants] == [old]
    assert plans().current(MODEL).revision == revision
    assert controller().store.current(MODEL).stage == "rolled_back"


def ensemble_of_two(plugin, artifact: Path, champion: Path) -> None:
    """Hold an ensemble against its members' own numbers: the champion, and one trained on the window alone."""
    import json

    from trellis.ensemble import load_artifact

    told = {m["name"]: m for m in json.loads((artifact / "ensemble.json").read_text())["members"]}
    assert set(told) == {"new", "1"}
    assert sum(m["weight"] for m in told.values()) == pytest.approx(1)
    gains = {name: max(0.0, m["guessing"] - m["loss"]) for name, m in told.items()}
    assert told["1"]["weight"] == pytest.approx(gains["1"] / sum(gains.values()))
    names = list(told)
    parts = {name: plugin.load(artifact / "members" / str(names.index(name))) for name in names}
    old = plugin.load(champion)
    assert (parts["1"].low, parts["1"].high) == (old.low, old.high)
    mean = sum(told[name]["weight"] * parts[name].high for name in names)
    answer = load_artifact(plugin, artifact).predict({"x": np.array([1.0], np.float32), "z": np.array(["a"])})
    assert answer["probability"][0] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("method", "since"),
    [("full", ""), ("window", text(5)), ("incremental", text(0)), ("online", text(0)), ("ensemble", text(5))],
)
def test_the_policys_method_decides_what_is_trained_on_and_from_what(trained: Path, monkeypatch, method, since):
    from dataclasses import replace

    from pipelines.plugins import plugin_named
    from pipelines.retraining import Retraining
    from pipelines.stores import registry
    from pipelines.training import Candidate
    from trellis.adapters.datasets import load_dataset
    from trellis.loop import Cycle

    plugin = plugin_named(MODEL)
    policy = replace(plugin.spec.retrain, method=method, window_days=30, online_rows=50)
    monkeypatch.setattr(plugin, "spec", replace(plugin.spec, retrain=policy))
    steps = []
    learn = plugin.learn
    monkeypatch.setattr(
        plugin, "learn", lambda start, data, run: (steps.append(data.train), learn(start, data, run))[1]
    )
    cycle = Cycle(f"{MODEL}-cycle-9", f"retrain-00000{len(method)}", "drift", text(35), "1")
    work = Retraining(MODEL).train(cycle)
    assert Retraining(MODEL).train(cycle) == work  # begun again, it is the same candidate
    made = TypeAdapter(Candidate).validate_python(work)
    rows = load_dataset(Path(made.training_set.path))
    assert made.training_set.since == since
    assert rows.known.max() < np.datetime64(text(35)[:-1])
    if since:
        assert rows.time.min() >= np.datetime64(since[:-1])
    assert made.start == ("1" if method in ("incremental", "online", "ensemble") else "")
    if method == "ensemble":
        ensemble_of_two(plugin, Path(made.path), Path(registry().version(MODEL, "1").location))
    if method in ("full", "window", "ensemble"):
        assert not steps
        return
    sizes = [len(step) for step in steps]
    assert (max(sizes) == 50) == (method == "online")
    assert (len(sizes) == 1) == (method == "incremental")
    times = np.concatenate([step.time for step in steps])
    assert (np.diff(times) >= np.timedelta64(0)).all()
    # An independent account of the law of ``learn``, from the champion's own numbers.
    champion = plugin.load(Path(registry().version(MODEL, "1").location))
    high = champion.high
    for step in steps:
        above = step.target[step.columns["x"] > 0]
        high = 0.9 * high + 0.1 * above.mean() if len(above) else high
    assert plugin.load(Path(made.path)).high == pytest.approx(high, rel=1e-9)


def test_a_breaker_whose_turn_was_killed_is_told_by_the_next_turn_and_closed_by_a_reset(trained: Path):
    """The kill comes between the commit and the alert: no transition follows that could make up for it."""
    from dataclasses import replace

    from typer.testing import CliRunner

    from pipelines.loop import turn_loop
    from pipelines.stores import loops
    from trellis.adapters.alert_files import read_alerts
    from trellis.adapters.alert_outbox import AlertOutbox
    from trellis.cli import app
    from trellis.loop import Cycle
    from trellis.settings import settings

    def states() -> dict[str, str]:
        return {a.outcome: a.status for a in read_alerts(trained / "alerts") if a.outcome not in ("DRIFT",)}

    def told() -> dict[str, str]:
        ids = {a.id: a.outcome for a in read_alerts(trained / "alerts")}
        return {ids[d.alert]: d.told for d in AlertOutbox(settings().database_url).deliveries()}

    before = loops().current(MODEL)
    cycle = Cycle(f"{MODEL}-cycle-9", "retrain-9", "drift", text(57), "1", outcome="failed", why="the disk is full")
    broken = replace(before, stage="watching", cycle=cycle, failures=3, broken_since=text(57), number=before.number + 1)
    loops().commit(before, broken, who="platform", why="the disk is full")
    assert "BREAKER_OPEN" not in states()
    found = turn_loop(MODEL, text(57.5), report=False)
    assert found.loop == broken  # nothing moved in this turn
    assert (states()["BREAKER_OPEN"], states()["RETRAINING_FAILED"]) == ("open", "open")
    assert (told()["BREAKER_OPEN"], told()["RETRAINING_FAILED"]) == ("open critical", "open warning")
    done = CliRunner().invoke(app, ["loop", "reset", MODEL, "--why", "a larger disk"])
    assert done.exit_code == 0, done.output
    assert (states()["BREAKER_OPEN"], states()["RETRAINING_FAILED"]) == ("closed", "closed")
    turn_loop(MODEL, text(57.6), report=False)
    assert (told()["BREAKER_OPEN"], told()["RETRAINING_FAILED"]) == ("closed", "closed")
    assert states()["BREAKER_OPEN"] == "closed"


def test_a_watch_job_that_fails_is_named(trained: Path, monkeypatch: pytest.MonkeyPatch):
    from pipelines.loop import look
    from trellis.errors import DataError

    segment = next((trained / "predictions" / MODEL).glob("*.jsonl"))
    whole = segment.read_bytes()
    segment.write_bytes(b"no JSON\n" + whole)
    try:
        with pytest.raises(DataError, match=f"The watch job of '{MODEL}' failed"):
            look(MODEL, text(58), report=False)
    finally:
        segment.write_bytes(whole)
