"""On a cluster that somebody offers (CONTEXT=name): applied, answering, and replaced without a failed request.

The images must be in the cluster's engine and the Secret `trellis` in the namespace (make k8s-secrets CONTEXT=name).
"""

import base64
import json
import os
import re
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


@contextmanager
def under_load(key: str):
    """Ask for predictions, one after the other, and return the failures; at least a hundred must have been answered."""
    failed, answered, stop = [], [0], threading.Event()

    def load(url: str):
        while not stop.is_set():
            try:
                ask(url, key)
                answered[0] += 1
            except (urllib.error.URLError, OSError) as error:
                failed.append(repr(error))
            time.sleep(0.02)

    with gateway() as url:
        loader = threading.Thread(target=load, args=(url,))
        loader.start()
        try:
            yield failed
        finally:
            stop.set()
            loader.join()
    assert answered[0] > 100


def ready(name: str) -> set[str]:
    """Return the pods of a service that are ready and stay."""
    pods = json.loads(kubectl("get", "pods", "-l", f"app.kubernetes.io/name={name}", "-o", "json"))["items"]
    return {
        one["metadata"]["name"]
        for one in pods
        if "deletionTimestamp" not in one["metadata"]
        and any(found["type"] == "Ready" and found["status"] == "True" for found in one["status"]["conditions"])
    }


def test_a_rolling_update_fails_no_request(applied: str):
    with under_load(applied) as failed:
        kubectl("rollout", "restart", "deployment/prediction")
        kubectl("rollout", "status", "deployment/prediction", "--timeout=10m")
    assert failed == []


def test_a_killed_replica_fails_no_request_and_is_replaced(applied: str):
    with under_load(applied) as failed:
        before = ready("prediction")
        kubectl("delete", "pod", victim := min(before), "--grace-period=0", "--force")
        until = time.monotonic() + 600
        while len(after := ready("prediction") - {victim}) < len(before):
            assert time.monotonic() < until, after
            time.sleep(2)
    assert failed == []


def test_the_budget_lets_one_replica_go_and_no_more(applied: str):
    """As `kubectl drain` asks for them; nothing is evicted here."""
    kubectl("rollout", "status", "deployment/gateway", "--timeout=5m")
    status = json.loads(kubectl("get", "pdb", "gateway", "-o", "json"))["status"]
    assert (status["currentHealthy"], status["desiredHealthy"], status["disruptionsAllowed"]) == (2, 1, 1)
    status = json.loads(kubectl("get", "pdb", "prediction", "-o", "json"))["status"]
    assert status["disruptionsAllowed"] == 1


def test_a_backup_is_made_and_sent(applied: str):
    kubectl("delete", "job", "backup-by-hand", "--ignore-not-found")
    kubectl("create", "job", "backup-by-hand", "--from=cronjob/backup")
    try:
        kubectl("wait", "--for=condition=complete", "job/backup-by-hand", "--timeout=10m")
        said = kubectl("logs", "job/backup-by-hand", "--container", "save")
        assert "databases mlflow prefect trellis" in said
        assert "objects artifacts" in said
    finally:
        kubectl("delete", "job", "backup-by-hand")


def test_what_is_not_allowed_in_the_namespace_is_refused(applied: str):
    found = re.match(r"v(\d+)\.(\d+)", json.loads(kubectl("get", "--raw", "/version"))["gitVersion"])
    if not found or (int(found[1]), int(found[2])) < (1, 25):
        pytest.skip("OLD CLUSTER: Pod Security is a part of Kubernetes since 1.25")
    command = ["run", "root", "--image=nginx:1.26", "--restart=Never", "--dry-run=server"]
    done = subprocess.run(
        ["kubectl", "--context", CONTEXT, "--namespace", "trellis", *command], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "violates PodSecurity" in done.stderr
