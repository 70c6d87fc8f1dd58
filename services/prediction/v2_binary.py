"""The binary tensor data extension of the Open Inference Protocol, which its common client speaks unless told not to.

Source: ``extension_binary_data.md`` of Triton's protocol documentation. A request may carry tensors behind its JSON,
whose length ``Inference-Header-Content-Length`` gives; an answer does so where it was asked to. Here both are turned
into and out of the plain JSON form, around the handler, which knows nothing of it: the endpoint has checked the key and
read the body by then. In a binary tensor a NaN stands for a missing value, as it has no null. That client also sends no
content type, which here then means JSON.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trellis.errors import RequestError

_LENGTH = b"inference-header-content-length"
_DIGITS = 20  # of a length; int() refuses thousands of them with an error of its own
_JSON = (b"content-type", b"application/json")
# Where the scope keeps the length of a binary body's JSON, and the request as plain JSON.
_BINARY, _REQUEST = "trellis.binary", "trellis.request"
_DTYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BOOL": "?", "INT8": "i1", "UINT8": "u1"}
_DTYPES |= {
    f"{sign}INT{bits}": f"<{code}{bits // 8}" for sign, code in (("", "i"), ("U", "u")) for bits in (16, 32, 64)
}

Handler = Callable[[Scope, bytes], Awaitable[bytes]]


class BinaryTensors:
    """An endpoint that speaks the extension as well as plain JSON.

    Args:
        make: Makes an endpoint of JSON from a handler.
        handler: Answers plain JSON.
    """

    def __init__(self, make: Callable[[Handler], ASGIApp], handler: Handler) -> None:
        self._handler = handler
        self._endpoint = make(self._answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type")
        if _LENGTH in headers and kind in (None, b"application/octet-stream"):
            scope[_BINARY] = headers[_LENGTH]
            scope["headers"] = [*(h for h in scope["headers"] if h[0] != b"content-type"), _JSON]
        elif kind is None:
            scope["headers"] = [*scope["headers"], _JSON]
        started: Message = {}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
                return
            body = message["body"]
            if started["status"] == 200 and b'"binary_data' in scope[_REQUEST]:
                body, length = to_binary(scope[_REQUEST], body)
                if length is not None:
                    others = [h for h in started["headers"] if h[0] not in (b"content-type", b"content-length")]
                    told = [(b"content-length", b"%d" % len(body)), (_LENGTH, b"%d" % length)]
                    started["headers"] = [(b"content-type", b"application/octet-stream"), *told, *others]
            await send(started)
            await send({**message, "body": body})

        await self._endpoint(scope, receive, answer)

    async def _answer(self, scope: Scope, body: bytes) -> bytes:
        scope[_REQUEST] = request = from_binary(body, scope[_BINARY]) if _BINARY in scope else body
        return await self._handler(scope, request)


def from_binary(raw: bytes, length: bytes) -> bytes:
    """Turn a body with binary tensors into plain JSON.

    Raises:
        RequestError: The lengths do not agree with the body, or a tensor's bytes with its datatype.
    """
    if not length.isdigit() or len(length) > _DIGITS or int(length) > len(raw):
        raise RequestError("inference-header-content-length", "is not within the body", status=400)
    end = int(length)
    try:
        request = from_json(raw[:end])
        tensors = [tensor for tensor in request["inputs"] if isinstance(tensor, dict)]
    except (ValueError, KeyError, TypeError):
        return raw[:end]  # the endpoint says what is wrong with it
    for i, tensor in enumerate(tensors):
        given = tensor.get("parameters")
        parameters = given if isinstance(given, dict) else {}
        size = parameters.get("binary_data_size")
        if size is None:
            continue
        place = f"inputs.{i}"
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(raw) - end or "data" in tensor:
            raise RequestError(f"{place}.parameters.binary_data_size", "does not agree with the body", status=400)
        tensor["data"] = _numbers(raw[end : end + size], tensor.get("datatype"), place)
        tensor["parameters"] = {k: v for k, v in parameters.items() if k != "binary_data_size"}
        end += size
    if end != len(raw):
        raise RequestError("inputs", f"{len(raw) - end} bytes behind the tensors belong to none", status=400)
    # Infinity stays the bare token, which the endpoint refuses with the field's name.
    return to_json(request, inf_nan_mode="constants")


def to_binary(request: bytes, answer: bytes) -> tuple[bytes, int | None]:
    """Put the tensors that a request wants in binary behind the answer's JSON; also return that JSON's length.

    Where none is wanted the answer stays as it is and the length is None.
    """
    asked, given = from_json(request), from_json(answer)
    everything = (asked.get("parameters") or {}).get("binary_data_output") is True
    wanted = {o["name"]: (o.get("parameters") or {}).get("binary_data", everything) for o in asked.get("outputs") or []}
    parts = []
    for tensor in given["outputs"]:
        if wanted.get(tensor["name"], everything and not wanted) is True:
            part = _bytes(tensor.pop("data"), tensor["datatype"])
            tensor["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
    if not parts:
        return answer, None
    head = to_json(given)
    return b"".join([head, *parts]), len(head)


def _numbers(data: bytes, datatype: Any, place: str) -> list[Any]:
    """Read a tensor's values, in row-major order."""
    if datatype == "BYTES":
        values, position = [], 0
        try:
            while position < len(data):
                (size,) = struct.unpack_from("<I", data, position)
                position += 4 + size
                if position > len(data):
                    raise ValueError("a string reaches behind the tensor")
                values.append(data[position - size : position].decode())
        except (struct.error, ValueError) as error:
            raise RequestError(f"{place}.data", f"is no list of UTF-8 strings: {error}", status=400) from None
        return values
    dtype = np.dtype(_DTYPES[datatype]) if isinstance(datatype, str) and datatype in _DTYPES else None
    if dtype is None or len(data) % dtype.itemsize:
        # An unknown datatype is the endpoint's to refuse, which it does before it looks at the values.
        if dtype is None:
            return []
        raise RequestError(f"{place}.data", f"has {len(data)} bytes, no multiple of {dtype.itemsize}", status=400)
    values = np.frombuffer(data, dtype).tolist()
    return [None if isinstance(v, float) and math.isnan(v) else v for v in values] if dtype.kind == "f" else values


def _bytes(values: list[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.array(values, _DTYPES[datatype]).tobytes()
