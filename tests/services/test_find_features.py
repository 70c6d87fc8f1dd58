"""Finding the features of a row, on stores that lack some."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.prediction.features import find
from services.prediction.metrics import Metrics
from trellis.contract import Field, Metric, ModelSpec, Target
from trellis.errors import RequestError

FEATURES = (
    Field("kind", "category", "Of shop.", choices=("small", "large"), example="small"),
    Field("sales", "float", "Of yesterday.", example=1.0),
    Field("visits", "float", "Of yesterday.", nullable=True, example=1.0),
)
SPEC = ModelSpec(
    name="shops",
    version="1.0",
    task="binary",
    owner="tests",
    description="A shop's day.",
    request=(Field("shop", "text", "Which.", max_length=9, example="a"),),
    features=FEATURES,
    entity_keys=("shop",),
    feature_service="shops_v1",
    inputs=("kind", "sales", "visits"),
    outputs=(Field("probability", "float", "P(good).", minimum=0, maximum=1, example=0.5),),
    target=Target("good", "Whether it was.", classes=("bad", "good")),
    metric=Metric("auc", floor=0.5),
)


class Store:
    def __init__(self, **columns):
        self.columns = columns

    def online(self, service, keys, request):
        return self.columns, {"day": np.full(len(keys["shop"]), np.datetime64("2026-01-01", "us"))}

    def stale(self, service, times, request):
        return {}

    def slas(self, service):
        return ()

    def derived(self, service, request):
        return {}


def found(rows, sent, **columns):
    return find(SPEC, Store(**columns), rows, sent, Metrics(CollectorRegistry()))


@pytest.mark.parametrize(
    ("column", "value"), [("kind", np.array(["small", None], object)), ("sales", np.array([1.0, np.nan]))]
)
def test_a_feature_that_a_model_needs_and_the_store_lacks_is_named(column, value):
    whole = {
        "kind": np.array(["small", "large"], object),
        "sales": np.array([1.0, 2.0]),
        "visits": np.array([3.0, 4.0]),
    }
    rows, nothing = [{"shop": "a"}, {"shop": "b"}], [{"shop"}, {"shop"}]
    assert found(rows, nothing, **whole).columns["kind"].tolist() == ["small", "large"]
    with pytest.raises(RequestError, match=rf"no features for shop=b: '{column}' is missing"):
        found(rows, nothing, **whole | {column: value})
    # Sent by the caller, it is not missing.
    rows[1][column] = {"kind": "large", "sales": 7.0}[column]
    taken = found(rows, [{"shop"}, {"shop", column}], **whole | {column: value})
    assert taken.columns[column].tolist()[1] == rows[1][column]
    assert taken.overrides == ((), (column,))


def test_a_feature_that_may_be_missing_is():
    taken = found(
        [{"shop": "a"}], [{"shop"}], kind=np.array(["small"], object), sales=np.ones(1), visits=np.array([np.nan])
    )
    assert np.isnan(taken.columns["visits"]).all()
    assert taken.degraded == ((),)  # the view has a row and it is not stale: null is what it holds
