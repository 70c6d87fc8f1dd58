"""Prometheus's own tool checks the alert rules and runs their unit tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RULES = Path(__file__).parents[2] / "monitoring" / "rules"


TESTS = ("trellis_test.yml", "trellis_long_test.yml")
COMMANDS = [("check", "rules", "trellis.yml", "slo.yml"), *(("test", "rules", name) for name in TESTS)]


@pytest.mark.parametrize("command", COMMANDS)
def test_promtool_accepts_the_rules(command: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed, the alert rules were NOT tested; apt-get install prometheus brings it")
    done = subprocess.run([promtool, *command], cwd=RULES, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> dict[str, dict]:
    found = [rule for group in groups() for rule in group["rules"] if "alert" in rule]
    # The alerts of an objective share a name and differ in their window.
    return {rule["alert"] + rule["labels"].get("window", ""): rule for rule in found}


def groups() -> list[dict]:
    return [g for name in ("trellis.yml", "slo.yml") for g in yaml.safe_load((RULES / name).read_text())["groups"]]


def test_every_alert_has_a_severity_an_action_and_a_unit_test() -> None:
    tested = "".join((RULES / name).read_text() for name in TESTS)
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert rule["annotations"]["action"], name
        assert f"alertname: {rule['alert']}\n" in tested, f"{name} has no unit test"


def test_the_objectives_file_is_the_one_that_follows_from_them() -> None:
    from monitoring.slo import dumps

    assert (RULES / "slo.yml").read_text() == dumps(), "run: python -m monitoring rules > monitoring/rules/slo.yml"


def test_burn_rates_are_those_of_the_workbook() -> None:
    """Table 5-8: 2 % of a month's budget in an hour, 5 % in six, 10 % in a day and again in three."""
    from monitoring.slo import BURNS, PERIOD_DAYS

    hours = {"1h": 1, "6h": 6, "1d": 24, "3d": 72}
    spent = {b.long: b.factor * hours[b.long] / (PERIOD_DAYS * 24) for b in BURNS}
    assert {k: round(v, 6) for k, v in spent.items()} == {"1h": 0.02, "6h": 0.05, "1d": 0.1, "3d": 0.1}
    short = {"5m": 5, "30m": 30, "2h": 120, "6h": 360}
    assert all(hours[b.long] * 60 == 12 * short[b.short] for b in BURNS)
