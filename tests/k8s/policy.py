"""What every manifest is held to. Each rule is a function from manifests to problems, in words that name the place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from tests.k8s.manifests import Manifest, Pods, containers, matches, of_kind, pods

# What somebody else makes; docs/operations.md says how.
EXTERNAL_SECRETS = {
    "trellis": {
        *("store_url", "mlflow_backend", "prefect_backend", "online_store", "object_store_credentials"),
        *("api_key", "alert_webhook_url", "redis_users", "object_store_identities"),
        *("postgres_password", "trellis_db_password", "mlflow_db_password", "prefect_db_password"),
        "grafana_admin_password",
    },
    "gateway-tls": {"tls.crt", "tls.key"},
}
# The volumes that Pod Security's `restricted` lets a pod have.
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
_CAPABILITIES = {"NET_BIND_SERVICE"}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_IMAGE = re.compile(r"[a-z0-9./:_-]+?(?::(?P<tag>[\w.-]+))?(?:@sha256:(?P<digest>[0-9a-f]{64}))?")

Rule = Callable[[list[Manifest]], Iterator[str]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def problems(manifests: list[Manifest]) -> list[str]:
    """Return everything that is wrong with rendered manifests."""
    return [problem for check in RULES for problem in check(manifests)]


def quantity(text: object) -> float:
    """Read a Kubernetes quantity."""
    match = _QUANTITY.fullmatch(str(text))
    assert match, f"{text!r} is no quantity"
    return float(match[1]) * _UNITS[match[2] or ""]


def _each(manifests: list[Manifest]) -> Iterator[tuple[Pods, Manifest, str]]:
    for one in pods(manifests):
        for container in containers(one):
            yield one, container, f"{one.where}, container {container['name']}"


@rule
def images_have_a_version(manifests: list[Manifest]) -> Iterator[str]:
    for _, container, where in _each(manifests):
        match = _IMAGE.fullmatch(container["image"])
        if not match or (not match["digest"] and match["tag"] in (None, "latest")):
            yield f"{where}: the image {container['image']} has no version"


@rule
def nothing_runs_as_root_or_with_privileges(manifests: list[Manifest]) -> Iterator[str]:
    """Pod Security's ``restricted``, in full, and a read-only root file system on top."""
    for one in pods(manifests):
        spec, security = one.spec, one.spec.get("securityContext", {})
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(name):
                yield f"{one.where}: {name}"
        if security.get("runAsNonRoot") is not True or security.get("runAsUser") in (None, 0):
            yield f"{one.where}: may run as root"
        if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{one.where}: no seccomp profile"
        if security.get("sysctls"):
            yield f"{one.where}: sysctls"
        for volume in spec.get("volumes", []):
            if not set(volume) - {"name"} <= _VOLUMES:
                yield f"{one.where}: volume {volume['name']} of a kind that restricted pods may not have"
    for _, container, where in _each(manifests):
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
            yield f"{where}: may gain privileges"
        if security.get("readOnlyRootFilesystem") is not True:
            yield f"{where}: may write to its root file system"
        capabilities = security.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or not set(capabilities.get("add", [])) <= _CAPABILITIES:
            yield f"{where}: keeps capabilities"
        if security.get("runAsUser") == 0 or security.get("runAsNonRoot") is False:
            yield f"{where}: may run as root"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{where}: a port of the host"


@rule
def every_container_has_requests_and_a_limit(manifests: list[Manifest]) -> Iterator[str]:
    for one, container, where in _each(manifests):
        resources = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        for name in ("cpu", "memory"):
            if name not in requests:
                yield f"{where}: no request of {name}"
        if "memory" not in limits:
            yield f"{where}: no limit of memory"
        for name in set(requests) & set(limits):
            if quantity(requests[name]) > quantity(limits[name]):
                yield f"{where}: requests more {name} than its limit"
        for volume in one.spec.get("volumes", []):
            if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit") and volume["name"] == "tmp":
                yield f"{one.where}: volume {volume['name']} has no size limit"


