"""Every query of boards, rules and alerts against a real Prometheus that scrapes the real service and exporter.

Panels and alerts that speak of trouble get it for real: a version raises, one is slow, a feature store goes away, a log
cannot be written, labels stay out, a feed changes its unit, serving and training disagree, a rollout is paused, a flow
fails, a target is not there.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import httpx
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "monitoring" / "rules"
BOARDS = sorted((ROOT / "monitoring" / "grafana" / "dashboards").glob("*.json"))
PROMETHEUS = shutil.which("prometheus")
# The only alert whose trouble takes longer than a test: eight days without a look. Its series is asked for.
TOO_LONG = {"TrellisNotWatched": "time() - trellis_watch_run_seconds"}

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(
        PROMETHEUS is None,
        reason="no prometheus here, so NO query of boards and rules was run; apt-get install prometheus brings it",
    ),
]


class Server:
    """A Prometheus with its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str):
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters, doseq=True)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict]:
        return self.get("query", query=expression)["result"]


@pytest.fixture(scope="module")
def prometheus(filled_console, serve_in, tmp_path_factory) -> Iterator[Server]:
    with ExitStack() as stack:
        place = tmp_path_factory.mktemp("promql")
        service, key = stack.enter_context(_service(place / "service"))
        fine = Path(shutil.copytree(filled_console.home, place / "fine"))  # but for a fault in its feed
        _flows(fine)
        _retraining_weighed(fine)
        _paused(fine)
        watched = stack.enter_context(_exporter(fine))
        troubled = _troubled(filled_console, serve_in, place / "troubled")
        exporters = [watched, stack.enter_context(_exporter(troubled))]
        server = stack.enter_context(_prometheus(place, service, key, exporters))
        # Two rounds with scrapes between: of a counter that is first seen at ten nobody knows that it has risen.
        _traffic(service, key)
        _wait_for(lambda: server.query('trellis_requests_total{model="toy_linear", code="503"}'), "the first scrape")
        _flows(troubled)
        (troubled / "trellis.db").write_bytes(b"no database any more" * 500)
        for name in ("trellis.db-wal", "trellis.db-shm"):
            (troubled / name).unlink(missing_ok=True)
        for _ in range(2):
            _traffic(service, key)
            time.sleep(1.0)
        _wait_for(lambda: server.query("trellis_store_up == 0"), "the store to be missed")
        _wait_for(lambda: server.query("trellis:rows_stale:budget_left"), "the rules")
        yield server


def _queries() -> list:
    found = []
    for path in BOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found += [
                pytest.param(t["expr"], id=f"{path.stem}: {panel['title']} {t['refId']}") for t in panel["targets"]
            ]
    return found


def _rules() -> list[dict]:
    files = ("trellis.yml", "slo.yml")
    return [r for f in files for g in yaml.safe_load((RULES / f).read_text())["groups"] for r in g["rules"]]


@pytest.mark.parametrize("expression", _queries())
def test_every_panel_has_data(prometheus, expression: str) -> None:
    concrete = expression.replace("$__rate_interval", "1m").replace("$model", ".+").replace("$metric", "auc")
    assert "$" not in concrete
    result = prometheus.query(concrete)
    assert result, concrete
    assert any(math.isfinite(float(series["value"][1])) for series in result), result


@pytest.mark.parametrize(
    "rule", [r for r in _rules() if "alert" in r], ids=lambda r: r["alert"] + r["labels"].get("window", "")
)
def test_every_alert_is_raised_by_its_trouble(prometheus, rule: dict) -> None:
    expression = TOO_LONG.get(rule["alert"], rule["expr"])
    assert prometheus.query(expression), expression


def test_every_rule_is_evaluated_and_records(prometheus) -> None:
    groups = prometheus.get("rules")["groups"]
    seen = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert {r.get("record") or r["alert"] for r in _rules()} == set(seen)
    assert {name: rule["lastError"] for name, rule in seen.items() if rule.get("lastError")} == {}
    for rule in _rules():
        if "record" in rule:
            _wait_for(lambda name=rule["record"]: prometheus.query(name), rule["record"], 20)


