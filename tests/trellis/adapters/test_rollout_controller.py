"""The controller on SQLite and PostgreSQL: a transaction per transition, killed anywhere, one at a time, fenced."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from trellis.adapters.database import engine
from trellis.adapters.rollout_controller import RolloutController
from trellis.adapters.rollout_store import RolloutStore
from trellis.contract import RolloutPolicy
from trellis.decision import Check, Verdict
from trellis.errors import (
    ClockError,
    ExpiredRolloutError,
    InvalidPlanError,
    LeaseHeldError,
    RolloutBusyError,
    RolloutError,
    StaleRevisionError,
    StorageError,
)
from trellis.rollout.asked import plan_for
from trellis.rollout.plan import Variant, first_plan, with_canary, without_canary
from trellis.rollout.state import next_state

POLICY = RolloutPolicy(steps=(0.1, 0.5), shadow_rate=0.2)
READY = Verdict("HOLD", "go on", (Check("ready_to_step", True, "ready"),))
HOLD, PROMOTE, BACK = (Verdict(o, f"{o} because") for o in ("HOLD", "PROMOTE", "ROLL_BACK"))


def at(day):
    return f"2013-07-{day:02d}T00:00:00+00:00"


def variant(version):
    return Variant(version, "canary", 0.0, f"/a/{version}", f"d{version}")


@pytest.fixture
def controller(url):
    made = RolloutController(url)
    made.plans.save(first_plan("toy", variant("1"), salt="s"), expected_revision=0, who="platform", why="first")
    yield made
    made.close()


def everything(controller):
    return controller.plans.history("toy"), controller.store.history("toy"), controller.store.current("toy")


def look(controller, verdict, day, **more):
    return controller.look("toy", verdict, POLICY, at(day), who="platform", **more)


def test_a_rollout_goes_its_way_and_every_transition_says_who_why_and_on_which_evidence(controller):
    controller.start("toy", [variant("2")], POLICY, who="anna", why="better in June", gate="gate-7")
    look(controller, None, 1)
    look(controller, None, 2, decision="shadow-1")
    look(controller, READY, 3, decision="canary-1")
    plan, why = look(controller, PROMOTE, 4, decision="canary-2")
    assert (plan.champion.version, why) == ("2", "PROMOTE because")
    plans, transitions, state = everything(controller)
    assert [(t.state.stage, t.state.number, t.decision, t.revision) for t in transitions] == [
        ("shadow", 0, "gate-7", 2),
        ("shadow", 1, "", 2),  # the first look sets the rollout's clock and leaves the plan
        ("trial", 2, "shadow-1", 3),
        ("trial", 3, "canary-1", 4),
        ("champion", 4, "canary-2", 5),
    ]
    assert (transitions[0].who, transitions[0].why) == ("anna", "better in June")
    assert plans[-1].why == "canary-2: PROMOTE because"
    assert state.final
    assert look(controller, BACK, 5)[0] == plan  # it is over


def test_a_second_rollout_is_refused_or_supersedes_by_the_declared_rule(controller):
    controller.start("toy", [variant("2")], POLICY, who="anna", why="first try")
    before = everything(controller)
    with pytest.raises(RolloutBusyError, match=r"version 2, shadow.*supersede"):
        controller.start("toy", [variant("3")], POLICY, who="bob", why="mine")
    with pytest.raises(InvalidPlanError):
        controller.start("toy", [variant("1")], POLICY, who="bob", why="the champion", supersede=True)
    whole = replace(POLICY, strategy="ab", steps=(0.5, 1.0))
    with pytest.raises(InvalidPlanError, match="nothing to be compared with"):
        controller.start("toy", [variant("3")], whole, who="bob", why="all of it", supersede=True)
    assert everything(controller) == before
    controller.start("toy", [variant("3")], POLICY, who="platform", why="newer", supersede=True)
    stages = [(t.state.id, t.state.stage) for t in controller.store.history("toy")]
    assert stages == [("toy-2-1", "shadow"), ("toy-2-1", "superseded"), ("toy-3-3", "shadow")]
    assert [s.version for s in controller.plans.current("toy").shadows] == ["3"]


def test_operators_are_bound_by_the_state_and_their_reasons_are_kept(controller):
    with pytest.raises(ExpiredRolloutError, match="nothing to pause"):
        controller.override("toy", "pause", POLICY, who="anna", why="wait")
    with pytest.raises(RolloutError, match="has no rollout plan"):
        controller.override("other", "abort", POLICY, who="anna", why="x")
    controller.start("toy", [variant("2")], POLICY, who="anna", why="try")
    before = everything(controller)
    with pytest.raises(RolloutError, match="needs a reason"):
        controller.override("toy", "abort", POLICY, who="anna", why=" ")
    assert everything(controller) == before
    controller.override("toy", "pause", POLICY, who="anna", why="the feed is down")
    look(controller, PROMOTE, 3)
    assert controller.store.current("toy").stage == "shadow"
    controller.override("toy", "resume", POLICY, who="anna", why="it is back")
    plan = controller.override("toy", "promote", POLICY, who="anna", why="we know it from elsewhere")
    assert plan.champion.version == "2"
    whys = [t.why for t in controller.store.history("toy") if t.who == "anna"]
    assert whys == ["try", "the feed is down", "it is back", "we know it from elsewhere"]
    assert controller.rollback("toy", POLICY, who="anna", why="no, we did not").champion.version == "1"


def test_a_rollback_of_a_canary_is_one_revision(controller):
    controller.start("toy", [variant("2")], RolloutPolicy(), who="anna", why="try")
    plan = controller.rollback("toy", POLICY, who="anna", why="callers complain")
    assert (plan.revision, [v.weight for v in plan.variants]) == (3, [1.0])
    assert controller.store.current("toy").stage == "rolled_back"


def test_bad_time_changes_nothing(controller):
    controller.start("toy", [variant("2")], RolloutPolicy(), who="anna", why="try")
    look(controller, READY, 5)
    before = everything(controller)
    for now in (at(4), "2014-07-01T00:00:00+00:00", "soon"):
        with pytest.raises(ClockError):
            controller.look("toy", PROMOTE, POLICY, now, who="platform")
    assert everything(controller) == before


def test_what_is_past_its_deadline_does_not_go_on(controller):
    controller.start("toy", [variant("2")], POLICY, who="anna", why="try")
    look(controller, None, 1)
    controller.override("toy", "pause", POLICY, who="anna", why="holidays")
    before = everything(controller)
    with pytest.raises(ExpiredRolloutError, match=r"had until 2013-07-\d\d"):
        controller.override("toy", "resume", POLICY, who="anna", why="back", now="2013-09-01T00:00:00+00:00")
    assert everything(controller) == before
    controller.override("toy", "abort", POLICY, who="anna", why="too late", now="2013-09-01T00:00:00+00:00")
    assert controller.store.current("toy").stage == "aborted"


def test_a_plan_changed_past_the_controller_is_the_truth(controller):
    controller.start("toy", [variant("2")], RolloutPolicy(), who="anna", why="try")
    plan = controller.plans.current("toy")
    controller.plans.save(
        with_canary(plan, variant("3"), 0.5), expected_revision=plan.revision, who="bob", why="gate-9: good"
    )
    look(controller, HOLD, 2)
    superseded, adopted = controller.store.history("toy")[-3:-1]
    assert (superseded.state.stage, superseded.why) == (
        "superseded",
        "'bob' changed the plan at revision 3: gate-9: good",
    )
    assert (adopted.state.candidates[0].version, adopted.state.step, adopted.state.gate) == ("3", 1, "gate-9")
    plan = controller.plans.current("toy")
    controller.plans.save(without_canary(plan), expected_revision=plan.revision, who="bob", why="off")
    assert look(controller, PROMOTE, 3)[0].champion.version == "1"
    assert controller.store.current("toy").stage == "superseded"


def test_numbers_that_were_read_too_early_are_refused(controller):
    state = controller.start("toy", [variant("2")], POLICY, who="anna", why="try")
    plan = controller.plans.current("toy")
    look(controller, None, 1)
    after = next_state(state, BACK, POLICY, at(2)).state
    before = everything(controller)
    write = {"expected_revision": plan.revision, "who": "late", "why": "old news"}
    with pytest.raises(StaleRevisionError, match="has moved since"):
        controller.store.commit(state, after, plan_for(after, plan, POLICY), **write)
    fresh = controller.store.current("toy")
    after = next_state(fresh, BACK, POLICY, at(2)).state
    with pytest.raises(StaleRevisionError, match="at revision 2, not 1"):
        controller.store.commit(fresh, after, plan_for(after, plan, POLICY), **write | {"expected_revision": 1})
    with pytest.raises(StaleRevisionError):
        controller.store.commit(None, after, plan, **write)
    with pytest.raises(StaleRevisionError, match="about revision 1 of the plan"):
        look(controller, BACK, 2, revision=1)
    assert everything(controller) == before
    done = controller.store.commit(fresh, after, plan_for(after, plan, POLICY), **write)
    assert controller.store.commit(fresh, after, plan_for(after, plan, POLICY), **write) == done  # said again
    assert len(controller.store.history("toy")) == len(before[1]) + 1


def test_one_controller_at_a_time_and_the_one_that_slept_is_fenced_off(url, controller):
    clock = [1_000.0]
    store = RolloutStore(url, clock=lambda: clock[0])
    state = controller.start("toy", [variant("2")], POLICY, who="anna", why="try")
    plan = controller.plans.current("toy")
    with store.lease("toy", seconds=10) as slept:
        with pytest.raises(LeaseHeldError, match=r"is acting.*in 10 s"), store.lease("toy"):
            pass
        with store.lease("other"):
            pass  # each model has its own
        clock[0] += 11
        with store.lease("toy", seconds=10) as newer:
            assert newer.token == slept.token + 1
        after = next_state(state, BACK, POLICY, at(2)).state
        before = everything(controller)
        with pytest.raises(LeaseHeldError, match="took the rollout of 'toy' over"):
            store.commit(
                state, after, plan_for(after, plan, POLICY), expected_revision=plan.revision, who="s", why="x",
                lease=slept,
            )  # fmt: skip
        assert everything(controller) == before
    with store.lease("toy", seconds=10):
        clock[0] -= 1_000  # set back: the lease would hold for a quarter of an hour
        with store.lease("toy", seconds=10):
            pass
    store.close()


def test_many_controllers_make_every_move_once(url, controller):
    """Eight threads with stores of their own take the same looks; each look moves the rollout by one transition."""
    controller.start("toy", [variant("2")], POLICY, who="anna", why="try")
    others = [RolloutController(url) for _ in range(8)]
    story = [(None, 1), (None, 2), (READY, 3), (PROMOTE, 4)]
    barrier = threading.Barrier(8)

    def play(mine):
        for verdict, day in story:
            barrier.wait()
            for _ in range(100):
                try:
                    look(mine, verdict, day)
                    break
                except (LeaseHeldError, StaleRevisionError):
                    time.sleep(0.01)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(play, others))
    moves = [(t.state.stage, t.state.number) for t in controller.store.history("toy")]
    assert moves == [("shadow", 0), ("shadow", 1), ("trial", 2), ("trial", 3), ("champion", 4)]
    assert [c.plan.revision for c in controller.plans.history("toy")] == [1, 2, 3, 4, 5]


def test_the_lease_of_a_dead_process_is_free_at_once(url, controller):
    code = "import os, sys\nfrom trellis.adapters.rollout_store import RolloutStore\n"
    code += "with RolloutStore(sys.argv[1]).lease('toy', seconds=3600):\n    os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, url]).returncode == 9
    with engine(url).connect() as raw:
        assert raw.execute(sa.text("SELECT holder FROM rollout_leases")).scalar()
    with controller.store.lease("toy"):
        pass


def test_two_processes_make_every_move_once(url, controller):
    controller.start("toy", [variant("2")], POLICY, who="anna", why="try")
    script = Path(__file__).with_name("store_races.py")
    racers = [subprocess.Popen([sys.executable, script, "looks", url], stdout=subprocess.PIPE) for _ in range(2)]
    for racer in racers:
        racer.communicate(timeout=60)
    assert [racer.returncode for racer in racers] == [0, 0]
    moves = [(t.state.stage, t.state.number) for t in controller.store.history("toy")]
    assert moves == [("shadow", 0), ("shadow", 1), ("trial", 2), ("trial", 3), ("champion", 4)]
    assert [c.plan.revision for c in controller.plans.history("toy")] == [1, 2, 3, 4, 5]
    with controller.store.lease("toy"):  # none is left behind
        pass


def test_a_refused_write_leaves_nothing_of_the_transition(controller, refuse):
    controller.start("toy", [variant("2")], POLICY, who="anna", why="try")
    before = everything(controller)
    refuse("rollout_transitions")
    with pytest.raises(StorageError, match="disk full"):
        controller.override("toy", "abort", POLICY, who="anna", why="stop")
    assert everything(controller) == before


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills", "rollouts"), [("sqlite", 220, 5), ("postgresql", 30, 1)])
def test_a_controller_killed_anywhere_finishes_once(kind, kills, rollouts, tmp_path, request):
    """Many kills at random statements, then the end: what an undisturbed controller writes, and no more."""
    script = Path(__file__).with_name("rollout_kills.py")
    place = f"sqlite:///{tmp_path}" if kind == "sqlite" else request.getfixturevalue("postgres")
    done = subprocess.run([sys.executable, script, place, str(kills)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] >= kills
    assert told["rollouts"] >= rollouts
    assert len(told["places"]) >= 10  # before and after reads, writes and commits of every table
    assert told["ends"] == [told["undisturbed"]]