@rule
def what_lasts_is_probed(manifests: list[Manifest]) -> Iterator[str]:
    for one, container, where in _each(manifests):
        names = {port.get("name") for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if one.lasting and probe not in container:
                yield f"{where}: no {probe}"
            for kind in ("httpGet", "tcpSocket"):
                port = container.get(probe, {}).get(kind, {}).get("port")
                if isinstance(port, str) and port not in names:
                    yield f"{where}: {probe} asks port {port}, which it has not"


@rule
def what_is_replicated_drains_spreads_and_has_a_budget(manifests: list[Manifest]) -> Iterator[str]:
    scaled = {
        found["spec"]["scaleTargetRef"]["name"]: found["spec"].get("minReplicas")
        or found["spec"].get("minReplicaCount")
        for found in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
    }
    budgets = of_kind(manifests, "PodDisruptionBudget")
    replicated = set()
    for one in pods(manifests):
        if one.kind != "Deployment":
            continue
        replicas = one.workload["spec"].get("replicas")
        if one.name in scaled and replicas is not None:
            yield f"{one.where}: replicas are set, and so is what scales it"
        if (scaled.get(one.name) or replicas or 1) < 2:
            continue
        replicated.add(one.name)
        if not any(matches(budget["spec"]["selector"], one.labels) for budget in budgets):
            yield f"{one.where}: no PodDisruptionBudget"
        for constraint in one.spec.get("topologySpreadConstraints", []):
            if not matches(constraint["labelSelector"], one.labels):
                yield f"{one.where}: spreads pods that are not its own"
        if not one.spec.get("topologySpreadConstraints"):
            yield f"{one.where}: not spread over nodes"
        sleep = one.spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        if sleep[:1] != ["sleep"]:
            yield f"{one.where}: does not wait before it stops"
        elif one.spec.get("terminationGracePeriodSeconds", 30) <= int(sleep[1]):
            yield f"{one.where}: is killed while it waits"
        if one.workload["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable") != 0:
            yield f"{one.where}: a rolling update takes replicas away before there are new ones"
    for target in set(scaled) - {one.name for one in pods(manifests)}:
        yield f"what scales {target}: there is no such Deployment"
    for budget in budgets:
        chosen = {one.name for one in pods(manifests) if matches(budget["spec"]["selector"], one.labels)}
        if not chosen or not chosen <= replicated:
            yield f"PodDisruptionBudget {budget['metadata']['name']}: protects {sorted(chosen) or 'nothing'}"


@rule
def accounts_may_do_little(manifests: list[Manifest]) -> Iterator[str]:
    bound = {
        subject["name"]
        for binding in of_kind(manifests, "RoleBinding")
        for subject in binding["subjects"]
        if subject["kind"] == "ServiceAccount"
    }
    accounts = {found["metadata"]["name"]: found for found in of_kind(manifests, "ServiceAccount")}
    for found in of_kind(manifests, "ClusterRole", "ClusterRoleBinding"):
        yield f"{found['kind']} {found['metadata']['name']}: reaches beyond the namespace"
    for role in of_kind(manifests, "Role"):
        for entry in role["rules"]:
            for group in ("apiGroups", "resources", "verbs"):
                if "*" in entry[group]:
                    yield f"Role {role['metadata']['name']}: every one of {group}"
            if {"secrets", "pods/exec"} & set(entry["resources"]):
                yield f"Role {role['metadata']['name']}: reads secrets or enters pods"
    for name, account in accounts.items():
        if account.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount {name}: its token is mounted everywhere"
    for one in pods(manifests):
        account = one.spec.get("serviceAccountName", "default")
        if account not in accounts:
            yield f"{one.where}: there is no ServiceAccount {account}"
        if one.spec.get("automountServiceAccountToken") and account not in bound:
            yield f"{one.where}: has a token that it does not need"


@rule
def the_namespace_is_restricted_and_holds_everything(manifests: list[Manifest]) -> Iterator[str]:
    names = {}
    for found in of_kind(manifests, "Namespace"):
        names[found["metadata"]["name"]] = found["metadata"].get("labels", {})
        if found["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"Namespace {found['metadata']['name']}: Pod Security is not restricted"
    seen = set()
    for found in manifests:
        key = found["kind"], found["metadata"]["name"]
        if key in seen:
            yield f"{key[0]} {key[1]}: twice"
        seen.add(key)
        if found["kind"] != "Namespace" and found["metadata"].get("namespace") not in names:
            yield f"{key[0]} {key[1]}: in no namespace of ours"