def test_choices_of_a_board_have_values(prometheus) -> None:
    looked = 0
    for path in BOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            series, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            assert prometheus.get(f"label/{label}/values", **{"match[]": series}), (path.name, variable["name"])
            looked += 1
    assert looked >= 5


def test_what_is_well_raises_nothing(prometheus) -> None:
    """The other way round: an alert that is always raised would have passed above."""
    live = {t["labels"]["instance"] for t in prometheus.get("targets")["activeTargets"] if t["health"] == "up"}
    assert len(live) == 3
    alerts = {r["alert"]: r["expr"] for r in _rules() if "alert" in r}
    down = {a["metric"]["instance"] for a in prometheus.query(alerts["TrellisTargetDown"])}
    assert down
    assert not down & live
    assert len(prometheus.query("trellis_store_up")) == 2
    assert len(prometheus.query(alerts["TrellisStoreAway"])) == 1
    assert {a["metric"]["flow"] for a in prometheus.query(alerts["TrellisFlowFails"])} == {"broken-flow"}
    assert {a["metric"]["outcome"] for a in prometheus.query(alerts["TrellisDrift"])} == {"DRIFT"}
    assert len(prometheus.query("trellis_drift_outcome == 1")) == 2
    assert prometheus.query(TOO_LONG["TrellisNotWatched"] + " > 8 * 86400") == []
    assert len({a["metric"]["instance"] for a in prometheus.query(alerts["TrellisPerformanceAssumption"])}) == 1


@contextmanager
def _service(home: Path) -> Iterator[tuple[str, str]]:
    """Serve two toys over HTTP by the real service; give its address and a key."""
    import uvicorn
    from prometheus_client import CollectorRegistry

    from services.prediction.app import PredictionService
    from services.prediction.metrics import Metrics
    from services.prediction.shadows import Shadows
    from trellis.adapters.api_keys import KeyStore
    from trellis.adapters.plan_store import PlanStore
    from trellis.freshness import Sla
    from trellis.rollout.plan import RolloutPlan, Shadow, Variant

    where = importlib.util.spec_from_file_location("services_conftest", ROOT / "tests" / "services" / "conftest.py")
    helpers = importlib.util.module_from_spec(where)
    sys.modules["services_conftest"] = helpers  # where its dataclasses look for themselves
    where.loader.exec_module(helpers)
    home.mkdir()
    world = helpers.World(home)
    keys = KeyStore(f"sqlite:///{home}/trellis.db")
    key, _ = keys.create("test", ["predict", "label", "read"], who="test", why="test")
    metrics = Metrics(CollectorRegistry())
    shadows = Shadows(home, helpers.TOYS, metrics)
    world.shops.promises = (Sla("shop_view", ("rate", "size"), timedelta(minutes=10), "serve"),)
    world.shops.rows["away"] = None
    service = PredictionService(
        home, helpers.Limits(plan_poll_seconds=0.1), PlanStore(f"sqlite:///{home}/trellis.db"), world.plugins,
        _Flaky(world.shops), metrics, shadows, keys,
    )  # fmt: skip
    # A champion that raises on large values and has nobody to stand in, a canary that is slow, a shadow; a second model
    # whose log cannot be written, and whose canary cannot be loaded.
    raises, slow, shadow = world.artifact("1", raises=1), world.artifact("2", sleeps=0.15), world.artifact("3")
    variants = (replace(raises, weight=0.1), replace(slow, role="canary", weight=0.9))
    plan = RolloutPlan("toy_linear", 0, "salt", variants, (Shadow("3", 1.0, shadow.location, shadow.digest),))
    world.plans.save(plan, expected_revision=0, who="test", why="test")
    tensor = world.artifact("1", model="toy_tensor")
    gone = Variant("2", "canary", 0.1, str(home / "nowhere"), "0" * 64)
    plan = RolloutPlan("toy_tensor", 0, "salt", (replace(tensor, weight=0.9), gone))
    world.plans.save(plan, expected_revision=0, who="test", why="test")
    (home / "predictions").mkdir(exist_ok=True)
    (home / "predictions" / "toy_tensor").write_text("not a directory")
    server = uvicorn.Server(uvicorn.Config(service.app(), host="127.0.0.1", port=0, log_level="error"))
    service.start()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        _wait_for(lambda: server.started and server.servers, "the service")
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {"authorization": f"Bearer {key}"}
        ready = f"http://127.0.0.1:{port}/v1/models/toy_linear"
        _wait_for(lambda: httpx.get(ready, headers=headers).json().get("revision") == 1, "the plan")
        yield f"127.0.0.1:{port}", key
    finally:
        server.should_exit = True
        thread.join(20)
        service.stop()
        world.plans.close()


