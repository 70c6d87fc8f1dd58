"""The README is true: its verbs exist, its tour runs, what it links to is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text()


def _trellis(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
    environment["TRELLIS_HOME"] = str(home)
    command = [sys.executable, "-c", "from trellis.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_make_verb_named_exists(page: Path):
    makefile = (ROOT / "Makefile").read_text()
    fenced = "\n".join(re.findall(r"```sh[^\n]*\n(.*?)```", page.read_text(), re.S)) + " ".join(
        re.findall(r"`(make [a-z0-9-]+)`", page.read_text())
    )
    for verb in set(re.findall(r"\bmake ([a-z0-9-]+)", fenced)):
        assert re.search(rf"^{verb}:", makefile, re.M), f"{page.name} names make {verb}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_trellis_verb_named_exists():
    from typer.testing import CliRunner

    import trellis.cli
    from pipelines.__main__ import app as flows

    named = set(re.findall(r"^(?:\.venv/bin/)?trellis ([a-z -]+)", "\n".join(_commands()), re.M))
    assert len(named) > 12
    top = CliRunner().invoke(trellis.cli.app, ["--help"]).output
    for verb in sorted(named):
        first, *rest = verb.split()
        assert re.search(rf"\b{first}\b", top), verb
        if first == "flow":
            assert CliRunner().invoke(flows, [rest[0], "--help"]).exit_code == 0, verb
        elif first in ("models", "rollout"):
            assert CliRunner().invoke(trellis.cli.app, [first, rest[0], "--help"]).exit_code == 0, verb


def _commands() -> list[str]:
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", README)
    fenced = [line for block in re.findall(r"```sh[^\n]*\n(.*?)```", README, re.S) for line in block.splitlines()]
    return [*inline, *fenced]


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path):
    [tour] = re.findall(r"```sh tour\n(.*?)```", README, re.S)
    for line in tour.strip().splitlines():
        done = _trellis(*line.split()[1:], home=tmp_path / "var")
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "PROMOTE" in _trellis("decisions", "--json", home=tmp_path / "var").stdout
