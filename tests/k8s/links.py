"""Rules about what refers to what: nothing points at nothing, and whoever must talk may."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.k8s.manifests import Manifest, Pods, environment, matches, of_kind, pods, secret_keys
from tests.k8s.policy import EXTERNAL_SECRETS, rule

_ADDRESS = re.compile(r"(?:^|//|@|,)([a-z][a-z0-9-]*)(?:\.trellis\.svc)?:(\d{2,5})(?=/|$|,)")
# Settings that everybody is told of, and the label of those who use them.
_TOLD_TO_ALL = {
    "AWS_ENDPOINT_URL": "needs/object-store",
    "TRELLIS_MLFLOW_URI": "needs/mlflow",
    "RAY_ADDRESS": "needs/ray",
}


@rule
def selectors_select(manifests: list[Manifest]) -> Iterator[str]:
    everybody = pods(manifests)
    for one in everybody:
        selector = one.workload["spec"].get("selector")
        if one.lasting and not matches(selector, one.labels):
            yield f"{one.where}: its selector does not take its own pods"
    for service in of_kind(manifests, "Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        chosen = [one for one in everybody if matches({"matchLabels": spec["selector"]}, one.labels)]
        if not chosen:
            yield f"Service {name}: selects no pod"
        for port in spec["ports"]:
            for one in chosen:
                if port["targetPort"] not in {p for c in one.spec["containers"] for p in _ports(c)}:
                    yield f"Service {name}: {one.where} has no port {port['targetPort']}"
    services = {s["metadata"]["name"]: s for s in of_kind(manifests, "Service")}
    for ingress in of_kind(manifests, "Ingress"):
        for path in (path for one in ingress["spec"]["rules"] for path in one["http"]["paths"]):
            backend = path["backend"]["service"]
            ports = {port["name"] for port in services.get(backend["name"], {}).get("spec", {}).get("ports", [])}
            if backend["port"]["name"] not in ports:
                yield f"Ingress {ingress['metadata']['name']}: there is no {backend['name']}:{backend['port']['name']}"
    for monitor in of_kind(manifests, "ServiceMonitor"):
        labels = monitor["spec"]["selector"]
        chosen = [s for s in services.values() if matches(labels, s["metadata"].get("labels", {}))]
        ports = {port["name"] for s in chosen for port in s["spec"]["ports"]}
        if not {end["port"] for end in monitor["spec"]["endpoints"]} <= ports:
            yield f"ServiceMonitor {monitor['metadata']['name']}: watches no Service's port"


def _ports(container: Manifest) -> Iterator[str | int]:
    for port in container.get("ports", []):
        yield port["containerPort"]
        if "name" in port:
            yield port["name"]


@rule
def what_is_referred_to_is_there(manifests: list[Manifest]) -> Iterator[str]:
    names = {kind: {m["metadata"]["name"] for m in of_kind(manifests, kind)} for kind in ("ConfigMap", "Secret")}
    claims = {m["metadata"]["name"] for m in of_kind(manifests, "PersistentVolumeClaim")}
    keys = {m["metadata"]["name"]: set(m["data"]) for m in of_kind(manifests, "ConfigMap")}
    if names["Secret"]:
        yield f"Secrets {sorted(names['Secret'])}: their values are in the manifests"
    for one in pods(manifests):
        volumes = {volume["name"]: volume for volume in one.spec.get("volumes", [])}
        own = {c["metadata"]["name"] for c in one.workload["spec"].get("volumeClaimTemplates", [])}
        mounts = [mount for c in one.spec["containers"] for mount in c.get("volumeMounts", [])]
        mounted = {mount["name"] for mount in mounts}
        for name in sorted(mounted ^ (set(volumes) | own)):
            yield f"{one.where}: volume {name} is mounted and not there, or there and not mounted"
        for name, volume in volumes.items():
            if "configMap" in volume and volume["configMap"]["name"] not in names["ConfigMap"]:
                yield f"{one.where}: there is no ConfigMap {volume['configMap']['name']}"
            if "persistentVolumeClaim" in volume and volume["persistentVolumeClaim"]["claimName"] not in claims:
                yield f"{one.where}: there is no claim {volume['persistentVolumeClaim']['claimName']}"
            if "secret" in volume:
                known = EXTERNAL_SECRETS.get(volume["secret"]["secretName"], set())
                if not volume["secret"].get("items"):
                    yield f"{one.where}: volume {name} mounts every key of a Secret"
                for item in volume["secret"].get("items", []):
                    if item["key"] not in known:
                        yield f"{one.where}: nobody makes the secret {volume['secret']['secretName']}/{item['key']}"
        for mount in mounts:
            volume = volumes.get(mount["name"], {})
            if "subPath" in mount and mount["subPath"] not in keys.get(volume.get("configMap", {}).get("name"), set()):
                yield f"{one.where}: there is no {mount['subPath']} in {mount['name']}"
        for container in one.spec["containers"]:
            for source in container.get("envFrom", []):
                if source.get("configMapRef", {}).get("name") not in names["ConfigMap"]:
                    yield f"{one.where}: its environment comes from nowhere ({source})"
            for entry in container.get("env", []):
                if "secretKeyRef" in entry.get("valueFrom", {}):
                    yield f"{one.where}: the secret {entry['name']} is in the environment, where crashes print it"
        yield from _files(one, manifests, keys, volumes, mounts)


def _files(one: Pods, manifests: list[Manifest], keys: Any, volumes: Any, mounts: Any) -> Iterator[str]:
    """Follow every path in arguments and environment to what is mounted there."""
    there = {f"{m['mountPath']}/{k}" for m in mounts if m["name"] == "secrets" for k in secret_keys(one)}
    for mount in mounts:
        found = keys.get(volumes.get(mount["name"], {}).get("configMap", {}).get("name"), set())
        there |= {mount["mountPath"]} if "subPath" in mount else {f"{mount['mountPath']}/{key}" for key in found}
    container = one.spec["containers"][0]
    told = [*container.get("command", []), *container.get("args", [])]
    told = [text.rpartition("=")[2] for text in told]
    try:
        told += [v for k, v in environment(one, manifests).items() if k.endswith("_FILE")]
    except KeyError:
        return  # the ConfigMap is missing, which is said already
    ours = tuple(
        m["mountPath"] + "/"
        for m in mounts
        if "secret" in str(volumes.get(m["name"])) or "configMap" in str(volumes.get(m["name"]))
    )
    mounts_secrets = any(mount["name"] == "secrets" for mount in mounts)
    for path in told:
        if path.startswith(("/run/secrets/", "/etc/trellis/", "/etc/work-pool/", *ours)) and path not in there:
            if path.startswith("/run/secrets/") and not mounts_secrets:
                continue  # shared settings; it opens no store
            if path.startswith("/run/secrets/") and not _opens(one, path):
                continue
            yield f"{one.where}: {path} is not mounted"


def _opens(one: Pods, path: str) -> bool:
    """Tell whether a pod opens a store whose address is in a file that all are told of."""
    needs = {
        "/run/secrets/store_url": "needs/postgres",
        "/run/secrets/online_store": "needs/redis",
        "/run/secrets/object_store_credentials": "needs/object-store",
    }
    return path not in needs or (needs[path] in one.labels and one.labels.get("app.kubernetes.io/name") != "mlflow")


@rule
def the_network_is_closed_but_for_ways_with_two_ends(manifests: list[Manifest]) -> Iterator[str]:
    policies, everybody = of_kind(manifests, "NetworkPolicy"), pods(manifests)
    for one in everybody:
        for direction in ("Ingress", "Egress"):
            if not any(_closes(p, one, direction) for p in policies):
                yield f"{one.where}: {direction} is not denied by default"
    for policy in policies:
        name, chosen = policy["metadata"]["name"], [p for p in everybody if _applies(policy, p)]
        flow = policy["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/name") == "flow"
        if not chosen and not flow:
            yield f"NetworkPolicy {name}: applies to no pod"
    for one in everybody:
        for other in everybody:
            for port in {number for c in other.spec["containers"] for number in _ports(c) if isinstance(number, int)}:
                out, into = (
                    _allows(policies, one, other, port, "Egress"),
                    _allows(policies, other, one, port, "Ingress"),
                )
                if out != into:
                    half = "may go out and not in" if out else "may go in and not out"
                    yield f"{one.where} to {other.where}, port {port}: {half}"


@rule
def whoever_is_told_an_address_may_go_there(manifests: list[Manifest]) -> Iterator[str]:
    services = {s["metadata"]["name"]: s["spec"] for s in of_kind(manifests, "Service")}
    everybody, policies = pods(manifests), of_kind(manifests, "NetworkPolicy")
    for one in everybody:
        try:
            told = environment(one, manifests)
        except KeyError:
            continue
        for setting, text in told.items():
            for name, number in _ADDRESS.findall(text):
                if setting in _TOLD_TO_ALL and _TOLD_TO_ALL[setting] not in one.labels:
                    continue
                if name in ("localhost", one.labels.get("app.kubernetes.io/name")):
                    continue
                if int(number) not in {port["port"] for port in services.get(name, {}).get("ports", [])}:
                    yield f"{one.where}: {setting} says {name}:{number}, and there is no such Service"
                    continue
                targets = [p for p in everybody if matches({"matchLabels": services[name]["selector"]}, p.labels)]
                if not all(_allows(policies, one, p, int(number), "Egress") for p in targets):
                    yield f"{one.where}: {setting} says {name}:{number}, where it may not go"


def _applies(policy: Manifest, one: Pods) -> bool:
    return matches(policy["spec"]["podSelector"], one.labels)


def _closes(policy: Manifest, one: Pods, direction: str) -> bool:
    spec = policy["spec"]
    return not spec["podSelector"] and direction in spec["policyTypes"] and not spec.get(direction.lower())


def _allows(policies: list[Manifest], one: Pods, other: Pods, port: int, direction: str) -> bool:
    """Tell whether the policies of ``one`` let it talk with ``other`` at ``port``, which is the callee's."""
    peers = "to" if direction == "Egress" else "from"
    for policy in policies:
        if not _applies(policy, one) or direction not in policy["spec"]["policyTypes"]:
            continue
        for entry in policy["spec"].get(direction.lower(), []):
            ports = {p["port"] for p in entry.get("ports", [])}
            if ports and port not in ports:
                continue
            if any(
                "podSelector" in p and "namespaceSelector" not in p and matches(p["podSelector"], other.labels)
                for p in entry.get(peers, [])
            ):
                return True
    return False
