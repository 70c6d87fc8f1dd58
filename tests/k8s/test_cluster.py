"""On a cluster that somebody offers (CONTEXT=name): applied, answering, and replaced without a failed request.

The images must be in the cluster's engine and the Secret `trellis` in the namespace (make k8s-secrets CONTEXT=name).
"""

import base64
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from tests.k8s.manifests import K8S

CONTEXT = os.environ.get("KUBE_TEST_CONTEXT", "")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not CONTEXT, reason="NO CLUSTER: name one with make test-k8s CONTEXT=name"),
]
ROW = {
    **{"carrier": "UA", "flight": 1545, "origin": "EWR", "dest": "IAH", "tailnum": "N14228", "distance": 1400},
    **{"sched_dep": "2013-07-02T13:15:00Z", "sched_minutes": 244},
}


def kubectl(*arguments: str, timeout: float = 1200) -> str:
    command = ["kubectl", "--context", CONTEXT, "--namespace", "trellis", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def gateway():
    """Forward a port to the gateway and return its address."""
    command = ["kubectl", "--context", CONTEXT, "--namespace", "trellis", "port-forward", "service/gateway", ":8080"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        line = forward.stdout.readline()
        try:
            yield f"http://{line.split()[2]}"
        finally:
            forward.terminate()


@pytest.fixture(scope="module")
def applied():
    kubectl("apply", "--kustomize", str(K8S / "overlays/local"))
    kubectl("wait", "--for=condition=complete", "job", "--all", "--timeout=15m")
    for name in (
        "gateway",
        "prediction",
        "console",
        "mlflow",
        "prefect",
        "worker",
        "monitor",
        "evidently",
        "prometheus",
    ):
        kubectl("rollout", "status", f"deployment/{name}", "--timeout=5m")
    return base64.b64decode(kubectl("get", "secret", "trellis", "-o", "jsonpath={.data.api_key}")).decode().strip()


def ask(url: str, key: str) -> dict:
    body = json.dumps({"rows": [ROW]}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/v1/models/flight_delay/predict", body, headers)
    with urllib.request.urlopen(request, timeout=15) as answer:
        return json.load(answer)


def test_it_answers(applied: str):
    with gateway() as url:
        assert ask(url, applied)["predictions"]


def test_a_rolling_update_fails_no_request(applied: str):
    failed, answered, stop = [], [0], threading.Event()

    def load():
        while not stop.is_set():
            try:
                ask(url, applied)
                answered[0] += 1
            except (urllib.error.URLError, OSError) as error:
                failed.append(repr(error))
            time.sleep(0.02)

    with gateway() as url:
        loader = threading.Thread(target=load)
        loader.start()
        try:
            kubectl("rollout", "restart", "deployment/prediction")
            kubectl("rollout", "status", "deployment/prediction", "--timeout=10m")
        finally:
            stop.set()
            loader.join()
    assert failed == []
    assert answered[0] > 100


def test_what_is_not_allowed_in_the_namespace_is_refused(applied: str):
    command = ["run", "root", "--image=nginx:1.26", "--restart=Never", "--dry-run=server"]
    done = subprocess.run(
        ["kubectl", "--context", CONTEXT, "--namespace", "trellis", *command], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "violates PodSecurity" in done.stderr
