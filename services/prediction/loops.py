"""A worker's event loop: uvloop, which takes several new connections in each of its turns instead of one.

libuv accepts a single connection a turn since 1.45 (libuv/libuv#3696). In a turn a busy worker answers whatever has
come, a hundred requests at times; so where connections come faster than turns, the newest wait for seconds while those
that are known are answered within milliseconds. uvloop has no option for it, but it watches every socket it is given:
it gets the listening one sixteen times. Only a worker that is alone does so: of several that share a socket the first
one awake would take all that come at once, while one at a time spreads them.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn.config
import uvloop

# Set by whoever starts the workers; no setting, so it has not the settings' prefix.
WORKERS = "PREDICTION_WORKERS"
_LISTENERS = 16


class Loop(uvloop.Loop):
    """uvloop with several accepts a turn."""

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Any, *args: Any, sock: socket.socket | None = None, **options: Any
    ) -> asyncio.AbstractServer | Servers:
        """Serve as ever; a socket that is given is listened on several times."""
        if sock is None:
            return await super().create_server(protocol_factory, *args, **options)
        count = _LISTENERS if os.environ.get(WORKERS, "1") == "1" else 1
        doors = [sock, *(sock.dup() for _ in range(count - 1))]
        return Servers(
            [await super(Loop, self).create_server(protocol_factory, sock=door, **options) for door in doors]
        )


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
