"""Scheduled turns: drift is judged at the declared pace, everything else goes on at every turn, and none does harm."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipelines.test_loop_flow import MODEL, ROOT, serve, text


@pytest.fixture
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a champion and a week that is as in training."""
    from pipelines.training import Recipe, train_model

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert train_model(MODEL, Recipe("linear"), until=text(0)).verdict == "PROMOTE"
    serve(home, 10, 7)
    return home


def kept(kind: str) -> list[str]:
    from pipelines.stores import decisions

    return [d.verdict.outcome for d in decisions().list(MODEL, kind)]


def test_a_turn_that_is_not_due_uses_the_verdict_on_record_and_goes_on_with_the_cycle(served: Path):
    from pipelines.loop import time_of_turn, turn_loop
    from trellis.loop import Loop

    first = turn_loop(MODEL, "latest", report=False, paced=True)
    assert (first.look.decision.verdict.outcome, first.retrain.verdict.outcome) == ("STABLE", "WAIT")
    # The newest prediction came 216 seconds before the end of the day.
    assert first.retrain.at == first.look.at == "2013-05-17T23:56:25Z"
    serve(served, 17, 3, law=0.1)  # the same x means the opposite now
    early = turn_loop(MODEL, "latest", report=False, paced=True)
    assert (early.look.decision, early.retrain.verdict.outcome) == (first.look.decision, "WAIT")
    assert early.retrain.at == early.look.at > first.look.at
    serve(served, 20, 4, law=0.1)
    turn = turn_loop(MODEL, "latest", report=False, paced=True)
    assert (turn.look.decision.verdict.outcome, turn.retrain.verdict.outcome) == ("DRIFT", "RETRAIN")
    assert (turn.loop.stage, kept("drift")) == ("rollout", ["STABLE", "DRIFT"])

    # The canary is looked at by turns that judge no drift.
    serve(served, 24, 1, law=0.1)
    seen = len(kept("canary"))
    later = turn_loop(MODEL, "latest", report=False, paced=True)
    assert later.look.decision == turn.look.decision
    assert "is going on (rollout)" in later.retrain.verdict.reason
    assert len(kept("canary")) == seen + 1
    assert kept("drift") == ["STABLE", "DRIFT"]
    assert len(list((served / "drift" / MODEL).glob("*.json"))) == 2

    assert later.retrain.subject == f"after {turn.look.decision.id}"
    # Where somebody took a turn at a later moment by hand, a paced one does not go back before it.
    assert time_of_turn(later.look, replace(later.loop, moved_at=text(26))) == text(26)
    assert time_of_turn(later.look, later.loop) == time_of_turn(later.look, Loop(MODEL)) == later.look.at


def test_the_schedules_own_trigger_speaks_at_turns_that_are_not_due(served: Path, monkeypatch: pytest.MonkeyPatch):
    from pipelines.loop import turn_loop
    from pipelines.plugins import plugin_named

    plugin = plugin_named(MODEL)
    policy = replace(plugin.spec.retrain, schedule_days=18.0, cooldown_days=0.0, min_new_labels=0)
    monkeypatch.setattr(plugin, "spec", replace(plugin.spec, retrain=policy))
    assert turn_loop(MODEL, "latest", report=False, paced=True).retrain.verdict.outcome == "WAIT"
    serve(served, 17, 2)
    turn = turn_loop(MODEL, "latest", report=False, paced=True)
    assert (kept("drift"), turn.retrain.verdict.outcome) == (["STABLE"], "RETRAIN")
    assert turn.loop.cycle.trigger == "schedule"


def test_a_turn_before_the_first_look_leaves_no_decision_on_drift(home: Path, monkeypatch: pytest.MonkeyPatch):
    from pipelines.loop import turn_loop
    from pipelines.training import Recipe, train_model

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert train_model(MODEL, Recipe("linear"), until=text(0)).verdict == "PROMOTE"
    serve(home, 10, 1)
    turn = turn_loop(MODEL, "latest", report=False, paced=True)
    assert (turn.look.recorded, turn.retrain.verdict.outcome) == (False, "WAIT")
    assert turn.retrain.subject == "without a verdict on record"
    assert "INSUFFICIENT" in " ".join(c.text for c in turn.retrain.verdict.checks)
    assert kept("drift") == []


def test_a_scheduled_turn_leaves_alone_what_has_none_to_take(served: Path):
    from pipelines.stack_loop import watch_model
    from pipelines.stores import loops, plans
    from trellis.errors import LeaseHeldError

    assert plans().current("toy_multiclass") is None
    assert watch_model("toy_multiclass", paced=True) is None
    with loops().lease(MODEL):
        assert watch_model(MODEL, report=False, paced=True) is None
        with pytest.raises(LeaseHeldError):
            watch_model(MODEL, now=text(17), report=False)
    assert kept("retrain") == []  # it is weighed under the lease
    found = watch_model(MODEL, report=False, paced=True)
    assert found is not None
    assert found.retrain.verdict.outcome == "WAIT"
    logs = served / "predictions" / MODEL
    logs.rename(logs.with_name("gone"))
    assert watch_model(MODEL, report=False, paced=True) is None
    assert not logs.exists()


