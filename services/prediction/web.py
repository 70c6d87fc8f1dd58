"""The HTTP part that every route shares: JSON in, JSON out, and one form for every error."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.prediction.auth import Headers, RefusedError
from services.prediction.bodies import read_json_body
from services.prediction.errors import body_of, status_of
from services.prediction.metrics import Metrics
from trellis.errors import RequestError, TrellisError

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]
Allow = Callable[[Scope], Headers]


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON; an answer never carries NaN."""
    return Response(to_json(value, inf_nan_mode="null"), status, headers, media_type="application/json")


def answered(handler: Handler, metrics: Metrics, known: Callable[[str], bool], allow: Allow) -> Handler:
    """Wrap a handler: every error becomes an answer of the one form, and every answer is counted.

    A model's name is counted only where it is ``known``, so that callers cannot make up label values. ``allow`` lets
    the request pass or raises, and gives headers for the answer.
    """

    async def wrapped(request: Request) -> Response:
        started = time.perf_counter()
        name = request.path_params.get("model", "")
        try:
            limits = allow(request.scope)
            response = await handler(request)
            response.raw_headers.extend(limits)
        except Exception as error:
            response = Response(*_failed(error, request.scope), media_type="application/json")
        metrics.answered(name if known(name) else "", response.status_code, time.perf_counter() - started)
        return response

    return wrapped


class JsonEndpoint:
    """A JSON body in, a JSON body out, straight over ASGI; errors and counts as ``answered`` has them.

    The predictions' way: Starlette's objects take about as long as scoring a row.

    Args:
        handler: Gets the scope (with ``path_params``) and the body, and returns the body of the answer.
        most: Largest body, in bytes.
        seconds: Longest time for a body to come.
        metrics: The counters.
        known: Whether a model's name may be counted.
        allow: Lets a request pass or raises, before its body is read; gives headers for the answer.
    """

    def __init__(
        self,
        handler: Callable[[Scope, bytes], Awaitable[bytes]],
        most: int,
        seconds: float,
        metrics: Metrics,
        known: Callable[[str], bool],
        allow: Allow,
    ) -> None:
        self._handler = handler
        self._most = most
        self._seconds = seconds
        self._metrics = metrics
        self._known = known
        self._allow = allow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        name = scope["path_params"]["model"]
        headers = [(b"content-type", b"application/json")]
        try:
            headers += self._allow(scope)
            body = await read_json_body(scope, receive, self._most, self._seconds)
            answer, status = await self._handler(scope, body), 200
        except Exception as error:
            answer, status, more = _failed(error, scope)
            headers += [(key.encode(), value.encode("latin-1")) for key, value in more.items()]
        headers.append((b"content-length", b"%d" % len(answer)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        self._metrics.answered(name if self._known(name) else "", status, time.perf_counter() - started)


def shortcut(app: ASGIApp, prefix: str, suffix: str, endpoint: ASGIApp) -> ASGIApp:
    """Hand POSTs to ``<prefix><model><suffix>`` to their endpoint without the router, which tries route after route."""
    begin, end = len(prefix), len(suffix)

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            path: str = scope["path"]
            name = path[begin:-end]
            if path.startswith(prefix) and path.endswith(suffix) and name and "/" not in name:
                scope["path_params"] = {"model": name}
                await endpoint(scope, receive, send)
                return
        await app(scope, receive, send)

    return front


def _failed(error: Exception, scope: Scope) -> tuple[bytes, int, dict[str, str]]:
    """Return body, status and headers of the answer to a request that failed."""
    if isinstance(error, ClientDisconnect):
        return b"", 400, {}
    if not isinstance(error, TrellisError):
        # A bug of ours, whatever the caller sent; the trace is in the log, not in the answer.
        logger.error("unexpected error on %s", scope["path"], exc_info=error)
        fault = TrellisError("The service met an error it does not know.", remedy="Report it with the time.")
        return to_json(body_of(fault)), 500, {}
    return _parts(error, v2=scope["path"].startswith("/v2"))


def _parts(error: TrellisError, *, v2: bool) -> tuple[bytes, int, dict[str, str]]:
    """Return an error's answer; the Open Inference Protocol wants a string, so the parts stand beside it there."""
    status, body = status_of(error), body_of(error)
    if status == 503:
        logger.warning("%s", error)
    if v2:
        parts = body["error"]
        place = f"{parts['field']}: " if parts["field"] else ""
        body = {"error": f"{place}{parts['reason']}. {parts['remedy']}", "detail": parts}
    headers = dict(error.headers) if isinstance(error, RefusedError) else {}
    if status == 408:
        headers["connection"] = "close"  # what is still to come of the body is nothing that could be answered
    if status == 503:
        headers["retry-after"] = str(getattr(error, "retry_after", 1))
    return to_json(body, inf_nan_mode="null"), status, headers


async def http_error(request: Request, error: Exception) -> Response:
    """Answer unknown paths and methods in the one form."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        problem = RequestError(
            "method", f"{request.method[:20]} is not allowed here", status=405, remedy=f"Use {allowed}. See /docs."
        )
    else:
        problem = RequestError(
            "path", f"{request.url.path[:200]} is not here", status=error.status_code, remedy="See /docs."
        )
    response = Response(*_parts(problem, v2=request.url.path.startswith("/v2")), media_type="application/json")
    response.headers.update(error.headers or {})
    return response
