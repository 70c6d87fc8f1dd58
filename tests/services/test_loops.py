"""The workers' event loop takes many new connections a turn, and tells when it stays behind."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import uvicorn
import uvloop

from services.prediction import loops
from services.prediction.errors import UnavailableError
from services.prediction.workers import Deadline, Pulse, Workers

CALLERS = 96
ROOT = Path(__file__).parents[2]


async def turns_to_accept() -> int:
    """Return the loop's turns until everybody who waits at the door was let in."""
    door = socket.create_server(("127.0.0.1", 0), backlog=CALLERS)
    address = door.getsockname()
    callers = [socket.create_connection(address) for _ in range(CALLERS)]
    accepted = turns = 0

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            nonlocal accepted
            accepted += 1
            transport.close()

    server = await asyncio.get_running_loop().create_server(Protocol, sock=door)
    while accepted < CALLERS:
        turns += 1
        assert turns < 10 * CALLERS
        await asyncio.sleep(0)
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.01)
    with pytest.raises(ConnectionRefusedError):  # not one of the listeners is left
        socket.create_connection(address)
    for caller in callers:
        caller.close()
    return turns


def run(loop_factory, work):
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(work)


def test_many_connections_are_taken_in_a_turn_where_uvloop_takes_one(monkeypatch):
    assert run(uvloop.new_event_loop, turns_to_accept()) >= CALLERS
    assert run(loops.Loop, turns_to_accept()) <= CALLERS // 4


WORKER = """
import asyncio, os, socket, sys
from services.prediction import loops

class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"%d %d" % (os.getpid(), transport.get_extra_info("socket").getsockopt(6, 1)))

async def main():
    door = socket.socket(fileno=int(sys.argv[1]))
    server = await asyncio.get_running_loop().create_server(Protocol, sock=door, backlog=100)
    print("listening", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()
    await server.wait_closed()

with asyncio.Runner(loop_factory=loops.Loop) as runner:
    runner.run(main())
"""


def test_workers_that_share_a_socket_get_connections_in_turns():
    door = socket.create_server(("127.0.0.1", 0), backlog=CALLERS)
    command = [sys.executable, "-c", WORKER, str(door.fileno())]
    environment = os.environ | {loops.WORKERS: "2"}
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment, "pass_fds": [door.fileno()]}
    workers = [subprocess.Popen(command, cwd=ROOT, **options) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout.readline() == b"listening\n"
        callers = [socket.create_connection(door.getsockname(), timeout=10) for _ in range(CALLERS)]
        told = [caller.recv(100).split() for caller in callers]
        for caller in callers:
            caller.close()
        door.close()
        for worker in workers:
            worker.communicate(timeout=10)
            assert worker.returncode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    taken = Counter(int(pid) for pid, _ in told)
    assert set(taken) == {worker.pid for worker in workers}
    assert min(taken.values()) >= CALLERS // 4, taken
    assert {without_delay for _, without_delay in told} == {b"1"}


def test_uvicorn_takes_the_loop_where_it_would_choose_one(monkeypatch):
    monkeypatch.setitem(uvicorn.config.LOOP_FACTORIES, "auto", "uvicorn.loops.auto:auto_loop_factory")
    loops.use()
    assert uvicorn.Config(app=None).get_loop_factory() is loops.Loop


def test_a_pause_is_no_arrears_but_turn_after_long_turn_is():
    async def played():
        pulse = Pulse()
        pulse.start()
        await asyncio.sleep(0.12)
        time.sleep(0.4)
        await asyncio.sleep(0.12)
        after_pause = pulse.behind
        end = time.monotonic() + 5
        while not pulse.behind and time.monotonic() < end:
            time.sleep(0.08)
            await asyncio.sleep(0)
        under_load = pulse.behind
        while pulse.behind and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return after_pause, under_load, pulse.behind

    assert run(loops.Loop, played()) == (False, True, False)


@pytest.mark.parametrize(
    ("works", "crowded", "behind"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_a_crowd_is_a_queue_that_stands_only_where_the_loop_is_what_it_waits_for(works, crowded, behind):
    async def played():
        pulse = Pulse(lambda: crowded)
        pulse.start()
        end, seen = time.monotonic() + (30 if behind else 0.5), False  # a busy machine lets the loop work less
        while time.monotonic() < end and not seen:
            if works:
                done = time.thread_time() + 0.004  # far from a long turn
                while time.thread_time() < done:
                    pass
            await asyncio.sleep(0 if works else 0.004)
            seen = pulse.behind
        return seen

    assert run(loops.Loop, played()) == behind


def test_the_queue_is_a_quarter_as_long_while_the_loop_is_behind():
    async def taken(behind: bool) -> int:
        workers = Workers(most_waiting=40)
        workers.pulse.behind = behind
        release = asyncio.Event()
        asked = [asyncio.create_task(workers.here(release.wait, lambda got: got, Deadline(30))) for _ in range(60)]
        await asyncio.sleep(0.01)
        release.set()
        ended = await asyncio.gather(*asked, return_exceptions=True)
        workers.close()
        assert all(one is True or isinstance(one, UnavailableError) for one in ended)
        return sum(one is True for one in ended)

    assert run(None, taken(False)) == 40
    assert run(None, taken(True)) == 10


@pytest.mark.parametrize(
    ("behind", "late", "seconds", "admitted"),
    [
        (False, 5.0, 10.0, True),  # a single pause
        (True, 0.03, 10.0, True),
        (True, 0.24, 10.0, True),
        (True, 0.26, 10.0, False),
        (True, 0.03, 0.02, False),  # nothing for a caller who cannot wait so long
        (True, 0.01, 0.02, True),
    ],
)
def test_what_is_answered_at_once_is_refused_where_its_turn_comes_too_late(behind, late, seconds, admitted):
    workers = Workers(most_waiting=40)
    workers.pulse.behind, workers.pulse.late = behind, late
    if admitted:
        workers.admit(Deadline(seconds))
    else:
        with pytest.raises(UnavailableError, match=r"wait 0\.\d+ s for their turn") as refused:
            workers.admit(Deadline(seconds))
        assert refused.value.retry_after == 1
    workers.close()
