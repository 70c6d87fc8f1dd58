"""Cache and fallback: which link answered is said and logged, and no link answers for another version's inputs."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from prometheus_client import CollectorRegistry

from services.prediction import cache as cache_module
from services.prediction.app import PredictionService
from services.prediction.cache import AnswerCache
from trellis.rollout.plan import with_standby


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.fixture
def caching(world):
    world.limits.cache_seconds = 60.0
    world.service = PredictionService(
        world.home, world.limits, world.plans, world.plugins, world.shops, world.service.metrics
    )
    world.app = world.service.app()
    return world


def test_the_same_inputs_are_scored_once_per_version_and_logged_every_time(caching, row):
    one, two = caching.artifact("1"), caching.artifact("2", c=1.0)
    caching.deploy(one)
    first, again = caching.predict(row(), id="a").json(), caching.predict(row(note="other"), id="b").json()
    assert "fallback" not in first
    assert [part["link"] for part in again["fallback"]] == ["cache"]
    assert again["predictions"][0]["probability"] == first["predictions"][0]["probability"]
    assert "fallback" not in caching.predict(row(x=0.6)).json(), "another input is another key"
    caching.shops.rows["s1"] = (0.3, 10.0)
    moved = caching.predict(row()).json()
    assert "fallback" not in moved, "so is a feature that has moved"
    assert moved["predictions"][0]["probability"] == pytest.approx(sigmoid(0.8))
    caching.deploy(two)
    new = caching.predict(row()).json()
    assert "fallback" not in new, "and another version"
    assert new["predictions"][0]["probability"] == pytest.approx(sigmoid(1.8))
    logged = caching.logged().set_index("id")
    assert len(logged) == 5
    assert logged["cached"].tolist().count(True) == 1
    assert logged.loc["b#0", "cached"]


def test_what_a_broken_version_answered_before_is_given_again(caching, row):
    caching.deploy(caching.artifact("1", raises=True))
    assert caching.predict(row(x=9.5)).status_code == 503
    good = caching.predict(row(x=1.0)).json()
    assert caching.predict(row(x=1.0)).json()["predictions"][0]["probability"] == good["predictions"][0]["probability"]


def test_answers_grow_old_and_the_least_used_go_first(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(cache_module.time, "monotonic", lambda: clock[0])
    cache = AnswerCache(10.0, most=2)
    keys = [cache.key("m", "d", {"x": np.array([float(i)])}) for i in range(3)]
    cache.put(keys[0], {"y": np.array([0.0])})
    cache.put(keys[1], {"y": np.array([1.0])})
    assert cache.get(keys[0])["y"].tolist() == [0.0]
    cache.put(keys[2], {"y": np.array([2.0])})
    assert cache.get(keys[1]) is None
    clock[0] = 10.1
    assert cache.get(keys[0]) is None


CELLS = st.one_of(
    arrays(np.float64, (1,)),
    arrays(np.float32, (1,)),
    arrays(np.int64, (1,)),
    arrays(np.float32, (1, 2, 2)),
    st.text(max_size=4).map(lambda text: np.array([text])),
    st.sampled_from(["a", "a\0b", None, 1, "1"]).map(lambda value: np.array([value], object)),
)
INPUTS = st.dictionaries(st.sampled_from(["a", "b", "ab"]), CELLS, min_size=1)


@given(INPUTS, INPUTS)
def test_keys_are_the_same_exactly_for_the_same_inputs(one, two):
    cache = AnswerCache(1.0)

    def exact(inputs):
        return [
            (name, c.dtype.kind, c.shape, c.tolist() if c.dtype.kind in "OU" else (c.dtype.itemsize, c.tobytes()))
            for name, c in inputs.items()
        ]

    same = repr(exact(one)) == repr(exact(two))
    assert (cache.key("m", "d", one) == cache.key("m", "d", two)) == same
    assert cache.key("m", "d", one) != cache.key("m", "e", one)


def test_the_version_before_stands_in_for_a_champion_that_breaks(world, row):
    world.deploy(world.artifact("1", c=0.5))
    world.deploy(world.artifact("2", raises=True))
    fine = world.predict(row(x=1.0)).json()
    assert (fine["version"], "fallback" in fine) == ("2", False)
    answer = world.predict(row(x=9.5), row(x=9.6), id="r")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["version"], body["variant"]) == ("1", "previous")
    assert body["fallback"] == [{"link": "previous", "why": "version 2 failed"}]
    assert body["predictions"][0]["probability"] == pytest.approx(sigmoid(10.2))
    logged = world.logged().set_index("id")
    assert logged.loc["r#0", ["version", "variant", "instead_of"]].tolist() == ["1", "previous", "2"]
    assert world.metric("trellis_variant_errors_total", model="toy_linear", version="2") == 1


@pytest.mark.parametrize(("slowest", "on_the_loop"), [(0.0001, True), (0.3, False)])
def test_a_slow_version_that_may_stand_in_is_never_scored_on_the_event_loop(world, row, slowest, on_the_loop):
    world.limits.flush_seconds = 0.01
    world.service._logs.close()
    world.service = world.make(CollectorRegistry())
    world.app = world.service.app()
    world.deploy(world.artifact("1"))
    world.deploy(world.artifact("2", raises=True))
    model, scored = world.service.models.get("toy_linear"), []
    before, quick = model.active.previous, replace(model.active.champion, seconds=0.0001)
    predict = before.predictor.predict
    before.predictor.predict = lambda batch: scored.append(threading.current_thread()) or predict(batch)
    model.active = replace(model.active, versions={"2": quick}, previous=replace(before, seconds=slowest))
    assert world.predict(row(x=9.5, rate=0.2, size=10.0)).json()["variant"] == "previous"
    assert [thread is threading.main_thread() for thread in scored] == [on_the_loop]


def test_a_version_that_was_rolled_back_never_stands_in(world, row):
    good, bad = world.artifact("1", raises=True), world.artifact("2")
    world.deploy(good)
    world.deploy(bad)
    world.deploy(good)  # rolled back
    assert world.predict(row(x=1.0)).json()["version"] == "1"
    assert world.predict(row(x=9.5)).status_code == 503


def test_going_back_twice_or_by_name_leaves_no_later_version_to_stand_in(world, row):
    one, two, three = world.artifact("1", raises=True), world.artifact("2"), world.artifact("3")
    for back in ((two, one), (one,)):
        for variant in (one, two, three, *back):
            world.deploy(variant)
        assert world.predict(row(x=1.0)).json()["version"] == "1"
        assert world.predict(row(x=9.5)).status_code == 503


def test_a_worker_started_later_knows_what_was_rolled_back_and_what_is_kept_warm(world, row):
    def restart():
        world.service = world.make(CollectorRegistry())
        world.app = world.service.app()
        world.service.models.poll()

    good, bad = world.artifact("1", raises=True), world.artifact("2", c=1.0)
    world.deploy(good)
    world.deploy(bad)
    restart()
    world.deploy(good)
    assert world.predict(row(x=9.5)).status_code == 503
    champion, three = world.deploy(bad), world.artifact("3", raises=True)
    window = with_standby(replace(champion, variants=(three,)), bad)
    world.plans.save(window, expected_revision=champion.revision, who="test", why="switched")
    restart()
    assert world.predict(row(x=9.5)).json()["fallback"] == [{"link": "previous", "why": "version 3 failed"}]


def test_a_canary_that_breaks_is_answered_by_the_champion_and_it_is_said(world, row):
    world.deploy(world.artifact("1"), world.artifact("2", raises=True), share=1.0)
    body = world.predict(row(x=9.5)).json()
    assert (body["version"], body["variant"]) == ("1", "champion")
    assert body["fallback"] == [{"link": "champion", "why": "version 2 failed"}]
