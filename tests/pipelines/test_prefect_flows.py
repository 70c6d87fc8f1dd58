"""The same flows under a real Prefect server: as flow runs with task runs, and as deployments that the API triggers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from trellis.settings import TELEMETRY_OFF

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
UNTIL = "2013-05-01T00:00:00Z"
PREPARING = {"ingest", "validate", "build_features", "materialize", "build_training_set"}
PACED = {"model": "toy_binary", "paced": True}
TRAINING = {"train", "conformance", "evaluate", "gate", "register", "plan_rollout"}


@contextmanager
def _process(command: list[str], environment: dict[str, str], log: Path, stop: signal.Signals) -> Iterator[None]:
    """Run a process with its children, and see that none of them outlives the test."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
        assert process.poll() is None, log.read_text()[-2_000:]
    finally:
        process.send_signal(stop)
        try:
            process.wait(60)
        finally:
            left = not _ended(process.pid, 20)
            if left:
                os.killpg(process.pid, signal.SIGKILL)
    assert not left, f"something outlived {command[1:4]}"


def _ended(group: int, seconds: float) -> bool:
    """Wait for a group's last process: a child that is just starting hears of its parent's end a moment later."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def _until(condition: Any, seconds: float, log: Path) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"It did not happen in {seconds} s:\n{log.read_text()[-2_000:]}")


class _Patient(httpx.HTTPTransport):
    """Asks again while Prefect's SQLite store is locked, which it answers with 503; Prefect's own client does too."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(60):
            response = super().handle_request(request)
            if response.status_code != 503:
                break
            response.close()
            time.sleep(0.5)
        return response


@pytest.fixture
def server(home: Path, tmp_path: Path) -> Iterator[tuple[httpx.Client, dict[str, str]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {
        **TELEMETRY_OFF,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "TRELLIS_ORCHESTRATOR": "prefect",
        "TRELLIS_LOOP_MINUTES": "0",
        "PYTHONUNBUFFERED": "1",
    }
    log = tmp_path / "server.log"
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    with (
        _process(command, environment, log, signal.SIGINT),
        httpx.Client(base_url=environment["PREFECT_API_URL"], timeout=10, transport=_Patient()) as api,
    ):

        def healthy() -> bool:
            try:
                return api.get("/health").status_code == 200
            except httpx.TransportError:
                return False

        _until(healthy, 240, log)
        yield api, environment


def _tasks(api: httpx.Client, flow_run: str) -> dict[str, str]:
    found = api.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [flow_run]}}}).json()
    return {task["name"].rpartition("-")[0]: task["state_type"] for task in found}


def _turns(api: httpx.Client) -> list[dict[str, Any]]:
    return api.get("/deployments/name/watch-model/trellis").json()["schedules"]


