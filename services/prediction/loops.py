"""A worker's event loop: uvloop, but for how new connections are taken.

libuv accepts a single connection a turn since 1.45 (libuv/libuv#3696). In a turn a busy worker answers whatever has
come, a hundred requests at times; so where connections come faster than turns, the newest wait for seconds while those
that are known are answered within milliseconds. uvloop has no option for it, but it watches every socket it is given:
a worker that is alone gives it the listening one sixteen times.

Of several workers that share a socket the first one awake takes most of what comes at once, and answers those alone for
as long as the connections are kept. So each of these rests after a connection that it took, and leaves the next to the
others, as libuv did on request (``UV_TCP_SINGLE_ACCEPT``), for longer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn.config
import uvloop

# Set by whoever starts the workers; no setting, so it has not the settings' prefix.
WORKERS = "PREDICTION_WORKERS"
_LISTENERS = 16
_REST_SECONDS = 0.001
_FAULT_SECONDS = 0.1

logger = logging.getLogger(__name__)


def workers() -> int:
    """Return how many processes share the listening socket, this one among them."""
    return int(os.environ.get(WORKERS, "1"))


class Loop(uvloop.Loop):
    """uvloop with several accepts a turn, or in turns with other workers."""

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Any, *args: Any, sock: socket.socket | None = None, **options: Any
    ) -> asyncio.AbstractServer | Servers | InTurns:
        """Serve as ever; a socket that is given is listened on several times, or in turns with those who share it."""
        if sock is None:
            return await super().create_server(protocol_factory, *args, **options)
        if workers() > 1:
            return InTurns(self, protocol_factory, sock, **options)
        doors = [sock, *(sock.dup() for _ in range(_LISTENERS - 1))]
        return Servers(
            [await super(Loop, self).create_server(protocol_factory, sock=door, **options) for door in doors]
        )


class InTurns:
    """A server that rests after every connection it takes, so that others who listen on the same socket get as many.

    Args:
        loop: The running loop.
        protocol_factory: Makes a connection's protocol.
        door: The listening socket.
        backlog: Connections that may wait at it.
        ssl: As for ``create_server``.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Any,
        door: socket.socket,
        *,
        backlog: int = 100,
        ssl: Any = None,
    ) -> None:
        self._loop = loop
        self._factory = protocol_factory
        self._door = door
        self._ssl = ssl
        self._begun: set[asyncio.Task[Any]] = set()
        self._again: asyncio.TimerHandle | None = None
        door.setblocking(False)
        door.listen(backlog)
        self._open()

    def close(self) -> None:
        """Stop listening."""
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._door)
        self._door.close()

    async def wait_closed(self) -> None:
        """Wait for the connections that are being taken."""
        await asyncio.gather(*self._begun, return_exceptions=True)

    def _open(self) -> None:
        self._loop.add_reader(self._door, self._take)

    def _take(self) -> None:
        rest = _REST_SECONDS
        try:
            connection, _ = self._door.accept()
        except BlockingIOError:
            return  # another worker was quicker
        except OSError as error:
            logger.warning("a connection could not be taken: %s", error)
            rest = _FAULT_SECONDS
        else:
            connection.setblocking(False)
            taken = self._loop.connect_accepted_socket(self._factory, connection, ssl=self._ssl)
            task = self._loop.create_task(taken)
            self._begun.add(task)
            task.add_done_callback(self._begun.discard)
        self._loop.remove_reader(self._door)
        self._again = self._loop.call_later(rest, self._open)


class Servers:
    """Several servers that are closed as one, which is all that uvicorn does with what it gets."""

    def __init__(self, servers: Sequence[asyncio.AbstractServer]) -> None:
        self._servers = servers

    def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()

    async def wait_closed(self) -> None:
        """Wait until all are closed."""
        for server in self._servers:
            await server.wait_closed()


def factory(use_subprocess: bool = False) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the loop, as uvicorn asks for it."""
    del use_subprocess
    return Loop


def use() -> None:
    """Have uvicorn take this loop where it would choose one; BentoML, which starts it, has no option for another."""
    uvicorn.config.LOOP_FACTORIES["auto"] = f"{__name__}:factory"
