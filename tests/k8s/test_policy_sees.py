"""The policy sees what it is for: each fault, put into good manifests, is named."""

import copy
from collections.abc import Callable

import pytest

import tests.k8s.links  # noqa: F401 - its rules are among RULES
from tests.k8s.manifests import Manifest, render
from tests.k8s.policy import RULES, problems, quantity

Find = Callable[[str, str], Manifest]
FAULTS: dict[str, tuple[Callable[[Find, list[Manifest]], object], str]] = {}


def pod(found: Manifest) -> Manifest:
    return found["spec"]["template"]["spec"]


def container(found: Manifest) -> Manifest:
    return pod(found)["containers"][0]


def fault(expected: str):
    def keep(harm):
        FAULTS[harm.__name__] = (harm, expected)
        return harm

    return keep


@fault("Deployment mlflow, container mlflow: the image trellis/tools:latest has no version")
def latest(find, _):
    container(find("Deployment", "mlflow"))["image"] = "trellis/tools:latest"


@fault("StatefulSet redis, container redis: the image redis has no version")
def no_tag(find, _):
    container(find("StatefulSet", "redis"))["image"] = "redis"


@fault("Deployment worker: may run as root")
def as_root(find, _):
    pod(find("Deployment", "worker"))["securityContext"]["runAsUser"] = 0


@fault("Deployment gateway, container gateway: may run as root")
def one_container_as_root(find, _):
    container(find("Deployment", "gateway"))["securityContext"]["runAsUser"] = 0


@fault("Job setup: no seccomp profile")
def no_seccomp(find, _):
    del pod(find("Job", "setup"))["securityContext"]["seccompProfile"]


@fault("Deployment prediction, container prediction: may write to its root file system")
def writable(find, _):
    container(find("Deployment", "prediction"))["securityContext"]["readOnlyRootFilesystem"] = False


@fault("Deployment prefect, container prefect: keeps capabilities")
def capabilities(find, _):
    container(find("Deployment", "prefect"))["securityContext"]["capabilities"]["add"] = ["NET_ADMIN"]


@fault("StatefulSet postgres, container postgres: may gain privileges")
def escalation(find, _):
    del container(find("StatefulSet", "postgres"))["securityContext"]["allowPrivilegeEscalation"]


@fault("Deployment monitor: volume tmp of a kind that restricted pods may not have")
def host_path(find, _):
    pod(find("Deployment", "monitor"))["volumes"][0] = {"name": "tmp", "hostPath": {"path": "/tmp"}}


@fault("Deployment mlflow, container mlflow: no limit of memory")
def no_limit(find, _):
    del container(find("Deployment", "mlflow"))["resources"]["limits"]


@fault("Deployment prediction, container prediction: requests more memory than its limit")
def request_above_limit(find, _):
    container(find("Deployment", "prediction"))["resources"]["requests"]["memory"] = "2Gi"


@fault("Deployment evidently, container evidently: no readinessProbe")
def no_probe(find, _):
    del container(find("Deployment", "evidently"))["readinessProbe"]


@fault("Deployment prediction, container prediction: livenessProbe asks port web, which it has not")
def probe_of_another_port(find, _):
    container(find("Deployment", "prediction"))["livenessProbe"]["httpGet"]["port"] = "web"


@fault("Deployment prediction: no PodDisruptionBudget")
def budget_of_others(find, _):
    find("PodDisruptionBudget", "prediction")["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] = "predict"


@fault("PodDisruptionBudget gateway: protects ['mlflow']")
def budget_of_a_single_replica(find, _):
    find("PodDisruptionBudget", "gateway")["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] = "mlflow"


@fault("Deployment prediction: replicas are set, and so is what scales it")
def replicas_and_autoscaler(find, _):
    find("Deployment", "prediction")["spec"]["replicas"] = 3


@fault("what scales predictions: there is no such Deployment")
def autoscaler_of_nothing(find, _):
    find("HorizontalPodAutoscaler", "prediction")["spec"]["scaleTargetRef"]["name"] = "predictions"


@fault("Deployment prediction: is killed while it waits")
def too_little_grace(find, _):
    pod(find("Deployment", "prediction"))["terminationGracePeriodSeconds"] = 30


@fault("Deployment gateway: does not wait before it stops")
def no_drain(find, _):
    del container(find("Deployment", "gateway"))["lifecycle"]


@fault("Deployment prediction: a rolling update takes replicas away before there are new ones")
def hasty_update(find, _):
    find("Deployment", "prediction")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] = 1


@fault("Deployment gateway: not spread over nodes")
def not_spread(find, _):
    del pod(find("Deployment", "gateway"))["topologySpreadConstraints"]


@fault("Deployment mlflow: has a token that it does not need")
def token(find, _):
    pod(find("Deployment", "mlflow"))["automountServiceAccountToken"] = True


@fault("ServiceAccount flow: its token is mounted everywhere")
def token_of_an_account(find, _):
    del find("ServiceAccount", "flow")["automountServiceAccountToken"]


@fault("Role worker: every one of verbs")
def wildcard(find, _):
    find("Role", "worker")["rules"][0]["verbs"] = ["*"]


@fault("Role worker: reads secrets or enters pods")
def role_reads_secrets(find, _):
    find("Role", "worker")["rules"][1]["resources"].append("secrets")


@fault("Namespace trellis: Pod Security is not restricted")
def baseline(find, _):
    find("Namespace", "trellis")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "baseline"


@fault("Service gateway: in no namespace of ours")
def elsewhere(find, _):
    find("Service", "gateway")["metadata"]["namespace"] = "default"


@fault("Service mlflow: selects no pod")
def service_of_nothing(find, _):
    find("Service", "mlflow")["spec"]["selector"] = {"app.kubernetes.io/name": "ml-flow"}


@fault("Service prediction: Deployment prediction has no port web")
def service_port(find, _):
    find("Service", "prediction")["spec"]["ports"][0]["targetPort"] = "web"


@fault("Ingress gateway: there is no door:http")
def ingress_backend(find, _):
    path = find("Ingress", "gateway")["spec"]["rules"][0]["http"]["paths"][0]
    path["backend"]["service"]["name"] = "door"


@fault("Deployment gateway: its selector does not take its own pods")
def own_selector(find, _):
    find("Deployment", "gateway")["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] = "nginx"


@fault("Deployment prometheus: there is no ConfigMap rules")
def missing_config(find, _):
    volumes = pod(find("Deployment", "prometheus"))["volumes"]
    next(v for v in volumes if v["name"] == "rules")["configMap"]["name"] = "rules"


@fault("Job setup: nobody makes the secret trellis/root_password")
def unknown_secret(find, _):
    volumes = pod(find("Job", "setup"))["volumes"]
    next(v for v in volumes if v["name"] == "secrets")["secret"]["items"][0]["key"] = "root_password"


@fault("Deployment prediction: /run/secrets/store_url is not mounted")
def secret_file_not_mounted(find, _):
    volumes = pod(find("Deployment", "prediction"))["volumes"]
    secret = next(v for v in volumes if v["name"] == "secrets")["secret"]
    secret["items"] = [item for item in secret["items"] if item["key"] != "store_url"]


@fault("Deployment alertmanager: volume secrets mounts every key of a Secret")
def whole_secret(find, _):
    volumes = pod(find("Deployment", "alertmanager"))["volumes"]
    del next(v for v in volumes if v["name"] == "secrets")["secret"]["items"]


@fault("Deployment mlflow: the secret PASSWORD is in the environment, where crashes print it")
def secret_in_the_environment(find, _):
    source = {"secretKeyRef": {"name": "trellis", "key": "api_key"}}
    container(find("Deployment", "mlflow"))["env"].append({"name": "PASSWORD", "valueFrom": source})


@fault("Secrets ['trellis']: their values are in the manifests")
def secret_in_the_tree(find, manifests):
    metadata = {"name": "trellis", "namespace": "trellis"}
    manifests.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"api_key": "x"}})


