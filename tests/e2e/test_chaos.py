"""The chaos benchmark's parts, small: every one does real harm to a real service under load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def bench(part, **numbers):
    command = [sys.executable, "tests/benchmarks/bench_chaos.py", "--only", part, "--json"]
    for name, number in numbers.items():
        command += ["--set", f"{name}={json.dumps(number)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
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
