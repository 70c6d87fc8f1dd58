"""Callers of the prediction API: what they asked, what was acknowledged, what failed, and when."""

import http.client
import json
import threading
import time
from dataclasses import dataclass, field

MODEL = "toy_binary"


@dataclass
class Tally:
    """Of some callers.

    ``failed`` counts attempts that got no good answer; ``given_up`` what stayed without one after asking again for
    ``PATIENCE`` seconds under the same id, as ``trellis.client`` does.
    """

    asked: int = 0
    failed: int = 0
    given_up: int = 0
    acknowledged: list[str] = field(default_factory=list)
    labelled: list[str] = field(default_factory=list)
    why: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    reopened: int = 0


PATIENCE = 15.0


class Load:
    """A few callers, each over one connection, until stopped; every tenth prediction gets its label."""

    def __init__(self, port: int, key: str, name: str, callers: int = 4, pause: float = 0.03):
        self._port, self._key, self._name, self._pause = port, key, name, pause
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.tally = Tally()
        self._threads = [threading.Thread(target=self._call, args=(i,)) for i in range(callers)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, caller: int):
        with Post(self._port, self._key) as post:
            self._go_on(caller, post)
            with self._lock:
                self.tally.reopened += post.reopened

    def _go_on(self, caller: int, post: "Post"):
        number = 0
        while not self._stop.is_set():
            number += 1
            at = f"2013-06-01T{number % 24:02d}:{number % 60:02d}:00Z"
            name = f"{self._name}-{caller}-{number}"
            row = {"x": (number % 200) / 50 - 2, "z": "ab"[number % 2], "at": at}
            if self._ask(post, "predict", {"id": name, "rows": [row]}):
                with self._lock:
                    self.tally.acknowledged.append(f"{name}#0")
                if number % 10 == 0:
                    label = {"id": f"{name}#0", "value": 1, "observed_at": "2013-06-03T00:00:00Z"}
                    if self._ask(post, "labels", {"labels": [label]}):
                        with self._lock:
                            self.tally.labelled.append(f"{name}#0")
            self._stop.wait(self._pause)

    def _ask(self, post, verb, body) -> bool:
        began = time.monotonic()
        with self._lock:
            self.tally.asked += 1
        while True:
            started = time.monotonic()
            why = post(f"/v1/models/{MODEL}/{verb}", body)[0]
            with self._lock:
                self.tally.seconds.append(time.monotonic() - started)
                if why == "200":
                    return True
                self.tally.failed += 1
                self.tally.why[why] = self.tally.why.get(why, 0) + 1
                if time.monotonic() - began > PATIENCE:
                    self.tally.given_up += 1
                    return False
            time.sleep(0.2)


class Post:
    """One connection that comes back; closed at the end of a with statement.

    A kept connection that the other end has closed meanwhile is opened anew, once and at once, as HTTP clients do
    (RFC 9112, 9.3.1; the request's id makes that safe); ``reopened`` counts it.
    """

    reopened = 0

    def __init__(self, port: int, key: str):
        self._port, self._headers = port, {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._connection = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def __call__(self, path: str, body) -> tuple[str, dict]:
        kept = self._connection is not None
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            self._connection.request("POST", path, json.dumps(body), self._headers)
            response = self._connection.getresponse()
            text = response.read()
            return str(response.status), json.loads(text) if response.status == 200 else {"text": text.decode()[:300]}
        except (OSError, http.client.HTTPException) as error:
            self.__exit__()
            if kept and isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
                self.reopened += 1
                return self(path, body)
            return type(error).__name__, {}
