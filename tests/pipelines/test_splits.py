"""Parts never overlap, later parts are later, and no row of training was still unknown when validation began."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.splits import split
from trellis.contract import Dataset
from trellis.errors import DataError

START = np.datetime64("2013-01-01", "us")


def _dataset(hours: list[int] | None, count: int) -> Dataset:
    ids = np.array([f"r{i}" for i in range(count)])
    time = None if hours is None else START + np.array(hours).astype("timedelta64[h]")
    return Dataset({"x": np.arange(count)}, np.zeros(count), ids, time)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5_000), min_size=60, max_size=300, unique=True), st.integers(0, 24))
def test_in_time_every_part_lies_after_the_one_before_by_the_gap(hours: list[int], gap: int):
    parts = split(_dataset(hours, len(hours)), gap_hours=gap)
    train, validation, test = parts.train.time, parts.validation.time, parts.test.time
    assert train.max() + np.timedelta64(gap, "h") < validation.min()
    assert validation.max() + np.timedelta64(gap, "h") < test.min()
    together = np.concatenate([p.row_id for p in (parts.train, parts.validation, parts.test)])
    assert len(set(together)) == len(together)
    # Only rows within a gap are left out.
    left = {START + np.timedelta64(h, "h") for h in hours} - set(np.concatenate([train, validation, test]))
    for moment in left:
        ahead = min(part.min() - moment for part in (validation, test) if part.min() > moment)
        assert ahead <= np.timedelta64(gap, "h")


def test_the_order_of_rows_changes_nothing():
    hours = list(range(200))
    forward, backward = split(_dataset(hours, 200), gap_hours=2), split(_dataset(hours[::-1], 200), gap_hours=2)
    assert sorted(forward.test.time) == sorted(backward.test.time)
    assert sorted(forward.train.time) == sorted(backward.train.time)


def test_without_time_a_row_stays_in_its_part_when_rows_are_added():
    small, large = split(_dataset(None, 500), gap_hours=0), split(_dataset(None, 1_000), gap_hours=0)
    for name in ("train", "validation", "test"):
        assert set(getattr(small, name).row_id) <= set(getattr(large, name).row_id)
    shares = [len(part) / 1_000 for part in (large.train, large.validation, large.test)]
    # Binomial: 0.70, 0.15, 0.15 with a standard error of at most 0.0145 over 1,000 rows.
    assert shares == pytest.approx([0.70, 0.15, 0.15], abs=4 * 0.0145)


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match="3 rows cannot be split"):
        split(_dataset([0, 1, 2], 3), gap_hours=5)
