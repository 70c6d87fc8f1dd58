"""The command line: what a person asks of Trellis, one verb each."""

from __future__ import annotations

import sys

import typer

from trellis.cli import audit, backup, batch, decisions, keys, labels, loop, models, rollout, rooms, setup
from trellis.errors import TrellisError
from trellis.settings import silence_telemetry

app = typer.Typer(
    name="trellis",
    help="An end-to-end MLOps platform in which every decision explains itself.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(models.app, name="models")
app.add_typer(rollout.app, name="rollout")
app.add_typer(loop.app, name="loop")
app.add_typer(keys.app, name="keys")
app.add_typer(labels.app, name="labels")
app.command("setup")(setup.setup)
decisions.add_to(app)
audit.add_to(app)
batch.add_to(app)
backup.add_to(app)
rooms.add_to(app)


def main() -> None:
    """Run the command line; an error that Trellis raises on purpose is one line, not a traceback."""
    silence_telemetry()
    try:
        app()
    except TrellisError as error:
        sys.stderr.write(f"trellis: {error}\n")
        sys.exit(1)
