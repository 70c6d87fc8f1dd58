"""The HTTP part that every route shares: bodies with a limit, JSON answers, and one form for every error."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from services.prediction.errors import body_of, status_of
from services.prediction.metrics import Metrics
from trellis.errors import RequestError, TrellisError

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON; an answer never carries NaN."""
    return Response(to_json(value, inf_nan_mode="null"), status, headers, media_type="application/json")


async def read_json_body(request: Request, most: int) -> bytes:
    """Read a JSON body.

    Raises:
        RequestError: Its content type is another one (415), or it is larger than ``most`` bytes (413).
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" or "content-encoding" in request.headers:
        # Nothing else is ever parsed: in particular no pickle, and no compressed body that unpacks without end.
        given = request.headers.get("content-encoding") or content_type or "none"
        raise RequestError(
            "content-type", f"{given[:100]!r} is not taken", status=415, remedy="Send plain application/json, in UTF-8."
        )
    too_large = RequestError(
        "", f"the body is larger than {most} bytes", status=413, remedy="Send fewer rows at a time."
    )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > most:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)


def answered(handler: Handler, metrics: Metrics, known: Callable[[str], bool]) -> Handler:
    """Wrap a handler: every error becomes an answer of the one form, and every answer is counted.

    A model's name is counted only where it is ``known``, so that callers cannot make up label values.
    """

    async def wrapped(request: Request) -> Response:
        started = time.perf_counter()
        name = request.path_params.get("model", "")
        model = name if known(name) else ""
        try:
            response = await handler(request)
        except ClientDisconnect:
            response = Response(status_code=400)
        except TrellisError as error:
            response = error_response(error, v2=request.url.path.startswith("/v2"))
        except Exception:
            # A bug of ours, whatever the caller sent; the trace is in the log, not in the answer.
            logger.exception("unexpected error on %s", request.url.path)
            fault = TrellisError("The service met an error it does not know.", remedy="Report it with the time.")
            response = json_response(body_of(fault), 500)
        metrics.requests.labels(model, str(response.status_code)).inc()
        metrics.request_seconds.labels(model).observe(time.perf_counter() - started)
        return response

    return wrapped


def error_response(error: TrellisError, *, v2: bool = False) -> Response:
    """Answer with an error; the Open Inference Protocol wants a string, so the parts stand beside it there."""
    status, body = status_of(error), body_of(error)
    if status == 503:
        logger.warning("%s", error)
    if v2:
        parts = body["error"]
        place = f"{parts['field']}: " if parts["field"] else ""
        body = {"error": f"{place}{parts['reason']}. {parts['remedy']}", "detail": parts}
    return json_response(body, status, {"retry-after": "1"} if status == 503 else None)


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
    response = error_response(problem, v2=request.url.path.startswith("/v2"))
    response.headers.update(error.headers or {})
    return response
