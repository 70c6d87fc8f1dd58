"""Prometheus's own tool checks the alert rules and runs their unit tests."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RULES = Path(__file__).parents[2] / "monitoring" / "rules"


@pytest.mark.parametrize("command", [("check", "rules", "trellis.yml"), ("test", "rules", "trellis_test.yml")])
def test_promtool_accepts_the_rules(command: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed, the alert rules were NOT tested; apt-get install prometheus brings it")
    done = subprocess.run([promtool, *command], cwd=RULES, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> dict[str, dict]:
    groups = yaml.safe_load((RULES / "trellis.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_every_alert_has_a_severity_an_action_and_a_unit_test() -> None:
    tested = (RULES / "trellis_test.yml").read_text()
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert rule["annotations"]["action"], name
        assert f"alertname: {name}\n" in tested, f"{name} has no unit test"


def test_rules_speak_of_metrics_that_are_exported() -> None:
    root = RULES.parents[1]
    sources = [root / "monitoring" / "metrics.py", root / "services" / "prediction" / "metrics.py"]
    exported = set(re.findall(r'"(trellis_[a-z_]+)"', "".join(p.read_text() for p in sources if p.exists())))
    for name, rule in alerts().items():
        for used in re.findall(r"trellis_[a-z_]+", rule["expr"]):
            assert re.sub(r"_(total|bucket)$", "", used) in exported, f"{name} uses {used}"
