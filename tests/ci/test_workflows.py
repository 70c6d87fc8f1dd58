"""The workflows call the Makefile's verbs, may do little, and pass the checks of a tool made to attack them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".github/workflows"
NAMES = sorted(path.name for path in PLACE.glob("*.yml"))
# What no verb can do: bring what the runner lacks, and propose a change.
OTHER = ("sudo apt-get update", "gh auth setup-git")
# Jobs that write, and what; everybody else reads.
WRITES = {("release.yml", "pin"): {"contents": "write", "pull-requests": "write"}}


def workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load((PLACE / name).read_text())


def steps(name: str):
    for job, text in workflow(name)["jobs"].items():
        for step in text["steps"]:
            yield job, step


def verbs() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))


def test_the_workflows_are_there():
    assert NAMES == ["ci.yml", "model.yml", "release.yml"]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_a_verb_that_exists(name: str):
    known, looked = verbs(), 0
    for job, step in steps(name):
        if "run" not in step:
            continue
        looked += 1
        match = re.match(r"make (?:--silent )?([a-z0-9-]+)", step["run"])
        assert match or step["run"].startswith(OTHER), f"{job}: {step['run']}"
        assert not match or match[1] in known, f"{job}: there is no make {match[1]}"
    assert looked >= 3


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_may_do_no_more_than_it_must(name: str):
    text = workflow(name)
    assert text["permissions"] == {"contents": "read"}
    triggers = text[True]  # YAML 1.1 reads `on` so
    assert "pull_request_target" not in triggers
    assert "concurrency" in text
    for job, body in text["jobs"].items():
        assert body.get("permissions", {}) == WRITES.get((name, job), {}), job
        assert body["timeout-minutes"] <= 240, job
    for job, step in steps(name):
        if "uses" in step:
            assert re.search(r"@(v\d+|[0-9a-f]{40})$", step["uses"]), f"{job}: {step['uses']}"
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False, job


def test_the_steps_of_delivery_are_all_there():
    ran = {m[1] for _, s in steps("ci.yml") if (m := re.match(r"make ([a-z0-9-]+)", s.get("run", "")))}
    assert ran >= {"check", "test", "images", "test-stack", "test-k8s", "audit", "scan", "sbom"}


def test_a_models_way_is_data_training_gates_evidence_rollout():
    jobs = workflow("model.yml")["jobs"]
    ran = [m[1] for _, s in steps("model.yml") if (m := re.match(r"make (model-[a-z]+)", s.get("run", "")))]
    assert ran == ["model-data", "model-train", "model-evidence", "model-rollout"]
    assert jobs["train"]["needs"] == "data"
    assert jobs["rollout"]["needs"] == "train"
    assert jobs["rollout"]["environment"] == "production"  # somebody has to agree
    kept = [s for s in jobs["train"]["steps"] if "upload-artifact" in s.get("uses", "")]
    assert kept[0]["with"]["path"] == "dist/evidence"
    assert kept[0]["if"] == "${{ !cancelled() }}"  # a refused version's evidence too


def zizmor(*paths: Path) -> list[dict]:
    """Return what zizmor finds, without asking the network for anything."""
    program = Path(sys.executable).with_name("zizmor")
    config = ROOT / ".github/zizmor.yml"
    done = subprocess.run(
        [program, "--offline", "--quiet", "--no-progress", "--format", "json", "--config", config, *paths],
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_a_tool_made_to_attack_workflows_finds_nothing():
    assert [found["ident"] for found in zizmor(*(PLACE / name for name in NAMES))] == []


def test_that_tool_sees_an_injection_and_a_dangerous_trigger(tmp_path: Path):
    bad = tmp_path / ".github/workflows/bad.yml"
    bad.parent.mkdir(parents=True)
    bad.write_text(
        "on: pull_request_target\npermissions: write-all\njobs:\n  x:\n    runs-on: ubuntu-latest\n    steps:\n"
        "      - run: echo ${{ github.event.pull_request.title }}\n"
    )
    found = {found["ident"] for found in zizmor(bad)}
    assert found >= {"template-injection", "dangerous-triggers"}
