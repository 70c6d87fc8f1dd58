"""Keys and limits: who has none, a wrong one or too little scope is refused before anything is read or counted."""

import asyncio
import logging
import os
import secrets
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.prediction import auth
from services.prediction.app import PredictionService
from services.prediction.auth import Guard
from services.prediction.metrics import Metrics
from trellis.adapters.api_keys import KeyStore
from trellis.errors import StorageError
from trellis.settings import Settings

ROOT = Path(__file__).parents[2]
BY = {"who": "ann", "why": "a test"}
PREDICT = "/v1/models/toy_linear/predict"
INFER = "/v2/models/toy_linear/infer"


@pytest.fixture
def guarded(world):
    """A world whose service needs keys."""
    world.store = KeyStore(f"sqlite:///{world.home}/trellis.db")
    metrics = Metrics(CollectorRegistry())
    world.registry = metrics._registry
    world.service = PredictionService(
        world.home, world.limits, world.plans, world.plugins, world.shops, metrics, None, world.store
    )
    world.app = world.service.app()
    world.deploy(world.artifact("1"))
    return world


def key_for(world, *scopes, **more):
    key, kept = world.store.create("client", list(scopes), **BY, **more)
    world.service._guard.refresh()
    return {"authorization": f"Bearer {key}"}, kept


def ask(world, method, path, headers=None, **more):
    return world.runner.run(world.send(method, path, headers=headers, **more))


ROUTES = [
    ("POST", PREDICT, "predict"),
    ("POST", "/v2/models/toy_linear/infer", "predict"),
    ("POST", "/v2/models/toy_linear/versions/1/infer", "predict"),
    ("POST", "/v1/models/toy_linear/labels", "label"),
    ("GET", "/v1/models", "read"),
    ("GET", "/v1/models/toy_linear", "read"),
    ("GET", "/v2/models/toy_linear", "read"),
    ("GET", "/v2/models/toy_linear/ready", "read"),
    ("GET", "/metrics", "read"),
]


def test_every_route_needs_its_scope_and_is_closed_to_all_others(guarded):
    keys = {scope: key_for(guarded, scope)[0] for scope in ("predict", "label", "read", "operate")}
    for method, path, needed in ROUTES:
        none = ask(guarded, method, path)
        assert (none.status_code, none.headers["www-authenticate"]) == (401, 'Bearer realm="trellis"'), path
        for scope, headers in keys.items():
            status = ask(guarded, method, path, headers).status_code
            assert (status not in (401, 403)) if scope == needed else status == 403, (path, scope)
    assert guarded.logged().empty


def test_what_needs_no_key_tells_nothing_of_what_is_inside(guarded):
    for path in ("/", "/v2", "/v2/health/live", "/docs", "/openapi.json"):
        assert ask(guarded, "GET", path).status_code in (200, 307)
    assert ask(guarded, "GET", "/v2/health/ready").json() == {"ready": True}


def test_every_route_is_either_guarded_or_known_to_be_open(guarded):
    """A route that is added later fails here until somebody has decided who may use it."""
    starlette = guarded.app.__closure__[[*guarded.app.__code__.co_freevars].index("app")].cell_contents
    paths = {route.path for route in starlette.routes}
    open_ones = {"/", "/v2", "/v2/health/live", "/v2/health/ready", "/docs", "/docs/{asset}", "/openapi.json"}
    open_ones |= {"/livez", "/readyz", "/healthz"}
    guarded_ones = {path.replace("toy_linear", "{model}").replace("/1/", "/{version}/") for _, path, _ in ROUTES}
    guarded_ones |= {"/v2/models/{model}/versions/{version}", "/v2/models/{model}/versions/{version}/ready"}
    assert paths == open_ones | guarded_ones
    guarded.service._guard.refresh()
    for path in guarded_ones:
        place = path.replace("{model}", "toy_linear").replace("{version}", "1")
        method = "POST" if path.endswith(("predict", "infer", "labels")) else "GET"
        assert ask(guarded, method, place).status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic dXNlcjpwYXNz",
        "Bearer trellis_",
        "Bearer trellis_abc",
        "Bearer trellis__x",
        "Bearer trellis_" + "a" * 5_000,
        "Bearer trellis_é_ü",
        "trellis_{id}_{secret}",
        "Bearer trellis_{id}_{wrong}",
        "Bearer trellis_{id}_",
        "Bearer trellis_ffffffffffff_{secret}",
    ],
)
def test_what_is_no_good_key_is_refused_alike(guarded, row, header):
    headers, kept = key_for(guarded, "predict")
    secret = headers["authorization"].rpartition("_")[2]
    given = header.format(id=kept.id, secret=headers["authorization"].split("_", 2)[2], wrong=secrets.token_urlsafe(32))
    answer = ask(guarded, "POST", PREDICT, {"authorization": given.encode("latin-1")}, json={"rows": [row()]})
    assert answer.status_code == 401, secret
    assert set(answer.json()["error"]) == {"field", "reason", "remedy"}
    assert guarded.logged().empty


