"""A load of single rows over kept-alive connections, every answer noted with its moment; runs beside the harm done.

Connections are opened anew every so often, or the workers of a service would each keep those that they happened to get.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# A connection that breaks while the request is on its way: the caller does not know whether it was taken.
_BROKEN = (ConnectionError, asyncio.IncompleteReadError, OSError)


@dataclass
class Answer:
    """One answer.

    Attributes:
        sent, received: Seconds of ``time.monotonic``.
        status: HTTP status.
        id: Prediction id; empty where nothing was predicted.
        version: Which version answered.
        degraded, fallback: Whether the answer says so.
    """

    sent: float
    received: float
    status: int
    id: str
    version: str
    degraded: bool
    fallback: bool
    text: str = ""


@dataclass
class Load:
    """Closed-loop callers, each with one connection; a context manager.

    Attributes:
        port: Of the service on loopback.
        model: Asked for predictions.
        row: Makes a row from a random source.
        callers: How many.
        pause: Seconds that a caller waits after each answer.
        per_connection: Requests after which a caller opens a new connection.
        tag: Start of every request id.
    """

    port: int
    model: str = "plain"
    row: Callable[[random.Random], dict[str, Any]] = lambda draw: {"x": round(draw.random(), 4)}
    callers: int = 16
    pause: float = 0.01
    per_connection: int = 200
    tag: str = "load"
    answers: list[Answer] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def failed(self) -> list[Answer]:
        """Answers that were no success."""
        return [a for a in self.answers if a.status != 200]

    async def _run(self) -> None:
        await asyncio.gather(*(self._caller(i) for i in range(self.callers)))

    async def _caller(self, number: int) -> None:
        draw, count = random.Random(number), 0
        while not self._stop.is_set():
            writer = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                for _ in range(self.per_connection):
                    count += 1
                    await self._ask(reader, writer, f"{self.tag}-{number}-{count}", self.row(draw))
                    if self._stop.is_set():
                        break
                    await asyncio.sleep(self.pause)
            except _BROKEN as error:
                self.broken[type(error).__name__] += 1
                await asyncio.sleep(0.02)
            finally:
                if writer is not None:
                    writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str, row: dict[str, Any]
    ) -> None:
        body = json.dumps({"rows": [row], "id": key}).encode()
        head = f"POST /v1/models/{self.model}/predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        sent = time.monotonic()
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        header = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(header.partition("content-length:")[2].partition("\r\n")[0])
        text = await reader.readexactly(length)
        received, status = time.monotonic(), int(header.split(" ", 2)[1])
        if status != 200:
            self.answers.append(Answer(sent, received, status, "", "", False, False, text.decode()[:300]))
            return
        told = json.loads(text)
        [one] = told["predictions"]
        mark = "degraded" in one
        self.answers.append(Answer(sent, received, 200, one["id"], one["version"], mark, "fallback" in told))
