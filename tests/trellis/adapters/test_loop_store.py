"""The loop on real SQLite: a transaction per transition, killed anywhere, one turn at a time, a year in budget."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from tests.trellis.adapters.oscillating import Oscillating, at, most_in_a_month, year
from trellis.adapters import leases, loop_store
from trellis.adapters.loop_store import LoopStore
from trellis.contract import RetrainPolicy
from trellis.errors import DataError, LeaseHeldError, StaleRevisionError
from trellis.loop import (
    Loop,
    Request,
    Trained,
    Weighed,
    asked,
    next_state,
    paused,
    turn,
)

WORD = Request("r1", "anna", "new product", "2013-07-01T00:00:00Z")


@pytest.fixture
def store(tmp_path):
    return LoopStore(f"sqlite:///{tmp_path}/trellis.db")


@pytest.mark.parametrize(("half", "budget", "cooldown"), [(1, 2, 0), (9, 1, 3)])
def test_a_year_of_oscillating_drift_stays_inside_the_budget(store, half, budget, cooldown):
    policy = RetrainPolicy(cooldown_days=cooldown, budget_per_month=budget, min_new_labels=1)
    loud, starts = year(store, policy, half)
    assert loud > 150  # drift spoke nearly half of all days
    assert most_in_a_month(starts) <= budget
    assert all(b - a >= cooldown for a, b in pairwise(starts))
    assert len(starts) >= 10  # and it did not simply sit still


def test_errors_are_tried_again_kept_and_end_in_an_open_breaker(store):
    policy = RetrainPolicy(cooldown_days=0, budget_per_month=9, min_new_labels=1, max_attempts=2, max_failures=2)

    class Full(Oscillating):
        def train(self, cycle):
            raise DataError("the disk is full")

    world = Full(policy, 1_000)
    world.weigh = lambda state, now: Oscillating.weigh(Oscillating(policy, 1), state, at(1)) if not state.open else (
        Weighed(f"w-{now}", "WAIT", "busy", "", "1")
    )  # fmt: skip
    seen = [turn(store, world, policy, "m", at(1)) for _ in range(2)]
    assert [s.stage for s in seen] == ["training", "watching"]
    assert seen[-1].cycle.outcome == "failed"
    whys = [t.why for t in store.history("m")]
    assert whys[-1] == "Attempt 2: the disk is full"
    assert (seen[-1].failures, seen[-1].broken_since) == (1, "")


def test_one_turn_at_a_time_and_long_work_keeps_its_lease(tmp_path, monkeypatch):
    store = LoopStore(f"sqlite:///{tmp_path}/trellis.db", lease_seconds=0.3)
    monkeypatch.setattr(leases, "_dead", lambda holder: False)
    with store.lease("m"):
        time.sleep(0.8)  # longer than the lease: it is renewed
        with pytest.raises(LeaseHeldError, match="acting on the loop of 'm'"), store.lease("m"):
            pass
    with store.lease("m"):
        pass


def test_an_operator_makes_the_numbers_of_a_turn_stale(store):
    policy = RetrainPolicy(cooldown_days=0, min_new_labels=1)

    class Slow(Oscillating):
        def train(self, cycle):
            state = store.current("m")
            store.commit(state, paused(state, "stop").state, who="anna", why="stop")
            return super().train(cycle)

    world = Slow(policy, 1)
    with pytest.raises(StaleRevisionError, match="has moved since"):
        turn(store, world, policy, "m", at(1))
    assert [(t.who, t.state.stage) for t in store.history("m")][-1] == ("anna", "training")
    world.train = lambda cycle: Trained({})
    assert turn(store, world, policy, "m", at(1)).stage == "rollout"  # the next turn goes on


def test_saying_a_transition_again_is_harmless_and_another_is_refused(store):
    start = Loop("m")
    after = asked(start, WORD).state
    store.commit(start, after, who="anna", why="w")
    store.commit(start, after, who="anna", why="w")
    with pytest.raises(StaleRevisionError):
        store.commit(start, replace(after, paused=True), who="bob", why="w")
    assert len(store.history("m")) == 1
    assert (store.current("m"), store.models(), store.current("other")) == (after, ["m"], Loop("other"))
    held = store.lease("m")
    with held as lease, store._database.writing() as connection:
        connection.execute(loop_store._leases.update().values(token=99))
        late = lease
    move = next_state(after, Weighed("retrain-1", "RETRAIN", "", "manual", "1", "r1"), RetrainPolicy(), at(1))
    with pytest.raises(LeaseHeldError, match="took the loop of 'm' over"):
        store.commit(after, move.state, who="platform", why="", lease=late)
    assert store.current("m") == after


@pytest.mark.slow
def test_a_loop_killed_anywhere_is_not_stuck_doubled_or_lost(tmp_path):
    """Kills at random SQL statements; ``bench_loop.py`` does many more."""
    script = Path(__file__).with_name("loop_kills.py")
    done = subprocess.run([sys.executable, script, tmp_path, "30"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] >= 30
    assert len(told["places"]) >= 10
    assert (told["differ"], told["wrong"]) == (0, [])
    assert {"promoted", "rejected", "regressed", "rolled_back"} <= set(told["ends"])


def test_the_tables_can_be_made_on_postgresql():
    for table in (loop_store._loops, loop_store._transitions, loop_store._leases):
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