def test_a_wrong_secret_an_unknown_and_an_ended_key_answer_the_same(guarded, row, monkeypatch):
    good, kept = key_for(guarded, "predict")
    ended, ended_kept = key_for(guarded, "predict")
    guarded.store.revoke(ended_kept.id, **BY)
    guarded.service._guard.refresh()
    wrong = {"authorization": f"Bearer trellis_{kept.id}_{secrets.token_urlsafe(32)}"}
    unknown = {"authorization": f"Bearer trellis_000000000000_{secrets.token_urlsafe(32)}"}
    answers = [ask(guarded, "POST", PREDICT, headers, json={"rows": [row()]}) for headers in (wrong, unknown, ended)]
    assert len({(a.status_code, a.text, a.headers["www-authenticate"]) for a in answers}) == 1
    # All three take the same way through hash and compare.
    compared = []
    original = auth.ApiKey.opens_with
    monkeypatch.setattr(auth.ApiKey, "opens_with", lambda self, secret: compared.append(1) or original(self, secret))
    for headers in (wrong, unknown, ended, good):
        ask(guarded, "POST", PREDICT, headers, json={"rows": [row()]})
    assert len(compared) == 4


def test_revocation_is_heard_with_the_next_look_and_expiry_needs_none(guarded, row, monkeypatch):
    headers, kept = key_for(guarded, "predict", lifetime=timedelta(hours=1))
    send = lambda: ask(guarded, "POST", PREDICT, headers, json={"rows": [row()]}).status_code  # noqa: E731
    assert send() == 200

    class Later(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.now(zone) + timedelta(hours=2)

    with monkeypatch.context() as patch:
        patch.setattr(auth, "datetime", Later)
        assert send() == 401
    assert send() == 200
    guarded.store.revoke(kept.id, **BY)
    guarded.service._guard.refresh()
    assert send() == 401


def test_with_the_store_away_the_keys_last_read_stay_in_force(guarded, row):
    headers, _ = key_for(guarded, "predict")

    def away():
        raise StorageError("gone")

    guarded.store.known = away
    guarded.service._guard.refresh()
    assert ask(guarded, "POST", PREDICT, headers, json={"rows": [row()]}).status_code == 200
    assert guarded.metric("trellis_store_failures_total", store="keys") == 1
    fresh = Guard(guarded.store, guarded.service.metrics)
    fresh.refresh()
    with pytest.raises(Exception, match="have not been read yet"):
        fresh.check({"headers": [(b"authorization", headers["authorization"].encode())]}, "predict")


def test_a_key_has_its_limit_and_is_told_of_it(guarded, row):
    headers, _ = key_for(guarded, "predict", per_minute=5)
    other, _ = key_for(guarded, "predict", per_minute=5)
    answers = [ask(guarded, "POST", PREDICT, headers, json={"rows": [row()]}) for _ in range(8)]
    assert [a.status_code for a in answers] == [200] * 5 + [429] * 3
    assert [a.headers["ratelimit-remaining"] for a in answers] == ["4", "3", "2", "1", "0", "0", "0", "0"]
    assert {a.headers["ratelimit-limit"] for a in answers} == {"5"}
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 12, "one every twelve seconds"
    assert 49 <= int(answers[-1].headers["ratelimit-reset"]) <= 60
    assert ask(guarded, "POST", PREDICT, other, json={"rows": [row()]}).status_code == 200, "a limit is a key's own"
    assert len(guarded.logged()) == 6
    # What is malformed counts too, or a limit could be walked around.
    assert ask(guarded, "POST", PREDICT, other, content=b"{").headers["ratelimit-remaining"] == "3"


@pytest.mark.parametrize(("limit", "processes", "share"), [(6, 2, 3), (7, 2, 3), (5, 5, 1), (2, 4, 1), (4, 1, 4)])
def test_processes_share_a_limit_and_each_tells_what_it_still_takes(guarded, row, limit, processes, share):
    headers, _ = key_for(guarded, "predict", per_minute=limit)
    guards = [Guard(guarded.store, guarded.service.metrics, processes) for _ in range(processes)]
    scope = {"headers": [(b"authorization", headers["authorization"].encode())]}
    taken = 0
    for guard in guards:
        guard.refresh()
        for left in reversed(range(share)):
            told = dict(guard.check(scope, "predict"))
            assert (told[b"ratelimit-limit"], told[b"ratelimit-remaining"]) == (b"%d" % share, b"%d" % left)
            taken += 1
        with pytest.raises(auth.RefusedError) as refused:
            guard.check(scope, "predict")
        assert f"may make {limit} requests a minute" in refused.value.reason
        assert (f"{share} of them at each of {processes} processes" in refused.value.reason) is (processes > 1)
    assert taken <= max(limit, processes)


OPENED = """
from services.prediction.service import open_service
from trellis.settings import load_settings
service = open_service(load_settings())
print("processes:", service._guard._processes)
service._shadows.close()
service.workers.close()
"""


def test_a_worker_knows_how_many_processes_share_a_limit(tmp_path):
    given = {"TRELLIS_HOME": str(tmp_path), "TRELLIS_STORE_URL": f"sqlite:///{tmp_path}/trellis.db"}
    given |= {"TRELLIS_AUTH": "on", "PREDICTION_WORKERS": "3", "BENTOML_HOME": f"{tmp_path}/bentoml"}
    command = [sys.executable, "-W", "ignore", "-c", OPENED]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=120)
    assert "processes: 3\n" in done.stdout, done.stderr