def a_turn(flow: str):
    """Take a turn as a schedule does: a crontab's, or the deployment's."""
    from pipelines.deployments import FLOWS

    return FLOWS[flow](MODEL, "latest", report=False, paced=True)


@pytest.mark.parametrize("flow", ["turn_loop", "watch_model"])
def test_a_turn_follows_a_rollout_that_no_retraining_of_the_loop_began(served: Path, flow: str):
    from pipelines.rollout import controller
    from pipelines.stores import decisions, loops, plans
    from pipelines.training import Recipe, train_model

    assert train_model(MODEL, Recipe("linear", seed=99), until=text(0)).verdict == "PROMOTE"
    rollouts = controller().store
    serve(served, 17, 1)
    first = a_turn(flow)
    assert first.rollout.verdict.outcome == "HOLD"
    assert rollouts.current(MODEL).started_at == first.look.at  # from here its days count
    # Who acts on it at this moment is left to it; a training that holds the loop's lease does not leave it alone.
    serve(served, 18, 0.1)
    with rollouts.lease(MODEL):
        assert a_turn(flow).rollout is None
    serve(served, 18.1, 2, broken="2")
    if flow == "watch_model":
        with loops().lease(MODEL):
            assert a_turn(flow) is None
    else:
        assert a_turn(flow).rollout.verdict.outcome == "ROLL_BACK"
    assert (rollouts.current(MODEL).stage, plans().current(MODEL).canary) == ("rolled_back", None)
    seen = len(decisions().list(MODEL, "canary"))
    assert a_turn(flow).rollout is None
    assert len(decisions().list(MODEL, "canary")) == seen


def test_a_turn_that_is_asked_for_says_who_else_acts_and_a_paced_one_goes_on_from_a_persons_move(served: Path):
    from pipelines.following import follow_rollout
    from pipelines.rollout import controller
    from pipelines.training import Recipe, train_model
    from trellis.errors import ClockError, LeaseHeldError

    assert follow_rollout(MODEL, text(17), paced=False) is None  # none is open
    assert train_model(MODEL, Recipe("linear", seed=99), until=text(0)).verdict == "PROMOTE"
    with controller().store.lease(MODEL), pytest.raises(LeaseHeldError):
        follow_rollout(MODEL, text(17), paced=False)
    assert follow_rollout(MODEL, text(17), paced=False).verdict.outcome == "HOLD"
    with pytest.raises(ClockError):
        follow_rollout(MODEL, text(16), paced=False)
    assert follow_rollout(MODEL, text(16), paced=True).at == text(17)


def fail(home: Path, day: float, days: float, version: str, received: float | None = None) -> None:
    """Let a version fail on 300 requests a day, received when they happen or all at one moment."""
    from pipelines.stores import plans
    from trellis.adapters.failure_log import FailureLog

    log = FailureLog(home, MODEL, flush_seconds=1)
    common = {"model": MODEL, "version": version, "variant": "champion", "assigned": version, "cause": "raised"}
    for i in range(int(days * 300)):
        at, key = text(day + i / 300), f"f{day}-{i}"
        arrived = at if received is None else text(received)
        log.append(
            {"id": key, "unit": key, "time": at, "received_at": arrived, "revision": plans().current(MODEL).revision}
            | common
        )
    log.close()


def test_a_champion_that_answers_nothing_does_not_stop_the_clock(served: Path, monkeypatch: pytest.MonkeyPatch):
    from pipelines.moments import moment
    from pipelines.plugins import plugin_named
    from pipelines.stores import plans
    from pipelines.training import Recipe, train_model

    plugin = plugin_named(MODEL)
    policy = replace(plugin.spec.rollout, strategy="blue_green", rollback_days=1.0)
    monkeypatch.setattr(plugin, "spec", replace(plugin.spec, rollout=policy))
    # Requests arrive by the simulated clock here, so the switch happened by it, too.
    monkeypatch.setattr("pipelines.rollout._switch", lambda state: moment(state.entered_at))
    assert train_model(MODEL, Recipe("linear", seed=99), until=text(0)).verdict == "PROMOTE"
    assert a_turn("turn_loop").look.at == "2013-05-17T23:56:25Z"
    assert plans().current(MODEL).champion.version == "2"
    fail(served, 30, 0.02, "2", received=17)  # a slip of the pen says nothing of what is now
    fail(served, 17, 3, "2")
    turn = a_turn("turn_loop")
    assert turn.look.at == "2013-05-20T23:55:13Z"  # the last failure came 288 seconds before the end of the day
    assert (turn.rollout.verdict.outcome, plans().current(MODEL).champion.version) == ("ROLL_BACK", "1")


