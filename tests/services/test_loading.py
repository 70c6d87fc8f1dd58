"""A version that hangs while it is loaded holds up the plans that name it, and nothing else."""

import threading
import time

import pytest
from prometheus_client import CollectorRegistry

from services.prediction import runtime, watcher
from services.prediction.app import PredictionService
from services.prediction.auth import RefusedError
from services.prediction.errors import UnavailableError
from services.prediction.metrics import Metrics
from trellis.adapters.api_keys import KeyStore
from trellis.errors import StorageError
from trellis.rollout.plan import first_plan, with_canary

BY = {"who": "ann", "why": "a test"}


class Gate:
    """Lets chosen versions wait in their constructor until it is opened."""

    def __init__(self, monkeypatch):
        self.shut, self.began, self._open, self._load = set(), [], threading.Event(), runtime.load
        monkeypatch.setattr(runtime, "load", self.load)

    def load(self, plugin, sample, variant, *more):
        self.began.append(variant.version)
        if variant.version in self.shut:
            assert self._open.wait(60)
        return self._load(plugin, sample, variant, *more)

    def open(self):
        self._open.set()


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.open()


def until(what, seconds=10.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def save(world, plan):
    before = world.plans.current(plan.model)
    return world.plans.save(plan, expected_revision=before.revision if before else 0, **BY)


def revision(world, model="toy_linear"):
    return world.service.models.get(model).active.plan.revision


@pytest.fixture
def following(world):
    """A world whose own watcher follows two models."""
    world.deploy(world.artifact("1"))
    world.deploy(world.artifact("1", model="toy_tensor"), model="toy_tensor")
    world.service.start()
    yield world
    world.service._watcher.stop()


def test_a_hung_load_holds_nobody_else_up_and_its_plan_is_followed_when_it_is_over(following, gate, row):
    world, one = following, first_plan("toy_linear", following.plans.current("toy_linear").champion, salt="s")
    gate.shut = {"hung"}
    save(world, with_canary(one, world.artifact("hung", c=9.0), 1.0))
    until(lambda: gate.began == ["hung"])
    until(lambda: world.service.models.status()["loading"] == {"toy_linear": ["version hung"]})
    # Another model gets a version that has yet to be loaded, and rolls it back.
    tensor = world.plans.current("toy_tensor")
    two = world.artifact("2", model="toy_tensor", seed=5)
    save(world, first_plan("toy_tensor", two, salt="s"))
    until(lambda: revision(world, "toy_tensor") == 2)
    save(world, first_plan("toy_tensor", tensor.champion, salt="s"))
    until(lambda: revision(world, "toy_tensor") == 3)
    assert gate.began == ["hung", "2"], "what is in memory is not loaded again"
    assert world.predict(row()).json()["version"] == "1"
    assert world.service.ready
    gate.open()
    until(lambda: revision(world) == 2)
    assert world.predict(row()).json()["version"] == "hung"
    until(lambda: not world.service.models.loading)


def test_the_rollback_of_a_canary_that_hangs_takes_effect_at_once(following, gate, row):
    world, one = following, first_plan("toy_linear", following.plans.current("toy_linear").champion, salt="s")
    gate.shut = {"hung"}
    hung = with_canary(one, world.artifact("hung"), 0.5)
    save(world, hung)
    until(lambda: gate.began == ["hung"])
    save(world, one)
    until(lambda: revision(world) == 3)
    until(lambda: not world.service.models.loading)
    # Tried again while the first try still hangs, it is waited for rather than begun twice.
    save(world, hung)
    until(lambda: world.service.models.loading)
    assert (gate.began, revision(world)) == (["hung"], 3)
    gate.open()
    until(lambda: revision(world) == 4)
    assert gate.began == ["hung"]


def test_what_nobody_wants_any_more_is_let_go(following, gate):
    world, one = following, first_plan("toy_linear", following.plans.current("toy_linear").champion, salt="s")
    gate.shut = {"hung"}
    save(world, with_canary(one, world.artifact("hung"), 0.5))
    until(lambda: gate.began == ["hung"])
    save(world, one)
    until(lambda: revision(world) == 3)
    assert len(world.service.models._background._jobs) == 1
    gate.open()
    until(lambda: not world.service.models._background._jobs)


def test_a_swap_waits_for_no_look(world, gate):
    """The next look would come in an hour; that the load is over is heard at once."""
    world.limits.plan_poll_seconds = 3_600.0
    world.service = world.make(CollectorRegistry())
    save(world, first_plan("toy_linear", world.artifact("1"), salt="s"))
    world.service.start()
    assert world.service.looked(10)
    assert world.service.ready
    world.service._watcher.stop()  # nor does the end wait


def test_revoked_keys_are_heard_while_a_model_hangs(world, gate):
    store = KeyStore(f"sqlite:///{world.home}/trellis.db")
    world.service = PredictionService(
        world.home, world.limits, world.plans, world.plugins, world.shops, Metrics(CollectorRegistry()), None, store
    )
    gate.shut = {"1"}
    save(world, first_plan("toy_linear", world.artifact("1"), salt="s"))
    world.service.start()
    until(lambda: gate.began == ["1"])
    key, kept = store.create("client", ["read"], **BY)
    scope = {"headers": [(b"authorization", f"Bearer {key}".encode())]}

    def allowed():
        try:
            world.service._guard.check(scope, "read")
        except (RefusedError, UnavailableError):
            return False
        return True

    until(allowed)
    store.revoke(kept.id, **BY)
    until(lambda: not allowed())
    world.service._watcher.stop()


def test_the_first_look_waits_for_a_hung_model_so_long_and_no_longer(world, gate, monkeypatch, row):
    gate.shut = {"1"}
    save(world, first_plan("toy_linear", world.artifact("1"), salt="s"))
    save(world, first_plan("toy_tensor", world.artifact("t", model="toy_tensor"), salt="s"))
    monkeypatch.setattr(watcher, "_FIRST_SECONDS", 4.0)
    world.service.start()
    assert not world.service.looked(0.3)
    assert world.service.looked(20)
    until(lambda: "toy_tensor" in world.service.models.names())  # at its turn, which it need not wait for long
    assert revision(world, "toy_tensor") == 1
    until(lambda: world.service.ready)
    refused = world.predict(row())
    assert (refused.status_code, "is being loaded" in refused.json()["error"]["reason"]) == (503, True)
    assert world.get("/v2/models/toy_linear/ready").status_code == 503
    gate.open()
    until(lambda: "toy_linear" in world.service.models.names())
    world.service._watcher.stop()


def test_a_start_is_not_ready_while_its_models_are_loaded(world, gate):
    gate.shut = {"1"}
    save(world, first_plan("toy_linear", world.artifact("1"), salt="s"))
    save(world, first_plan("toy_tensor", world.artifact("t", model="toy_tensor"), salt="s"))
    models = world.service.models
    until(lambda: models.poll(patience=0.1) or models.names() == ["toy_tensor"], 30)
    assert not world.service.ready, "the other one may be there in a second"
    gate.open()
    world.service.models.poll()
    assert world.service.ready


def test_nothing_is_ready_where_the_only_model_hangs(world, gate, monkeypatch):
    gate.shut = {"1"}
    save(world, first_plan("toy_linear", world.artifact("1"), salt="s"))
    monkeypatch.setattr(watcher, "_FIRST_SECONDS", 0.1)
    world.service.start()
    assert world.service.looked(20)
    assert not world.service.ready
    gate.open()
    until(lambda: world.service.ready)
    world.service._watcher.stop()


class Refusing:
    """A plan store that refuses connections until it is back."""

    def __init__(self, plans):
        self._plans, self.is_back, self.asked = plans, False, 0

    def models(self):
        self.asked += 1
        if not self.is_back:
            raise StorageError("The plan store cannot be reached: connection refused.")
        return self._plans.models()

    def __getattr__(self, name):
        return getattr(self._plans, name)


def test_a_start_without_the_plan_store_waits_for_it_and_calls_no_model_unknown(world, row):
    save(world, first_plan("toy_linear", world.artifact("1"), salt="s"))
    store = world.service.models._plans = Refusing(world.plans)
    world.service.start()
    until(lambda: store.asked > 3)
    assert not world.service.looked(0)
    for answer in (world.predict(row()), world.predict(row(), model="toy_tensor"), world.get("/v1/models/toy_linear")):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "not been read yet" in answer.json()["error"]["reason"]
    store.is_back = True
    assert world.service.looked(20)
    assert world.predict(row()).status_code == 200
    assert world.predict(row(), model="toy_tensor").status_code == 404, "now it is known that there is none"
    world.service._watcher.stop()


def test_a_plan_store_that_stays_away_is_waited_for_so_long_and_no_longer(world, row, monkeypatch):
    world.service.models._plans = Refusing(world.plans)
    monkeypatch.setattr(watcher, "_FIRST_SECONDS", 0.3)
    world.service.start()
    assert world.service.looked(20)
    assert world.predict(row()).status_code == 503
    assert not world.service.ready
    world.service._watcher.stop()


def test_a_plug_in_that_hangs_holds_nobody_up_and_leaves_the_service_ready(world, gate, monkeypatch):
    world.deploy(world.artifact("1"))
    prepare, release = world.service.models._prepare_model, threading.Event()

    def hangs(model):
        assert model.name != "toy_tensor" or release.wait(60)
        prepare(model)

    monkeypatch.setattr(world.service.models, "_prepare_model", hangs)
    save(world, first_plan("toy_tensor", world.artifact("1", model="toy_tensor"), salt="s"))
    world.service.models.poll(patience=0.05)
    assert world.service.ready
    assert world.get("/v2/models/toy_tensor/ready").status_code == 503
    save(world, first_plan("toy_linear", world.artifact("2"), salt="s"))
    world.service.models.poll(patience=4.0)
    assert revision(world) == 2
    release.set()
    world.service.models.poll()
    assert world.get("/v2/models/toy_tensor/ready").status_code == 200


def test_an_author_who_leaves_ends_a_load_and_not_the_watching(world, gate, monkeypatch):
    world.deploy(world.artifact("1"))
    monkeypatch.setattr(runtime, "load", lambda *_: exec("raise SystemExit(3)"))
    world.deploy(world.artifact("2"))
    assert world.service.models.status()["models"]["toy_linear"]["faults"] == {"2": "SystemExit: 3"}
    assert revision(world) == 1


def test_what_failed_is_tried_again_after_a_while(world, gate, monkeypatch):
    world.deploy(world.artifact("1"))
    load = runtime.load
    monkeypatch.setattr(runtime, "load", lambda *_: 1 / 0)
    world.deploy(world.artifact("2"))
    monkeypatch.setattr(runtime, "load", load)
    world.service.models.poll()
    assert revision(world) == 1, "not at once"
    world.service.models.get("toy_linear").retry_at = 0.0
    world.service.models.poll()
    assert revision(world) == 2
    assert world.service.models.status()["models"]["toy_linear"]["faults"] == {}


def test_a_thread_that_cannot_be_started_is_a_failed_load_and_ends_no_look(world, monkeypatch):
    one, tensor = world.artifact("1"), world.artifact("1", model="toy_tensor")
    start, names = threading.Thread.start, []

    def refused_once(thread):
        names.append(thread.name)
        if names.count(thread.name) == 1 and thread.name == "load-toy_linear":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused_once)
    save(world, first_plan("toy_linear", one, salt="s"))
    save(world, first_plan("toy_tensor", tensor, salt="s"))
    world.service.models.poll()
    assert world.service.models.names() == ["toy_tensor"]
    assert "can't start new thread" in world.service.models.status()["broken"]["toy_linear"]
    world.service.models._retry_at["toy_linear"] = 0.0
    world.service.models.poll()
    assert world.service.models.names() == ["toy_linear", "toy_tensor"]
    names.clear()
    world.deploy(world.artifact("2"))
    assert "can't start new thread" in world.service.models.status()["models"]["toy_linear"]["faults"]["2"]
    world.service.models.get("toy_linear").retry_at = 0.0
    world.service.models.poll()
    assert revision(world) == 2
