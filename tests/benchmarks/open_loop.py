"""An open-loop load generator: requests leave at random moments drawn in advance, whether or not answers have come.

A closed loop (``wrk``) waits for each answer before it sends the next request, so a slow server is asked less often
and its worst moments are measured once instead of by all who would have waited ("coordinated omission", G. Tene, *How
NOT to measure latency*, 2013). Here latency counts from the moment a request was due. One process, one thread and epoll
on HTTP/1.1 connections that are kept and reused: it shares the machine with what it measures, so it must cost little.
"""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

_PATIENCE = 30.0  # seconds that the last answers may take


@dataclass(frozen=True)
class Load:
    """What came of it: latencies in milliseconds from the due moment, sorted; how many answers were not 200."""

    offered: float
    milliseconds: list[float]
    bad: int

    def quantile(self, q: float) -> float:
        """Return the latency that the share q of the requests stayed within, in milliseconds."""
        return self.milliseconds[min(len(self.milliseconds) - 1, int(q * len(self.milliseconds)))]


@dataclass(slots=True)
class _Asked:
    """A request on its way: its connection, when it was due, what of its answer is here."""

    connection: socket.socket
    due: float
    answer: bytes = b""


def _status(answer: bytes) -> int | None:
    """Return the status of an answer that is here whole, else None."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return None
    at = head.lower().index(b"content-length:") + 15
    return int(head[9:12]) if len(body) >= int(head[at:].split(b"\r\n", 1)[0]) else None


def _connected(host: str, port: int, poll: select.epoll) -> socket.socket:
    """Return a new connection that ``poll`` watches."""
    connection = socket.create_connection((host, port), _PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setblocking(False)
    poll.register(connection, select.EPOLLIN)
    return connection


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
    chance = random.Random(seed)
    moments = [chance.expovariate(rate)]
    while moments[-1] < seconds:
        moments.append(moments[-1] + chance.expovariate(rate))
    chosen = [requests[chance.randrange(len(requests))] for _ in moments]
    poll = select.epoll()
    idle: list[socket.socket] = []
    asked: dict[int, _Asked] = {}
    spent: list[float] = []
    bad = sent = 0
    started = time.perf_counter()
    while sent < len(moments) or (asked and time.perf_counter() - started < moments[-1] + _PATIENCE):
        now = time.perf_counter() - started
        while sent < len(moments) and moments[sent] <= now:
            due, request = moments[sent], chosen[sent]
            sent += 1
            try:
                connection = idle.pop() if idle else _connected(host, port, poll)
            except OSError:
                bad += 1
                continue
            asked[connection.fileno()] = _Asked(connection, due)
            with suppress(OSError):  # the other end is gone, which reading will tell
                connection.send(request)
        # epoll rounds what it waits up to whole milliseconds, which select does not.
        select.select([poll], [], [], max(0.0, moments[sent] - now) if sent < len(moments) else 1.0)
        for place, _ in poll.poll(0):
            one = asked.get(place)
            if one is None:  # an idle connection that the server closed
                gone = next(c for c in idle if c.fileno() == place)
                idle.remove(gone)
                poll.unregister(place)
                gone.close()
                continue
            try:
                part = one.connection.recv(65_536)
            except OSError:
                part = b""
            one.answer += part
            status = _status(one.answer) if part else 0
            if status is None:
                continue
            del asked[place]
            bad += status != 200
            if status:
                spent.append((time.perf_counter() - started - one.due) * 1e3)
                idle.append(one.connection)
            else:
                poll.unregister(place)
                one.connection.close()
    bad += len(asked)
    for connection in [*idle, *(one.connection for one in asked.values())]:
        connection.close()
    poll.close()
    return Load(rate, sorted(spent), bad)


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Return a whole POST request with a JSON body."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()] + [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body
