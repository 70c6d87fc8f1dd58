"""What a split drew: answers and failures together, every row once, on the arm that it was drawn for."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from trellis.adapters.failure_log import FailureLog, newest_request, read_assigned, read_failures
from trellis.adapters.prediction_log import PredictionLog
from trellis.errors import DataError

START = datetime(2013, 6, 1, tzinfo=UTC)


def at(minute):
    return (START + timedelta(minutes=minute)).isoformat()


def common(key, minute):
    return {"id": key, "model": "toy", "revision": 2, "time": at(minute), "received_at": at(minute), "unit": key}


def answer(key, minute, version, **more):
    parts = {"version": version, "variant": "champion", "request": {}, "features": {}, "feature_times": {}}
    return common(key, minute) | parts | {"overrides": [], "outputs": {"y": 0.5}, "latency_ms": 1.0} | more


def failure(key, minute, version, assigned, cause="raised"):
    return common(key, minute) | {"version": version, "variant": "canary", "assigned": assigned, "cause": cause}


def written(home, answers, failures):
    for made, records in ((PredictionLog, answers), (FailureLog, failures)):
        log = made(home, "toy")
        log.extend(records)
        log.close()


def test_every_row_counts_once_on_the_arm_that_was_drawn(tmp_path):
    written(
        tmp_path,
        [
            answer("fine", 0, "1"),
            answer("stood-in", 1, "1", instead_of="2"),
            answer("asked-for", 2, "2", pinned=True),
            answer("late", 3, "2"),
            answer("broke-behind", 4, "0", instead_of="2"),
        ],
        [
            failure("stood-in", 1, "2", "2"),
            failure("late", 3, "2", "2", "timeout"),
            failure("broke-behind", 4, "2", "2"),
            failure("broke-behind", 4, "1", "2"),
            failure("nobody", 5, "1", "1"),
            failure("beside", 5, "2", "2", "lost"),
            failure("twice", 6, "2", "2"),
            failure("twice", 6, "1", "2"),
            failure("tomorrow", 2_000, "1", "1"),
        ],
    )
    rows = read_assigned(tmp_path, "toy", until=START + timedelta(days=1)).set_index("id")
    told = {key: (row["assigned"], row["answered"], row["failed"]) for key, row in rows.iterrows()}
    assert told == {
        "fine": ("1", True, False),
        "stood-in": ("2", True, True),
        "late": ("2", True, True),
        "broke-behind": ("2", True, True),
        "nobody": ("1", False, True),
        "beside": ("2", False, False),
        "twice": ("2", False, True),
    }
    assert rows.index.is_unique
    assert rows["time"].is_monotonic_increasing
    assert len(read_failures(tmp_path, "toy")) == 9


def test_without_failures_it_is_the_prediction_log(tmp_path):
    assert read_assigned(tmp_path, "toy").columns[-3:].tolist() == ["assigned", "answered", "failed"]
    assert len(read_assigned(tmp_path, "toy")) == 0
    written(tmp_path, [answer("a", 0, "1"), answer("b", 1, "2")], [])
    rows = read_assigned(tmp_path, "toy")
    assert rows["assigned"].tolist() == ["1", "2"]
    assert not rows["failed"].any()
    assert rows["answered"].all()


def test_a_damaged_failure_is_named(tmp_path):
    written(tmp_path, [], [failure("a", 0, "2", "2")])
    [segment] = (tmp_path / "failures" / "toy").glob("*.jsonl")
    segment.write_text("{broken\n" + segment.read_text())
    with pytest.raises(DataError, match="Line 1 is damaged"):
        read_failures(tmp_path, "toy")


def test_a_record_is_json_that_a_person_can_read(tmp_path):
    record = failure("a", 0, "2", "2")
    written(tmp_path, [], [record])
    [segment] = (tmp_path / "failures" / "toy").glob("*.jsonl")
    assert json.loads(segment.read_text()) == record


def test_the_newest_request_is_an_answers_or_a_failures_and_none_of_them_ahead_of_the_clock(tmp_path):
    assert newest_request(tmp_path, "toy") is None
    written(tmp_path, [], [failure("a", 3, "1", "1")])
    assert newest_request(tmp_path, "toy") == START + timedelta(minutes=3)
    written(tmp_path, [answer("b", 4, "1")], [])
    assert newest_request(tmp_path, "toy") == START + timedelta(minutes=4)
    ahead = failure("c", 9_000, "1", "1") | {"received_at": at(5)}
    written(tmp_path, [], [failure("d", 5, "1", "1"), ahead])
    assert newest_request(tmp_path, "toy") == START + timedelta(minutes=5)