@fault("Deployment prediction: there is no claim var")
def missing_claim(find, _):
    volumes = pod(find("Deployment", "prediction"))["volumes"]
    next(v for v in volumes if v["name"] == "home")["persistentVolumeClaim"]["claimName"] = "var"


@fault("Deployment worker: volume home is mounted and not there, or there and not mounted")
def mount_of_nothing(find, _):
    container(find("Deployment", "worker"))["volumeMounts"].append({"name": "home", "mountPath": "/var/lib/trellis"})


@fault("Job first-model: /etc/trellis/first.sh is not mounted")
def missing_script(find, _):
    container(find("Job", "first-model"))["args"] = ["/etc/trellis/first.sh"]


@fault("StatefulSet postgres: Ingress is not denied by default")
def open_by_default(find, _):
    find("NetworkPolicy", "deny-by-default")["spec"]["policyTypes"] = ["Egress"]


@fault("Deployment mlflow: Egress is not denied by default")
def not_everybody_is_denied(find, _):
    find("NetworkPolicy", "deny-by-default")["spec"]["podSelector"] = {"matchLabels": {"app.kubernetes.io/name": "x"}}


@fault("NetworkPolicy into-redis: applies to no pod")
def policy_for_nobody(find, _):
    find("NetworkPolicy", "into-redis")["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] = "valkey"


@fault("Deployment gateway to Deployment prediction, port 3000: may go out and not in")
def one_sided_way(find, _):
    del find("NetworkPolicy", "into-prediction")["spec"]["ingress"][0]["from"][0]


@fault("Deployment prometheus to Deployment monitor, port 9108: may go in and not out")
def the_other_side(find, _):
    del find("NetworkPolicy", "prometheus-scrapes")["spec"]["egress"][1]


@fault("Job first-model: TRELLIS_MLFLOW_URI says mlflow:5000, where it may not go")
def told_and_not_let(find, _):
    del find("NetworkPolicy", "to-mlflow")["spec"]["egress"]


@fault("Deployment gateway: UPSTREAM says predictions:3000, and there is no such Service")
def told_a_wrong_name(find, _):
    container(find("Deployment", "gateway"))["env"][0]["value"] = "predictions:3000"


@pytest.fixture(scope="module")
def good():
    return render("local")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(good, name: str):
    manifests = copy.deepcopy(good)
    by_name = {(m["kind"], m["metadata"]["name"]): m for m in manifests}
    harm, expected = FAULTS[name]
    harm(lambda kind, name: by_name[kind, name], manifests)
    found = problems(manifests)
    assert any(problem.startswith(expected) for problem in found), found


def test_every_rule_has_a_fault_that_it_sees(good):
    seen = set()
    for harm, _ in FAULTS.values():
        manifests = copy.deepcopy(good)
        by_name = {(m["kind"], m["metadata"]["name"]): m for m in manifests}
        harm(lambda kind, name, names=by_name: names[kind, name], manifests)
        seen |= {check.__name__ for check in RULES if any(check(manifests))}
    assert seen == {check.__name__ for check in RULES}


def test_quantities_are_read_as_the_api_reads_them():
    # https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity
    assert [quantity(text) for text in ("500m", "1", "1.5", "128Mi", "1Gi", "2k")] == [0.5, 1, 1.5, 2**27, 2**30, 2000]
