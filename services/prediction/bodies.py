"""Reading a request's body: JSON alone, up to a limit, and no longer than a request may take."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from trellis.errors import RequestError


async def read_json_body(scope: Scope, receive: Receive, most: int, seconds: float) -> bytes:
    """Read a JSON body.

    Args:
        scope: The request's, for its headers.
        receive: Gives the body's parts.
        most: Largest body, in bytes.
        seconds: Longest time for all of it.

    Raises:
        RequestError: Its content type is another one (415), it is larger (413), or took longer (408).
        ClientDisconnect: The caller has gone.
    """
    content_type, encoding, length = b"", b"", b"0"
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        elif name == b"content-length":
            length = value
        elif name == b"content-encoding":
            encoding = value or b"none"
    if encoding or (
        content_type != b"application/json" and content_type.partition(b";")[0].strip().lower() != b"application/json"
    ):
        # Nothing else is ever parsed: in particular no pickle, and no compressed body that unpacks without end.
        given = (encoding or content_type or b"none").decode("latin-1")
        raise RequestError(
            "content-type", f"{given[:100]!r} is not taken", status=415, remedy="Send plain application/json, in UTF-8."
        )
    if length.isdigit() and int(length[:20]) > most:
        raise _too_large(most)
    # Most bodies have come whole by now. A clock costs twenty times as much as fetching one that is there, so it runs
    # only where the first step has to wait or something is still to come.
    steps = receive().__await__()
    try:
        message = _rest(next(steps), steps)
    except StopIteration as there:
        body, more = _with(b"", there.value, most)
        if not more:
            return body
        message = receive()
    else:
        body = b""
    try:
        async with asyncio.timeout(seconds):
            while True:
                body, more = _with(body, await message, most)
                if not more:
                    return body
                message = receive()
    except TimeoutError:
        raise RequestError(
            "", f"the body was not there within {seconds:g} s", status=408, remedy="Send it again, and faster."
        ) from None


def _with(body: bytes, message: Message, most: int) -> tuple[bytes, bool]:
    """Return the body with one more part, and whether there are others."""
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    body += message.get("body", b"")
    if len(body) > most:
        raise _too_large(most)
    return body, message.get("more_body", False)


@coroutine
def _rest(pause: Any, steps: Generator[Any, Any, Message]) -> Generator[Any, Any, Message]:
    """Wait for what an awaitable waits for that has taken its first step, and then take the others."""
    try:
        yield pause
    except BaseException:
        steps.close()
        raise
    return (yield from steps)


def _too_large(most: int) -> RequestError:
    return RequestError("", f"the body is larger than {most} bytes", status=413, remedy="Send fewer rows at a time.")
