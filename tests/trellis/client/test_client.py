"""The client against the real service on a real socket, with faults put in between."""

import contextlib
import socket
import struct
import threading
import time
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from services.prediction.app import PredictionService
from services.prediction.metrics import Metrics
from trellis import client as module
from trellis.adapters.plan_store import PlanStore
from trellis.adapters.prediction_log import read_labels, read_predictions
from trellis.artifact import seal
from trellis.catalog import Catalogue
from trellis.client import Client, Fallback, Label
from trellis.errors import ConfigError, RequestError, UnavailableError, UnknownModelError
from trellis.rollout.plan import Variant, first_plan
from trellis.settings import Settings

PLUGIN = """
import json
import numpy as np
from trellis.contract import Dataset, Field, Metric, ModelPlugin, ModelSpec, Predictor, Target

class Half(Predictor):
    def predict(self, batch):
        if (batch["x"] == 13).any():
            raise ValueError("thirteen")
        return {"value": batch["x"] / 2}
    def save(self, directory):
        (directory / "half.json").write_text("{}")

class Plugin(ModelPlugin):
    spec = ModelSpec(
        name="half", version="1.0", task="regression", owner="tests", description="Half of x.",
        request=(Field("x", "float", nullable=False, maximum=100.0), Field("at", "timestamp", nullable=True)),
        inputs=("x",), outputs=(Field("value", "float"),), target=Target("y", "Half of x."), metric=Metric("mae", 1.0),
        default={"value": -1.0},
    )
    def train(self, data, run):
        return Half()
    def load(self, directory):
        return Half()
    def sample(self, rows):
        x = np.arange(rows, dtype=float)
        return Dataset({"x": x, "at": np.full(rows, "2013-07-01", "datetime64[us]")}, x / 2, x.astype(str))

plugin = Plugin()
"""


