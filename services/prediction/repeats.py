"""The same request sent again is answered from memory, so that a caller's retry is not logged twice."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from trellis.errors import RequestError


@dataclass
class _Entry:
    digest: bytes
    task: asyncio.Task[bytes]
    at: float
    size: int


class Repeats:
    """Answers of the last minutes by the caller's request id, in one process.

    A retry that reaches another process is scored and logged there again under the same prediction ids; reading the log
    keeps one of them.

    Args:
        seconds: How long an answer is kept.
        max_bytes: Most memory for answers; the oldest go first.
    """

    def __init__(self, seconds: float = 600.0, max_bytes: int = 64_000_000) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._bytes = 0

    async def once(
        self, model: str, request_id: str, body: bytes, make: Callable[[], Awaitable[bytes]]
    ) -> tuple[bytes, bool]:
        """Return the answer of ``make``, or the one given before for the same id and body, and whether it is a repeat.

        A request under way is awaited rather than made twice, also where its first caller has gone. One that failed is
        made again.

        Raises:
            RequestError: The id was used for another body (409).
        """
        self._forget()
        key, digest = (model, request_id), hashlib.blake2b(body, digest_size=16).digest()
        entry = self._entries.get(key)
        if entry is not None:
            if entry.digest != digest:
                raise RequestError(
                    "id",
                    "was used for another body a short while ago",
                    status=409,
                    remedy="Give every request its own id.",
                )
            return await asyncio.shield(entry.task), True
        task = asyncio.ensure_future(make())
        entry = self._entries[key] = _Entry(digest, task, time.monotonic(), 0)
        task.add_done_callback(lambda done: self._done(key, entry, done))
        return await asyncio.shield(task), False

    def _done(self, key: tuple[str, str], entry: _Entry, task: asyncio.Task[bytes]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._entries.pop(key, None)
            return
        entry.size = len(task.result()) + 500
        self._bytes += entry.size

    def _forget(self) -> None:
        oldest = time.monotonic() - self._seconds
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if not entry.task.done() or (entry.at > oldest and self._bytes <= self._max_bytes):
                return
            del self._entries[key]
            self._bytes -= entry.size
