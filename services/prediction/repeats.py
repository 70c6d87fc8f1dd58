"""The same request sent again is answered from memory, so that a caller's retry is not logged twice."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from trellis.errors import RequestError

_Key = tuple[str, str]


@dataclass
class _Entry:
    digest: bytes
    task: asyncio.Task[bytes]
    at: float = 0.0
    size: int = 0


class Repeats:
    """Answers of the last minutes by the caller's request id, in one process.

    A retry that reaches another process is scored and logged there again under the same prediction ids; reading the log
    keeps one of them.

    Args:
        seconds: How long an answer is kept from when it was made.
        max_bytes: Most memory for answers; the oldest go first.
    """

    def __init__(self, seconds: float = 600.0, max_bytes: int = 64_000_000) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._under_way: dict[_Key, _Entry] = {}
        self._answered: OrderedDict[_Key, _Entry] = OrderedDict()  # the oldest first
        self._bytes = 0

    async def once(
        self, model: str, request_id: str, body: bytes, make: Callable[[], Awaitable[bytes]]
    ) -> tuple[bytes, bool]:
        """Return the answer of ``make``, or the one given before for the same id and body, and whether it is a repeat.

        A request under way is awaited rather than made twice, also where its first caller has gone. One that failed is
        made again, and so is one that was taken out of the queue because its first caller's time was over.

        Raises:
            RequestError: The id was used for another body (409).
        """
        self._forget()
        key, digest = (model, request_id), hashlib.blake2b(body, digest_size=16).digest()
        while (entry := self._under_way.get(key) or self._answered.get(key)) is not None:
            if entry.digest != digest:
                raise RequestError(
                    "id",
                    "was used for another body a short while ago",
                    status=409,
                    remedy="Give every request its own id.",
                )
            try:
                return await asyncio.shield(entry.task), True
            except asyncio.CancelledError:
                if not entry.task.cancelled() or _is_cancelled():
                    raise
        task = asyncio.ensure_future(make())
        entry = self._under_way[key] = _Entry(digest, task)
        task.add_done_callback(lambda done: self._done(key, entry, done))
        return await asyncio.shield(task), False

    def _done(self, key: _Key, entry: _Entry, task: asyncio.Task[bytes]) -> None:
        del self._under_way[key]
        if task.cancelled() or task.exception() is not None:
            return
        entry.at, entry.size = time.monotonic(), len(task.result()) + 500
        self._answered[key] = entry
        self._bytes += entry.size

    def _forget(self) -> None:
        oldest = time.monotonic() - self._seconds
        while self._answered:
            key, entry = next(iter(self._answered.items()))
            if entry.at > oldest and self._bytes <= self._max_bytes:
                return
            del self._answered[key]
            self._bytes -= entry.size


def _is_cancelled() -> bool:
    """Tell whether whoever awaits is to end, rather than what is awaited has ended."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