class _Flaky:
    """The toys' feature store, away for one shop."""

    def __init__(self, shops) -> None:
        self._shops = shops

    def __getattr__(self, name: str):
        return getattr(self._shops, name)

    def online(self, service, keys, request):
        self._shops.down = "lost" in list(keys["shop"])
        return self._shops.online(service, keys, request)


def _traffic(service: str, key: str) -> None:
    """Send rows that are well, without features, failing and slow ones; labels; and a wrong key."""
    row = {"x": 0.5, "colour": "red", "shop": "s1", "at": "2013-07-01T09:15:00Z", "size": 1.0}
    image = {"image": [[0.1, 0.2], [0.3, 0.4]]}
    with httpx.Client(base_url=f"http://{service}", headers={"authorization": f"Bearer {key}"}, timeout=30) as client:

        def predict(model: str, **given) -> int:
            return client.post(f"/v1/models/{model}/predict", json={"rows": [given]}).status_code

        assert {predict("toy_linear", **row) for _ in range(5)} == {200}
        for shop in ("unknown",) * 12 + ("lost",):
            assert predict("toy_linear", **{**row, "shop": shop}) in (200, 503)
        with ThreadPoolExecutor(8) as crowd:
            answers = list(crowd.map(lambda _: predict("toy_linear", **{**row, "x": 9.5}), range(100)))
        assert {200, 503} == set(answers)
        assert predict("toy_tensor", **image) == 503
        made = client.post("/v1/models/toy_linear/predict", json={"rows": [row]}).json()["predictions"][0]["id"]
        label = {"id": made, "value": "hit", "observed_at": "2013-07-01T15:00:00Z"}
        assert client.post("/v1/models/toy_linear/labels", json={"labels": [label]}).status_code == 200
        wrong = {"authorization": "Bearer trellis_000000000000_x"}
        assert client.get("/v1/models/toy_linear", headers=wrong).status_code == 401


def _late(rows):
    """Four of five come late, whatever the model says."""
    return {**rows, "late": (np.random.default_rng(0).random(len(rows["late"])) < 0.8).astype(int)}


def _troubled(filled, serve_in, home: Path) -> Path:
    """A home whose model has lost its way, whose labels stay out or are of nobody, whose features are skewed."""
    from monitoring.watch import watch
    from trellis.adapters.prediction_log import LabelLog

    home.mkdir()
    served = serve_in(home)
    served.serve(7, _late)
    log = LabelLog(home, "ferry_delay", flush_seconds=0)
    log.append(
        {"id": "nobody", "value": 1, "observed_at": "2013-07-05T00:00:00Z", "received_at": "2013-07-05T00:00:00Z"}
    )
    log.close()
    until = served.serve(7, lambda r: {**_late(r), "load": r["load"] + 0.5}, labels=0.2)
    watch(served.subject, home, until, report=False, store=_Offline(served.drawn(7, 7)))
    for path in filled.home.glob("trellis.db*"):
        shutil.copy(path, home)
    return home