def test_a_model_that_never_answered_has_its_turn(served: Path):
    logs = served / "predictions" / MODEL
    logs.rename(logs.with_name("gone"))
    fail(served, 17, 1, "1")
    assert a_turn("watch_model").look.at == "2013-05-18T23:55:13Z"


@pytest.mark.parametrize("flow", ["turn_loop", "watch_model"])
def test_a_persons_word_is_served_while_no_request_comes(served: Path, flow: str):
    from pipelines.stores import decisions, loops
    from trellis.loop import Request, asked

    serve(served, 17, 7, law=0.1)
    first = a_turn(flow)
    assert (first.retrain.verdict.outcome, first.loop.cycles) == ("RETRAIN", 1)
    again = a_turn(flow)  # as after a kill: what was decided is finished
    assert (again.retrain, again.loop.cycles) == (first.retrain, 1)

    before = loops().current(MODEL)
    word = Request("word-1", "anna", "a better recipe", "2013-05-25T00:00:00Z", True)
    loops().commit(before, asked(before, word).state, who="anna", why=word.why)
    second = a_turn(flow)
    assert second.retrain.at == first.retrain.at  # nothing was asked of the model since
    assert (second.retrain.who, second.loop.cycles, second.loop.request) == ("anna", 2, None)
    # Neither decision begins another cycle, whatever became of theirs.
    after = loops().current(MODEL)
    ended = replace(after, stage="watching", cycle=replace(after.cycle, outcome="rejected"), number=after.number + 1)
    loops().commit(after, ended, who="anna", why="as if the gate had spoken")
    assert (a_turn(flow).retrain, loops().current(MODEL)) == (second.retrain, ended)
    assert len(decisions().list(MODEL, "retrain")) == 2


def test_two_turns_at_once_judge_once_and_the_command_line_paces(served: Path):
    command = [sys.executable, "-m", "pipelines", "loop", MODEL, "--paced", "--json"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    ended = [(*turn.communicate(timeout=120), turn.returncode) for turn in both]
    assert [code for _, _, code in ended] == [0, 0], ended
    told = [said for out, _, _ in ended if (said := json.loads(out)) is not None]  # null: left to the other one
    assert told, ended
    assert {t["look"]["decision"]["id"] for t in told} == {told[0]["look"]["decision"]["id"]}
    assert kept("drift") == ["STABLE"]
    assert len(list((served / "drift" / MODEL).glob("*.json"))) == 1


def test_a_paced_turn_that_finds_the_loop_held_leaves_it_to_the_holder_and_fails_nothing(served: Path):
    from pipelines.loop import turn_loop
    from pipelines.stores import loops
    from trellis.errors import LeaseHeldError

    command = [sys.executable, "-m", "pipelines", "loop", MODEL]
    with loops().lease(MODEL):
        ended = subprocess.run([*command, "--paced"], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout == f"Another turn of the loop of {MODEL} is under way; this one is left to it.\n"
        runs = [json.loads(line)["flow"] for line in (served / "flows" / "runs.jsonl").read_text().splitlines()]
        assert "turn-loop" not in runs
        with pytest.raises(LeaseHeldError):
            turn_loop(MODEL, text(17), report=False)
    assert kept("retrain") == []


def test_a_turn_that_fails_is_told_until_the_same_models_goes_well(served: Path):
    from monitoring.state_metrics import FlowRuns
    from pipelines.stack_loop import watch_model
    from trellis.errors import DataError

    def failed() -> dict[str, float]:
        found = [m for m in FlowRuns(served / "flows" / "runs.jsonl").collect() if m.name.endswith("last_run_failed")]
        return {s.labels["model"]: s.value for m in found for s in m.samples if s.labels["flow"] == "watch-model"}

    segment = next((served / "predictions" / MODEL).glob("*.jsonl"))
    whole = segment.read_bytes()
    segment.write_bytes(b"no JSON\n" + whole)
    with pytest.raises(DataError, match="The watch job"):
        watch_model(MODEL, report=False, paced=True)
    assert watch_model("toy_multiclass", report=False, paced=True) is None  # it has no plan, and no turn to take
    assert failed() == {MODEL: 1}
    segment.write_bytes(whole)
    assert watch_model(MODEL, report=False, paced=True) is not None
    assert failed() == {MODEL: 0}


def test_a_model_that_is_none_is_refused_before_a_run_begins(home: Path):
    from typer.testing import CliRunner

    from pipelines.__main__ import app
    from trellis.errors import UnknownModelError

    assert isinstance(CliRunner().invoke(app, ["loop", "toy_binari", "--paced"]).exception, UnknownModelError)
    assert not (home / "flows" / "runs.jsonl").exists()