def test_a_used_up_limit_comes_back_evenly(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(auth.time, "monotonic", lambda: clock[0])
    bucket = auth._Bucket(60)
    assert [bucket.take() for _ in range(61)] == [True] * 60 + [False]
    clock[0] += 0.99
    assert not bucket.take()
    clock[0] += 0.02
    assert bucket.take()
    assert not bucket.take()
    clock[0] += 3_600
    assert sum(bucket.take() for _ in range(100)) == 60


def test_secrets_are_not_in_the_log_nor_in_the_metrics(guarded, row, caplog):
    caplog.set_level(logging.DEBUG)
    headers, _ = key_for(guarded, "predict", per_minute=1)
    for _ in range(3):
        ask(guarded, "POST", PREDICT, headers, json={"rows": [row()]})
    ask(guarded, "GET", "/metrics", headers)
    secret = headers["authorization"].split("_", 2)[2]
    assert secret not in caplog.text
    assert secret not in guarded.service.metrics.exposition().decode()
    assert guarded.metric("trellis_refused_total", reason="limit") == 2


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (PREDICT, [(b"content-type", b"application/json")]),
        (INFER, [(b"content-type", b"application/json")]),
        (INFER, [(b"inference-header-content-length", b"2")]),
        (INFER, [(b"inference-header-content-length", b"2"), (b"content-type", b"application/octet-stream")]),
    ],
)
def test_a_refused_body_is_not_read(guarded, path, headers):
    read = []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b"x"}

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    key_for(guarded, "predict")
    asyncio.run(guarded.app(scope, receive, send))
    assert sent[0]["status"] == 401
    assert read == []


def test_a_binary_request_takes_from_the_limit_once(guarded):
    headers, _ = key_for(guarded, "predict", per_minute=5)
    binary = headers | {"inference-header-content-length": "2"}
    left = [ask(guarded, "POST", INFER, binary, content=b"{}xx").headers["ratelimit-remaining"] for _ in range(2)]
    assert left == ["4", "3"]
    guarded.deploy(guarded.artifact("1", model="toy_tensor"), model="toy_tensor")
    image = {"name": "image", "shape": [1, 2, 2], "datatype": "FP32", "data": [0.0] * 4}
    body = {"inputs": [image], "parameters": {"binary_data_output": True}}
    answer = ask(guarded, "POST", INFER.replace("linear", "tensor"), headers, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream"), answer.text
    assert answer.headers["ratelimit-remaining"] == "2", "and a binary answer tells it as well"


@pytest.mark.parametrize(
    ("host", "auth", "needed"),
    [
        ("127.0.0.1", "auto", False),
        ("::1", "auto", False),
        ("localhost", "auto", False),
        ("0.0.0.0", "auto", True),
        ("10.0.0.7", "auto", True),
        ("service.internal", "auto", True),
        ("127.0.0.1", "on", True),
        ("0.0.0.0", "off", False),
    ],
)
def test_keys_are_needed_wherever_others_can_reach_it(host, auth, needed):
    assert Settings(host=host, auth=auth).needs_keys is needed
