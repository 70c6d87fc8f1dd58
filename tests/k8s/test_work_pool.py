"""A flow's Job, made from the work pool's template by Prefect's own worker code, is held to what every pod is."""

import json
import os
import subprocess

import kubernetes_validate
import pytest

import tests.k8s.links  # noqa: F401 - its rules are among RULES
from tests.k8s.manifests import K8S, environment, of_kind, pods, render
from tests.k8s.policy import problems

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::pydantic.warnings.PydanticDeprecationWarning"
)


def template(told: dict[str, str], place) -> dict:
    """Run the script that fills the template in, with what it calls afterwards left out."""
    script = (K8S / "base/work-pool.sh").read_text()
    fill, _, calls = script.partition("/etc/trellis/deployments.sh")
    assert "prefect work-pool update" in calls
    filled = place / "filled.json"
    fill = fill.replace("/etc/work-pool/work-pool.json", str(K8S / "base/work-pool.json"))
    told = {**told, "WORK_POOL_TEMPLATE": str(filled), "PATH": os.environ["PATH"]}
    subprocess.run(["sh", "-c", fill], env=told, check=True)
    return json.loads(filled.read_text())


def job_of(overlay: str, place):
    """Make a Job as Prefect's worker does, short of asking a server for blocks, of which the template has none."""
    from prefect.utilities.templating import apply_values
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration

    manifests = render(overlay)
    deployments = next(one for one in pods(manifests) if one.name == "deployments")
    told = environment(deployments, manifests)
    filled = template(told, place)
    values = Configuration._get_base_config_defaults(filled["variables"]["properties"])
    made = Configuration(**apply_values(filled["job_configuration"], values, remove_notset=True))
    return manifests, told, made


def prepared(made) -> dict:
    """Let Prefect put in what is a run's own: labels, name, command."""
    from prefect.client.schemas.objects import Flow, FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

    flow = Flow(name="train-model")
    deployment = DeploymentResponse(name="trellis", flow_id=flow.id)
    made.prepare_for_flow_run(FlowRun(flow_id=flow.id, name="a-run"), deployment, flow)
    return made.job_manifest


@pytest.mark.parametrize("overlay", ["local", "cluster"])
def test_a_flows_job_keeps_the_policy(overlay: str, tmp_path):
    manifests, told, made = job_of(overlay, tmp_path)
    job = made.job_manifest
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == told["FLOW_IMAGE"]
    env = container["env"] if isinstance(container["env"], dict) else {e["name"]: e["value"] for e in container["env"]}
    platform = environment(next(one for one in pods(manifests) if one.name == "prediction"), manifests)
    shared = {name for name in platform if name.startswith(("TRELLIS_", "AWS_"))} & set(told)
    assert len(shared) >= 8
    assert {name: env[name] for name in shared} == {name: platform[name] for name in shared}
    assert env["PREFECT_API_URL"] == "http://prefect:4200/api"
    # As the API will see it: Prefect fills in the name and what it runs.
    metadata = {"name": "flow", "namespace": job["metadata"].get("namespace") or "trellis"}
    whole = {**job, "metadata": metadata}
    container["env"] = [{"name": name, "value": value} for name, value in env.items()]
    container["args"] = ["prefect", "flow-run", "execute"]
    pod = whole["spec"]["template"]["spec"]
    for key in ("parallelism", "completions"):  # Prefect asks for them where the API ignores them
        whole["spec"][key] = pod.pop(key)
    kubernetes_validate.validate(whole, "1.34.0", strict=True)
    assert problems([*manifests, whole]) == []
    assert of_kind([*manifests, whole], "Job")[-1] is whole


def test_a_flows_pod_is_known_by_its_labels_whatever_prefect_adds(tmp_path):
    """Network policies choose it by them; Prefect has names of its own for flow and deployment."""
    _, _, made = job_of("local", tmp_path)
    wanted = dict(made.job_manifest["spec"]["template"]["metadata"]["labels"])
    assert wanted["app.kubernetes.io/name"] == "flow"
    found = prepared(made)["spec"]["template"]["metadata"]["labels"]
    assert {name: found[name] for name in wanted} == wanted
    assert "prefect.io/flow-run-id" in found
