"""Predictions: the right numbers, in the right order, from the right version, each with its record."""

import asyncio
import math
import shutil
import threading
import time

import numpy as np
import pandas as pd
import pytest
from prometheus_client import CollectorRegistry


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_one_row_is_answered_and_logged_with_everything_that_made_it(world, row):
    world.deploy(world.artifact("7", a=2.0, b=3.0, c=0.25))
    answer = world.predict(row(amount=4, note=None), id="req-1")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    prediction = body.pop("predictions")[0]
    assert body == {
        "model": "toy_linear",
        "version": "7",
        "variant": "champion",
        "revision": 1,
        "request_id": "req-1",
    }
    expected = sigmoid(2.0 * 0.5 + 3.0 * 0.2 + 0.25)
    assert prediction == {
        "id": "req-1#0",
        "probability": pytest.approx(expected, rel=1e-12),
        "version": "7",
        "variant": "champion",
    }
    frame = world.logged()
    assert len(frame) == 1
    record = frame.iloc[0]
    assert (record["id"], record["version"], record["variant"], record["revision"]) == ("req-1#0", "7", "champion", 1)
    assert record["unit"] == "req-1#0"
    assert record["time"] == pd.Timestamp("2013-07-01T09:15:00Z")
    assert (record["request.x"], record["request.shop"], record["request.amount"]) == (0.5, "s1", 4)
    assert record["request.note"] is None
    assert (record["features.rate"], record["features.size"]) == (0.2, 10.0)
    assert record["feature_times.shop_view"] == "2013-07-01T08:00:00Z"
    assert record["overrides"] == []
    assert record["outputs.probability"] == prediction["probability"]
    assert record["latency_ms"] > 0


def test_rows_sent_by_unit_come_back_in_order_each_from_its_variant(world, row):
    one, two = world.artifact("1", c=0.0), world.artifact("2", c=1.0)
    plan = world.deploy(one, two, share=0.5, unit="note")
    rows = [row(x=i / 10, note=f"user-{i}") for i in range(20)]
    body = world.predict(*rows).json()
    versions = [p["version"] for p in body["predictions"]]
    assert versions == [plan.assign(r["note"]).version for r in rows]
    assert set(versions) == {"1", "2"}
    for i, prediction in enumerate(body["predictions"]):
        assert prediction["probability"] == pytest.approx(sigmoid(i / 10 + 0.2 + (versions[i] == "2")), rel=1e-12)
    assert (body["version"], body["variant"]) == (None, None)
    assert [p["id"].split("#")[1] for p in body["predictions"]] == [str(i) for i in range(20)]
    again = world.predict(*rows).json()
    assert [p["version"] for p in again["predictions"]] == versions
    frame = world.logged()
    counted = frame["version"].value_counts()
    for version, role in (("1", "champion"), ("2", "canary")):
        labels = {"model": "toy_linear", "version": version, "variant": role}
        assert world.metric("trellis_predictions_total", **labels) == counted[version]


def test_growing_the_share_only_adds_units(world, row):
    one, two = world.artifact("1"), world.artifact("2")
    rows = [row(note=f"user-{i}") for i in range(20)]
    before = set()
    for share in (0.1, 0.4, 0.8, 1.0):
        world.deploy(one, two, share=share, unit="note")
        answered = world.predict(*rows).json()["predictions"]
        now = {i for i, p in enumerate(answered) if p["variant"] == "canary"}
        assert before <= now
        before = now
    assert len(before) == 20


def test_a_tensor_model_answers_through_onnx_as_through_python(world):
    world.deploy(world.artifact("py", model="toy_tensor", seed=3), model="toy_tensor")
    images = np.random.default_rng(1).random((5, 2, 2)).round(3).tolist()
    python = world.predict(*({"image": i} for i in images), model="toy_tensor").json()
    world.deploy(world.artifact("onnx", model="toy_tensor", seed=3, onnx=True), model="toy_tensor")
    assert world.get("/v1/models/toy_tensor").json()["loaded"] == {"onnx": "onnx"}
    graph = world.predict(*({"image": i} for i in images), model="toy_tensor").json()
    assert graph["version"] == "onnx"
    for a, b in zip(python["predictions"], graph["predictions"], strict=True):
        np.testing.assert_allclose(a["probabilities"], b["probabilities"], rtol=1e-5)
        assert sum(b["probabilities"]) == pytest.approx(1, abs=1e-6)


