"""Shadows: versions that score a sample of what was answered, beside the answering and never before it.

An answered record is put into a bounded queue, which costs a hash; a thread hands the queue to a process of its own
(see ``shadow_host``), which gets only the processor time that nobody else wants. Where the queue is full, records are
dropped and counted; a shadow that hangs, crashes or cannot be loaded costs that process, which is started again, and
the version rests for a while, twice as long each time. Standing in line for a processor is not hanging.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from services.prediction.metrics import Metrics
from trellis.rollout.plan import RolloutPlan, Shadow, unit_position

logger = logging.getLogger(__name__)

_AT_A_TIME = 64
# Every message makes this thread take Python's lock from the answering one several times and wakes a process that takes
# a core; so there are few of them.
_GATHER_SECONDS = 0.25
_PIPE_BYTES = 1 << 20
_LOAD_SECONDS = 60.0
_LONG_SECONDS = 0.5  # by then most have answered, and what the system knows of the process is not looked up

Item = tuple[str, Shadow, bytes]


def is_sampled(plan: RolloutPlan, shadow: Shadow, prediction_id: str) -> bool:
    """Tell whether a shadow scores a prediction: the same in every process, independent of the split and of others."""
    return unit_position(f"{plan.salt}/shadow/{shadow.version}", prediction_id) < shadow.sample_rate


def give_way(pid: int) -> None:
    """Leave a process only the processor time that nobody else wants; where a system cannot, make it the last in line.

    A process that is merely nice takes a core's tenth from the primary and, waking, makes it wait for a turn; Linux
    counts a core with nothing but idle-class processes as free (sched(7), SCHED_IDLE).
    """
    with suppress(ProcessLookupError):
        try:
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        except (AttributeError, PermissionError):
            os.setpriority(os.PRIO_PROCESS, pid, 19)


def in_line(pid: int) -> float:
    """Return the seconds that a process has been ready to run and had no processor; 0 where nobody counts them."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