class Proxy:
    """Hands connections on to the service, and spoils one per entry of ``faults``.

    ``refuse`` resets before the request reaches the service, ``lose`` lets it be answered and resets instead of handing
    the answer back, ``busy`` answers 503 itself, and ``hang`` hands nothing back.
    """

    def __init__(self, upstream):
        self.upstream, self.faults, self.seen = upstream, [], []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with connection, socket.create_connection(self.upstream) as service, contextlib.suppress(OSError):
            while request := self.message(connection):
                self.seen.append(request)
                fault = self.faults.pop(0) if self.faults else None
                if fault == "refuse":
                    return self.reset(connection)
                if fault and fault.startswith("busy"):
                    after = fault.partition(" ")[2]
                    head = f"retry-after: {after}\r\n" if after else ""
                    connection.sendall(f"HTTP/1.1 503 x\r\n{head}content-length: 0\r\n\r\n".encode())
                    continue
                service.sendall(request)
                answer = self.message(service)
                if fault == "lose":
                    return self.reset(connection)
                if fault == "hang":
                    time.sleep(1.5)
                    return None
                connection.sendall(answer)
        return None

    @staticmethod
    def message(stream):
        data = b""
        while b"\r\n\r\n" not in data:
            part = stream.recv(65536)
            if not part:
                return b""
            data += part
        head = data.partition(b"\r\n\r\n")[0].lower()
        length = next((int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.startswith(b"content-length")), 0)
        while len(data) < len(head) + 4 + length:
            data += stream.recv(65536)
        return data

    @staticmethod
    def reset(connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "models" / "half").mkdir(parents=True)
    (home / "models" / "half" / "__init__.py").write_text(PLUGIN)
    artifact = home / "artifact"
    artifact.mkdir()
    (artifact / "half.json").write_text("{}")
    manifest = seal(
        artifact, model="half", plugin_version="1.0", recipe="default", seed=0, inputs=("x",), outputs=("value",)
    )
    plans = PlanStore(f"sqlite:///{home}/trellis.db")
    champion = Variant("3", "champion", 1.0, str(artifact), manifest.digest)
    plans.save(first_plan("half", champion, salt="s"), expected_revision=0, who="test", why="test")
    settings = Settings(home=home, flush_seconds=0.0)
    catalogue = Catalogue([home / "models"], entry_points=False)
    made = PredictionService(home, settings, plans, catalogue, None, Metrics(CollectorRegistry()))
    made.models.poll()
    made.start()
    server = uvicorn.Server(uvicorn.Config(made.app(), host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    yield home, server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(10)
    made.stop()
    plans.close()


@pytest.fixture
def waits(monkeypatch):
    """Return the waits between tries, none of them waited for."""
    taken = []
    monkeypatch.setattr(module.time, "sleep", taken.append)
    return taken


@pytest.fixture
def proxy(service):
    proxy = Proxy(service[1])
    yield proxy
    proxy.listener.close()


@pytest.fixture
def client(proxy):
    with Client(proxy.url, timeout=1.0, backoff=0.01) as client:
        yield client


def logged(service, request_id):
    frame = read_predictions(service[0], "half")
    return frame[frame["id"].str.startswith(request_id + "#")] if len(frame) else frame


def test_what_answered_in_a_versions_place_is_told(client):
    answer = client.predict("half", [{"x": 13.0}])
    assert answer.fallback == (Fallback("default", "version 3 failed, and no other is held"),)
    assert (answer.predictions[0].outputs, answer.predictions[0].version) == ({"value": -1.0}, "default")


def test_predict_label_models_ready(client, service):
    assert client.ready()
    info = client.models()[0]
    assert (info.name, info.version, info.task, info.revision) == ("half", "3", "regression", 1)
    answer = client.predict("half", [{"x": 3.0}, {"x": np.float32(5)}])
    assert (answer.model, answer.version, answer.variant, answer.revision) == ("half", "3", "champion", 1)
    assert [p.outputs for p in answer.predictions] == [{"value": 1.5}, {"value": 2.5}]
    assert [p.id for p in answer.predictions] == [f"{answer.request_id}#0", f"{answer.request_id}#1"]
    assert all((p.version, p.variant, p.degraded) == ("3", "champion", ()) for p in answer.predictions)
    truth = [Label(p.id, 2.0, datetime(2013, 7, 2, tzinfo=UTC)) for p in answer.predictions]
    assert client.label("half", truth) == 2
    assert {p.id for p in answer.predictions} <= set(read_labels(service[0], "half")["id"])
    assert answer.fallback == ()
    assert len({answer.request_id, client.predict("half", [{"x": 1}]).request_id}) == 2


@pytest.mark.parametrize(
    "faults", [["refuse"], ["lose"], ["busy"], ["refuse", "lose", "busy"], ["lose", "lose", "lose"]]
)
def test_a_retry_answers_and_logs_once(client, proxy, service, waits, faults):
    proxy.faults = list(faults)
    answer = client.predict("half", [{"x": 8}, {"x": 9}])
    assert [p.outputs["value"] for p in answer.predictions] == [4.0, 4.5]
    assert sorted(logged(service, answer.request_id)["id"]) == [p.id for p in answer.predictions]
    assert len(waits) == len(faults)
    bodies = {request.partition(b"\r\n\r\n")[2] for request in proxy.seen}
    assert len(bodies) == 1, "every try sends the same id and rows"


def test_a_lost_answer_of_the_labels_is_asked_for_again(client, proxy, service, waits):
    answer = client.predict("half", [{"x": 8}])
    proxy.faults = ["lose"]
    assert client.label("half", [Label(answer.predictions[0].id, 4.0, datetime(2013, 7, 2, tzinfo=UTC))]) == 1
    found = read_labels(service[0], "half")
    assert (found["id"] == answer.predictions[0].id).sum() in (1, 2)  # the ledger takes the same truth once


def test_a_service_that_hangs_is_given_up_and_asked_again(proxy, service):
    proxy.faults = ["hang"]
    with Client(proxy.url, timeout=0.3, backoff=0.001) as client:
        answer = client.predict("half", [{"x": 8}])
    assert len(logged(service, answer.request_id)) == 1


def test_retry_after_is_respected(client, proxy, waits):
    proxy.faults = ["busy 7", "busy 2"]
    client.predict("half", [{"x": 8}])
    assert waits == [7.0, 2.0]
    assert module._retry_after({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}) > 1e9
    assert module._retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert module._retry_after({"retry-after": "soon"}) == 0
    assert module._retry_after({}) == 0


def test_waits_grow_and_vary(proxy, waits):
    with Client(proxy.url, backoff=0.1, tries=6) as client:
        for _ in range(40):
            proxy.faults = ["busy"] * 5
            client.predict("half", [{"x": 8}])
    table = np.array(waits).reshape(40, 5)
    # Uniform on [0, 0.1 * 2**n]: the mean of 40 lies within 4.5 standard errors of the middle.
    for n, column in enumerate(table.T):
        scale = 0.1 * 2**n
        assert column.max() <= scale
        assert abs(column.mean() / scale - 0.5) < 4.5 / np.sqrt(12 * 40)


def test_it_gives_up_by_tries_and_by_deadline(proxy, waits):
    with Client(proxy.url, tries=3) as client:
        proxy.faults = ["busy"] * 9
        with pytest.raises(UnavailableError, match="in 3 tries; the last: 503"):
            client.predict("half", [{"x": 8}])
        assert len(proxy.faults) == 6
    with Client(proxy.url, tries=9, deadline=5.0) as client:
        proxy.faults = ["busy 60"]
        with pytest.raises(UnavailableError, match="in 1 tries"):
            client.predict("half", [{"x": 8}])
    assert 60.0 not in waits


def test_nobody_there(waits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{taken.getsockname()[1]}", timeout=0.2, tries=2)
        assert not client.ready()
        with pytest.raises(UnavailableError, match=r"in 2 tries; the last: ConnectionRefusedError.*\[http://127"):
            client.models()


def test_what_the_service_refuses_is_said_once_and_not_sent_again(client, proxy, waits):
    with pytest.raises(RequestError) as refused:
        client.predict("half", [{"x": 1}, {"x": 101}])
    assert (refused.value.field, refused.value.status) == ("rows.1.x", 422)
    assert "less than or equal to 100" in refused.value.reason
    with pytest.raises(UnknownModelError, match="Did you mean 'half'"):
        client.predict("halve", [{"x": 1}])
    with pytest.raises(RequestError, match="is not here"):
        client.predict("../../v1/models", [{"x": 1}])
    assert len(proxy.seen) == 3
    assert waits == []


def test_one_id_with_other_rows_is_refused(client):
    client.predict("half", [{"x": 1}], id="mine-1")
    assert client.predict("half", [{"x": 1}], id="mine-1").request_id == "mine-1"
    with pytest.raises(RequestError) as refused:
        client.predict("half", [{"x": 2}], id="mine-1")
    assert 400 <= refused.value.status < 500


def test_values_are_written_as_the_service_reads_them(client, service):
    moment = datetime(2013, 7, 1, 9, 15, tzinfo=UTC)
    ways = [moment, pd.Timestamp(moment), np.datetime64("2013-07-01T09:15"), "2013-07-01T11:15:00+02:00"]
    missing = [None, float("nan"), pd.NaT, np.datetime64("NaT")]
    answer = client.predict("half", [{"x": np.int64(1), "at": at} for at in (*ways, *missing)])
    frame = logged(service, answer.request_id)
    order = frame.set_index("id").loc[[p.id for p in answer.predictions]]["request.at"]
    assert [pd.Timestamp(v) for v in order[:4]] == [pd.Timestamp(moment)] * 4
    assert order[4:].isna().all()
    for value, reason in ((datetime(2013, 7, 1), "has no zone"), (float("inf"), "not finite"), (object(), "no place")):
        with pytest.raises(RequestError, match=rf"rows\.0\.at.*{reason}"):
            client.predict("half", [{"x": 1, "at": value}])


def test_a_key_is_sent_as_a_bearer_token(proxy):
    with Client(proxy.url, api_key="k-1") as client:
        client.models()
    assert b"authorization: bearer k-1" in proxy.seen[0].lower()


def test_connections_are_kept_and_a_closed_one_is_no_harm(client, proxy, service, waits):
    for _ in range(3):
        client.predict("half", [{"x": 8}])
    assert client._idle.qsize() == 1
    client._idle.queue[0].sock.shutdown(socket.SHUT_RDWR)
    assert client.predict("half", [{"x": 8}]).predictions[0].outputs == {"value": 4.0}


def test_threads_may_share_it(client):
    wrong = []

    def work(n):
        for i in range(20):
            answer = client.predict("half", [{"x": n + i / 100}])
            if abs(answer.predictions[0].outputs["value"] - (n + i / 100) / 2) > 1e-12:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("url", ["", "localhost:3000", "ftp://x", "http://"])
def test_what_is_no_url_is_named(url):
    with pytest.raises(ConfigError, match="no http or https URL"):
        Client(url)


def test_another_kind_of_server_is_named(tmp_path):
    from http.server import HTTPServer, SimpleHTTPRequestHandler

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ConfigError, match="no prediction service"):
            Client(f"http://127.0.0.1:{server.server_port}").models()
        server.shutdown()