# --- features


def test_a_caller_overrides_features_and_the_log_says_which(world, row):
    world.deploy(world.artifact("1"))
    mixed = world.predict(row(rate=0.9), row(), row(rate=None)).json()["predictions"]
    expected = [sigmoid(0.5 + 0.9), sigmoid(0.5 + 0.2), sigmoid(0.5 + 0.5)]
    assert [p["probability"] for p in mixed] == pytest.approx(expected, rel=1e-12)
    assert all("degraded" not in p for p in mixed)
    assert world.logged().sort_values("id")["overrides"].tolist() == [["rate"], [], ["rate"]]
    calls = world.shops.calls
    world.predict(row(rate=0.1, size=1.0, shop="nobody"))
    assert world.shops.calls == calls, "with every feature sent the store is not asked"


def test_an_unknown_entity_is_named_or_answered_as_degraded(world, row):
    world.deploy(world.artifact("1"))
    refused = world.predict(row(), row(shop="nobody"))
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert error["field"] == "rows.1.shop"
    assert "shop=nobody" in error["reason"]
    assert "'size'" in error["reason"]
    assert world.logged().empty
    degraded = world.predict(row(shop="nobody", size=3.0), row())
    first, second = degraded.json()["predictions"]
    assert first["degraded"] == ["shop_view"]
    assert first["probability"] == pytest.approx(sigmoid(0.5 + 0.5))
    assert "degraded" not in second
    assert world.metric("trellis_degraded_total", model="toy_linear", view="shop_view", reason="no_row") == 1
    assert world.logged().set_index("request.shop").loc["nobody", "feature_times.shop_view"] is None


def test_the_store_is_opened_before_the_first_request(world, row):
    world.deploy(world.artifact("1"))
    assert world.shops.calls == 1
    world.predict(row())
    assert world.shops.calls == 2


def test_values_too_old_to_use_are_told(world, row):
    world.deploy(world.artifact("1"))
    world.shops.blanked = True
    answer = world.predict(row(), row(rate=0.2), row(shop="nobody", size=1.0)).json()
    stale, sent, unknown = answer["predictions"]
    assert stale["degraded"] == ["shop_view"]
    assert "degraded" not in sent
    assert unknown["degraded"] == ["shop_view"]
    assert world.metric("trellis_degraded_total", model="toy_linear", view="shop_view", reason="stale") == 1
    assert world.metric("trellis_degraded_total", model="toy_linear", view="shop_view", reason="no_row") == 1
    record = world.logged().set_index("id").loc[stale["id"]]
    assert np.isnan(record["features.rate"])
    assert record["feature_times.shop_view"] == "2013-07-01T08:00:00Z", "how old it was stays in the record"


def test_on_demand_features_outlive_the_store(world, row):
    world.deploy(world.artifact("1"))
    world.shops.down = True
    assert world.predict(row()).status_code == 503
    world.shops.computed = {"size": 7.0}
    answer = world.predict(row())
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["degraded"] == ["feature_store"]
    assert world.logged()["features.size"].tolist() == [7.0]


def test_with_the_store_down_it_answers_what_it_can_and_says_so(world, row):
    world.deploy(world.artifact("1"))
    world.shops.down = True
    refused = world.predict(row())
    assert refused.status_code == 503
    assert "feature store does not answer" in refused.json()["error"]["reason"]
    assert refused.headers["retry-after"]
    answered = world.predict(row(size=1.0)).json()["predictions"][0]
    assert answered["degraded"] == ["feature_store"]
    assert world.metric("trellis_degraded_total", model="toy_linear", view="feature_store", reason="store_down") == 1
    assert world.metric("trellis_store_failures_total", store="features") == 2
    assert len(world.logged()) == 1


# --- nothing twice, nothing lost


