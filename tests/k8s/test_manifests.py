"""Every overlay and component renders, fits the API's schemas and keeps the house's policy."""

import json
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

import tests.k8s.links  # noqa: F401 - its rules are among RULES
from tests.k8s.manifests import COMPONENTS, K8S, OVERLAYS, Manifest, containers, environment, of_kind, pods, render
from tests.k8s.policy import RULES, problems, quantity

# The oldest and the newest API that the manifests are for.
VERSIONS = ["1.31.0", "1.34.0"]
# Whose schema the API has not.
CUSTOM = {"ServiceMonitor", "ScaledObject", "RayCluster"}


def fits(manifest: Manifest, version: str) -> None:
    """Hold a manifest to the API's schema; one that did not change since it fitted is not held again."""
    _fits(json.dumps(manifest, sort_keys=True), version)


@cache
def _fits(text: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request):
    return request.param, render(request.param)


@pytest.fixture(scope="module", params=[(o, c) for o in OVERLAYS for c in COMPONENTS], ids="-".join)
def component(request, tmp_path_factory):
    overlay, name = request.param
    return name, render(overlay, name, place=tmp_path_factory.mktemp(name))


def test_the_overlays_and_components_are_the_ones_that_are_checked():
    assert OVERLAYS == ["cluster", "local"]
    assert {"keda", "ray-cluster", "service-monitor"} <= set(COMPONENTS)
    assert len(RULES) >= 11


@pytest.mark.parametrize("version", VERSIONS)
def test_an_overlay_fits_the_api(overlay, version: str):
    _, manifests = overlay
    for manifest in manifests:
        fits(manifest, version)
    assert len(manifests) > 50


def test_a_field_that_the_api_does_not_know_is_seen(overlay):
    _, manifests = overlay
    wrong = yaml.safe_load(yaml.safe_dump(of_kind(manifests, "Deployment")[0]))
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)
    del wrong["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"]
    wrong["spec"]["minReadySeconds"] = "five"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_an_overlay_keeps_the_policy(overlay):
    name, manifests = overlay
    assert problems(manifests) == [], name


def test_a_component_fits_the_api_and_keeps_the_policy(component):
    name, manifests = component
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            fits(manifest, VERSIONS[-1])
    assert problems(manifests) == [], name


def test_all_components_together_keep_the_policy(tmp_path: Path):
    # KEDA asks our own Prometheus, which the operator's replaces.
    together = [name for name in COMPONENTS if name != "service-monitor"]
    assert problems(render("local", *together, place=tmp_path)) == []


def test_the_cluster_names_our_images_by_digest_and_their_commit():
    for one in pods(render("cluster")):
        assert "trellis/commit" in one.workload["metadata"]["labels"]
        for container in containers(one):
            if "trellis/" in container["image"]:
                assert "@sha256:" in container["image"], one.where


@pytest.mark.parametrize("name", OVERLAYS)
def test_flows_get_the_image_of_their_worker(name: str):
    manifests = render(name)
    by_name = {one.name: one for one in pods(manifests)}
    image = by_name["worker"].spec["containers"][0]["image"]
    assert environment(by_name["deployments"], manifests)["FLOW_IMAGE"] == image


def test_everything_local_has_room_on_two_cores_that_also_carry_the_cluster():
    """A rolling update of both replicated services and a flow included; kind's own pods ask for 0.95 cores."""
    manifests = render("local")
    least = {
        m["spec"]["scaleTargetRef"]["name"]: m["spec"]["minReplicas"]
        for m in of_kind(manifests, "HorizontalPodAutoscaler")
    }
    asked = 0.0
    for one in pods(manifests):
        if one.lasting:
            replicas = least.get(one.name) or one.workload["spec"]["replicas"]
            surge = one.workload["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", 0)
            asked += (replicas + surge) * quantity(one.spec["containers"][0]["resources"]["requests"]["cpu"])
    deployments = next(one for one in pods(manifests) if one.name == "deployments")
    asked += quantity(environment(deployments, manifests)["FLOW_CPU"])
    assert 0.5 < asked < 2 - 0.95


def test_everything_that_is_in_the_tree_is_in_an_overlay_or_a_component(tmp_path: Path):
    listed = {path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml"}
    named = set()
    for path in K8S.rglob("kustomization.yaml"):
        text = yaml.safe_load(path.read_text())
        entries = [*text.get("resources", []), *(p["path"] for p in text.get("patches", []) if "path" in p)]
        named |= {(path.parent / entry).resolve() for entry in entries}
    assert listed <= named


def test_every_board_is_handed_to_grafana(tmp_path: Path):
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(render("local", "grafana", place=tmp_path), "ConfigMap")}
    boards = next(data for name, data in maps.items() if name.startswith("grafana-boards"))
    folder = K8S.parents[1] / "monitoring/grafana/dashboards"
    assert boards == {path.name: path.read_text() for path in folder.iterdir()}
