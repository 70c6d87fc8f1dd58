"""Showing how a flow gets on, one line a step."""

from __future__ import annotations

from rich.console import Console
from rich.status import Status

from pipelines.steps import FlowRun

_WORDS = {
    "ingest": "fetching raw tables",
    "validate": "validating every row",
    "build_features": "building feature tables",
    "materialize": "bringing the online store up to date",
    "build_training_set": "joining features as they were known",
    "train": "training",
    "conformance": "checking the plug-in's conformance",
    "evaluate": "evaluating on unseen rows",
    "gate": "gating",
    "register": "registering the version",
    "plan_rollout": "planning the rollout",
    "weigh_canary": "weighing the canary",
    "follow_verdict": "following the verdict",
    "pass_time": "waiting for the stage to end",
    "look": "watching the traffic",
    "choose_version": "choosing the version",
    "score_table": "scoring the table",
    "weigh_retraining": "weighing a retraining",
}


class StepProgress:
    """Prints every step with its time; a spinner where the terminal can show one.

    Args:
        quiet: Show nothing.
        console: Where to print; standard error if not given, so that output stays clean.
        indent: Text before every line.
        totals: Whether to end a flow with what it cost.
    """

    def __init__(
        self, quiet: bool = False, console: Console | None = None, indent: str = "", totals: bool = True
    ) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        self._indent = indent
        self._totals = totals
        self._status: Status | None = None

    def started(self, step: str) -> None:
        """Show that a step has begun."""
        if self._quiet:
            return
        self._status = self._console.status(f"{self._indent}{_WORDS.get(step, step)} …")
        self._status.start()

    def finished(self, step: str, seconds: float, reused: bool) -> None:
        """Show that a step has ended."""
        if self._quiet:
            return
        if self._status is not None:
            self._status.stop()
        took = "kept from before" if reused else f"{seconds:.1f} s"
        self._console.print(f"{self._indent}[green]✓[/] {_WORDS.get(step, step)} [dim]{took}[/]", highlight=False)

    def ended(self, run: FlowRun) -> None:
        """Show what the flow cost, in one line."""
        if self._status is not None:
            self._status.stop()
        if self._quiet or not self._totals:
            return
        reused = f", {len(run.reused)} kept from before" if run.reused else ""
        self._console.print(
            f"{self._indent}[dim]{run.wall:.1f} s in all: {run.work:.1f} s work in {len(run.seconds)} steps{reused}, "
            f"{run.overhead:.1f} s overhead[/]",
            highlight=False,
        )


SILENT = StepProgress(quiet=True)
