"""Bad rows go to quarantine with their reason; a wrong table, or too many bad rows, fail the run."""

import json
from pathlib import Path

import pandas as pd
import pytest

from trellis.adapters.validation import TableReport, validate_table
from trellis.errors import ConfigError, ValidationFailedError

FRAME = pd.DataFrame(
    {"distance": [1.0, -1, 3, None, 5], "origin": ["EWR", "XXX", "EWR", "JFK", "LGA"], "key": [1, 2, 1, 4, 5]},
    index=[9, 9, 7, 5, 3],
)


def _suite(tmp_path: Path, *expectations: tuple[str, dict[str, object]], rate: float = 0.5) -> Path:
    path = tmp_path / "flights.json"
    entries = [{"type": kind, "kwargs": kwargs} for kind, kwargs in expectations]
    path.write_text(json.dumps({"name": "flights", "meta": {"max_quarantine_rate": rate}, "expectations": entries}))
    return path


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> tuple[list[str], TableReport]:
    suite = _suite(
        tmp_path_factory.mktemp("suite"),
        ("expect_column_values_to_be_between", {"column": "distance", "min_value": 0}),
        ("expect_column_values_to_be_in_set", {"column": "origin", "value_set": ["EWR", "JFK", "LGA"]}),
        ("expect_column_values_to_be_unique", {"column": "key"}),
        ("expect_column_to_exist", {"column": "nope"}),
        ("expect_column_values_to_not_be_null", {"column": "gone"}),
        ("expect_table_column_count_to_equal", {"value": 3}),
    )
    reasons, report = validate_table(FRAME, suite)
    return list(reasons), report


def test_every_bad_row_has_all_its_reasons_by_position(checked):
    reasons, report = checked
    # Row 0 and 2 share a key; row 1 breaks two expectations; a null is not out of range.
    assert [bool(r) for r in reasons] == [True, True, True, False, False]
    assert reasons[0] == reasons[2] == "key values_to_be_unique"
    assert set(reasons[1].split("; ")) == {
        "distance values_to_be_between min_value=0.0",
        "origin values_to_be_in_set value_set=EWR,JFK,LGA",
    }
    assert report.quarantined == 3
    assert report.rate == pytest.approx(3 / 5)
    assert report.reasons["key values_to_be_unique"] == 2


def test_a_missing_column_is_a_failure_of_the_table_not_of_rows(checked):
    _, report = checked
    assert len(report.failures) == 2
    with pytest.raises(ValidationFailedError, match="nope"):
        report.require_passed(Path("here"))


def test_the_stated_rate_is_the_border():
    at = TableReport("t", 100, 2, 0.02, {"bad": 2}, ())
    at.require_passed(Path("here"))
    past = TableReport("t", 100, 3, 0.02, {"bad": 3}, ())
    with pytest.raises(ValidationFailedError, match=r"3 of 100 rows \(3\.00%\).*bad \(3\)"):
        past.require_passed(Path("here"))


def test_a_suite_that_cannot_be_read_is_named(tmp_path: Path):
    path = tmp_path / "flights.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="suite cannot be read"):
        validate_table(FRAME, path)
    with pytest.raises(ConfigError, match="suite cannot be read"):
        validate_table(FRAME, _suite(tmp_path, ("expect_what_nobody_knows", {})))
