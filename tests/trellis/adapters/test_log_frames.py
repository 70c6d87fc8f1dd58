"""What is read with the help of parsed stretches is, to the last type, what the JSON lines say."""

import json
import os
import shutil

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trellis.adapters import log_frames
from trellis.adapters.log_frames import CACHE, read_frame
from trellis.errors import DataError

FIXED = ("id", "time", "received_at", "revision")
NESTED = ("request", "features", "feature_times", "outputs")


def naive(directory):
    """The plainest reading: every line by itself, every value handed to pandas."""
    records = []
    for path in sorted(directory.glob("*.jsonl")):
        records += [json.loads(line) for line in path.read_text().splitlines() if line]
    names = [*FIXED]
    for head in dict.fromkeys(key for r in records for key in r):
        inner = dict.fromkeys(key for r in records for key in (r.get(head) or {})) if head in NESTED else None
        names += [head] if inner is None else [f"{head}.{key}" for key in inner]
    columns = {}
    for name in dict.fromkeys(names):
        head, _, key = name.partition(".")
        columns[name] = [(r.get(head) or {}).get(key) if head in NESTED else r.get(head) for r in records]
    frame = pd.DataFrame(columns)
    for name in ("time", "received_at"):
        frame[name] = pd.to_datetime(pd.Series(frame[name], dtype=object), utc=True, format="ISO8601")
    return frame


def write(path, records, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(r) + "\n" for r in records)


def record(i, **more):
    moment = f"2013-07-01T{i % 24:02d}:00:00.{i:06d}Z"
    base = {"id": f"p{i}", "time": moment, "received_at": moment, "revision": i, "request": {"x": i / 2, "name": "é"}}
    return {**base, "features": {"rate": None if i % 3 else 0.5}, "overrides": [], "outputs": {"p": [0.1, 0.9]}, **more}


@pytest.fixture
def eager(monkeypatch):
    """Keep every stretch, however short."""
    monkeypatch.setattr(log_frames, "_WORTH", 1)


def same(directory):
    expected = naive(directory)
    for _ in range(2):  # the first parses and keeps, the second takes what was kept
        pd.testing.assert_frame_equal(read_frame(directory, FIXED)[list(expected)], expected)
    return expected


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.sampled_from(["2013-07-01T00:00:00Z", "1", "", "nan", "null"]),
)
KINDS = [SCALARS, st.integers(0, 9), st.none() | st.floats(0, 1), st.none() | st.text(max_size=3), st.booleans()]
VALUES = st.one_of(
    *KINDS, st.lists(SCALARS, max_size=3), st.lists(st.floats(0, 1), max_size=3), st.just({"deep": {"er": 1}})
)
PARTS = st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2) | st.none()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.fixed_dictionaries({}, optional={"request": PARTS, "outputs": PARTS, "note": VALUES}), max_size=4),
        max_size=4,
    )
)
def test_any_records_in_any_segments_read_as_pandas_would(tmp_path, eager, segments):
    shutil.rmtree(tmp_path / "log", ignore_errors=True)
    (tmp_path / "log").mkdir()
    for number, records in enumerate(segments):
        write(tmp_path / "log" / f"{number}.jsonl", [{"id": "x"} | r for r in records])
    same(tmp_path / "log")


@pytest.mark.parametrize(
    "values",
    [[0.0, False], [1, True], [1.0, 1], [None, 1], ["1", 1], [2**63, 1], [2**53 + 1, None], [[0.5], [True]], [[], [1]]],
)
def test_types_that_look_alike_stay_what_they_were(tmp_path, eager, values):
    for split in (1, 2):
        directory = tmp_path / str(split)
        for number in range(0, 2, split):
            write(directory / f"{number}.jsonl", [{"id": "x", "note": v} for v in values[number : number + split]])
        same(directory)


def test_a_growing_segment_is_parsed_piece_by_piece(tmp_path, eager, monkeypatch):
    path = tmp_path / "1.jsonl"
    parsed = []
    original = log_frames._records
    monkeypatch.setattr(
        log_frames, "_records", lambda p, data, n: parsed.append(data.count(b"\n")) or original(p, data, n)
    )
    for step in range(4):
        write(path, [record(10 * step + i) for i in range(10)], "a")
        same(tmp_path)
    assert parsed == [10, 10, 10, 10], "nothing is parsed twice"
    assert len(list((tmp_path / CACHE).iterdir())) == 4
    with path.open("a") as file:
        file.write('{"id": "torn')
    assert read_frame(tmp_path, FIXED).attrs["torn"] == 1
    assert len(read_frame(tmp_path, FIXED)) == 40


def test_changed_damaged_or_missing_caches_change_nothing(tmp_path, eager):
    path = tmp_path / "1.jsonl"
    write(path, [record(i) for i in range(20)])
    same(tmp_path)
    [kept] = (tmp_path / CACHE).iterdir()
    whole = kept.read_bytes()
    for broken in (b"", whole[:100], whole[:-50], os.urandom(500)):
        kept.write_bytes(broken)
        same(tmp_path)
    # The bytes of the segment are others, their number the same.
    path.write_text(path.read_text().replace('"p7"', '"q7"'))
    assert "q7" in set(same(tmp_path)["id"])
    # Cut back below what was kept, as a writer does after a failed write, and grown again with other records.
    write(path, [record(i) for i in range(5)])
    assert len(same(tmp_path)) == 5
    write(path, [record(i) for i in range(100, 130)], "a")
    assert len(same(tmp_path)) == 35
    shutil.rmtree(tmp_path / CACHE)
    (tmp_path / CACHE).write_text("in the way")
    same(tmp_path)


def test_damage_after_a_kept_stretch_is_named_by_its_line(tmp_path, eager):
    path = tmp_path / "1.jsonl"
    write(path, [record(i) for i in range(3)])
    same(tmp_path)
    write(path, [record(3)], "a")
    with path.open("a") as file:
        file.write("{broken}\n")
    with pytest.raises(DataError, match="Line 5 is damaged"):
        read_frame(tmp_path, FIXED)


def test_short_logs_leave_no_files(tmp_path):
    write(tmp_path / "1.jsonl", [record(i) for i in range(20)])
    same(tmp_path)
    assert not (tmp_path / CACHE).exists()
