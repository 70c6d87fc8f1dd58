"""A view past its SLA: the declared action is followed, counted, and marked in the answer and in the log."""

import json
import sys
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from services.prediction.app import PredictionService
from trellis.errors import ContractError
from trellis.freshness import Sla

FEATURES = ("rate", "size")  # the toy's event was at 08:00, its rows are of 09:15


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def promise(world, minutes, action, features=FEATURES):
    world.shops.promises = (Sla("shop_view", features, timedelta(minutes=minutes), action),)


def declare(world, **changes):
    """Change the toy's declaration for this test."""
    plugin = world.plugins.plugin("toy_linear")
    module = sys.modules[type(plugin).__module__]
    spec = replace(module.SPEC, **changes)
    world.monkeypatch.setattr(type(plugin), "spec", spec)


@pytest.fixture
def world(world, monkeypatch):
    world.monkeypatch = monkeypatch
    return world


def nullable(world):
    plugin = world.plugins.plugin("toy_linear")
    features = tuple(replace(f, nullable=True) for f in plugin.spec.features)
    declare(world, features=features)


def counted(world, action):
    return world.metric("trellis_stale_total", model="toy_linear", view="shop_view", action=action)


def test_a_view_within_its_sla_leaves_no_mark(world, row):
    world.deploy(world.artifact("1"))
    promise(world, 75, "reject")  # inclusive
    prediction = world.predict(row()).json()["predictions"][0]
    assert "stale" not in prediction
    assert "stale.shop_view" not in world.logged().columns


def test_serve_uses_the_value_and_says_so(world, row):
    world.deploy(world.artifact("1"))
    promise(world, 74, "serve")
    late, fresh = world.predict(row(), row(at="2013-07-01T09:14:00Z"), id="r").json()["predictions"]
    assert late["stale"] == {"shop_view": "served"}
    assert late["probability"] == pytest.approx(sigmoid(0.7))
    assert "degraded" not in late
    assert "stale" not in fresh
    logged = world.logged().set_index("id")
    assert logged.loc["r#0", "stale.shop_view"] == "served"
    assert logged.loc["r#1", "stale.shop_view"] is None
    assert counted(world, "served") == 1


def test_impute_takes_the_value_as_missing(world, row):
    nullable(world)
    world.deploy(world.artifact("1"))
    promise(world, 74, "impute")
    late, sent, fresh = world.predict(row(), row(rate=0.9), row(at="2013-07-01T09:00:00Z"), id="r").json()[
        "predictions"
    ]
    assert late["stale"] == {"shop_view": "imputed"}
    assert late["degraded"] == ["shop_view"]
    assert late["probability"] == pytest.approx(sigmoid(1.0)), "the toy takes 0.5 for a missing rate"
    assert sent["probability"] == pytest.approx(sigmoid(1.4)), "what the caller sent stays"
    assert fresh["probability"] == pytest.approx(sigmoid(0.7))
    logged = world.logged().set_index("id")
    assert np.isnan(logged.loc["r#0", "features.rate"])
    assert list(logged.loc["r#0", "degraded"]) == ["shop_view"]
    assert counted(world, "imputed") == 2
    assert world.metric("trellis_degraded_total", model="toy_linear", view="shop_view", reason="stale") >= 1


def test_impute_of_a_feature_that_may_not_be_missing_is_refused(world, row):
    world.deploy(world.artifact("1"))
    promise(world, 74, "impute")
    answer = world.predict(row())
    assert answer.status_code == 503
    assert "shop_view are 1:15:00 old" in answer.json()["error"]["reason"]
    sent = world.predict(row(size=3.0)).json()["predictions"][0]
    assert sent["stale"] == {"shop_view": "imputed"}


def test_reject_refuses_the_request_and_names_view_age_and_remedy(world, row):
    world.deploy(world.artifact("1"))
    promise(world, 74, "reject")
    answer = world.predict(row(at="2013-07-01T09:00:00Z"), row())
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    error = answer.json()["error"]
    assert "shop_view are 1:15:00 old (h:mm:ss) at the row's time, and the view promises 1:14:00" in error["reason"]
    assert "rows.1" in error["remedy"]
    assert counted(world, "rejected") == 1
    assert len(world.logged()) == 0
    whole = world.predict(row(rate=0.2, size=10.0))
    assert whole.status_code == 200, "who sends every feature does not need the view"
    partly = world.predict(row(rate=0.2))
    assert partly.status_code == 503


