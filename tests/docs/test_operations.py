"""The commands of the operations guide, run as they stand; what it names of the cluster is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.k8s.policy import EXTERNAL_SECRETS

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/operations.md").read_text()


def test_backup_and_restore_run_as_the_guide_says(tmp_path: Path):
    home = tmp_path / "var"
    (home / "store").mkdir(parents=True)
    (home / "kept.txt").write_text("kept")
    blocks = re.findall(r"```sh operations\n(.*?)```", GUIDE, re.S)
    assert len(blocks) == 2
    trellis = f'trellis() {{ "{sys.executable}" -c "from trellis.cli import main; main()" "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-euc", trellis + "\n".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, "TRELLIS_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (home / "kept.txt").read_text() == "kept"
    assert (tmp_path / "var.lost/kept.txt").exists()
    assert "Whole:" in done.stdout
    assert "Restored to" in done.stdout


def test_the_guide_lists_the_secrets_that_a_cluster_with_managed_stores_needs():
    listed = set(re.findall(r"^   \| `(\w+)`", GUIDE, re.M))
    mounted = set()
    for path in (ROOT / "infra/k8s/base").glob("*.yaml"):
        mounted |= set(re.findall(r"\{key: (\w+), path", path.read_text()))
    assert listed == mounted
    assert listed <= EXTERNAL_SECRETS["trellis"]


def test_every_file_benchmark_and_component_that_it_names_is_there():
    for name in re.findall(r"`((?:tests|infra)/[\w./-]+)`", GUIDE):
        made = name.startswith("infra/compose/secrets/")  # by make up, and in no clone
        assert made or (ROOT / name).exists(), name
    for name in re.findall(r"`(components/[\w-]+)`", GUIDE):
        assert (ROOT / "infra/k8s" / name / "kustomization.yaml").exists(), name
    named = set(re.findall(r"`components/([\w-]+)`", GUIDE))
    assert named == {path.name for path in (ROOT / "infra/k8s/components").iterdir()}


def test_every_workload_and_metric_that_it_names_exists():
    manifests = "\n".join(path.read_text() for path in (ROOT / "infra/k8s").rglob("*.yaml"))
    for name in ("prediction", "gateway"):
        assert f"name: {name}" in manifests
    metrics = (ROOT / "services/prediction/metrics.py").read_text()
    for metric in set(re.findall(r"`(trellis_[a-z_]+)`", GUIDE)):
        assert f'"{metric.removesuffix("_total")}"' in metrics, metric


def test_the_wait_before_a_replica_stops_is_as_long_as_it_says():
    for document in yaml.safe_load_all((ROOT / "infra/k8s/base/prediction.yaml").read_text()):
        if document["kind"] == "Deployment":
            sleep = document["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert f"answers for {sleep[1]} s more" in GUIDE
