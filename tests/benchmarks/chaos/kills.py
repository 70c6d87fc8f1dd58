"""SIGKILL of serving workers and of rollout controllers, at random moments under load."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chaos.controllers import play
from chaos.load import Load
from chaos.service import ROOT, Service, wait_for

from trellis.adapters.prediction_log import read_predictions
from trellis.adapters.rollout_store import RolloutStore


def kills(
    home: Path,
    *,
    worker_kills: int = 3,
    controller_kills: int = 25,
    flush_seconds: float = 0.05,
    workers: int = 3,
) -> dict[str, Any]:
    """Return what was killed, and what of it anybody noticed."""
    draw = random.Random(20130701)
    service = Service(home, workers=workers, FLUSH_SECONDS=str(flush_seconds))
    versions = [service.version("1"), service.version("2", slope=0.5)]
    service.first(versions[0])
    moments: list[float] = []
    with service:
        with Load(service.port, pause=0.01, per_connection=50) as load:
            reaper = _Controllers(service.store_url, versions, controller_kills, random.Random(7))
            reaper.start()
            began = time.monotonic()
            while len(moments) < worker_kills:
                time.sleep(draw.uniform(0.05, 0.6))
                alive = sorted(service.answering())
                if len(alive) > 1:  # of the last one the answers would only be missing, not lost
                    os.kill(draw.choice(alive), signal.SIGKILL)
                    moments.append(time.monotonic())
                    if len(moments) % 10 == 0:
                        told = f"{len(moments)} workers and {reaper.killed} controllers killed"
                        print(f"{told} in {moments[-1] - began:.0f} s", file=sys.stderr, flush=True)
            reaper.join()
            back = time.monotonic()
            wait_for(lambda: len(service.answering()) == workers, "all workers to be back", 90)
            back = time.monotonic() - back
            took = time.monotonic() - began
        killed = len(moments)
        stopped = _stopped_while_a_worker_is_replaced(service, moments)
    play(service.store_url, "plain", versions, until_final=True)
    logged = read_predictions(home, "plain")
    have = set(logged["id"])
    lost = [a for a in load.answers if a.status == 200 and a.id not in have]
    ages = [min((m - a.received for m in moments if m > a.received - 0.05), default=float("inf")) for a in lost]
    return {
        "worker_kills": killed,
        "controller_kills": reaper.killed,
        "seconds": round(took, 1),
        "all_workers_back_after_the_last_kill_s": round(back, 1),
        "stopped_while_a_worker_was_replaced_s": round(stopped, 1),
        "acknowledged": sum(a.status == 200 for a in load.answers),
        "lost_records": len(lost),
        "oldest_lost_record_ms_before_its_kill": round(max(ages, default=0.0) * 1000),
        "flush_window_ms": round(flush_seconds * 1000),
        "torn_last_lines": int(logged.attrs["torn"]),
        "doubled_records": int(logged.attrs["duplicates"]),
        "answers_that_were_errors": dict(Counter(a.status for a in load.failed)),
        "broken_connections": sum(load.broken.values()),
        **_rollouts(service),
    }


def _stopped_while_a_worker_is_replaced(service: Service, moments: list[float]) -> float:
    """Kill one more, note when, and end the service just when its successor begins; return the seconds that took."""
    known = {child.pid for child in service.worker_processes()}
    os.kill(min(known), signal.SIGKILL)
    moments.append(time.monotonic())
    wait_for(lambda: {child.pid for child in service.worker_processes()} - known, "the successor", 30)
    began = time.monotonic()
    service.stop()
    return time.monotonic() - began


class _Controllers(threading.Thread):
    """Starts controllers one after the other and kills each at a random moment."""

    def __init__(self, url: str, versions: list[Any], wanted: int, draw: random.Random) -> None:
        super().__init__(name="controllers")
        self._wanted, self._draw, self.killed = wanted, draw, 0
        told = json.dumps([asdict(v) for v in versions])
        command = [sys.executable, str(Path(__file__).with_name("controllers.py")), url, "plain", told]
        self._nest = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self) -> None:
        assert self._nest.stdin is not None
        assert self._nest.stdout is not None
        while self.killed < self._wanted:
            print(file=self._nest.stdin, flush=True)
            child = int(self._nest.stdout.readline())
            time.sleep(self._draw.uniform(0.02, 1.0))
            os.kill(child, signal.SIGKILL)
            self.killed += 1
        self._nest.stdin.close()
        self._nest.wait(10)


def _rollouts(service: Service) -> dict[str, Any]:
    """Return what the controllers left: whole rollouts, each move once, and a lease that is free."""
    store = RolloutStore(service.store_url)
    history = store.history("plain")
    by_rollout: dict[str, list[Any]] = {}
    for transition in history:
        by_rollout.setdefault(transition.state.id, []).append(transition.state)
    revisions = [change.plan.revision for change in service.plans.history("plain")]
    with store.lease("plain"):
        free = True
    stuck = [key for key, states in by_rollout.items() if not states[-1].final]
    doubled = [key for key, states in by_rollout.items() if [s.number for s in states] != list(range(len(states)))]
    store.close()
    return {
        "rollouts": len(by_rollout),
        "stuck_rollouts": len(stuck),
        "rollouts_with_a_doubled_or_missing_move": len(doubled),
        "plan_revisions_in_one_row": revisions == list(range(1, len(revisions) + 1)),
        "lease_is_free": free,
    }
