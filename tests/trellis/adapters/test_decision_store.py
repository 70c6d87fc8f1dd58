"""Decisions are kept once, found by the start of their id, and come back to the last bit."""

import pytest

from trellis.adapters.database import engine
from trellis.adapters.decision_store import DecisionStore
from trellis.decision import Check, Verdict, decision_of, dumps
from trellis.errors import RegistryError


def _decision(at: str = "2013-07-01T00:00:00Z", value: float = 0.1 + 0.2):
    verdict = Verdict("PROMOTE", "Because.", (Check("c", True, "0.3 < 1", value, 1.0),), {"rows": 3.0})
    return decision_of(
        "gate",
        model="toy",
        subject="v1",
        at=at,
        inputs={"x": value, "blocks": (1, 2)},
        policy={"m": 1},
        verdict=verdict,
    )


@pytest.fixture
def store(url: str) -> DecisionStore:
    return DecisionStore(engine(url))


def test_recording_twice_keeps_one_and_it_comes_back_exactly(store: DecisionStore):
    decision = _decision()
    store.record(decision)
    store.record(decision)
    assert [d.id for d in store.list()] == [decision.id]
    assert dumps(store.get(decision.id[:9])) == dumps(decision)
    assert store.get(decision.id).inputs["inputs"]["x"] == 0.1 + 0.2


def test_the_list_is_in_order_of_event_time_and_filters(store: DecisionStore):
    late, early = _decision("2013-08-01T00:00:00Z"), _decision("2013-07-01T00:00:00Z")
    store.record(late)
    store.record(early)
    assert [d.id for d in store.list("toy", "gate")] == [early.id, late.id]
    assert store.list("other") == []
    assert store.list(kind="drift") == []


def test_an_id_that_is_unknown_or_ambiguous_is_refused(store: DecisionStore):
    store.record(_decision("2013-07-01T00:00:00Z"))
    store.record(_decision("2013-07-02T00:00:00Z"))
    with pytest.raises(RegistryError, match="More than one"):
        store.get("gate-")
    with pytest.raises(RegistryError, match="No decision"):
        store.get("gate-%")


def test_the_same_content_has_the_same_id_and_any_change_another():
    assert _decision().id == _decision().id
    assert _decision().id != _decision(value=0.30000000000000010).id
