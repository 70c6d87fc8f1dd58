"""An open-loop load generator: requests leave at random moments drawn in advance, whether or not answers have come.

A closed loop (``wrk``) waits for each answer before it sends the next request, so a slow server is asked less often
and its worst moments are measured once instead of by all who would have waited ("coordinated omission", G. Tene, *How
NOT to measure latency*, 2013). Here latency counts from the moment a request was due. One process, asyncio, HTTP/1.1
connections kept and reused.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What came of it: latencies in milliseconds from the due moment, sorted; how many answers were not 200."""

    offered: float
    milliseconds: list[float]
    bad: int

    def quantile(self, q: float) -> float:
        """Return the latency that the share q of the requests stayed within, in milliseconds."""
        return self.milliseconds[min(len(self.milliseconds) - 1, int(q * len(self.milliseconds)))]


class _Connection(asyncio.Protocol):
    """One request at a time; ``answered`` gets the status."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[int] | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(0)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        at = head.lower().index(b"content-length:") + 15
        if len(body) >= int(head[at:].split(b"\r\n", 1)[0]):
            self._buffer = b""
            if self.answered is not None and not self.answered.done():
                self.answered.set_result(int(head[9:12]))


async def _offer(host: str, port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int) -> Load:
    loop = asyncio.get_running_loop()
    chance = random.Random(seed)
    idle: list[_Connection] = []
    spent: list[float] = []
    bad = 0

    async def one(due: float, request: bytes) -> None:
        nonlocal bad
        try:
            if idle and not idle[-1].transport.is_closing():
                connection = idle.pop()
            else:
                _, connection = await loop.create_connection(_Connection, host, port)
            connection.answered = loop.create_future()
            connection.transport.write(request)  # type: ignore[attr-defined]
            status = await asyncio.wait_for(connection.answered, 30)
        except (OSError, TimeoutError):
            bad += 1
            return
        spent.append((time.perf_counter() - due) * 1e3)
        bad += status != 200
        if status:
            idle.append(connection)

    started = due = time.perf_counter()
    waiting: set[asyncio.Task[None]] = set()
    while due - started < seconds:
        due += chance.expovariate(rate)
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        task = loop.create_task(one(due, requests[chance.randrange(len(requests))]))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    if waiting:
        await asyncio.wait(waiting)
    for connection in idle:
        connection.transport.close()
    return Load(rate, sorted(spent), bad)


def offer(host: str, port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0) -> Load:
    """Send requests at Poisson moments and wait for every answer.

    Args:
        host: Where to.
        port: Where to.
        requests: Whole HTTP/1.1 requests, drawn from at random.
        rate: Requests per second, on average.
        seconds: For how long.
        seed: Of the moments and the draws.
    """
    return asyncio.run(_offer(host, port, requests, rate, seconds, seed))


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Return a whole POST request with a JSON body."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()] + [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body
