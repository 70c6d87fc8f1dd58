"""Workers that cannot start are tried ever more slowly; one that served is replaced at once."""

import os
import signal
import subprocess
import sys

import httpx
import psutil
import pytest

from services.prediction import starts
from services.prediction.starts import Starts, rest
from tests.services.test_prediction_e2e import free_port, start, status, wait_for


def died():
    """Return the number of a process that was, and is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_wait_doubles_with_every_death_and_ends_when_one_serves(tmp_path):
    assert Starts(tmp_path).begin() == (0, 0.0)
    expected = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    for many, seconds in enumerate(expected, 1):
        (tmp_path / f"start-{died()}").touch()
        assert Starts(tmp_path).begin() == (many, seconds)
    mine = Starts(tmp_path)
    other = tmp_path / f"start-{os.getppid()}"
    other.touch()
    mine.serves()
    assert list(tmp_path.iterdir()) == [other], "one that is still starting stays noted"
    assert mine.begin() == (0, 0.0)


def test_workers_that_start_together_wait_for_nobody(tmp_path):
    (tmp_path / f"start-{os.getppid()}").touch()
    (tmp_path / f"start-{os.getpid()}").touch()
    assert Starts(tmp_path).begin() == (0, 0.0)


def test_nobody_rests_for_a_parent_that_is_gone(monkeypatch):
    slept = []
    monkeypatch.setattr(starts.time, "sleep", slept.append)
    clock = iter(range(100))
    monkeypatch.setattr(starts.time, "monotonic", lambda: next(clock))
    rest(3.0, os.getppid())
    assert slept == [0.5, 0.5]
    rest(3.0, 0)
    assert len(slept) == 2


@pytest.mark.e2e
@pytest.mark.slow
def test_a_service_that_cannot_start_rests_and_can_be_ended(world, tmp_path):
    process = start(world, tmp_path, free_port(), 1, TRELLIS_UNIT_SECRET="short")
    try:
        output = tmp_path / "output.txt"
        wait_for(
            lambda: "2 workers before this one died before they served; it waits 2 s" in output.read_text(), "rest"
        )
        assert "fewer than 16 characters" in output.read_text()
    finally:
        process.terminate()
        assert process.wait(30) is not None


@pytest.mark.e2e
@pytest.mark.slow
def test_a_worker_that_served_is_replaced_at_once(world, row, tmp_path):
    world.deploy(world.artifact("1"))
    port = free_port()
    process = start(world, tmp_path, port, 1)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
            for _ in range(2):
                wait_for(lambda: status(client, "/v2/health/ready") == 200, "readiness")
                family = psutil.Process(process.pid).children()
                (worker,) = [child for child in family if "_bentoml_impl.worker.service" in child.cmdline()]
                os.kill(worker.pid, signal.SIGKILL)
                wait_for(lambda gone=worker: not gone.is_running(), "its end")
            wait_for(lambda: status(client, "/v2/health/ready") == 200, "readiness")
    finally:
        process.terminate()
        process.wait(30)
    assert "died before they served" not in (tmp_path / "output.txt").read_text()