def test_fall_back_answers_the_row_with_the_declared_default(world, row):
    declare(world, default={"probability": 0.25})
    world.deploy(world.artifact("1"))
    promise(world, 74, "fall_back")
    body = world.predict(row(), row(at="2013-07-01T09:00:00Z"), id="r").json()
    late, fresh = body["predictions"]
    assert (late["probability"], late["version"], late["variant"]) == (0.25, "default", "default")
    assert late["stale"] == {"shop_view": "fell_back"}
    assert (fresh["version"], fresh["probability"]) == ("1", pytest.approx(sigmoid(0.7)))
    assert body["fallback"] == [{"link": "default", "why": "shop_view is past its SLA"}]
    logged = world.logged().set_index("id")
    assert logged.loc["r#0", ["version", "variant", "instead_of"]].tolist() == ["default", "default", "1"]
    assert counted(world, "fell_back") == 1
    only = world.predict(row()).json()
    assert (only["version"], only["predictions"][0]["probability"]) == ("default", 0.25)


def test_fall_back_without_a_declared_default_is_refused(world, row):
    world.deploy(world.artifact("1"))
    promise(world, 74, "fall_back")
    assert world.predict(row()).status_code == 503
    assert counted(world, "rejected") == 1


def test_a_value_past_its_ttl_is_never_served(world, row):
    nullable(world)
    world.deploy(world.artifact("1"))
    promise(world, 74, "serve")
    world.shops.blanked = True
    prediction = world.predict(row()).json()["predictions"][0]
    assert prediction["stale"] == {"shop_view": "imputed"}
    assert prediction["degraded"] == ["shop_view"]


def test_a_broken_champion_with_nobody_behind_it_is_answered_by_the_default(world, row):
    declare(world, default={"probability": 0.25})
    world.deploy(world.artifact("1", raises=True))
    body = world.predict(row(x=9.5)).json()
    assert body["predictions"][0]["probability"] == 0.25
    assert [part["link"] for part in body["fallback"]] == ["default"]
    assert "version 1 failed" in body["fallback"][0]["why"]
    world.deploy(world.artifact("2", raises=True))
    both = world.predict(row(x=9.5)).json()
    assert both["version"] == "default"
    world.deploy(world.artifact("3", c=0.1))
    world.deploy(world.artifact("4", c=0.2, raises=True))
    assert world.predict(row(x=9.5)).json()["version"] == "3", "a version before comes first"


def test_a_store_that_is_away_is_answered_by_the_default_where_the_features_are_needed(world, row):
    declare(world, default={"probability": 0.25})
    world.deploy(world.artifact("1"))
    world.shops.down = True
    away, sent = world.predict(row(), row(rate=0.2, size=3.0)).json()["predictions"]
    assert (away["version"], away["probability"]) == ("default", 0.25)
    assert away["degraded"] == ["feature_store"]
    assert sent["version"] == "1"
    world.shops.down = False
    unknown = world.predict(row(shop="nobody"))
    assert unknown.status_code == 422, "an unknown key is the caller's"


def test_the_cache_holds_no_default(world, row):
    declare(world, default={"probability": 0.25})
    world.limits.cache_seconds = 60.0
    world.service = PredictionService(
        world.home, world.limits, world.plans, world.plugins, world.shops, world.service.metrics
    )
    world.app = world.service.app()
    world.deploy(world.artifact("1"))
    promise(world, 74, "fall_back")
    assert world.predict(row()).json()["version"] == "default"
    world.shops.promises = ()
    assert world.predict(row()).json()["version"] == "1"


def test_the_default_reaches_the_open_inference_protocol_and_the_description(world, row):
    declare(world, default={"probability": 0.25})
    world.deploy(world.artifact("1"))
    promise(world, 74, "fall_back")
    tensors = [
        {"name": name, "shape": [1], "datatype": kind, "data": [value]}
        for name, kind, value in (
            ("x", "FP64", 0.5),
            ("colour", "BYTES", "red"),
            ("shop", "BYTES", "s1"),
            ("at", "BYTES", "2013-07-01T09:15:00Z"),
        )
    ]
    body = world.post("/v2/models/toy_linear/infer", {"inputs": tensors}).json()
    assert body["parameters"]["fallback"] == "default"
    assert body["parameters"]["stale"] == "shop_view"
    assert world.get("/v1/models/toy_linear").json()["spec"]["default"] == {"probability": 0.25}
    assert "fell_back" in json.dumps(world.get("/openapi.json").json())


@pytest.mark.parametrize(
    "default", [{}, {"probability": 1.5}, {"probability": "0.2"}, {"probability": float("nan")}, {"p": 0.2}]
)
def test_a_default_that_the_outputs_do_not_allow_is_refused(world, default):
    with pytest.raises(ContractError, match="default"):
        declare(world, default=default)
