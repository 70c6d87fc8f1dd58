"""The prediction log: what was accepted is on the disk within the flush window, whatever breaks."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.adapters.prediction_log import LabelLog, PredictionLog, read_labels, read_predictions
from trellis.errors import DataError, StorageError


def record(number, **more):
    moment = f"2013-07-01T{number % 24:02d}:00:00+00:00"
    return {
        "id": f"p{number}",
        "model": "toy",
        "version": "1",
        "variant": "champion",
        "revision": 3,
        "time": moment,
        "received_at": f"2026-01-01T00:00:{number % 60:02d}.{number:06d}+00:00",
        "unit": "u",
        "request": {"x": float(number), "name": "é"},
        "features": {"rate": None},
        "feature_times": {"view": None},
        "overrides": [],
        "outputs": {"probability": 0.5},
        "latency_ms": 1.0,
        **more,
    }


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("did not happen within 5 s")


def test_records_come_back_flat_and_typed(tmp_path):
    log = PredictionLog(tmp_path, "toy", flush_seconds=0)
    log.append(record(2, outputs={"probability": np.float32(0.25), "vector": np.array([1.0, np.nan])}))
    log.append(record(1, features={"rate": float("nan"), "late": 3.5}))
    frame = read_predictions(tmp_path, "toy")
    assert list(frame["id"]) == ["p1", "p2"]
    assert frame["request.x"].tolist() == [1.0, 2.0]
    assert frame["request.name"].tolist() == ["é", "é"]
    assert frame["features.rate"].isna().all()
    assert frame["features.late"].tolist()[0] == 3.5
    assert frame["outputs.probability"].tolist() == [0.5, 0.25]
    assert frame["outputs.vector"].tolist()[1] == [1.0, None]
    assert str(frame["time"].dtype) == "datetime64[ns, UTC]"
    log.close()


def test_event_time_window(tmp_path):
    with_log = PredictionLog(tmp_path, "toy", flush_seconds=0)
    with_log.extend([record(n) for n in range(6)])
    since, until = (datetime(2013, 7, 1, hour, tzinfo=UTC) for hour in (2, 4))
    assert list(read_predictions(tmp_path, "toy", since, until)["id"]) == ["p2", "p3"]
    with_log.close()


def test_nothing_logged_reads_as_an_empty_frame(tmp_path):
    assert read_predictions(tmp_path, "toy").empty
    assert list(read_labels(tmp_path, "toy").columns) == ["id", "value", "observed_at", "received_at"]


def test_the_group_is_on_disk_after_the_flush_window_without_a_close(tmp_path):
    log = PredictionLog(tmp_path, "toy", flush_seconds=0.02)
    log.extend([record(n) for n in range(5)])
    wait_until(lambda: log.pending == 0)
    assert len(read_predictions(tmp_path, "toy")) == 5
    log.close()
    with pytest.raises(StorageError, match="closed"):
        log.append(record(9))


def test_segments_rotate_and_are_read_together(tmp_path):
    log = PredictionLog(tmp_path, "toy", flush_seconds=0, segment_bytes=1_000)
    for n in range(20):
        log.append(record(n))
    log.close()
    assert len(list(log.directory.glob("*.jsonl"))) > 3
    assert set(read_predictions(tmp_path, "toy")["id"]) == {f"p{n}" for n in range(20)}


def test_a_torn_last_line_is_counted_and_a_damaged_middle_refused(tmp_path):
    log = PredictionLog(tmp_path, "toy", flush_seconds=0)
    log.extend([record(n) for n in range(3)])
    log.close()
    [segment] = log.directory.glob("*.jsonl")
    whole = segment.read_bytes()
    for cut in (1, 10, 100):
        segment.write_bytes(whole[:-cut])
        frame = read_predictions(tmp_path, "toy")
        assert (len(frame), frame.attrs["torn"]) == (2, 1)
    segment.write_bytes(whole.replace(b'"p1"', b'"p1'))
    with pytest.raises(DataError, match="Line 2 is damaged"):
        read_predictions(tmp_path, "toy")


class FullDisk:
    """A disk with room for so many bytes, below the log's system calls."""

    def __init__(self, monkeypatch, room):
        self.room = room
        self._write = os.write
        monkeypatch.setattr("trellis.adapters.append_log.os.write", self.write)

    def write(self, descriptor, data):
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(descriptor, bytes(data)[: self.room])
        self.room -= written
        return written


