"""Manifests as Python sees them: rendering them, and finding the pods in them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "infra/k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir() if path.is_dir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir() if path.is_dir())
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """A workload's pods.

    Attributes:
        kind: ``Deployment``, ``StatefulSet``, ``Job``, …
        name: Of the workload.
        labels: Of its pods.
        spec: Of its pods.
        workload: The whole manifest.
    """

    kind: str
    name: str
    labels: dict[str, str]
    spec: Manifest
    workload: Manifest

    @property
    def where(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def lasting(self) -> bool:
        return self.kind in ("Deployment", "StatefulSet")


@cache
def _rendered(directory: Path) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("NO KUBECTL: install kubectl 1.21 or later")
    done = subprocess.run(["kubectl", "kustomize", str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # What kustomize only warns of (a deprecated field) is a fault here.
    assert not done.stderr, done.stderr
    return done.stdout


def kustomize(directory: Path) -> list[Manifest]:
    """Render a directory as ``kubectl apply -k`` would."""
    return [found for found in yaml.load_all(_rendered(directory), yaml.CSafeLoader) if found]


def render(overlay: str, *components: str, place: Path | None = None) -> list[Manifest]:
    """Render an overlay, with components where some are named (``place`` is where a directory for that may be made)."""
    if not components:
        return kustomize(K8S / "overlays" / overlay)
    assert place is not None
    copy = place / "tree"
    for part in ("infra/k8s", "infra/config", "monitoring"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    path = copy / "infra/k8s/overlays" / overlay / "kustomization.yaml"
    text = yaml.safe_load(path.read_text())
    # Where a person would add them: before what hardens everything.
    text["components"][-1:-1] = [f"../../components/{name}" for name in components]
    path.write_text(yaml.safe_dump(text))
    return kustomize(path.parent)


def pods(manifests: list[Manifest]) -> list[Pods]:
    """Return the pods of every workload, those of a custom resource as well."""
    found = []
    for manifest in manifests:
        templates = list(_templates(manifest.get("spec", {})))
        for number, template in enumerate(templates):
            name = manifest["metadata"]["name"] + (f"/{number}" if len(templates) > 1 else "")
            labels = template.get("metadata", {}).get("labels", {})
            found.append(Pods(manifest["kind"], name, labels, template["spec"], manifest))
    return found


def _templates(node: Any) -> Iterator[Manifest]:
    if isinstance(node, dict):
        if isinstance(node.get("spec"), dict) and "containers" in node["spec"]:
            yield node
            return
        for value in node.values():
            yield from _templates(value)
    elif isinstance(node, list):
        for value in node:
            yield from _templates(value)


def containers(one: Pods) -> list[Manifest]:
    return [*one.spec.get("initContainers", []), *one.spec["containers"]]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def matches(selector: Manifest | None, labels: dict[str, str]) -> bool:
    """Tell whether a label selector takes labels; an empty one takes all, None takes nothing."""
    if selector is None:
        return False
    assert set(selector) <= {"matchLabels"}, f"the checks know no {sorted(selector)}"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def environment(one: Pods, manifests: list[Manifest]) -> dict[str, str]:
    """Return what a workload's first container finds in its environment, ConfigMaps read."""
    maps = {manifest["metadata"]["name"]: manifest["data"] for manifest in of_kind(manifests, "ConfigMap")}
    container = one.spec["containers"][0]
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]
    for entry in container.get("env", []):
        found[entry["name"]] = entry.get("value", "")
    return found


def secret_keys(one: Pods) -> set[str]:
    """Return the keys of Secrets that a workload mounts."""
    volumes = [volume["secret"] for volume in one.spec.get("volumes", []) if "secret" in volume]
    return {item["key"] for secret in volumes for item in secret.get("items", [])}
