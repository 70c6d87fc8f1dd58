"""The chaos benchmark's parts, small: every one does real harm to a real service under load."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def bench(part, temporary=None, **numbers):
    command = [sys.executable, "tests/benchmarks/bench_chaos.py", "--only", part, "--json"]
    for name, number in numbers.items():
        command += ["--set", f"{name}={json.dumps(number)}"]
    environment = os.environ | ({"TMPDIR": temporary} if temporary else {})
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])[part]


def test_a_canary_that_raises_on_one_row_in_twenty_is_rolled_back_by_the_error_guard():
    found = bench("failures")
    assert (found["outcome"], found["check"]) == ("ROLL_BACK", "errors"), found
    assert (found["champion"], found["canary"]) == ("1", None)
    assert found["why"].startswith("canary-")
    assert found["stood_in"] > 0, "the champion answered what the canary could not"
    assert found["not_200"] == found["broken_connections"] == 0
    assert found["canary_answers_a_second_later"] == 0


def test_champions_swapped_under_load_cost_no_request_and_the_old_one_falls_silent():
    found = bench("swaps", swaps=3)
    assert (found["swaps"], found["reached"]) == (3, 3), found
    assert found["failed_requests"] == found["broken_connections"] == 0
    assert found["answers"] > 500
    assert min(found["connections_by_worker"]) > 0, "both workers were asked"


def test_killed_workers_and_controllers_lose_nothing_that_was_acknowledged():
    """Where records are written first (``FLUSH_SECONDS`` 0); the benchmark also counts what a window of 50 ms loses."""
    with tempfile.TemporaryDirectory(prefix="t-") as temporary:
        found = bench("kills", temporary, worker_kills=2, controller_kills=5, flush_seconds=0.0)
        assert list(Path(temporary).iterdir()) == [], "what killed workers could not remove is gone"
    assert (found["worker_kills"], found["controller_kills"]) == (2, 5), found
    assert found["acknowledged"] > 200
    assert found["answers_that_were_errors"] == {}
    assert found["stopped_while_a_worker_was_replaced_s"] < 40, "the wish to end is not lost"
    assert found["lost_records"] == found["doubled_records"] == 0
    assert found["stuck_rollouts"] == found["rollouts_with_a_doubled_or_missing_move"] == 0
    assert found["plan_revisions_in_one_row"]
    assert found["lease_is_free"]


@pytest.mark.parametrize("part", ["artifacts", "plan_server_killed"])
def test_a_store_that_is_taken_away_is_not_missed_by_what_is_loaded(part):
    if part.startswith("plan_server") and not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("NO POSTGRESQL: install it with: apt-get install -y postgresql")
    found = bench(part, seconds=1.5)
    assert found["answers_5xx"] == found["broken_connections"] == 0, found
    assert found["other_errors"] == {}
    assert found["answers_while_away"] > 20
    assert found["followed_s_after_return"] < 15


def test_without_its_online_store_a_model_that_can_do_without_answers_and_says_so():
    if shutil.which("redis-server") is None:
        pytest.skip("NO REDIS: install it with: apt-get install -y redis-server")
    found = bench("online_store", seconds=2.5)
    assert found["answers_5xx"] == 0, found
    assert found["other_errors"] == {}
    assert found["degraded_before"] == 0
    assert found["answers_while_hung"] == found["of_these_marked_degraded"] > 20, "a store that hangs holds up few"
    assert found["answers_while_gone"] == found["of_them_marked_degraded"] > 20
