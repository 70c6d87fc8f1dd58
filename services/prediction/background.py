"""Work that may hang, each piece in a thread of its own, so that nobody waits for it who does not want to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

_TURN_SECONDS = 2.0
_LONG_SECONDS = 30.0  # after which the log says what is still being loaded

Key = tuple[str, ...]


class Job:
    """One piece of work.

    Attributes:
        since: When it was begun, monotonic seconds.
        is_over: Whether it has ended; then it has a ``result`` or an ``error``.
        told: Whether somebody was told that it takes long.
    """

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.is_over = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.told = False


class Background:
    """Runs jobs, one per key; the threads are daemons, so that a process ends though one of them hangs.

    Jobs take turns as long as none is slow: an author's code meets no other, and a version's pace is measured without a
    neighbour. A turn is waited for no longer than two seconds; so one that hangs holds the others up by that at most.
    Every method is for one thread at a time.

    Attributes:
        news: Set when a job has ended.
    """

    def __init__(self) -> None:
        self.news = threading.Event()
        self._jobs: dict[Key, Job] = {}
        self._turn = threading.Lock()

    def job(self, key: Key, work: Callable[[], Any]) -> Job:
        """Return the job of a key: the one that is known, whether it has ended or not, or else a new one."""
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = Job()
            thread = threading.Thread(target=self._run, args=(job, work), name=f"load-{key[0]}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has none to spare; a load that failed is tried again
                job.error, job.is_over = error, True
        return job

    def forget(self, model: str, but: Iterable[Key] = ()) -> None:
        """Drop what has ended of the jobs whose keys begin with ``model``, and its result; ``but`` are kept."""
        kept = set(but)
        for key in [k for k, job in self._jobs.items() if k[0] == model and job.is_over and k not in kept]:
            del self._jobs[key]

    def _run(self, job: Job, work: Callable[[], Any]) -> None:
        mine = self._turn.acquire(timeout=_TURN_SECONDS)
        try:
            job.result = work()
        except BaseException as error:  # an author's code may do anything, also leave
            job.error = error
        finally:
            if mine:
                self._turn.release()
            job.is_over = True
            self.news.set()


def under_way(name: str, jobs: Mapping[str, Job]) -> dict[str, Job]:
    """Return the jobs that have not ended; one that takes long is told of once."""
    waits = {what: job for what, job in jobs.items() if not job.is_over}
    for what, job in waits.items():
        if not job.told and time.monotonic() - job.since > _LONG_SECONDS:
            job.told = True
            logger.warning("%s %s has been loading for %.0f s; what is held answers", name, what, _LONG_SECONDS)
    return waits
