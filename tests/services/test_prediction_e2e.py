"""The real service: processes, a port, BentoML; from empty to ready, answering, and gone without leftovers."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")


def status(client, path):
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return None


def start(world, tmp_path, port, workers, **more):
    home = tmp_path / "user"
    home.mkdir(exist_ok=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("TRELLIS_", "BENTOML", "PROMETHEUS", "PYTEST"))},
        "TRELLIS_HOME": str(world.home),
        "TRELLIS_STORE_URL": f"sqlite:///{world.home}/trellis.db",
        "TRELLIS_MODELS": str(Path(__file__).parent / "toys"),
        "TRELLIS_PORT": str(port),
        "TRELLIS_PLAN_POLL_SECONDS": "0.1",
        "HOME": str(home),
        "TMPDIR": str(home),
        **more,
    }
    with (tmp_path / "output.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "services.prediction", "--workers", str(workers)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.parametrize("workers", [2])
def test_the_service_from_start_to_stop(world, row, tmp_path, workers):
    port = free_port()
    process = start(world, tmp_path, port, workers)
    family = []
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            wait_for(lambda: status(client, "/v2/health/live") == 200, "the port")
            assert status(client, "/v2/health/ready") == 503
            assert status(client, "/readyz") == 503
            world.deploy(world.artifact("1", model="toy_tensor", onnx=True), model="toy_tensor")

            def ready():
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as fresh:
                    return status(fresh, "/v2/health/ready") == 200

            # A connection of its own for each, so that both workers are asked.
            wait_for(lambda: all(ready() for _ in range(6)), "readiness")
            family = psutil.Process(process.pid).children(recursive=True)
            assert len(family) >= workers
            image = {"image": [[0.1, 0.2], [0.3, 0.4]]}
            ids = []
            for i in range(10):
                # A connection of its own for each, so that both workers get some.
                answer = httpx.post(
                    f"http://127.0.0.1:{port}/v1/models/toy_tensor/predict", json={"rows": [image], "id": f"e2e-{i}"}
                )
                assert answer.status_code == 200, answer.text
                ids.append(answer.json()["predictions"][0]["id"])
            tensor = {"name": "image", "shape": [1, 2, 2], "datatype": "FP32", "data": [0.1, 0.2, 0.3, 0.4]}
            inferred = client.post("/v2/models/toy_tensor/infer", json={"id": "v2", "inputs": [tensor]}).json()
            assert inferred["outputs"][0]["data"] == answer.json()["predictions"][0]["probabilities"]
            labels = [{"id": i, "value": "b", "observed_at": "2013-07-01T15:00:00Z"} for i in ids]
            assert client.post("/v1/models/toy_tensor/labels", json={"labels": labels}).json() == {"accepted": 10}
            assert client.post("/v1/models/toy_tensor/predict", json={"rows": [{"image": 1}]}).status_code == 422
            assert client.get("/nope").json()["error"]["reason"] == "/nope is not here"
            assert "swagger" in client.get("/docs").text
            served = 'trellis_predictions_total{model="toy_tensor",variant="champion",version="1"} 11.0'
            wait_for(lambda: served in client.get("/metrics").text, "one scrape that counts all workers", 5)
            world.deploy(world.artifact("2", model="toy_tensor", seed=1), model="toy_tensor")

            def swapped():
                body = client.post("/v1/models/toy_tensor/predict", json={"rows": [image]}).json()
                return body["version"] == "2" and body

            last = wait_for(swapped, "the new version")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        logged = set(world.logged("toy_tensor")["id"])
        assert {*ids, "v2#0", last["predictions"][0]["id"]} <= logged
        assert len(world.labels("toy_tensor")) == 10
        # Gone: processes, port, and files outside Trellis's home.
        wait_for(lambda: not any(p.is_running() for p in family), "the workers' end", 10)
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
        assert list((tmp_path / "user").iterdir()) == []
    except BaseException:
        print((tmp_path / "output.txt").read_text())
        raise
    finally:
        for child in [*family, process]:
            if child.poll() is None if isinstance(child, subprocess.Popen) else child.is_running():
                child.kill()
        process.wait(10)


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {**os.environ, "TRELLIS_HOME": str(tmp_path), "TRELLIS_PORT": str(port)}
        command = [sys.executable, "-m", "services.prediction"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"Address already in use. [127.0.0.1:{port}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_serving_process_stays_light():
    """Trainers, trackers and orchestrators are slow to import and large: none of them comes along."""
    code = "import services.prediction.service, sys; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {
        "mlflow",
        "torch",
        "xgboost",
        "prefect",
        "sklearn",
        "evidently",
        "great_expectations",
        "feast",
        "lightning",
    }
    assert not heavy & set(done.stdout.split())


def test_workers_end_when_their_parent_is_killed(world, tmp_path):
    """Or they would hold the port, and the service could not be started again."""
    port = free_port()
    process = start(world, tmp_path, port, workers=2)
    family = []
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            wait_for(lambda: status(client, "/v2/health/live") == 200, "the port")
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait(10)
        wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in family), "the workers' end", 30)
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
    finally:
        for left in family:
            if left.is_running():
                left.kill()


def test_services_that_share_a_home_share_no_counts(world, tmp_path):
    """As the replicas of a stack do, each of which is process number so-and-so on the same port of its own host."""
    apart = {}
    for name in ("one", "two"):
        process = start(world, tmp_path, free_port(), workers=1)
        try:
            worker = wait_for(
                lambda p=process: [
                    c
                    for c in psutil.Process(p.pid).children(recursive=True)
                    if "_bentoml_impl" in " ".join(c.cmdline())
                ],
                "a worker",
            )[0]
            apart[name] = Path(wait_for(lambda w=worker: w.environ().get("PROMETHEUS_MULTIPROC_DIR"), "its place"))
        finally:
            process.terminate()
            process.wait(30)
    assert apart["one"] != apart["two"]
    assert not any(place.exists() for place in apart.values()), "what was temporary is gone with the service"