def test_a_full_disk_refuses_and_what_was_refused_is_never_written(tmp_path, monkeypatch):
    log = PredictionLog(tmp_path, "toy", flush_seconds=0)
    log.append(record(0))
    disk = FullDisk(monkeypatch, room=100)
    with pytest.raises(StorageError, match="No space left on device"):
        log.append(record(1))
    assert log.pending == 0
    disk.room = 10**6
    log.append(record(2))
    log.close()
    frame = read_predictions(tmp_path, "toy")
    assert list(frame["id"]) == ["p0", "p2"]
    assert frame.attrs["torn"] == 0


def test_what_was_accepted_before_the_disk_filled_up_is_kept_and_written_later(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, room=100)
    log = PredictionLog(tmp_path, "toy", flush_seconds=0.01)
    log.extend([record(n) for n in range(4)])
    accepted = 4

    def refused():
        nonlocal accepted
        try:
            log.append(record(accepted))
        except StorageError:
            return True
        accepted += 1
        return False

    wait_until(refused)
    disk.room = 10**6
    wait_until(lambda: log.pending == 0)
    log.append(record(accepted))
    log.close()
    assert list(read_predictions(tmp_path, "toy").sort_values("received_at")["id"]) == [
        f"p{n}" for n in range(accepted + 1)
    ]


def test_a_queue_that_would_grow_too_long_refuses(tmp_path):
    log = PredictionLog(tmp_path, "toy", flush_seconds=5, max_pending=10)
    log.extend([record(n) for n in range(8)])
    with pytest.raises(StorageError, match="8 records wait"):
        log.extend([record(n) for n in range(8, 11)])
    log.close()
    assert len(read_predictions(tmp_path, "toy")) == 8