def test_flows_run_and_are_deployed_under_a_real_server(
    server: tuple[httpx.Client, dict[str, str]], home: Path, tmp_path: Path
):
    from pipelines.stores import decisions, plans, registry

    api, environment = server

    # As flow runs of this process's child.
    command = [sys.executable, "-m", "pipelines", "train", "toy_binary", "--until", UNTIL, "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2_000:]
    outcome = json.loads(done.stdout)
    assert outcome["verdict"] == "PROMOTE"
    flows = {found["id"]: found["name"] for found in api.post("/flows/filter", json={}).json()}
    runs = api.post("/flow_runs/filter", json={}).json()
    assert {flows[run["flow_id"]]: run["state_type"] for run in runs} == {
        "train-model": "COMPLETED",
        "prepare-data": "COMPLETED",
    }
    by_flow = {
        flows[run["flow_id"]]: _until(lambda run=run: _tasks(api, run["id"]), 10, tmp_path / "server.log")
        for run in runs
    }
    assert set(by_flow["prepare-data"]) >= PREPARING
    assert set(by_flow["train-model"]) >= TRAINING
    assert {state for tasks in by_flow.values() for state in tasks.values()} == {"COMPLETED"}
    cost = json.loads((home / "flows" / "runs.jsonl").read_text().splitlines()[0])
    assert set(cost["steps"]) == PREPARING | TRAINING
    # Nothing is pickled: the journal is the only memory of results.
    assert not list((tmp_path / "prefect" / "storage").glob("*"))

    # As a deployment, with the parameters as JSON; every step but the acts was done before.
    log = tmp_path / "deploy.log"
    weekly = environment | {"TRELLIS_LOOP_MINUTES": "10080"}
    with _process([sys.executable, "-m", "pipelines", "deploy"], weekly, log, signal.SIGTERM):
        names = {"prepare-data", "train-model", "advance-rollout", "turn-loop", "predict-table"}
        names |= {"watch-model", "retrain-model"}
        _until(lambda: len(api.post("/deployments/filter", json={}).json()) == len(names), 60, log)
        assert {api.get(f"/deployments/name/{name}/trellis").status_code for name in names} == {200}
        # Every model's loop takes its turn; applied again, the schedule is one, and without turns none.
        assert [(s["schedule"]["interval"], s["parameters"]) for s in _turns(api)] == [(604_800, PACED)]
        made = api.get("/deployments/name/train-model/trellis").json()["id"]
        wrong = {"parameters": {"model": "toy_binary", "recipe": {"name": 7}}}
        refused = api.post(f"/deployments/{made}/create_flow_run", json=wrong)
        assert 400 <= refused.status_code < 500, refused.text
        parameters = {"model": "toy_binary", "until": UNTIL, "recipe": {"name": "linear", "seed": 2013}}
        asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}, "idempotency_key": "once"}
        run = api.post(f"/deployments/{made}/create_flow_run", json=asked)
        assert run.status_code in (200, 201), run.text

        def ended() -> Any:
            state = api.get(f"/flow_runs/{run.json()['id']}").json()["state_type"]
            return state if state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        assert _until(ended, 150, log) == "COMPLETED", log.read_text()[-2_000:]
    for minutes, intervals in (("1440", [86_400]), ("0", [])):
        again = environment | {"TRELLIS_LOOP_MINUTES": minutes}
        with _process([sys.executable, "-m", "pipelines", "deploy"], again, log, signal.SIGTERM):

            def applied(wanted: list[int] = intervals) -> bool:
                return [s["schedule"]["interval"] for s in _turns(api)] == wanted

            _until(applied, 120, log)
    assert [change.plan.revision for change in plans().history("toy_binary")] == [1]
    assert [v.version for v in registry().versions("toy_binary")] == [outcome["version"]]
    assert decisions().get(outcome["decision"]).verdict.outcome == "PROMOTE"


def test_every_look_says_anew_that_work_waits_and_a_repeated_one_says_it_once(
    server: tuple[httpx.Client, dict[str, str]], home: Path, tmp_path: Path
):
    """The server takes an event's id once: under the cycle's alone, what was lost on its way stayed lost."""
    api, environment = server
    code = (
        "import sys\n"
        "from pipelines.stack_loop import ask_for_work\n"
        "from pipelines.steps import flow\n"
        "from trellis.loop import Cycle, Loop\n"
        "cycle = Cycle('toy-cycle-1', 'retrain-1', 'drift', '2013-07-01T00:00:00Z', '1')\n"
        "state = Loop('toy', stage='training', cycle=cycle, moved_at='2013-07-01T00:00:00Z')\n"
        "@flow\n"
        "def look(at: str) -> str: return ask_for_work(state, at)\n"
        "for at in sys.argv[1:]: look(at)\n"
    )
    script = tmp_path / "looks.py"
    script.write_text(code)
    looks = ["2013-07-01T00:00:00Z", "2013-07-01T00:00:00Z", "2013-07-01T00:10:00Z"]
    done = subprocess.run(
        [sys.executable, str(script), *looks],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2_000:]

    def said() -> list[str]:
        asked = {"filter": {"event": {"name": ["trellis.retrain.drift"]}}}
        return sorted(event["payload"]["looked"] for event in api.post("/events/filter", json=asked).json()["events"])

    _until(lambda: len(said()) >= 2, 30, tmp_path / "server.log")
    assert said() == sorted(set(looks))


