"""Verbs that run a room: each starts the room's own module in the project's directory and hands its exit code on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from trellis.errors import ConfigError

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_ROOMS = {
    "flow": ("pipelines", "Run a flow: train, prepare, advance, loop, replay; --help lists them."),
    "demo": ("pipelines.demo", "Run the main job on real flights, start to end."),
    "game-day": (
        "pipelines.gameday_cli",
        "Put a known change into a copy of the traffic; see what is noticed and done.",
    ),
    "serve": ("services.prediction", "Serve every model that has a rollout plan."),
    "alerts": ("monitoring", "Alerts: list them, silence some, test the channels, deliver what is due."),
    "watch": ("monitoring", "Look at a model's traffic: drift, performance, report, metrics."),
    "performance": ("monitoring", "Show how a model stands: estimated, corrected and realised loss, by segment."),
    "skew": ("monitoring", "Recompute served features point-in-time and name what differs."),
    "ui": ("pipelines.pages", "Open the pages: the models' own, MLflow, Evidently, the service's API."),
}


def add_to(app: typer.Typer) -> None:
    """Add one verb per room."""
    for verb, (module, text) in _ROOMS.items():
        app.command(verb, help=text, context_settings=_PASS_ON, add_help_option=False)(_runner(verb, module))


def _runner(verb: str, module: str):  # type: ignore[no-untyped-def]
    def run(context: typer.Context) -> None:
        root = project_root()
        prefix = [verb] if module == "monitoring" and context.args[:1] not in (["exporter"], ["--help"]) else []
        command = [sys.executable, "-m", module, *prefix, *context.args]
        process = subprocess.Popen(command, cwd=root)
        try:
            raise typer.Exit(process.wait())
        except KeyboardInterrupt:
            raise typer.Exit(process.wait()) from None  # the room got the same signal and is ending

    return run


def project_root() -> Path:
    """Return the directory with the rooms: this one, or the nearest above.

    Raises:
        ConfigError: There is none.
    """
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / "pipelines").is_dir() and (directory / "services").is_dir():
            return directory
    raise ConfigError("The rooms of Trellis are not here.", where=here, remedy="Run it in a clone of the project.")