class _Offline:
    """Our port to the offline store: the features as training would see them, the temperature in Celsius."""

    def __init__(self, rows) -> None:
        self._at = {moment: i for i, moment in enumerate(rows["time"])}
        self._rows = {**rows, "temp": (rows["temp"] - 32) / 1.8}

    def training_set(self, service, rows, time):
        at = [self._at.get(moment) for moment in time]
        names = ("temp", "wind", "late_rate")
        return {name: np.array([np.nan if i is None else self._rows[name][i] for i in at]) for name in names}

    def slas(self, service):
        return ()


def _paused(home: Path) -> None:
    from trellis.adapters.plan_store import PlanStore
    from trellis.adapters.rollout_store import RolloutStore
    from trellis.rollout.state import paused

    url = f"sqlite:///{home}/trellis.db"
    rollouts, plan = RolloutStore(url), PlanStore(url).current("ferry_delay")
    before = rollouts.current("ferry_delay")
    rollouts.commit(before, paused(before), plan, expected_revision=plan.revision, who="test", why="wait")
    rollouts.close()


def _retraining_weighed(home: Path) -> None:
    from trellis.adapters.database import engine
    from trellis.adapters.decision_store import DecisionStore
    from trellis.decision import Verdict, decision_of

    verdict = Verdict("WAIT", "Nothing asks for a retraining.")
    about = {"model": "ferry_delay", "subject": "test", "at": "2013-07-16T00:00:00Z"}
    decision = decision_of("retrain", **about, inputs={}, policy={}, verdict=verdict)
    DecisionStore(engine(f"sqlite:///{home}/trellis.db")).record(decision)


def _flows(home: Path) -> None:
    """Run a flow that ends well and one that does not, by the real engine; leave marks as materialisation does."""
    code = """
from pipelines.steps import flow, step
@step(keep=False)
def work() -> int: return 1
@flow
def good_flow() -> int: return work()
@flow
def broken_flow() -> int: raise ValueError("on purpose")
good_flow()
try: broken_flow()
except ValueError: pass
"""
    script = home / "flows.py"
    script.write_text(code)
    environment = {**os.environ, "TRELLIS_HOME": str(home), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(script)], env=environment, check=True, timeout=60)
    (home / "feast").mkdir(exist_ok=True)
    (home / "feast" / "watermarks.json").write_text(json.dumps({"weather": {"until": "2013-07-31T03:00:00+00:00"}}))


@contextmanager
def _exporter(home: Path) -> Iterator[str]:
    """Run the exporter as an operator does; give its address."""
    environment = {**os.environ, "TRELLIS_HOME": str(home), "TRELLIS_STORE_URL": f"sqlite:///{home}/trellis.db"}
    command = [sys.executable, "-m", "monitoring", "exporter", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield re.search(r"http://([\d.:]+)/metrics", process.stdout.readline()).group(1)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@contextmanager
def _prometheus(place: Path, service: str, key: str, exporters: list[str]) -> Iterator[Server]:
    for name in ("trellis.yml", "slo.yml"):
        shutil.copy(RULES / name, place)
    monitors = [*exporters, "127.0.0.1:9"]  # nobody listens on the discard port
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["trellis.yml", "slo.yml"],
        "scrape_configs": [
            {
                "job_name": "prediction",
                "authorization": {"credentials": key},
                "static_configs": [{"targets": [service]}],
            },
            {"job_name": "monitor", "static_configs": [{"targets": monitors}]},
        ],
    }
    (place / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = _free_port()
    command = [PROMETHEUS, f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/data"]
    log = (place / "prometheus.log").open("w")
    process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        server = Server(f"http://127.0.0.1:{port}")
        _wait_for(lambda: len(server.query("up == 1")) == 1 + len(exporters), f"all targets, see {log.name}", 60)
        yield server
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(condition, what: str, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except (OSError, httpx.TransportError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")