@pytest.mark.timeout(900)
def test_a_decision_to_retrain_is_an_event_that_an_automation_acts_on_once(
    server: tuple[httpx.Client, dict[str, str]], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from pipelines.stores import decisions, loops, plans, registry
    from pipelines.training import Recipe, train_model
    from tests.pipelines.test_loop_flow import MODEL, serve, text

    api, environment = server
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert train_model(MODEL, Recipe("linear"), until=text(0)).verdict == "PROMOTE"
    serve(home, 10, 7)
    serve(home, 17, 21, law=0.1)  # the same x means the opposite now
    log = tmp_path / "deploy.log"
    command = [sys.executable, "-m", "pipelines", "deploy"]

    def automations() -> list[dict[str, Any]]:
        return api.post("/automations/filter", json={}).json()

    def runs(flow: str) -> list[dict[str, Any]]:
        asked = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return api.post("/flow_runs/filter", json=asked).json()

    def ended(flow: str, count: int) -> Any:
        states = [run["state_type"] for run in runs(flow)]
        over = [state for state in states if state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")]
        return over if len(over) >= count else None

    with _process(command, environment, log, signal.SIGTERM):
        first = _until(automations, 200, log)
    with _process(command, environment, log, signal.SIGTERM):

        def replaced() -> Any:
            found = automations()
            return found if found and found[0]["id"] != first[0]["id"] else None

        (made,) = _until(replaced, 200, log)  # set up twice, there is one
        assert made["trigger"]["expect"] == ["trellis.retrain.*"]
        watch = api.get("/deployments/name/watch-model/trellis").json()["id"]
        asked = {"parameters": {"model": MODEL, "now": text(38), "report": False}, "state": {"type": "SCHEDULED"}}
        assert api.post(f"/deployments/{watch}/create_flow_run", json=asked).status_code in (200, 201)
        assert _until(lambda: ended("watch-model", 1), 300, log) == ["COMPLETED"], log.read_text()[-3_000:]
        (decision,) = [d for d in decisions().list(MODEL, "retrain") if d.verdict.outcome == "RETRAIN"]
        # Nobody but the automation asks for the retraining.
        assert _until(lambda: ended("retrain-model", 1), 300, log) == ["COMPLETED"], log.read_text()[-3_000:]
        (run,) = runs("retrain-model")
        assert run["parameters"] | {"now": ""} == {"model": MODEL, "decision": decision.id, "now": ""}
        assert run["created_by"]["type"] == "AUTOMATION"
        state = loops().current(MODEL)
        weighed = [d.verdict for d in decisions().list(MODEL, "gate")]
        assert (state.stage, state.cycle.decision, state.cycles) == ("rollout", decision.id, 1), weighed[-1]
        assert [v.version for v in registry().versions(MODEL)] == ["1", "2"]
        revision = plans().current(MODEL).revision

        # The event comes twice more, as after a lost answer: two runs, and nothing is done twice.
        again = (
            "import sys; from prefect.events import emit_event\n"
            "for _ in range(2):\n"
            "    emit_event('trellis.retrain.drift',\n"
            "               resource={'prefect.resource.id': f'trellis.model.{sys.argv[1]}'},\n"
            "               payload={'model': sys.argv[1], 'decision': sys.argv[2], 'at': sys.argv[3]})\n"
        )
        line = [sys.executable, "-c", again, MODEL, decision.id, text(38)]
        done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert _until(lambda: ended("retrain-model", 3), 300, log) == ["COMPLETED"] * 3, log.read_text()[-3_000:]
    assert loops().current(MODEL) == state
    assert (len(registry().versions(MODEL)), plans().current(MODEL).revision) == (2, revision)
