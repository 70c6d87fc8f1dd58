"""What waits for an answer, on the event loop or before a few threads: bounded queues, a deadline per request.

A request that could not start before its deadline is refused when it comes (503, with the time to wait), not after it
has waited; one whose deadline passes in the queue is taken out of it; one that was already started goes on, and its
caller is told (504) that the same id will fetch the answer.

A queue takes up a burst; one that stands only makes everybody wait (Nichols & Jacobson 2012, "Controlling queue delay",
ACM Queue 10(5)). Where the event loop stays behind, the queue is a quarter as long until it has caught up. What is
answered at once waits in no queue but the loop's own; where that is a quarter of a second long, it is refused as well.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from services.prediction.errors import DeadlineError, UnavailableError
from trellis.errors import RequestError

TIMEOUT_HEADER = b"x-timeout-ms"
_THREADS = 4
_LONGEST_MS = 600_000
_BEAT_SECONDS = 0.05
_LATE_SECONDS = 0.02
_LATE_BEATS = 3  # a single one is a pause, of the garbage collector perhaps
_BUSY = 0.5  # share of a beat that the loop worked
_CROWDED = 8  # part of the queue that is many
_STANDING = 4  # by which the queue is shorter then
_LONG_TURN = 0.25  # seconds


class Deadline:
    """When a request must be answered; a monotonic moment.

    Args:
        seconds: From now.
    """

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds
        self.job: Future[Any] | None = None

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]], most: float) -> Deadline:
        """Read a request's own deadline (``X-Timeout-Ms``), which can only be shorter than ``most`` seconds.

        Raises:
            RequestError: It is no number of milliseconds (400).
        """
        for name, value in headers:
            if name == TIMEOUT_HEADER:
                text = value[:20].decode("latin-1")
                if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _LONGEST_MS):
                    raise RequestError(
                        "x-timeout-ms",
                        f"{text!r} is no number of milliseconds",
                        status=400,
                        remedy=f"Send a whole number from 1 to {_LONGEST_MS}, or none.",
                    )
                return cls(min(most, int(text) / 1000))
        return cls(most)

    @property
    def left(self) -> float:
        """Seconds left, not below 0."""
        return max(0.0, self.at - time.monotonic())


class Pulse:
    """Tells whether the event loop stays behind: for a while its turns take long, or many wait and it is busy.

    Many that wait while the loop has time wait for somebody else, the online store for example.

    Args:
        crowded: Tells whether many wait.

    Attributes:
        behind: Whether it was so at the last beats all.
        late: How many seconds the last beat came late: a request that comes now waits about as long for its turn.
    """

    def __init__(self, crowded: Callable[[], bool] = lambda: False) -> None:
        self.behind = False
        self.late = 0.0
        self._crowded = crowded
        self._late = 0
        self._worked = 0.0

    def start(self) -> None:
        """Beat on the running loop until it ends."""
        loop = asyncio.get_running_loop()
        self._worked = time.thread_time()
        loop.call_later(_BEAT_SECONDS, self._beat, loop, loop.time() + _BEAT_SECONDS)

    def _beat(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        now, worked = loop.time(), time.thread_time()
        self.late = late = now - due
        busy = worked - self._worked > _BUSY * (_BEAT_SECONDS + late)
        self._late = self._late + 1 if late > _LATE_SECONDS or (busy and self._crowded()) else 0
        self.behind = self._late >= _LATE_BEATS
        self._worked = worked
        loop.call_at(now + _BEAT_SECONDS, self._beat, loop, now + _BEAT_SECONDS)


class Workers:
    """A few threads behind a queue that never grows past what can be answered in time.

    Args:
        most_waiting: Most requests in the queue, whatever their deadlines.
    """

    def __init__(self, most_waiting: int) -> None:
        self.pulse = Pulse(lambda: self._reading > most_waiting // _CROWDED)
        self._threads = ThreadPoolExecutor(_THREADS, "score")
        self._most = most_waiting
        self._waiting = 0
        self._reading = 0
        self._pace = 0.0  # seconds that a job takes, smoothed

    @property
    def waiting(self) -> int:
        """Requests that wait for their features or a thread, or are worked on by one."""
        return self._waiting + self._reading

    def close(self) -> None:
        """Finish what was taken and end the threads."""
        self._threads.shutdown(wait=True)

    def admit(self, deadline: Deadline) -> None:
        """Let work begin that is done at once, on the event loop.

        Raises:
            UnavailableError: The loop stays behind, and its turns take too long for anybody or for this deadline.
        """
        if self.pulse.behind and self.pulse.late > min(_LONG_TURN, deadline.left):
            raise UnavailableError(
                f"Requests wait {self.pulse.late:.2g} s for their turn.",
                remedy="Try again in a second.",
                retry_after=max(1, math.ceil(self.pulse.late)),
            )

    async def run(self, work: Callable[[], Any], deadline: Deadline) -> Any:
        """Run blocking work apart from the event loop.

        Raises:
            UnavailableError: Too many wait, or the work would not start, or did not start, before the deadline.
        """
        ahead = max(0, self._waiting - _THREADS + 1)
        expected = ahead / _THREADS * self._pace
        if self._waiting >= self._most or expected > deadline.left:
            raise UnavailableError(
                f"{self._waiting} requests wait for an answer.",
                remedy="Try again in a second.",
                retry_after=max(1, math.ceil(expected)),
            )
        self._waiting += 1
        try:
            deadline.job = self._threads.submit(self._timed, work, deadline)
            return await asyncio.wrap_future(deadline.job)
        finally:
            self._waiting -= 1

    async def here(self, read: Callable[[], Awaitable[Any]], finish: Callable[[Any], Any], deadline: Deadline) -> Any:
        """Await something on the event loop, then finish the work at once and without another thread.

        Args:
            read: What is awaited; it gives up by itself.
            finish: Quick work that gets what came of it, be it an exception.
            deadline: Past it the work is not begun.

        Raises:
            UnavailableError: Too many wait, or the time was over before the work was begun.
        """
        most = max(1, self._most // _STANDING) if self.pulse.behind else self._most
        if self._reading >= most:
            raise UnavailableError(
                f"{self._reading} requests wait for their features.", remedy="Try again in a second."
            )
        self._reading += 1
        got: Any
        try:
            got = await read()
        except Exception as error:  # whatever the store's client raises, the answer decides what to do without it
            got = error
        finally:
            self._reading -= 1
        if not deadline.left:
            raise _never_started()
        return finish(got)

    def _timed(self, work: Callable[[], Any], deadline: Deadline) -> Any:
        if not deadline.left:
            raise _never_started()
        started = time.perf_counter()
        try:
            return work()
        finally:
            self._pace += 0.1 * (time.perf_counter() - started - self._pace)


async def within(deadline: Deadline, answer: Awaitable[bytes]) -> bytes:
    """Await an answer until its deadline; what was started goes on without its caller.

    Raises:
        UnavailableError: It had not been started by then, and is not going to be.
        DeadlineError: It had.
    """
    task = asyncio.ensure_future(answer)
    done, _ = await asyncio.wait({task}, timeout=deadline.left)
    if done:
        return task.result()
    if deadline.job is not None and deadline.job.cancel():
        task.add_done_callback(_heard)
        raise _never_started()
    task.add_done_callback(_heard)
    raise DeadlineError(
        "The answer took longer than the request allows.",
        remedy="Ask again with the same id to get it without it being made twice.",
    )


def _never_started() -> UnavailableError:
    return UnavailableError("The request's time was over before its turn came.", remedy="Try again in a second.")


def _heard(task: asyncio.Future[bytes]) -> None:
    """Take note of how an abandoned answer ended, or asyncio complains that nobody did."""
    if not task.cancelled():
        task.exception()