def test_a_retry_with_its_id_is_answered_the_same_and_logged_once(world, row):
    world.deploy(world.artifact("1"))
    first = world.predict(row(), id="order/7")
    second = world.predict(row(), id="order/7")
    assert first.content == second.content
    assert len(world.logged()) == 1
    assert world.metric("trellis_repeats_total", model="toy_linear") == 1
    other = world.predict(row(x=0.75), id="order/7")
    assert (other.status_code, other.json()["error"]["field"]) == (409, "id")
    assert len(world.logged()) == 1


def test_the_same_request_many_times_at_once_is_logged_once(world, row):
    world.deploy(world.artifact("1"))

    async def many():
        body = {"rows": [row()], "id": "same"}
        return await asyncio.gather(
            *(world.send("POST", "/v1/models/toy_linear/predict", json=body) for _ in range(30))
        )

    answers = world.runner.run(many())
    assert {a.content for a in answers} == {answers[0].content}
    assert len(world.logged()) == 1


def test_an_answer_that_cannot_be_logged_is_not_given_and_a_retry_works(world, row, monkeypatch):
    world.deploy(world.artifact("1"))
    world.predict(row())

    def full(_descriptor, _data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trellis.adapters.append_log.os.write", full)
        refused = world.predict(row(), id="again")
        labels = world.post("/v1/models/toy_linear/labels", {"labels": [LABEL]})
    for answer in (refused, labels):
        assert answer.status_code == 503
        assert "No space left on device" in answer.json()["error"]["reason"]
        assert str(world.home) not in answer.text
    assert world.metric("trellis_log_failures_total", model="toy_linear") == 1
    assert world.predict(row(), id="again").status_code == 200
    assert len(world.logged()) == 2
    assert world.labels().empty


# --- versions that fail


def test_the_champion_stands_in_for_a_canary_that_raises(world, row):
    one, two = world.artifact("1"), world.artifact("2", raises=True)
    world.deploy(one, two, share=1.0)
    fine = world.predict(row()).json()["predictions"][0]
    assert fine["version"] == "2"
    stood_in = world.predict(row(x=9.5)).json()["predictions"][0]
    assert (stood_in["version"], stood_in["variant"]) == ("1", "champion")
    assert stood_in["probability"] == pytest.approx(sigmoid(9.5 + 0.2))
    assert world.metric("trellis_variant_errors_total", model="toy_linear", version="2") == 1
    assert world.logged()["instead_of"].dropna().tolist() == ["2"]


def test_a_champion_that_raises_is_a_named_503(world, row):
    world.deploy(world.artifact("1", raises=True))
    refused = world.predict(row(x=9.5))
    assert refused.status_code == 503
    assert "RuntimeError: x is too large for me" in refused.json()["error"]["reason"]
    assert world.logged().empty
    assert world.predict(row()).status_code == 200


def test_a_tampered_version_never_serves_and_the_champion_goes_on(world, row):
    one = world.artifact("1")
    world.deploy(one)
    two = world.artifact("2", c=5.0)
    (world.home / "artifacts/toy_linear/2/weights.json").write_text('{"a": 0, "b": 0, "c": 9}')
    world.deploy(one, two, share=1.0)
    assert world.predict(row()).json()["version"] == "1"
    status = world.get("/v2/health/ready").json()["models"]["toy_linear"]
    assert "DigestMismatchError" in status["faults"]["2"]
    assert world.metric("trellis_load_failures_total", model="toy_linear") == 1
    world.deploy(two)
    assert world.predict(row()).json()["version"] == "1", "a champion that cannot be loaded replaces nobody"
    assert world.get("/v2/health/ready").status_code == 200
    gone = world.artifact("3")
    shutil.rmtree(gone.location)
    world.deploy(gone)
    assert world.predict(row()).json()["version"] == "1"
    world.deploy(world.artifact("4"))
    assert world.predict(row()).json()["version"] == "4"
    assert world.get("/v1/models/toy_linear").json()["faults"] == {}


def test_a_version_that_loads_but_cannot_score_is_refused_while_warming_up(world, row):
    one = world.artifact("1")
    world.deploy(one)
    world.deploy(world.artifact("2", always=float("nan")))
    assert world.predict(row()).json()["version"] == "1"
    assert "not finite" in world.get("/v2/health/ready").json()["models"]["toy_linear"]["faults"]["2"]


def test_an_artifact_of_another_model_is_refused(world):
    other = world.artifact("1", model="toy_tensor")
    world.deploy(other)
    assert world.get("/v2/health/ready").status_code == 503


# --- readiness and following the plans


def test_ready_when_a_model_is_answered_and_from_then_on_whatever_another_does(world, row):
    assert world.get("/v2/health/ready").status_code == 503
    assert world.get("/v2/health/live").status_code == 200
    world.service.models.poll()
    assert world.get("/v2/health/ready").status_code == 503, "no model has a plan"
    one = world.artifact("1")
    world.deploy(one)
    assert world.get("/v2/health/ready").status_code == 200
    tensor = world.artifact("1", model="toy_tensor")
    shutil.rmtree(tensor.location)
    world.deploy(tensor, model="toy_tensor")
    for _ in range(2):
        ready = world.get("/v2/health/ready")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert "ArtifactError" in ready.json()["models"]["toy_tensor"]["faults"]["1"]
        assert world.predict(row()).status_code == 200, "what is loaded answers all the same"
        refused = world.predict({"image": [[0, 0], [0, 0]]}, model="toy_tensor")
        assert refused.status_code == 503
        assert "could not be loaded" in refused.json()["error"]["reason"]
        assert world.get("/v2/models/toy_tensor/ready").status_code == 503
        assert world.metric("trellis_load_failures_total", model="toy_tensor") == 1
        assert world.registry.get_sample_value("trellis_plan_revision", {"model": "toy_tensor"}) == 0
        # A replica that is started now meets the bad model at its first look.
        world.registry = CollectorRegistry()
        world.service = world.make()
        world.app = world.service.app()
        assert world.get("/v2/health/ready").status_code == 503
        world.service.models.poll()


def test_a_plan_for_a_model_without_a_plugin_is_shown(world):
    world.deploy(world.artifact("1"))
    variant = world.artifact("2")
    world.deploy(variant, model="nobody_knows")
    ready = world.get("/v2/health/ready")
    assert ready.status_code == 200
    assert "UnknownModelError" in ready.json()["broken"]["nobody_knows"]


def test_with_the_plan_store_away_it_goes_on_with_what_it_holds(world, row):
    world.deploy(world.artifact("1"))

    class Away:
        def models(self):
            from trellis.errors import StorageError

            raise StorageError("The plan store does not work: gone.")

    world.service.models._plans = Away()
    world.service.models.poll()
    assert world.predict(row()).status_code == 200
    assert world.get("/v2/health/ready").status_code == 200
    assert "gone" in world.get("/v2/health/ready").json()["plan_store"]
    assert world.metric("trellis_store_failures_total", store="plans") == 1


@pytest.mark.parametrize("flush_seconds", [0.0, 0.01])
@pytest.mark.parametrize("known_size", [False, True])
def test_swapping_versions_under_load_fails_no_request(world, row, flush_seconds, known_size):
    """Twelve plans while requests keep coming: every answer is a 200 whose number belongs to the version it names.

    With every feature sent and a flush window, requests are answered on the event loop; else in threads.
    """
    world.limits.flush_seconds = flush_seconds
    sent = {"size": 1.0, "rate": 0.2} if known_size else {}
    variants = [world.artifact(str(i), c=float(i)) for i in range(6)]
    world.deploy(variants[0])

    async def load():
        world.service.start()
        stop = asyncio.Event()
        answers = []

        async def caller():
            while not stop.is_set():
                body = {"rows": [row(note=f"u{len(answers)}", **sent), row(x=1.0, note="v", **sent)]}
                answers.append(await world.send("POST", "/v1/models/toy_linear/predict", json=body))
                await asyncio.sleep(0.002)  # a slow disk must keep up with the records

        callers = [asyncio.create_task(caller()) for _ in range(4)]
        for step in range(1, 12):
            revision = world.plans.current("toy_linear").revision
            await asyncio.to_thread(
                world_save, world, variants[step % 6], variants[(step + 1) % 6], 0.5 if step % 2 else 0.0, revision
            )
            for _ in range(200):
                await asyncio.sleep(0.01)
                if world.service.models.get("toy_linear").active.plan.revision == revision + 1:
                    break
        stop.set()
        await asyncio.gather(*callers)
        return answers

    answers = world.runner.run(load())
    world.service.stop()
    assert {a.status_code for a in answers} == {200}
    seen = set()
    for answer in answers:
        for x, p in zip((0.5, 1.0), answer.json()["predictions"], strict=True):
            seen.add(p["version"])
            assert p["probability"] == pytest.approx(sigmoid(x + 0.2 + int(p["version"])), rel=1e-9)
    assert len(seen) == 6
    assert len(world.logged()) == 2 * len(answers)
    assert world.metric("trellis_plan_revision", model="toy_linear") == 12


def world_save(world, champion, canary, share, revision):
    from trellis.rollout.plan import first_plan, with_canary

    plan = first_plan("toy_linear", champion, salt=f"s{revision}", unit="note")
    if share:
        plan = with_canary(plan, canary, share)
    world.plans.save(plan, expected_revision=revision, who="test", why="test")


def test_more_requests_than_may_wait_are_refused_at_once(world, row):
    world.deploy(world.artifact("1"))
    world.service.workers._most = 5

    async def many():
        path = "/v1/models/toy_linear/predict"
        return await asyncio.gather(*(world.send("POST", path, json={"rows": [row()]}) for _ in range(40)))

    answers = world.runner.run(many())
    codes = [a.status_code for a in answers]
    assert set(codes) == {200, 503}
    assert len(world.logged()) == codes.count(200)
    refused = answers[codes.index(503)]
    assert "wait for an answer" in refused.json()["error"]["reason"]
    assert int(refused.headers["retry-after"]) >= 1
    assert world.predict(row()).status_code == 200


def test_a_loop_that_is_late_sheds_what_needs_no_queue_and_takes_it_again_when_it_has_caught_up(world, row):
    world.limits.flush_seconds = 0.01
    world.service.workers.close()
    world.service = world.make(CollectorRegistry())
    world.app = world.service.app()
    world.deploy(world.artifact("1"))
    body = {"rows": [row(size=1.0, rate=0.2)]}

    async def scene():
        pulse = world.service.workers.pulse
        pulse.start()
        path, answers, blocked = "/v1/models/toy_linear/predict", [], True

        async def block():
            while blocked:
                time.sleep(0.4)
                await asyncio.sleep(0)

        blocking = asyncio.create_task(block())
        for _ in range(30):
            answers.append(await world.send("POST", path, json=body))
            if answers[-1].status_code == 503:
                break
            await asyncio.sleep(0)
        shed = await world.send("POST", path, json=body | {"id": "shed"})
        blocked = False
        await blocking
        for _ in range(200):
            await asyncio.sleep(0.02)
            answers.append(await world.send("POST", path, json=body | {"id": "shed"}))
            if answers[-1].status_code == 200:
                break
        return shed, answers

    shed, answers = world.runner.run(scene())
    assert (shed.status_code, shed.headers["retry-after"]) == (503, "1")
    assert "for their turn" in shed.json()["error"]["reason"]
    assert answers[0].status_code == answers[-1].status_code == 200, "early, when it is not known, and after"
    assert world.service.workers._threads._threads == set(), "all of it on the event loop"
    world.service._logs.close()
    assert len(world.logged()) == [a.status_code for a in answers].count(200)


class Slow:
    """A store that answers only when it is let."""

    def __init__(self, world):
        self.gate = threading.Event()
        self.started = 0
        online = world.shops.online

        def slow(*arguments):
            self.started += 1
            assert self.gate.wait(20)
            return online(*arguments)

        world.shops.online = slow


def test_what_is_not_started_by_its_deadline_is_never_started(world, row):
    world.deploy(world.artifact("1"))
    slow = Slow(world)
    path = "/v1/models/toy_linear/predict"

    async def scene():
        short = {"x-timeout-ms": "50"}
        blocking = [
            asyncio.create_task(world.send("POST", path, json={"rows": [row()], "id": f"b{i}"})) for i in range(4)
        ]
        while slow.started < 4:
            await asyncio.sleep(0.005)
        late = await world.send("POST", path, json={"rows": [row()], "id": "late"}, headers=short)
        slow.gate.set()
        return late, await asyncio.gather(*blocking)

    late, blocked = world.runner.run(scene())
    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
    assert "before its turn" in late.json()["error"]["reason"]
    assert {a.status_code for a in blocked} == {200}
    assert sorted(world.logged()["id"]) == ["b0#0", "b1#0", "b2#0", "b3#0"]
    assert slow.started == 4
    assert world.predict(row(), id="late").status_code == 200, "a refused id is free again"


def test_an_answer_that_takes_too_long_can_be_fetched_by_its_id(world, row):
    world.deploy(world.artifact("1"))
    slow = Slow(world)
    body = {"rows": [row()], "id": "long"}
    first = world.post("/v1/models/toy_linear/predict", body, headers={"x-timeout-ms": "40"})
    assert first.status_code == 504
    assert "same id" in first.json()["error"]["remedy"]
    slow.gate.set()
    assert world.predict(row(), id="long").status_code == 200
    assert len(world.logged()) == 1
    assert slow.started == 1


def test_a_queue_that_cannot_be_worked_off_in_time_refuses_early(world, row):
    world.deploy(world.artifact("1"))
    slow = Slow(world)
    path = "/v1/models/toy_linear/predict"
    world.service.workers._pace = 2.0  # seconds that one has taken of late

    async def scene():
        waiting = [asyncio.create_task(world.send("POST", path, json={"rows": [row()]})) for _ in range(12)]
        while slow.started < 4:
            await asyncio.sleep(0.005)
        refused = await world.send("POST", path, json={"rows": [row()]}, headers={"x-timeout-ms": "1000"})
        slow.gate.set()
        await asyncio.gather(*waiting)
        return refused

    refused = world.runner.run(scene())
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "5", "nine ahead, four at a time, two seconds each"


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "9" * 30, ""])
def test_a_timeout_that_is_none_is_refused(world, row, value):
    world.deploy(world.artifact("1"))
    answer = world.post("/v1/models/toy_linear/predict", {"rows": [row()]}, headers={"x-timeout-ms": value})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "x-timeout-ms")


