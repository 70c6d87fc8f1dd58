"""The SLA of a view: read from its tags, held against event time."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.errors import ConfigError
from trellis.freshness import Sla, overdue, sla_of


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("PT30M", timedelta(minutes=30)),
        ("P1DT2H", timedelta(hours=26)),
        ("P1Y", timedelta(days=365)),
        ("PT0S", timedelta(0)),
    ],
)
def test_an_iso_8601_duration_is_the_age(text, age):
    assert sla_of("v", ["a", "b"], {"freshness_sla": text}) == Sla("v", ("a", "b"), age, "serve")
    assert sla_of("v", [], {"freshness_sla": text, "freshness_action": "reject"}).action == "reject"


def test_a_view_without_the_tag_promises_nothing():
    assert sla_of("v", ["a"], {"owner": "me"}) is None


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({"freshness_sla": "1 hour"}, "1 hour"),
        ({"freshness_sla": ""}, "duration"),
        ({"freshness_sla": "-PT1H"}, "duration"),
        ({"freshness_sla": "P"}, "duration"),
        ({"freshness_sla": "PT1H", "freshness_action": "ignore"}, "ignore"),
        ({"freshness_action": "reject"}, "no freshness_sla"),
    ],
)
def test_a_promise_that_means_nothing_is_refused_and_names_the_view(tags, named):
    with pytest.raises(ConfigError, match=named) as raised:
        sla_of("weather", [], tags)
    assert "weather" in str(raised.value)


HOURS = st.integers(-48, 48)


@given(st.lists(st.tuples(st.none() | HOURS, st.none() | HOURS, HOURS), min_size=1, max_size=6), st.data())
def test_overdue_is_what_plain_datetimes_say(rows, data):
    start = datetime(2013, 7, 1, tzinfo=UTC)
    ages = {"a": timedelta(hours=data.draw(st.integers(0, 30))), "b": timedelta(hours=data.draw(st.integers(0, 30)))}
    slas = [Sla(view, (), age) for view, age in ages.items()]

    def moment(hours):
        return start + timedelta(hours=hours)

    def column(values):
        cells = [np.datetime64("NaT") if v is None else np.datetime64(moment(v).replace(tzinfo=None)) for v in values]
        return np.array(cells, "datetime64[us]")

    times = {
        "a": column([r[0] for r in rows]),
        "b": column([r[1] for r in rows]),
        "none": column([0] * len(rows)),
    }
    found = overdue(slas, times, column([r[2] for r in rows]))
    for place, view in enumerate("ab"):
        truth = [r[place] is not None and moment(r[2]) - moment(r[place]) > ages[view] for r in rows]
        assert found.get(view, np.zeros(len(rows), bool)).tolist() == truth
    assert set(found) <= {"a", "b"}


def test_no_promise_or_no_view_is_never_overdue():
    now = np.array(["2013-07-01"], "datetime64[us]")
    assert overdue([], {"a": now}, now) == {}
    assert overdue([Sla("other", (), timedelta(0))], {"a": now}, now) == {}
