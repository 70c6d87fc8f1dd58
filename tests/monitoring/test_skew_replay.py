"""Seeded skew bugs in a real, small feature store: every one found and named, none on the clean run."""

from __future__ import annotations

import pytest

from monitoring.skew import replay
from tests.monitoring.seeded_skew import BUGS, SPEC, VIEWS, Clean, named

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return Clean.run(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def reports(clean, tmp_path_factory):
    return {bug.name: bug.seed(clean, tmp_path_factory.mktemp("seeded")) for bug in BUGS}


def test_the_clean_run_has_no_finding(clean) -> None:
    report = clean.served()
    assert (report.rows, report.mismatched, report.findings, report.passed) == (288, 0, (), True)
    assert report.first_feature == ""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_named_and_nothing_else_is(reports, bug) -> None:
    report = reports[bug.name]
    assert named(report) == bug.named
    assert not report.passed
    for told in bug.told:
        assert any(told in finding.text for finding in report.findings)
    assert report.first_feature in {name for _, _, features in bug.named for name in features}


def test_the_first_differing_feature_and_row_are_told(reports) -> None:
    zone = reports["time zone in a view on demand"]
    assert (zone.rate, zone.first_feature, zone.first_id) == (1.0, "minute_of_day", "00-0")
    assert reports["a number rounded"].first_feature == "temp"


def test_a_stopped_job_is_healthy_within_its_sla(reports) -> None:
    # The last hour materialised is 20; within the SLA of three hours nothing is wrong.
    stopped = reports["a job that has stopped"]
    assert stopped.first_at.startswith("2024-07-01T23:")
    assert stopped.lagging > 0


def test_late_data_shows_a_row_that_came_late(clean, reports) -> None:
    example = reports["late data"].findings[0].example
    assert clean.frame.set_index("id").loc[example, "request.city"] == "rome"


def test_what_callers_send_is_no_skew_and_a_lost_column_is_named(clean) -> None:
    sent = clean.frame.assign(**{"features.temp": 1.0, "overrides": [["temp"]] * len(clean.frame)})
    assert replay(sent, SPEC, VIEWS, clean.store).findings == ()
    without = clean.frame.drop(columns="features.wind")
    assert named(replay(without, SPEC, VIEWS, clean.store)) == {("missing_online", "weather", ("wind",))}
    assert replay(clean.frame.head(0), SPEC, VIEWS, clean.store).rows == 0
