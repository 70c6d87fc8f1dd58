"""The guide is true: its commands run, in order, in an empty project, and its test file is the one that passes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "add-a-model.md").read_text()
ROOMS = ("pipelines", "services", "monitoring", "feature_repo")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", GUIDE, re.MULTILINE | re.DOTALL)
    return ["\n".join(line[len(indent) :] for line in text.splitlines()) for indent, text in found]


def test_it_has_at_most_eight_steps() -> None:
    steps = [int(number) for number in re.findall(r"^(\d+)\. ", GUIDE, re.MULTILINE)]
    assert steps == list(range(1, len(steps) + 1))
    assert 1 < len(steps) <= 8


@pytest.mark.slow
def test_its_commands_run(tmp_path: Path) -> None:
    for room in ROOMS:  # the flow of the last step lives in the project's rooms
        (tmp_path / room).symlink_to(ROOT / room)
    shims = tmp_path / "bin"
    shims.mkdir()
    for name, code in (("trellis", "-c 'from trellis.cli import main; main()'"), ("python", "")):
        (shims / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {code} "$@"\n')
        (shims / name).chmod(0o755)
    [test_file] = blocks("python")
    place = tmp_path / "tests" / "models" / "bike_trips" / "test_bike_trips.py"
    place.parent.mkdir(parents=True)
    place.write_text(test_file)
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
    env.update(
        PATH=f"{shims}{os.pathsep}{env['PATH']}", TRELLIS_HOME=str(tmp_path / "var"), PYTHONDONTWRITEBYTECODE="1"
    )
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert len(commands) >= 7
    for command in commands:
        if command.startswith("trellis flow") and not (ROOT / "pipelines" / "__main__.py").exists():
            continue
        done = subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "report.json").exists()
