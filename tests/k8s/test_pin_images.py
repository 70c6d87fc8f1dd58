"""Digests and the commit go into the overlay, into every pod and nowhere else; anything wrong leaves it alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.k8s.manifests import K8S, ROOT, containers, environment, kustomize, pods
from tests.k8s.policy import problems

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGESTS = {
    image: f"registry.test:5000/ours/{image}@sha256:{number * 64}"
    for image, number in zip(("serving", "worker", "tools"), "123", strict=True)
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for part in ("infra/k8s", "infra/config", "monitoring/rules"):
        shutil.copytree(ROOT / part, tmp_path / part)
    return tmp_path / "infra/k8s/overlays/cluster"


def pin(overlay: Path, *images: str, commit: str = COMMIT) -> subprocess.CompletedProcess:
    script = [sys.executable, K8S / "pin_images.py", "--overlay", overlay / "kustomization.yaml"]
    return subprocess.run([*script, "--commit", commit, *images], capture_output=True, text=True)


def test_every_pod_runs_what_was_pinned_and_says_of_which_commit(tree: Path):
    given = [f"{image}={reference}" for image, reference in DIGESTS.items()]
    done = pin(tree, *given)
    assert done.returncode == 0, done.stderr
    manifests = kustomize(tree)
    seen = {
        c["image"]
        for one in pods(manifests)
        for c in containers(one)
        if "trellis" in c["image"] or "ours" in c["image"]
    }
    assert seen == set(DIGESTS.values())
    assert {one.workload["metadata"]["labels"]["trellis/commit"] for one in pods(manifests)} == {COMMIT}
    deployments = next(one for one in pods(manifests) if one.name == "deployments")
    assert environment(deployments, manifests)["FLOW_IMAGE"] == DIGESTS["worker"]
    assert problems(manifests) == []
    before = (tree / "kustomization.yaml").read_text()
    assert pin(tree, *given).returncode == 0
    assert (tree / "kustomization.yaml").read_text() == before
    assert "# Images are named by digest" in before


@pytest.mark.parametrize(
    ("images", "commit", "message"),
    [
        (["serving=a/b@sha256:" + "1" * 64], COMMIT, "One commit's images belong together"),
        ([*(f"{k}={v}" for k, v in DIGESTS.items()), "nginx=a/b@sha256:" + "1" * 64], COMMIT, "belong together"),
        ([f"{k}=registry.test/{k}:v1" for k in DIGESTS], COMMIT, "names no digest"),
        ([f"{k}=registry.test/{k}@sha256:{'0' * 64}" for k in DIGESTS], COMMIT, "names no digest"),
        ([f"{k}={v}" for k, v in DIGESTS.items()], "main", "'main' is no commit"),
        (["serving"], COMMIT, "belong together"),
    ],
)
def test_what_is_no_release_is_refused_and_changes_nothing(tree: Path, images, commit: str, message: str):
    before = (tree / "kustomization.yaml").read_text()
    done = pin(tree, *images, commit=commit)
    assert done.returncode == 1
    assert message in done.stderr
    assert (tree / "kustomization.yaml").read_text() == before
    assert sorted(path.name for path in tree.iterdir()) == ["kustomization.yaml", "stores.yaml"]
