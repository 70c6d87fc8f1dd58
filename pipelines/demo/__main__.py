"""Run the main job: ``trellis demo``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time

from rich.console import Console

from trellis.errors import ConfigError, TrellisError
from trellis.settings import settings, silence_telemetry

MARKER = "demo.json"


def main() -> int:
    """Play the story in an empty home and end with the table of decisions."""
    parser = argparse.ArgumentParser(prog="trellis demo", description="Run the main job on real flights, start to end.")
    parser.parse_args()
    silence_telemetry()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    try:
        _fresh_home()
        begun = time.monotonic()
        _play(console)
    except TrellisError as error:
        sys.stderr.write(f"trellis demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        console.print("\nStopped.")
        return 130
    minutes, seconds = divmod(int(time.monotonic() - begun), 60)
    console.print(f"\nThe whole story took {minutes} min {seconds:02d} s.")
    console.print("Look around:  [bold]make ui[/]  opens MLflow, Evidently and the service's API page.")
    console.print("Ask why:      [bold].venv/bin/trellis explain ID[/]  replays any decision from its evidence.")
    return 0


def _play(console: Console) -> None:
    from pipelines.demo.stage import Narrator
    from pipelines.demo.story import Story
    from pipelines.progress import StepProgress
    from pipelines.steps import reporting
    from pipelines.stores import decisions
    from trellis.cli.decisions import decision_table

    with reporting(StepProgress(console=console, indent="  ", totals=False)):
        Story(Narrator(console)).play()
    told = [d for d in decisions().list() if d.verdict.outcome != "HOLD"]
    console.print()
    console.print(decision_table(told))


def _fresh_home() -> None:
    """Start from nothing: clear an earlier demo's home, and refuse one that holds anything else.

    Raises:
        ConfigError: The home holds something that no demo has written.
    """
    home = settings().directory()
    if any(home.iterdir()):
        if not (home / MARKER).exists():
            raise ConfigError(
                "The home is not empty, and no demo has written it.",
                where=home,
                remedy="Set TRELLIS_HOME to another directory, or run make clean.",
            )
        for path in home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (home / MARKER).write_text(json.dumps({"what": "Written by trellis demo; cleared when it runs again."}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
