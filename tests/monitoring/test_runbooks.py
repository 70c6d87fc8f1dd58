"""Every alert, of the rules and of the code, names a section of the runbooks and a command that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from trellis.alerts import KINDS, Alert
from trellis.cli import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "runbooks.md").read_text()
# As GitHub makes anchors of headings.
SECTIONS = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.+)$", TEXT, re.MULTILINE)}
SERVICES = set(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
OUTCOMES = sorted(KINDS)


def rules() -> Iterator[dict]:
    for path in sorted((ROOT / "monitoring" / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text()).get("groups", ()):
            yield from (rule for rule in group["rules"] if "alert" in rule)


def alert(outcome: str, decision: str = "") -> Alert:
    return Alert("m-1", "m", "warning", "open", outcome, "kind", "", "2013", "2013", decision=decision)


def pages() -> list[tuple[str, str, str]]:
    """Name, runbook and command of every alert there can be."""
    told = [
        (r["alert"], r["annotations"].get("runbook", ""), r["annotations"].get("explained_by", "")) for r in rules()
    ]
    return [*told, *((o, alert(o, d).runbook, alert(o, d).explained_by) for o in OUTCOMES for d in ("", "drift-abc"))]


@pytest.mark.parametrize(("name", "runbook", "command"), pages())
def test_every_alert_names_its_section_and_a_command_that_there_is(name, runbook, command):
    page, _, section = runbook.partition("#")
    assert (page, section in SECTIONS) == ("docs/runbooks.md", True), f"{name}: {runbook}"
    assert exists(command), f"{name}: {command}"


def test_no_section_is_of_an_alert_that_is_no_more():
    assert {runbook.partition("#")[2] for _, runbook, _ in pages()} == SECTIONS


def test_the_runbooks_commands_are_there():
    commands = re.findall(r"`((?:trellis|make) [^`]+)`", TEXT)
    assert len(commands) > 20
    assert [c for c in commands if not exists(c)] == []


def exists(command: str) -> bool:
    program, *words = command.split()
    if program == "make":
        service = re.search(r"SERVICE=([a-z]+)$", command)
        return words[0] in TARGETS and (service is None or service[1] in SERVICES)
    verbs = getattr(typer.main.get_command(app), "commands", {})
    verb = verbs.get(words[0])
    subverbs = getattr(verb, "commands", None)
    return program == "trellis" and verb is not None and (subverbs is None or words[1] in subverbs)
