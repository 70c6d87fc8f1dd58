"""The plan store on SQLite and PostgreSQL: one winner per revision, nothing half written, all of it in the history."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from trellis.adapters.database import engine
from trellis.adapters.plan_store import PlanStore
from trellis.errors import InvalidPlanError, StaleRevisionError, StorageError
from trellis.rollout.plan import Shadow, Variant, first_plan, promoted, with_canary


def variant(version):
    return Variant(version, "champion", 1.0, f"/artifacts/{version}", f"sha256:{version}")


@pytest.fixture
def store(url):
    store = PlanStore(url)
    yield store
    store.close()


def test_a_plan_comes_back_as_it_was_saved(store):
    plan = replace(
        with_canary(first_plan("toy", variant("1"), salt="s", unit="user"), variant("2"), 0.1),
        shadows=(Shadow("3", 0.25, "/artifacts/3", "sha256:3"),),
    )
    assert store.current("toy") is None
    stored = store.save(plan, expected_revision=0, who="platform", why="first")
    assert stored == replace(plan, revision=1)
    assert store.current("toy") == stored
    assert store.models() == ["toy"]


def test_a_stale_save_is_refused_and_writes_nothing(store):
    base = first_plan("toy", variant("1"), salt="s")
    one = store.save(base, expected_revision=0, who="platform", why="first")
    two = store.save(with_canary(one, variant("2"), 0.1), expected_revision=1, who="anna", why="try it")
    with pytest.raises(StaleRevisionError, match=r"at revision 2, not 1, written by 'anna': try it"):
        store.save(with_canary(one, variant("3"), 0.1), expected_revision=1, who="bob", why="mine")
    with pytest.raises(StaleRevisionError):
        store.save(base, expected_revision=0, who="bob", why="again from the start")
    with pytest.raises(StaleRevisionError, match="revision 0, not 7"):
        store.save(replace(base, model="other"), expected_revision=7, who="bob", why="guess")
    assert store.current("toy") == two
    assert [(c.plan.revision, c.who, c.why) for c in store.history("toy")] == [
        (1, "platform", "first"),
        (2, "anna", "try it"),
    ]
    assert store.history("other") == []


def test_saying_the_same_again_is_harmless(store):
    plan = first_plan("toy", variant("1"), salt="s")
    first = store.save(plan, expected_revision=0, who="platform", why="first")
    assert store.save(plan, expected_revision=0, who="platform", why="first") == first
    assert len(store.history("toy")) == 1


def test_one_of_many_writers_wins_each_revision(url):
    stores = [PlanStore(url) for _ in range(4)]
    stores[0].save(first_plan("toy", variant("0"), salt="s"), expected_revision=0, who="platform", why="first")
    barrier = threading.Barrier(4)

    def race(index):
        won = 0
        for round_ in range(10):
            barrier.wait()
            plan = first_plan("toy", variant(f"{round_}-{index}"), salt="s")
            try:
                stores[index].save(plan, expected_revision=round_ + 1, who=f"w{index}", why="race")
                won += 1
            except StaleRevisionError:
                pass
        return won

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(race, range(4))) == 10
    history = stores[0].history("toy")
    assert [c.plan.revision for c in history] == list(range(1, 12))
    assert stores[0].current("toy") == history[-1].plan
    for store in stores:
        store.close()


def test_one_of_two_processes_wins_each_revision(url, store):
    script = Path(__file__).with_name("store_races.py")
    racers = [
        subprocess.Popen([sys.executable, script, "plans", url, name, "40"], stdout=subprocess.PIPE)
        for name in ("one", "two")
    ]
    won = {}
    for name, racer in zip(("one", "two"), racers, strict=True):
        out, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        won[name] = json.loads(out)
    history = store.history("toy")
    assert [c.plan.revision for c in history] == list(range(1, 41))
    assert {name: [c.plan.revision for c in history if c.who == name] for name in won} == won
    assert store.current("toy") == history[-1].plan


def test_a_crash_between_the_two_writes_leaves_neither(store, refuse):
    one = store.save(first_plan("toy", variant("1"), salt="s"), expected_revision=0, who="platform", why="first")
    refuse("rollout_plan_changes")
    with pytest.raises(StorageError, match="disk full"):
        store.save(promoted(with_canary(one, variant("2"), 0.5)), expected_revision=1, who="anna", why="go")
    with pytest.raises(StorageError, match="disk full"):
        store.save(first_plan("new", variant("1"), salt="s"), expected_revision=0, who="anna", why="go")
    assert store.current("toy") == one
    assert store.current("new") is None


@pytest.mark.parametrize(("damage", "told"), [("0.5", "sum to 0.5"), ('"much"', "valid number")])
def test_a_stored_plan_that_is_none_is_named(url, store, damage, told):
    store.save(first_plan("toy", variant("1"), salt="s"), expected_revision=0, who="platform", why="first")
    with engine(url).begin() as raw:
        [document] = raw.execute(sa.text("SELECT document FROM rollout_plans")).scalars()
        broken = document.replace('"weight":1.0', f'"weight":{damage}')
        assert broken != document
        raw.execute(sa.text("UPDATE rollout_plans SET document = :broken"), {"broken": broken})
    with pytest.raises(InvalidPlanError, match=f"stored plan of 'toy' is none: .*{told}.*Restore"):
        store.current("toy")
