"""Rows of versions that were released with different feature services."""

from dataclasses import replace

import numpy as np
from prometheus_client import CollectorRegistry

from services.prediction.feature_versions import find_each
from services.prediction.metrics import Metrics
from tests.services.test_find_features import SPEC, Store


class TwoServices(Store):
    """``shops_v2`` holds the negated sales, under another view, and nothing for shop b."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def online(self, service, keys, request):
        shops = keys["shop"].tolist()
        self.asked.append((service, tuple(shops)))
        sign = {"shops_v1": 1.0, "shops_v2": -1.0}[service]
        known = [not (service == "shops_v2" and shop == "b") for shop in shops]
        sales = np.array([sign * ord(shop) if ok else np.nan for shop, ok in zip(shops, known, strict=True)])
        times = np.array([np.datetime64("2026-01-01" if ok else "NaT", "us") for ok in known])
        kinds = np.array(["small"] * len(shops), object)
        return {"kind": kinds, "sales": sales, "visits": sales}, {f"day_of_{service}": times}


def found(rows, services, sent=None):
    nullable = replace(SPEC, features=tuple(replace(f, nullable=True) for f in SPEC.features))
    specs = [replace(nullable, feature_service=service) for service in services]
    store = TwoServices()
    asked = sent or [{"shop"}] * len(rows)
    return find_each(specs, store, rows, asked, Metrics(CollectorRegistry())), store


def test_each_row_is_given_the_features_of_its_own_service_in_the_rows_order():
    rows = [{"shop": s} for s in "abcab"]
    services = ["shops_v1", "shops_v2", "shops_v2", "shops_v2", "shops_v1"]
    sent = [{"shop"}, {"shop"}, {"shop", "visits"}, {"shop"}, {"shop"}]
    rows[2]["visits"] = 7.0
    taken, store = found(rows, services, sent)
    assert store.asked == [("shops_v1", ("a", "b")), ("shops_v2", ("b", "c", "a"))]
    assert taken.columns["sales"].tolist()[0::2] == [97.0, -99.0, 98.0]
    assert np.isnan(taken.columns["sales"][1])
    assert taken.columns["visits"].tolist()[2] == 7.0
    assert taken.overrides == ((), (), ("visits",), (), ())
    assert taken.degraded == ((), ("day_of_shops_v2",), (), (), ())
    assert np.isnat(taken.times["day_of_shops_v1"]).tolist() == [False, True, True, True, False]
    assert np.isnat(taken.times["day_of_shops_v2"]).tolist() == [True, True, False, False, True]


def test_one_service_is_read_once_for_all_rows():
    rows = [{"shop": s} for s in "ab"]
    taken, store = found(rows, ["shops_v1", "shops_v1"])
    assert store.asked == [("shops_v1", ("a", "b"))]
    assert taken.columns["sales"].tolist() == [97.0, 98.0]
