"""How a body comes: at once, in parts, slowly, not at all; over a real socket."""

import json
import socket
import threading
import time

import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from services.prediction import bodies
from tests.services.conftest import World

PREDICT, INFER = "/v1/models/toy_linear/predict", "/v2/models/toy_linear/infer"
JSON = "content-type: application/json\r\n"
BINARY = "inference-header-content-length: 2\r\n"


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """A service that gives a request one second: its address and its world."""
    world = World(tmp_path_factory.mktemp("bodies"))
    world.limits.request_seconds = 1.0
    world.service.workers.close()
    world.service = world.make(CollectorRegistry())
    world.app = world.service.app()
    world.deploy(world.artifact("1"))
    server = uvicorn.Server(uvicorn.Config(world.app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname(), world
    server.should_exit = True
    thread.join(20)
    world.close()


def head(path, kind, length):
    return f"POST {path} HTTP/1.1\r\nhost: here\r\n{kind}content-length: {length}\r\n\r\n".encode()


def everything(caller):
    """Read until the other side closes; return status, headers and body."""
    heard = b""
    while part := caller.recv(65_536):
        heard += part
    top, _, body = heard.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), json.loads(body)


def drip(caller, parts, pause):
    for part in parts:
        try:
            caller.sendall(part)
        except OSError:
            return  # it was told already
        time.sleep(pause)


@pytest.mark.parametrize(("path", "kind"), [(PREDICT, JSON), (INFER, JSON), (INFER, BINARY)])
@pytest.mark.parametrize("parts", [[], [b'{"rows"'], [b"{"] * 50], ids=["nothing", "a part", "dripping"])
def test_a_body_that_does_not_come_is_waited_for_so_long_and_no_longer(impatient, path, kind, parts):
    address, _ = impatient
    with socket.create_connection(address, timeout=20) as caller:
        caller.sendall(head(path, kind, 1_000))
        dripping = threading.Thread(target=drip, args=(caller, parts, 0.1))
        dripping.start()
        status, headers, body = everything(caller)
        dripping.join()
    assert (status, headers["connection"]) == (408, "close")
    error = body["detail"] if path == INFER else body["error"]
    assert error == {
        "field": "",
        "reason": "the body was not there within 1 s",
        "remedy": "Send it again, and faster.",
    }


@pytest.mark.parametrize("split", [0, 1, 30])
def test_a_body_in_parts_is_read_whole(impatient, row, split):
    address, _ = impatient
    content = json.dumps({"rows": [row()]}).encode()
    with socket.create_connection(address, timeout=20) as caller:
        caller.sendall(head(PREDICT, f"{JSON}connection: close\r\n", len(content)))
        drip(caller, [content[:split], content[split:]], 0.1)
        status, _, body = everything(caller)
    assert (status, body["version"]) == (200, "1")


def test_a_caller_who_goes_while_its_body_is_awaited_costs_nothing(impatient, row):
    address, world = impatient
    with socket.create_connection(address, timeout=20) as caller:
        caller.sendall(head(PREDICT, JSON, 1_000))
        time.sleep(0.1)
    assert world.predict(row()).status_code == 200
    end = time.monotonic() + 10
    count = world.service.metrics._registry.get_sample_value
    # 408 where the machine was so busy that its time was over before it was heard that the caller had gone.
    while not any(count("trellis_requests_total", {"model": "toy_linear", "code": code}) for code in ("400", "408")):
        world.service.metrics.flush()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("size", "status"), [(100, 422), (20_000, 422), (20_001, 413)])
def test_no_clock_runs_for_a_body_that_is_there(shared_world, monkeypatch, size, status):
    def timeout(_seconds):
        raise AssertionError("a clock for nothing")

    monkeypatch.setattr(bodies.asyncio, "timeout", timeout)
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"{}" + b" " * (size - 2), "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": [(b"content-type", b"application/json")]}
    shared_world.runner.run(shared_world.app(scope, receive, send))
    assert sent[0]["status"] == status