@pytest.mark.parametrize("flush_seconds", [0, 0.005])
def test_many_threads_lose_nothing(tmp_path, flush_seconds):
    log = PredictionLog(tmp_path, "toy", flush_seconds=flush_seconds, segment_bytes=5_000)

    def work(start):
        for n in range(start, start + 25):
            log.append(record(n))

    threads = [threading.Thread(target=work, args=(100 * t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    frame = read_predictions(tmp_path, "toy")
    assert (len(frame), frame.attrs) == (100, {"torn": 0, "duplicates": 0})


WRITER = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from trellis.adapters.prediction_log import PredictionLog
    log = PredictionLog(Path(sys.argv[1]), "toy", flush_seconds=0)
    for n in range(40):
        log.append({"id": f"{sys.argv[2]}-{n}", "time": "2013-07-01T00:00:00Z", "received_at": "2026-01-01T00:00:00Z"})
        print(n, flush=True)
    os._exit(9)
""")


def test_processes_that_die_without_closing_keep_every_acknowledged_record(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(w)], stdout=subprocess.PIPE)
        for w in range(2)
    ]
    acknowledged = set()
    for index, writer in enumerate(writers):
        acknowledged |= {f"{index}-{int(n)}" for n in writer.communicate(timeout=60)[0].split()}
        assert writer.returncode == 9
    assert len(acknowledged) == 80
    assert set(read_predictions(tmp_path, "toy")["id"]) == acknowledged


STUCK_DISK_WRITER = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path
    from trellis.adapters.prediction_log import PredictionLog
    os.fsync = lambda descriptor: time.sleep(3600)
    log = PredictionLog(Path(sys.argv[1]), "toy", flush_seconds=0.02)
    for n in map(int, sys.stdin):
        log.append({"id": f"p{n}", "time": "2013-07-01T00:00:00Z", "received_at": "2026-01-01T00:00:00Z"})
        print(n, flush=True)
""")


def test_a_killed_process_loses_nothing_that_is_older_than_the_window_however_long_a_sync_takes(tmp_path):
    """Killed with SIGKILL while ``fsync`` has not returned once: what was written is there."""
    command = [sys.executable, "-c", STUCK_DISK_WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        for n in range(30):
            print(n, file=writer.stdin, flush=True)
            assert writer.stdout.readline() == f"{n}\n"
            if n % 10 == 9:  # the second and the third group are written while the first one's sync hangs
                wait_until(lambda seen=n + 1: len(read_predictions(tmp_path, "toy")) == seen)
        writer.kill()
    assert writer.returncode == -signal.SIGKILL
    frame = read_predictions(tmp_path, "toy")
    assert set(frame["id"]) == {f"p{n}" for n in range(30)}
    assert frame.attrs["torn"] == 0


class Syncs:
    """``fsync`` that waits, or fails, below the log's system calls."""

    def __init__(self, monkeypatch):
        self.go, self.failing, self.asked = threading.Event(), 0, 0
        self._fsync = os.fsync
        monkeypatch.setattr("trellis.adapters.append_log.os.fsync", self.fsync)

    def fsync(self, descriptor):
        self.asked += 1
        assert self.go.wait(30)
        if self.failing > 0:
            self.failing -= 1
            raise OSError(errno.EIO, "Input/output error")
        self._fsync(descriptor)


def test_a_record_is_pending_until_it_is_synced_and_readable_before(tmp_path, monkeypatch):
    syncs = Syncs(monkeypatch)
    log = PredictionLog(tmp_path, "toy", flush_seconds=0.01)
    log.extend([record(n) for n in range(3)])
    wait_until(lambda: syncs.asked and len(read_predictions(tmp_path, "toy")) == 3)
    log.append(record(3))
    wait_until(lambda: len(read_predictions(tmp_path, "toy")) == 4)
    assert log.pending == 4
    syncs.go.set()
    wait_until(lambda: log.pending == 0)
    log.close()


def test_records_of_a_failed_sync_go_to_a_new_segment_once(tmp_path, monkeypatch):
    """The kernel may have dropped the pages of a failed sync: the segment is cut, and all of them written again."""
    syncs = Syncs(monkeypatch)
    log = PredictionLog(tmp_path, "toy", flush_seconds=0.01)
    log.extend([record(n) for n in range(3)])
    wait_until(lambda: syncs.asked)
    log.extend([record(n) for n in range(3, 5)])  # written while the sync is going on that will fail
    wait_until(lambda: len(read_predictions(tmp_path, "toy")) == 5)
    [first] = log.directory.glob("*.jsonl")
    syncs.failing = 2
    syncs.go.set()
    wait_until(lambda: log.pending == 0)
    log.append(record(5))
    log.close()
    assert not first.exists()
    lines = [json.loads(x)["id"] for s in log.directory.glob("*.jsonl") for x in s.read_text("utf-8").splitlines()]
    assert lines == [f"p{n}" for n in range(6)]


def test_what_a_failed_sync_refused_is_never_written_later(tmp_path, monkeypatch):
    syncs = Syncs(monkeypatch)
    syncs.go.set()
    log = PredictionLog(tmp_path, "toy", flush_seconds=0)
    log.append(record(0))
    syncs.failing = 1
    with pytest.raises(StorageError, match="Input/output error"):
        log.append(record(1))
    assert log.pending == 0
    log.append(record(2))
    log.close()
    assert list(read_predictions(tmp_path, "toy")["id"]) == ["p0", "p2"]


def test_a_prediction_that_two_writers_logged_is_read_once(tmp_path):
    for _ in range(2):
        log = PredictionLog(tmp_path, "toy", flush_seconds=0)
        log.append(record(1))
        log.close()
    frame = read_predictions(tmp_path, "toy")
    assert (len(frame), frame.attrs["duplicates"]) == (1, 1)


def test_labels_keep_revisions_and_drop_repeats(tmp_path):
    log = LabelLog(tmp_path, "toy", flush_seconds=0)
    label = {"id": "p1", "value": 0, "observed_at": "2013-07-02T00:00:00Z"}
    log.append({**label, "received_at": "2026-01-01T00:00:00Z"})
    log.append({**label, "received_at": "2026-01-02T00:00:00Z"})
    log.append({**label, "value": 1, "received_at": "2026-01-03T00:00:00Z"})
    log.close()
    frame = read_labels(tmp_path, "toy")
    assert frame["value"].tolist() == [0, 1]
    assert frame.attrs["duplicates"] == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=8))
def test_any_text_survives(tmp_path_factory, texts):
    home = tmp_path_factory.mktemp("log")
    log = PredictionLog(home, "toy", flush_seconds=0)
    written = [text.encode("utf-8", "replace").decode() for text in texts]
    log.extend([record(n, request={"text": text}) for n, text in enumerate(written)])
    log.close()
    frame = read_predictions(home, "toy").sort_values("received_at")
    assert (frame["request.text"].tolist() if texts else []) == written


def test_every_line_is_json_of_its_own(tmp_path):
    log = PredictionLog(tmp_path, "toy", flush_seconds=0)
    log.append(record(1, request={"text": "a\nb\u2028c"}))
    log.close()
    [segment] = log.directory.glob("*.jsonl")
    [line] = segment.read_text("utf-8").split("\n")[:-1]
    assert json.loads(line)["request"]["text"] == "a\nb\u2028c"
