"""Compose and the local overlay run the same thing: images, settings, secrets, memory, ports, health, configuration."""

import re
from typing import Any

import pytest
import yaml

from tests.k8s.manifests import ROOT, Pods, environment, of_kind, pods, render, secret_keys
from tests.k8s.policy import quantity

# Differences that are meant, each with its reason.
OTHER_COMMAND = {
    "worker": "starts flows as Jobs of the cluster, not as processes",
    "deployments": "fills the work pool's template in first",
}
ONLY_THERE = {"grafana": "a profile of compose's", "simulator": "a profile of compose's"}
ONLY_ON_A_CLUSTER = {"backup": "compose's is infra/compose/backup.sh, run by whom it pleases"}
OTHER_ENVIRONMENT = {
    "OBJECTS": "shared by all on a cluster, where buckets have other names",
    "BACKUPS": "of the backup of a cluster",
    "FLOW_CPU": "of the Jobs that the worker starts",
    "FLOW_IMAGE": "of the Jobs that the worker starts",
    "HEALTH": "read by compose's health checks",
    "MLFLOW_S3_ENDPOINT_URL": "the same as AWS_ENDPOINT_URL, which boto3 reads as well",
    "PGDATA": "below the volume's root, which may hold a lost+found",
    "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES": "the one namespace that the worker may see",
    "PREFECT_WORKER_WEBSERVER_HOST": "asked by the kubelet, from outside",
    "WORK_POOL_TEMPLATE": "of the Jobs that the worker starts",
    "WORK_POOL_TYPE": "kubernetes there, process here",
}
# Services that open no store get the shared settings and no secret; compose gives each service what it needs.
SHARED = re.compile(r"TRELLIS_|AWS_|PREFECT_API_URL")


def with_defaults(text: str) -> str:
    return re.sub(r"\$\{\w+(?::?-([^}]*))?\}", lambda match: match[1] or "", text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(with_defaults((ROOT / "docker-compose.yml").read_text()))


@pytest.fixture(scope="module")
def manifests():
    return render("local")


@pytest.fixture(scope="module")
def workloads(manifests) -> dict[str, Pods]:
    return {one.name: one for one in pods(manifests)}


def names() -> list[str]:
    services = yaml.safe_load(with_defaults((ROOT / "docker-compose.yml").read_text()))["services"]
    return sorted(set(services) - set(ONLY_THERE))


def test_both_have_the_same_services(compose, workloads):
    assert set(compose["services"]) - set(ONLY_THERE) == set(workloads) - set(ONLY_ON_A_CLUSTER)
    assert {name for name, one in compose["services"].items() if one.get("profiles")} == set(ONLY_THERE)


@pytest.mark.parametrize("name", names())
def test_a_service_is_the_same_in_both(name: str, compose, manifests, workloads):
    here, there = compose["services"][name], workloads[name]
    container = there.spec["containers"][0]
    assert container["image"] == here["image"]

    command = here.get("command", []) if name != "gateway" else here["entrypoint"]
    if "entrypoint" in here and name != "gateway":
        command = [*here["entrypoint"], *command]
    told = [*container.get("command", []), *container.get("args", [])]
    told = [text.replace("$(OBJECTS)", "s3://trellis") for text in told]
    if name not in OTHER_COMMAND:
        assert told == [str(part) for part in command]

    assert secret_keys(there) == (set(here.get("secrets", [])) if name != "worker" else set())

    wanted = {key: str(value) for key, value in (here.get("environment") or {}).items()}
    found = environment(there, manifests)
    keep = {key for key in wanted if key not in OTHER_ENVIRONMENT}
    assert {key: found.get(key) for key in keep} == {key: wanted[key] for key in keep}
    assert {key for key in set(found) - set(wanted) - set(OTHER_ENVIRONMENT) if not SHARED.match(key)} == set()

    limit = here.get("deploy", {}).get("resources", {}).get("limits", {}).get("memory")
    if limit:
        bytes_here = quantity(limit.upper() + "i")
        # The worker of a cluster starts flows elsewhere; a flow's Job has what the worker has here.
        assert quantity(container["resources"]["limits"]["memory"]) == bytes_here or name == "worker"


@pytest.mark.parametrize("name", names())
def test_a_service_listens_and_is_probed_alike(name: str, compose, workloads):
    here, container = compose["services"][name], workloads[name].spec["containers"][0]
    ports = {port["containerPort"] for port in container.get("ports", [])}
    published = {int(text.rpartition(":")[2]) for text in here.get("ports", [])}
    assert published <= ports
    check = " ".join(str(part) for part in here.get("healthcheck", {}).get("test", []))
    asked = here.get("environment", {}).get("HEALTH") or (re.search(r"http://127[^\"' ]+", check) or [None])[0]
    if asked and name not in ("prediction",):
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/.*?)'?\)?,?", asked)
        assert match, asked
        assert int(match[1]) in ports
        assert container["livenessProbe"]["httpGet"]["path"] == match[2]
    if "pg_isready" in check or "redis-cli" in check:
        probe = " ".join(container["livenessProbe"]["exec"]["command"])
        assert all(word in probe for word in check.split()[1:] if word.isalnum())


def test_configuration_is_the_very_same_files(compose, manifests):
    """Every file that compose mounts is the content of a ConfigMap, to the byte."""
    kept = {text for one in of_kind(manifests, "ConfigMap") for text in one["data"].values()}
    looked = 0
    for name in names():
        for volume in compose["services"][name].get("volumes", []):
            source = volume.split(":")[0]
            if not source.startswith("./"):
                continue
            path = ROOT / source
            files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
            for file in files:
                if file.name == "kustomization.yaml" or file.name.endswith("_test.yml"):
                    continue
                assert file.read_text() in kept, f"{file} of {name}"
                looked += 1
    assert looked >= 8


def test_every_secret_of_compose_is_declared_for_a_cluster(compose):
    from tests.k8s.policy import EXTERNAL_SECRETS

    build_only = {"pip", "ca"}
    assert set(compose["secrets"]) - build_only == EXTERNAL_SECRETS["trellis"]


def test_every_rule_file_that_prometheus_reads_is_handed_to_it(manifests):
    maps = {one["metadata"]["name"].rpartition("-")[0]: one["data"] for one in of_kind(manifests, "ConfigMap")}
    read = yaml.safe_load(maps["prometheus"]["prometheus.yml"])["rule_files"]
    assert {path.rpartition("/")[2] for path in read} == set(maps["prometheus-rules"])
