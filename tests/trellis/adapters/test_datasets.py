"""A dataset comes back from disk as it went in, and the same rows are the same bytes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trellis.adapters.datasets import load_dataset, save_dataset
from trellis.contract import Dataset
from trellis.errors import CorruptSnapshotError, StorageError


def _dataset(rows: int, numbers: np.ndarray, texts: list[str | None]) -> Dataset:
    start = np.datetime64("2013-01-01T00:00", "us")
    return Dataset(
        columns={
            "number": numbers,
            "text": np.array(texts, dtype=object),
            "image": np.arange(rows * 8, dtype=np.float32).reshape(rows, 1, 2, 4),
            "when": start + np.arange(rows).astype("timedelta64[h]"),
        },
        target=np.arange(rows) % 2,
        row_id=np.array([f"r{i}" for i in range(rows)]),
        time=start + np.arange(rows).astype("timedelta64[m]"),
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rows=st.integers(1, 20))
def test_round_trip(data, rows: int, tmp_path_factory):
    numbers = data.draw(hnp.arrays(np.float32, rows, elements=st.floats(width=32, allow_nan=True)))
    texts = data.draw(st.lists(st.none() | st.text(max_size=5), min_size=rows, max_size=rows))
    before = _dataset(rows, numbers, texts)
    path = tmp_path_factory.mktemp("data") / "set.parquet"
    digest = save_dataset(before, path)
    after = load_dataset(path)
    assert list(after.columns) == list(before.columns)
    for name, column in before.columns.items():
        assert after.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(after.columns[name], column)
    np.testing.assert_array_equal(after.target, before.target)
    np.testing.assert_array_equal(after.row_id, before.row_id)
    np.testing.assert_array_equal(after.time, before.time)
    assert after.known is None
    assert save_dataset(after, path.with_name("again.parquet")) == digest


def test_a_file_that_is_no_dataset_and_a_place_that_cannot_be_written_are_named(tmp_path: Path):
    (tmp_path / "set.parquet").write_text("no parquet")
    with pytest.raises(CorruptSnapshotError, match="cannot be read"):
        load_dataset(tmp_path / "set.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        save_dataset(_dataset(2, np.zeros(2), ["a", None]), tmp_path / "file" / "set.parquet")
