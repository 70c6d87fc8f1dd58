"""The real running service: under schemathesis, no 500 and every answer as it is described; and no pickle, anywhere.

``FUZZ_SECONDS=600 python -m pytest tests/services/test_running_service.py`` looks for longer.
"""

import itertools
import os
import pickle
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pandas as pd
import psutil
import pytest

from tests.services.conftest import World
from tests.services.test_prediction_e2e import free_port, status, wait_for

ROOT = Path(__file__).resolve().parents[2]
TOYS = Path(__file__).parent / "toys"
SECONDS = int(os.environ.get("FUZZ_SECONDS", "15"))
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(SECONDS + 240)]

DEFINITIONS = """
import os
from datetime import timedelta
from pathlib import Path
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

path = Path(os.environ["TRELLIS_HOME"]) / "features" / "shop_view.parquet"
source = FileSource(name="shop_view", path=str(path), timestamp_field="event_timestamp")
shop = Entity(name="shop", value_type=ValueType.STRING)
shop_view = FeatureView(
    name="shop_view", entities=[shop], ttl=timedelta(days=2), source=source,
    schema=[Field(name="rate", dtype=Float64), Field(name="size", dtype=Float64)],
    tags={"freshness_sla": "PT1H", "freshness_action": "serve"},
)
toy_v1 = FeatureService(name="toy_v1", features=[shop_view], tags={"time_field": "at"})
"""


# What a description cannot say, and is right all the same.
EXPECTED = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504]  # an X-Timeout-Ms of 1 is asked for
negative_data_rejection.expected-statuses = [400, 404, 405, 409, 413, 415, 422, 503, 504]  # 413: too many rows
positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 503, 504]  # an id may have been used before

[[operations]]
include-operation-id = "predict_toy_linear"  # an entity without features
checks.positive_data_acceptance.expected-statuses = ["2xx", 409, 422, 503, 504]

[[operations]]
include-operation-id = "infer"  # its names, types and shapes are another model's for each path
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 413, 422, 503, 504]
"""


def feature_repo(home, place):
    """Make a feature repository with the toy's service, materialised."""
    place.mkdir()
    (place / "definitions.py").write_text(DEFINITIONS)
    shutil.copy(ROOT / "feature_repo" / "feature_store.yaml", place)
    (home / "features").mkdir()
    at = pd.to_datetime(["2013-07-01T08:00:00Z"] * 2)
    frame = pd.DataFrame({"shop": ["s1", "s2"], "rate": [0.2, 0.8], "size": [10.0, 20.0], "event_timestamp": at})
    frame.to_parquet(home / "features" / "shop_view.parquet", index=False)
    from trellis.adapters.feature_store import FeatureStore

    store = FeatureStore(place, home)
    store.apply()
    assert store.materialize(datetime(2013, 7, 2, tzinfo=UTC)) == {"shop_view": 2}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A service with every kind of model, started the way a user starts it: its address and its process."""
    tmp_path = tmp_path_factory.mktemp("running")
    (tmp_path / "home").mkdir()
    world = World(tmp_path / "home")
    feature_repo(world.home, tmp_path / "repo")
    world.deploy(world.artifact("1"))
    world.deploy(world.artifact("1", model="toy_tensor", onnx=True), model="toy_tensor")
    port = free_port()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("TRELLIS_", "BENTOML", "PROMETHEUS", "PYTEST"))},
        "TRELLIS_HOME": str(world.home),
        "TRELLIS_STORE_URL": f"sqlite:///{world.home}/trellis.db",
        "TRELLIS_FEATURE_REPO": str(tmp_path / "repo"),
        "TRELLIS_MODELS": str(TOYS),
        "TRELLIS_PORT": str(port),
        "TRELLIS_MAX_ROWS": "50",
    }
    with (tmp_path / "service.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.prediction"], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            wait_for(lambda: status(client, "/v2/health/ready") == 200, "readiness", 120)
        yield f"http://127.0.0.1:{port}", process
        assert process.poll() is None, "it died"
    finally:
        process.terminate()
        process.wait(30)
        world.close()
    text = (tmp_path / "service.txt").read_text()
    assert "Traceback" not in text, text[-3000:]


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


PICKLES = [
    "application/vnd.bentoml+pickle",
    "application/vnd.bentoml.pickle",
    "application/x-pickle",
    "application/python-pickle",
    "application/octet-stream",
    "application/json",
    "multipart/form-data; boundary=x",
    "application/vnd.bentoml.multiple_outputs",
]
# What BentoML's own clients and inner services say of a pickled payload.
SAID = [
    {},
    {"payload-container": "DefaultContainer", "payload-meta": '{"format": "pickle"}', "args-number": "1"},
    {"bentoml-payload-0-container": "DefaultContainer", "bentoml-payload-0-meta": "{}", "batch-size": "1"},
]


def test_no_pickle_is_taken_under_any_name_at_any_hop(running, tmp_path):
    url, process = running
    marker = tmp_path / "pwned"
    bomb = pickle.dumps(Bomb(marker))
    pickle.loads(bomb)  # it is a live one
    marker.rmdir()
    paths = [
        "/v1/models/toy_tensor/predict",
        "/v1/models/toy_tensor/labels",
        "/v2/models/toy_tensor/infer",
        "/v2/models/toy_tensor/versions/1/infer",
        "/v1/models",
        "/",
        "/predict",
        "/prediction",
        "/livez",
        "/readyz",
        "/healthz",
        "/metrics",
        "/schema.json",
        "/docs.json",
        "/is_ready",
        "/__is_ready__",
        "/flush",
        "/follow",
    ]
    part = b'--x\r\nContent-Disposition: form-data; name="rows"\r\nContent-Type: application/vnd.bentoml+pickle\r\n\r\n'
    with httpx.Client(base_url=url, timeout=10) as client:
        for path, kind, said in itertools.product(paths, PICKLES, SAID):
            body = part + bomb + b"\r\n--x--\r\n" if kind.startswith("multipart") else bomb
            answer = client.post(path, content=body, headers={"content-type": kind, **said})
            assert 400 <= answer.status_code < 500, (path, kind, answer.status_code)
            if path in paths[:4]:
                assert answer.status_code == (400 if kind == "application/json" else 415), (path, kind, answer.text)
        for path in paths[:4]:
            tricky = {"content-type": "application/json", "content-encoding": "gzip"}
            assert client.post(path, content=bomb, headers=tricky).status_code == 415
    assert not marker.exists()
    # And no inner service listens anywhere: one port, on loopback.
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    listening = {c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert {f"http://{address.ip}:{address.port}" for address in listening} == {url}


def test_nothing_that_can_be_sent_breaks_the_service_or_its_promises(running, tmp_path):
    url, _ = running
    (tmp_path / "expected.toml").write_text(EXPECTED)
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(tmp_path / "expected.toml")]
    command += ["run", f"{url}/openapi.json"]
    command += ["--max-time", str(SECONDS), "--continue-on-failure", "--checks", "all", "--seed", "20130701"]
    command += ["--suppress-health-check", "all", "--no-color"]
    if "FUZZ_SECONDS" in os.environ:
        command.remove("--seed")
        command.remove("20130701")
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "DO_NOT_TRACK": "1"}
    )
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    # 503 and 504 are allowed for deadlines' sake: nothing else may have failed.
    metrics = httpx.get(f"{url}/metrics").text
    assert 'code="200"' in metrics
    assert 'code="500"' not in metrics
    for failed in ("store_failures", "variant_errors", "load_failures", "log_failures"):
        assert not re.search(rf"^trellis_{failed}_total\{{.*\}} [1-9]", metrics, re.M), failed