def test_a_caller_that_goes_away_does_not_stop_its_request_and_may_ask_again(world, row):
    world.deploy(world.artifact("1"))
    body = {"rows": [row()], "id": "gone"}

    async def impatient():
        first = asyncio.create_task(world.send("POST", "/v1/models/toy_linear/predict", json=body))
        await asyncio.sleep(0.003)
        first.cancel()
        return await world.send("POST", "/v1/models/toy_linear/predict", json=body)

    assert world.runner.run(impatient()).status_code == 200
    assert len(world.logged()) == 1


# --- labels

LABEL = {"id": "req-1#0", "value": 1, "observed_at": "2013-07-01T15:00:00+02:00"}


def test_labels_are_on_the_disk_when_they_are_answered(world):
    world.deploy(world.artifact("1"))
    other = {"id": "req-1#1", "value": "miss", "observed_at": "2013-07-01T15:00:00Z"}
    for _ in range(2):
        answer = world.post("/v1/models/toy_linear/labels", {"labels": [LABEL, other]})
        assert answer.json() == {"accepted": 2}
    frame = world.labels()
    assert frame["id"].tolist() == ["req-1#0", "req-1#1"]
    assert frame["value"].tolist() == [1, 0]
    assert frame["observed_at"].iloc[0] == pd.Timestamp("2013-07-01T13:00:00Z")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"value": 2}, "labels.0.value"),
        ({"value": "perhaps"}, "labels.0.value"),
        ({"value": None}, "labels.0.value"),
        ({"value": False}, "labels.0.value"),
        ({"id": "../../etc"}, "labels.0.id"),
        ({"observed_at": "yesterday"}, "labels.0.observed_at"),
        ({"observed_at": "2013-07-01T15:00:00"}, "labels.0.observed_at"),
        ({"extra": 1}, "labels.0.extra"),
    ],
)
def test_bad_labels_are_refused(shared_world, change, field):
    answer = shared_world.post("/v1/models/toy_linear/labels", {"labels": [LABEL | change]})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"].startswith(field)
    assert shared_world.labels().empty