class Shadows:
    """Hands sampled records to the shadows' process, which is started with the first of them.

    Args:
        home: Trellis's home.
        models: Directory of plug-in folders.
        metrics: The counters.
        most: Records that may wait; further ones are dropped.
        seconds: After which a shadow at work counts as hung.
        rest: Seconds for which a version that failed is left alone, at first.
        verify_key: The public key that every shadow must be signed for; None takes unsigned ones.
    """

    def __init__(
        self,
        home: Path,
        models: Path,
        metrics: Metrics,
        *,
        most: int = 2048,
        seconds: float = 5.0,
        rest: float = 30.0,
        verify_key: Path | None = None,
    ) -> None:
        self._command = [sys.executable, "-m", "services.prediction.shadow_host", "--home", str(home)]
        self._command += ["--models", str(models), "--seconds", str(max(seconds, _LOAD_SECONDS))]
        if verify_key is not None:
            self._command += ["--verify-key", str(verify_key.resolve())]
        self._metrics = metrics
        self._most = most
        self._seconds = seconds
        self._rest = rest
        self._queue: deque[Item] = deque()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._loaded: set[tuple[str, str, str]] = set()
        self._resting: dict[tuple[str, str], tuple[float, float]] = {}

    def offer(self, plan: RolloutPlan, logged: Sequence[tuple[Mapping[str, Any], bytes]]) -> None:
        """Take what is sampled of the answered records, each with its line of the log; never waits."""
        for shadow in plan.shadows:
            for record, line in logged:
                if record["version"] == shadow.version or not is_sampled(plan, shadow, record["id"]):
                    continue
                if len(self._queue) >= self._most or self._stop.is_set():
                    self._count(plan.model, shadow, "dropped", 1)
                    continue
                self._queue.append((plan.model, shadow, line))
                if not self._wake.is_set():
                    self._wake.set()
        if self._thread is None and self._queue:
            self._start()

    def close(self, grace: float = 3.0) -> None:
        """End the process; what waits is dropped, what was scored is on the disk unless a shadow hangs."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(grace)
        self._end(grace)
        if self._thread is not None:
            self._thread.join(grace)

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shadows", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            self._stop.wait(_GATHER_SECONDS)
            waiting: dict[tuple[str, Shadow], list[bytes]] = {}
            while self._queue:
                model, shadow, line = self._queue.popleft()
                waiting.setdefault((model, shadow), []).append(line)
            for (model, shadow), lines in waiting.items():
                for first in range(0, len(lines), _AT_A_TIME):
                    if self._stop.is_set():
                        return
                    try:
                        self._score(model, shadow, lines[first : first + _AT_A_TIME])
                    except Exception:
                        logger.exception("the shadows met an error they do not know and go on")
                        self._end(0)

    def _score(self, model: str, shadow: Shadow, lines: Sequence[bytes]) -> None:
        """Have logged records scored by one version."""
        until, _ = self._resting.get((model, shadow.version), (0.0, 0.0))
        if time.monotonic() < until:
            self._count(model, shadow, "resting", len(lines))
            return
        message = {"model": model, "version": shadow.version, "location": shadow.location, "digest": shadow.digest}
        key = (model, shadow.version, shadow.digest)
        if self._child is None:
            self._loaded.clear()
        answer: Mapping[str, Any] = {"ok": True}
        if key not in self._loaded:
            answer = self._ask(message, _LOAD_SECONDS)
            if answer["ok"]:
                self._loaded.add(key)
        if answer["ok"]:
            answer = self._ask(message, self._seconds, lines)
        if not answer["ok"]:
            self._count(model, shadow, "lost", len(lines))
            if not self._stop.is_set():
                self._leave(model, shadow, answer["why"])
            return
        failed = answer.get("failed", 0)
        self._count(model, shadow, "failed", failed)
        self._count(model, shadow, "scored", len(lines) - failed)
        self._resting.pop((model, shadow.version), None)

    def _leave(self, model: str, shadow: Shadow, why: str) -> None:
        """Let a version that failed rest."""
        _, before = self._resting.get((model, shadow.version), (0.0, self._rest / 2))
        rest = min(2 * before, 3600.0)
        self._resting[(model, shadow.version)] = (time.monotonic() + rest, rest)
        logger.error("the shadow %s %s rests for %.0f s: %s", model, shadow.version, rest, why)

    def _ask(self, message: Mapping[str, Any], seconds: float, lines: Sequence[bytes] = ()) -> Mapping[str, Any]:
        """Send a message, with records that are JSON already, and return the answer.

        A process that does not give one in time is ended.
        """
        child = self._child or self._begin()
        assert child.stdin is not None
        assert child.stdout is not None
        head = to_json(message)
        if lines:  # as they are: to write them again would hold Python's lock while requests wait
            head = head[:-1] + b',"records":[' + b",".join(line.rstrip() for line in lines) + b"]}"
        data = memoryview(head + b"\n")
        answer = b""
        why = f"it did not answer within {seconds:g} s"
        end = time.monotonic() + seconds
        before: float | None = None  # seconds in line, known from when it first takes long
        while time.monotonic() < end + (in_line(child.pid) - before if before is not None else 0.0):
            if self._stop.is_set():
                break
            try:
                if data:
                    with suppress(BlockingIOError):
                        data = data[os.write(child.stdin.fileno(), data) :]
                writing = [child.stdin] if data else []
                readable, writable, _ = select.select([child.stdout], writing, [], min(seconds, _LONG_SECONDS))
                if readable:
                    part = os.read(child.stdout.fileno(), 65_536)
                    answer += part
                    if not part:
                        why = f"its process ended with {child.wait(5)}"
                        break
                    if answer.endswith(b"\n"):
                        told: Mapping[str, Any] = from_json(answer)
                        return told
                elif not writable and before is None:
                    before = in_line(child.pid)
            except OSError as error:
                why = f"its process is gone: {error}"
                break
        self._end(0)
        return {"ok": False, "why": why}

    def _begin(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            self._command,
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        give_way(child.pid)
        assert child.stdin is not None
        os.set_blocking(child.stdin.fileno(), False)
        with suppress(OSError, AttributeError):  # a pipe that takes a message whole spares waiting for room in it
            fcntl.fcntl(child.stdin.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._child = child
        return child

    def _end(self, grace: float) -> None:
        """End the process: by itself if there is ``grace``, else at once."""
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _count(self, model: str, shadow: Shadow, outcome: str, rows: int) -> None:
        if rows:
            self._metrics.shadowed(model, shadow.version, outcome, rows)
