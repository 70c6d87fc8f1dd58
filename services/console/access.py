"""Who may read the pages, and what a browser may do with them."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.prediction.auth import Guard, Headers, RefusedError
from services.prediction.errors import UnavailableError

_REFRESH_SECONDS = 1.0
# Nothing but our own style sheet is loaded, nothing runs, nobody frames the page or takes a form from it.
SECURITY_HEADERS: Headers = (
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# A browser asks for a name and a password; the key is the password (RFC 7617), whatever the name.
_CHALLENGE = 'Basic realm="Trellis: any name, an API key with the scope read as password", charset="UTF-8"'


class Access:
    """Lets requests through that may read, and puts security headers on every answer.

    Args:
        app: What to protect.
        guard: Checks keys.
        refused: Makes the page that tells of a refusal, from status and text.
        public: Paths that need no key.
    """

    def __init__(
        self, app: ASGIApp, guard: Guard, refused: Callable[[int, str], Response], public: frozenset[str]
    ) -> None:
        self._app = app
        self._guard = guard
        self._refused = refused
        self._public = public
        self._read_at = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        secured = _with_headers(send, SECURITY_HEADERS)
        if scope["path"] in self._public:
            await self._app(scope, receive, secured)
            return
        try:
            await self._refresh()
            limits = self._guard.check({**scope, "headers": _as_bearer(scope["headers"])}, "read")
        except RefusedError as error:
            response = self._refused(error.status, f"{str(error).rstrip('.')}.")
            response.headers.update(error.headers)
            if error.status == 401:
                response.headers.append("www-authenticate", _CHALLENGE)
            await response(scope, receive, secured)
        except UnavailableError as error:
            await self._refused(503, str(error))(scope, receive, secured)
        else:
            await self._app(scope, receive, _with_headers(secured, limits))

    async def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._read_at >= _REFRESH_SECONDS:
            self._read_at = now
            await run_in_threadpool(self._guard.refresh)


def _as_bearer(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Turn a browser's Basic credentials into the bearer token that the guard knows."""
    return [(name, _bearer(value) if name == b"authorization" else value) for name, value in headers]


def _bearer(value: bytes) -> bytes:
    kind, _, rest = value.partition(b" ")
    if kind.lower() != b"basic":
        return value
    try:
        _, _, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return b""
    return b"Bearer " + password


def _with_headers(send: Send, headers: Headers) -> Callable[[Message], Awaitable[None]]:
    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return wrapped
