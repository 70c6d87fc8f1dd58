"""Shadows score a sample in a process of their own; whatever one does, the primary answers as if it were not there."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency

from services.prediction.shadows import Shadows, give_way, in_line, is_sampled
from trellis.adapters.prediction_log import read_shadows
from trellis.rollout.plan import RolloutPlan, Shadow, Variant, unit_position

TOYS = Path(__file__).parent / "toys"
PRIMARY = Variant("1", "champion", 1.0, "/1", "d")


def plan_of(*shadows, salt="salt"):
    return RolloutPlan("toy_linear", 0, salt, (PRIMARY,), shadows)


def shadow(variant, rate=1.0):
    return Shadow(variant.version, rate, variant.location, variant.digest)


@pytest.fixture
def beside(world):
    """Attach shadows to the service of a world, and end them."""
    made = []

    def attach(**options):
        shadows = Shadows(world.home, TOYS, world.service.metrics, **options)
        world.service._answerer._shadows = shadows
        made.append(shadows)
        return shadows

    yield attach
    for shadows in made:
        shadows.close()


def deploy(world, champion, *shadows):
    before = world.plans.current("toy_linear")
    plan = RolloutPlan("toy_linear", 0, "salt", (champion,), shadows)
    world.plans.save(plan, expected_revision=before.revision if before else 0, who="test", why="test")
    world.service.models.poll()


def outcome(world, version, kind):
    return world.metric("trellis_shadows_total", model="toy_linear", version=version, outcome=kind)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_a_shadow_scores_its_sample_and_is_logged_beside_the_primary(world, row, beside):
    beside()
    two = world.artifact("2", c=1.0)
    half = shadow(two, 0.5)
    deploy(world, world.artifact("1"), half)
    answers = [world.predict(row(x=i / 10), id=f"r{i}") for i in range(60)]
    assert {a.status_code for a in answers} == {200}
    plan = world.plans.current("toy_linear")
    sampled = {f"r{i}#0" for i in range(60) if is_sampled(plan, half, f"r{i}#0")}
    assert 15 < len(sampled) < 45
    wait_for(lambda: outcome(world, "2", "scored") == len(sampled))
    wait_for(lambda: len(read_shadows(world.home, "toy_linear")) == len(sampled))
    frame = read_shadows(world.home, "toy_linear").set_index("id")
    assert set(frame.index) == sampled
    assert set(frame["version"]) == {"2"}
    assert set(frame["primary_version"]) == {"1"}
    assert frame["memory_mb"].between(-1_000, 1_000).all(), "what loading it took, in MB"
    for i in range(60):
        if f"r{i}#0" in sampled:
            one = frame.loc[f"r{i}#0"]
            assert one["primary.probability"] == answers[i].json()["predictions"][0]["probability"]
            assert one["outputs.probability"] == pytest.approx(sigmoid(i / 10 + 0.2 + 1.0), rel=1e-12)
    logged = world.logged().set_index("id")
    assert len(logged) == 60, "what shadows answer is no prediction"
    assert (frame["time"] == logged.loc[frame.index, "time"]).all()


def test_a_canary_in_its_own_shadow_scores_only_what_others_answered(world, beside):
    shadows, two = beside(most=0), world.artifact("2")  # whatever would be scored is dropped, and counted
    shadows.offer(
        plan_of(shadow(two)), [({"id": "a", "version": "1"}, b"{}\n"), ({"id": "b", "version": "2"}, b"{}\n")]
    )
    assert outcome(world, "2", "dropped") == 1


def test_rows_scored_together_are_scored_as_each_alone_and_one_that_fails_leaves_the_others(world, row, beside):
    beside()
    deploy(world, world.artifact("1"), shadow(world.artifact("2", c=1.0, raises=True)))
    given = [9.5 if i % 4 == 3 else i / 2 for i in range(14)]
    for i, x in enumerate(given):
        assert world.predict(row(x=x), id=f"r{i}").status_code == 200
    wait_for(lambda: outcome(world, "2", "scored") + outcome(world, "2", "failed") == 14)
    assert outcome(world, "2", "failed") == 3, "those above 9"
    wait_for(lambda: len(read_shadows(world.home, "toy_linear")) == 14)
    frame = read_shadows(world.home, "toy_linear").set_index("id")
    for i, x in enumerate(given):
        one = frame.loc[f"r{i}#0"]
        if x > 9:
            assert "RuntimeError" in one["error"]
        else:
            assert one["outputs.probability"] == pytest.approx(sigmoid(x + 0.2 + 1.0), rel=1e-12)
    timed = frame["score_ms"].notna()
    assert 1 <= timed.sum() < 14, "what one row takes is measured on some alone"
    assert (frame.loc[timed, "score_ms"] > 0).all()


@pytest.mark.parametrize(("fault", "counted"), [("hangs", "lost"), ("dies", "lost"), ("raises", "failed")])
def test_a_shadow_that_breaks_changes_nothing_for_the_primary_or_for_another_shadow(world, row, beside, fault, counted):
    shadows = beside(seconds=1.0, rest=600.0)
    bad, good = world.artifact("2", **{fault: True}), world.artifact("3", c=1.0)
    deploy(world, world.artifact("1"), shadow(bad), shadow(good))
    assert world.predict(row(x=1.0)).status_code == 200
    wait_for(lambda: outcome(world, "2", "scored") == 1 and outcome(world, "3", "scored") == 1)
    for i in range(20):
        answer = world.predict(row(x=9.5), id=f"bad{i}")
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["probability"] == pytest.approx(sigmoid(9.7), rel=1e-12)
    wait_for(lambda: outcome(world, "3", "scored") == 21)
    wait_for(lambda: sum(outcome(world, "2", k) for k in ("scored", "failed", "lost", "resting", "dropped")) == 21)
    assert outcome(world, "2", counted) >= 1
    assert outcome(world, "2", "scored") == 1
    assert len(world.logged()) == 21
    shadows.close()
    assert not [c for c in psutil.Process().children() if "shadow_host" in " ".join(c.cmdline())]


def test_a_full_queue_drops_and_never_waits(world, row, beside):
    shadows = beside(most=5, seconds=60.0)
    deploy(world, world.artifact("1"), shadow(world.artifact("2", hangs=True)))
    world.predict(row(x=9.5))
    wait_for(lambda: not shadows._queue)  # the one at work hangs
    for _ in range(30):
        assert world.predict(row(x=9.5)).status_code == 200
    assert len(shadows._queue) <= 5
    assert outcome(world, "2", "dropped") >= 25
    started = time.monotonic()
    shadows.close(grace=0.5)
    assert time.monotonic() - started < 30, "a hung shadow does not keep the service from ending"
    world.predict(row())
    assert len(shadows._queue) <= 5, "after the end nothing is taken"


def test_a_shadow_that_cannot_be_loaded_rests_and_is_tried_again(world, row, beside):
    beside(rest=0.2)
    two = world.artifact("2")
    (Path(two.location) / "weights.json").write_text('{"a": 666, "b": 1, "c": 0}')  # not what was sealed
    deploy(world, world.artifact("1"), shadow(two))
    world.predict(row())
    wait_for(lambda: outcome(world, "2", "lost") == 1)
    (Path(two.location) / "weights.json").write_text('{"a": 1.0, "b": 1.0, "c": 0.0}')
    wait_for(lambda: world.predict(row()).status_code == 200 and outcome(world, "2", "scored") > 0)


def test_the_shadows_process_takes_only_processor_time_that_is_left_over(world, row, beside):
    shadows = beside()
    deploy(world, world.artifact("1"), shadow(world.artifact("2")))
    world.predict(row())
    wait_for(lambda: outcome(world, "2", "scored") == 1)
    assert {os.sched_getscheduler(thread.id) for thread in psutil.Process(shadows._child.pid).threads()} == {
        os.SCHED_IDLE
    }


def test_standing_in_line_for_a_processor_is_told_from_hanging():
    def begin(program):
        child = subprocess.Popen([sys.executable, "-c", program])
        os.sched_setaffinity(child.pid, {min(os.sched_getaffinity(0))})
        return child

    busy, starved, hung = begin("while True: pass"), begin("while True: pass"), begin("import time; time.sleep(60)")
    try:
        give_way(starved.pid)
        wait_for(lambda: in_line(starved.pid) > 2)
        assert in_line(hung.pid) < 1
    finally:
        for child in (busy, starved, hung):
            child.kill()
            child.wait()
    assert in_line(starved.pid) == 0, "a process that is gone does not wait"


def test_without_shadows_there_is_no_process(world, row, beside):
    shadows = beside()
    world.deploy(world.artifact("1"))
    world.predict(row())
    assert shadows._thread is None
    assert shadows._child is None


# --- sampling


@given(st.text(min_size=1, max_size=20), st.text(max_size=8), st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_growing_rate_only_adds_predictions(prediction, salt, one, two):
    small, large = sorted((one, two))
    few, many = Shadow("2", small, "/2", "d"), Shadow("2", large, "/2", "d")
    if is_sampled(plan_of(few, salt=salt), few, prediction):
        assert is_sampled(plan_of(many, salt=salt), many, prediction)
    whole = Shadow("2", 1.0, "/2", "d")
    assert is_sampled(plan_of(whole, salt=salt), whole, prediction)


def test_samples_are_uniform_and_independent_of_the_split_and_of_each_other():
    two, three = Shadow("2", 0.3, "/2", "d"), Shadow("3", 0.3, "/3", "d")
    plan = plan_of(two, three)
    ids = [f"r{i}#0" for i in range(20_000)]
    first = np.array([is_sampled(plan, two, i) for i in ids])
    second = np.array([is_sampled(plan, three, i) for i in ids])
    split = np.array([unit_position(plan.salt, i) < 0.3 for i in ids])
    for sampled in (first, second):
        assert binomtest(int(sampled.sum()), len(ids), 0.3).pvalue > 0.001
    for a, b in ((first, second), (first, split), (second, split)):
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        assert chi2_contingency(table).pvalue > 0.001
