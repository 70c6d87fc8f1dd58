"""The contract is general: flights, images and a third party's regression go one way, from raw data to an answer."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "plugins" / "trellis-plugin-diabetes"
THIRD_PARTY = "diabetes_progression"
TRAINING = {
    "flight_delay": ("--until", "2013-07-01T00:00:00Z", "--param", "rounds=60"),
    "digits": (),
    THIRD_PARTY: (),
}


def _python(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home of its own, and the third party's package installed where only these processes see it."""
    root = tmp_path_factory.mktemp("e2e")
    source = shutil.copytree(PACKAGE, root / "source", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--target", str(root / "site"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
    return {
        **kept,
        "PYTHONPATH": str(root / "site"),
        "TRELLIS_HOME": str(root / "home"),
        "TRELLIS_PORT": str(port),
        "OMP_NUM_THREADS": "2",
    }


@pytest.fixture(scope="module")
def trained(environment: dict[str, str]) -> dict[str, dict[str, object]]:
    outcomes = {}
    for model, arguments in TRAINING.items():
        done = _python("-m", "pipelines", "train", model, *arguments, "--json", environment=environment)
        assert done.returncode in (0, 3), f"{model}: {done.stderr}"
        outcomes[model] = json.loads(done.stdout)
    return outcomes


@pytest.fixture(scope="module")
def service(environment: dict[str, str], trained: object):
    log = Path(environment["TRELLIS_HOME"]) / "service.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.prediction"], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
    url = f"http://127.0.0.1:{environment['TRELLIS_PORT']}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                if httpx.get(f"{url}/v2/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        else:
            pytest.fail(log.read_text())
        with httpx.Client(base_url=url, timeout=30) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("model", TRAINING)
def test_each_is_gated_registered_and_answers_its_own_example(model, trained, service: httpx.Client):
    assert trained[model]["verdict"] == "PROMOTE", trained[model]["reason"]
    assert service.get(f"/v1/models/{model}").json()["version"] == trained[model]["version"]
    schema = service.get("/openapi.json").json()
    body = schema["paths"][f"/v1/models/{model}/predict"]["post"]["requestBody"]["content"]["application/json"]
    example = next(iter(body["examples"].values()))["value"] if "examples" in body else body["example"]
    answer = service.post(f"/v1/models/{model}/predict", json=example)
    assert answer.status_code == 200, answer.text
    [prediction] = answer.json()["predictions"]
    label = {"flight_delay": 1, "digits": 3, THIRD_PARTY: 150.0}[model]
    sent = {"labels": [{"id": prediction["id"], "value": label, "observed_at": "2030-01-01T00:00:00Z"}]}
    assert service.post(f"/v1/models/{model}/labels", json=sent).json() == {"accepted": 1}


@pytest.mark.e2e
@pytest.mark.slow
def test_a_flight_gets_its_features_from_the_online_store(service: httpx.Client):
    """The training flow has brought the store up to its end; what the store held then is in the log of the answer."""
    row = {"carrier": "UA", "flight": 1545, "origin": "EWR", "dest": "IAH", "tailnum": None}
    row |= {"sched_dep": "2013-07-01T00:30:00Z", "sched_minutes": 244, "distance": 1400}
    answer = service.post("/v1/models/flight_delay/predict", json={"rows": [row]}).json()
    [prediction] = answer["predictions"]
    # No tail number, so only the views of the aircraft can be without data.
    assert set(prediction.get("degraded", [])) <= {"aircraft_delays", "aircraft_facts"}
    assert 0 < prediction["probability"] < 1
    calm = {"carrier_late_rate_3h": 0.05, "origin_dep_delay_1h": -2.0, "aircraft_last_delay": -10.0}
    rough = {"carrier_late_rate_3h": 0.9, "origin_dep_delay_1h": 90.0, "aircraft_last_delay": 120.0}
    body = {"rows": [{**row, **calm}, {**row, **rough}]}  # a caller may override what the store says
    early, late = service.post("/v1/models/flight_delay/predict", json=body).json()["predictions"]
    assert early["probability"] < late["probability"]
