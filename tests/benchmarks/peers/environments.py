"""Environments of their own for the peers whose dependencies do not go with ours, made once from ``NAME.txt``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE.parents[2] / ".bench"


def environment(name: str) -> Path | None:
    """Return the ``bin`` directory of a peer's environment; None, and a line that says why, where it cannot be made."""
    pins = HERE / f"{name}.txt"
    place = KEPT / name
    done = place / "made-from.txt"
    if not done.exists() or done.read_text() != pins.read_text():
        shutil.rmtree(place, ignore_errors=True)
        python = place / "bin" / "python"
        make = [[sys.executable, "-m", "venv", str(place)]]
        if shutil.which("uv"):
            make.append(["uv", "pip", "install", "--quiet", "--python", str(python), "-r", str(pins)])
        else:
            make.append([str(python), "-m", "pip", "install", "--quiet", "-r", str(pins)])
        for command in make:
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                print(f"{name} is left out: its environment cannot be made: {made.stderr.strip().splitlines()[-1:]}")
                return None
        shutil.copy(pins, done)
    return place / "bin"
