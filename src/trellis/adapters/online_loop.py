"""Redis on an event loop: one connection that all requests share, without a thread and without one waiting for another.

A request whose features are read in a thread of its own is handed over and back, which costs more processor time than
the read. Here its command goes out with those of the other requests of the same turn of the loop and the answers come
back in their order (pipelining, which Redis' protocol promises). What hangs is given up by the clock, as in a thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

from hiredis import HiredisError, Reader

from trellis.adapters.online_redis import Circuit, pack

# What a connection needs that is opened here; with anything else (TLS, a cluster) the client has to do it, in a thread.
_KNOWN = {"host", "port", "db", "username", "password", "socket_timeout", "socket_connect_timeout"}


def can_ask(options: Mapping[str, Any]) -> bool:
    """Tell whether a connection with these of the client's options can be opened here."""
    return set(options) <= _KNOWN


class _Question:
    """Some commands and what has come back so far; without ``answer`` it is a connection's introduction."""

    __slots__ = ("answer", "asked_at", "commands", "count", "replies", "tries")

    def __init__(
        self, commands: bytes, count: int, asked_at: float, answer: asyncio.Future[list[Any]] | None = None
    ) -> None:
        self.commands = commands
        self.count = count
        self.answer = answer
        self.asked_at = asked_at
        self.replies: list[Any] = []
        self.tries = 0

    def lose(self, why: str, *, late: bool = False) -> None:
        from redis.exceptions import ConnectionError as AwayError
        from redis.exceptions import TimeoutError as LateError

        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(LateError(why) if late else AwayError(why))


class _Wire(asyncio.Protocol):
    """One connection; it tells its owner, who may have given it up meanwhile."""

    def __init__(self, owner: LoopRedis) -> None:
        self._owner = owner
        self.reader = Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self._owner._opened(self)

    def data_received(self, data: bytes) -> None:
        self._owner._received(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner._closed(self, error)


class LoopRedis:
    """A connection that is opened with the first question, and again after it has closed.

    Args:
        options: The client's, see ``can_ask``.
        circuit: Whether Redis is to be asked; shared with those who ask from threads.
    """

    def __init__(self, options: Mapping[str, Any], circuit: Circuit) -> None:
        self._options = options
        self._circuit = circuit
        self._seconds = float(options.get("socket_timeout") or 1.0)
        self._begin(None)

    def _begin(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop: Any = loop
        self._wire: _Wire | None = None
        self._opening: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._unsent: list[_Question] = []
        self._sent: deque[_Question] = deque()

    async def ask(self, commands: bytes, count: int) -> list[Any]:
        """Send packed commands and return their answers.

        Raises:
            redis.exceptions.RedisError: Redis does not answer, answers with an error, or did not answer a moment ago.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # a connection belongs to the loop that it was opened on
            self._begin(loop)
        is_trial = self._circuit.enter()
        failed: bool | None = True
        try:
            replies = await self._put(loop, commands, count)
            failed = False
        except asyncio.CancelledError:
            failed = None  # the caller has gone; of Redis nothing is known
            raise
        finally:
            self._circuit.leave(failed=failed, is_trial=is_trial)
        for reply in replies:
            if isinstance(reply, Exception):
                from redis.exceptions import ResponseError

                raise ResponseError(str(reply))
        return replies

    def close(self) -> None:
        """Close the connection; questions under way fail. Call it on the loop that asked, or when that has ended."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._loop is not None and not self._loop.is_closed():
            if self._opening is not None:
                self._opening.cancel()
            self._give_up("The connection to Redis was closed.")

    def _put(self, loop: asyncio.AbstractEventLoop, commands: bytes, count: int) -> asyncio.Future[list[Any]]:
        answer: asyncio.Future[list[Any]] = loop.create_future()
        if self._wire is None:
            self._open_soon()
        elif not self._unsent:
            loop.call_soon(self._send)  # with whatever else is asked in this turn
        self._unsent.append(_Question(commands, count, loop.time(), answer))
        if self._watch is None:
            self._watch = loop.call_later(self._seconds, self._look)
        return answer

    def _open_soon(self) -> None:
        if self._opening is None:
            self._opening = self._loop.create_task(self._open())

    async def _open(self) -> None:
        options = self._options
        try:
            async with asyncio.timeout(float(options.get("socket_connect_timeout") or 1.0)):
                await self._loop.create_connection(lambda: _Wire(self), options["host"], options["port"])
        except OSError as error:  # a timeout is one as well
            self._give_up(f"Redis cannot be reached: {error or 'it took too long'}.")
        finally:
            self._opening = None

    def _opened(self, wire: _Wire) -> None:
        """Introduce ourselves, then send what waits."""
        self._wire = wire
        options, first = self._options, []
        if options.get("password") is not None:
            user = [options["username"]] if options.get("username") else []
            first.append(pack("AUTH", *user, options["password"]))
        if options.get("db"):
            first.append(pack("SELECT", str(options["db"])))
        if first:
            self._unsent.insert(0, _Question(b"".join(first), len(first), self._loop.time()))
        self._send()

    def _send(self) -> None:
        if self._wire is not None and self._unsent:
            questions, self._unsent = self._unsent, []
            self._sent.extend(questions)
            self._wire.transport.write(b"".join([question.commands for question in questions]))

    def _received(self, wire: _Wire, data: bytes) -> None:
        """Hand the answers to who asked, in the order of the questions."""
        if wire is not self._wire:
            return
        sent, next_reply = self._sent, wire.reader.gets
        try:
            wire.reader.feed(data)
            while sent:
                question = sent[0]
                replies = question.replies
                while len(replies) < question.count:
                    reply = next_reply()
                    if reply is False:
                        return
                    replies.append(reply)
                if question.answer is None:
                    # In another database, or unknown, everything asked after it would be answered wrongly.
                    refused = [reply for reply in replies if isinstance(reply, Exception)]
                    if refused:
                        self._give_up(f"Redis refuses the connection: {refused[0]}.")
                        return
                elif not question.answer.done():
                    question.answer.set_result(replies)
                sent.popleft()
        except HiredisError as error:  # whatever is at the other end, it is no Redis
            self._give_up(f"Redis answers something else: {error}.")

    def _closed(self, wire: _Wire, error: Exception | None) -> None:
        """Ask once more what a closed connection left open; a server closes one that was quiet for long."""
        if wire is not self._wire:
            return
        self._wire = None
        again = []
        for question in self._sent:
            if question.tries:
                question.lose(f"Redis closed the connection: {error}.")
            elif question.answer is not None:
                question.tries, question.replies = 1, []
                again.append(question)
        self._sent.clear()
        self._unsent = again + self._unsent
        if self._unsent:
            self._open_soon()

    def _look(self) -> None:
        """Give up where the oldest question has waited too long."""
        self._watch = None
        waiting = [*self._sent, *self._unsent]
        if not waiting:
            return
        left = min(question.asked_at for question in waiting) + self._seconds - self._loop.time()
        if left <= 0:
            self._give_up("Redis did not answer in time.", late=True)
        else:
            self._watch = self._loop.call_later(left + 0.001, self._look)

    def _give_up(self, why: str, *, late: bool = False) -> None:
        """Close the connection and fail what waits: an answer that came later would be taken for another question's."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.transport.abort()
        waiting = [*self._sent, *self._unsent]
        self._sent.clear()
        self._unsent = []
        for question in waiting:
            question.lose(why, late=late)
