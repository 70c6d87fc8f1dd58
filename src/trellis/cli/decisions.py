"""Verbs about decisions: list them, explain them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trellis.decision import Check, Decision, dumps
from trellis.settings import settings

_MARK = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]?[/]"}
_COLOUR = {
    "PROMOTE": "green",
    "STABLE": "green",
    "CONFIRMED": "green",
    "RETRAIN": "cyan",
    "HOLD": "yellow",
    "WAIT": "yellow",
    "INCONCLUSIVE": "yellow",
    "INSUFFICIENT": "yellow",
    "DRIFT": "magenta",
    "UPSTREAM_FAULT": "red",
    "REJECT": "red",
    "REFUSE": "red",
    "REGRESSED": "red",
    "ROLL_BACK": "red",
}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs ``decisions`` and ``explain``."""
    app.command("decisions")(list_decisions)
    app.command("explain")(explain)


def list_decisions(
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    kind: Annotated[str | None, typer.Option(help="For example gate, canary, drift or retrain.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every decision, oldest first."""
    found = _store().list(model, kind)
    if as_json:
        typer.echo(json.dumps([json.loads(dumps(d)) | {"inputs": "…"} for d in found], indent=2))
        return
    if not found:
        typer.echo("No decision yet. Train a model with: trellis flow train NAME")
        return
    Console().print(decision_table(found))


def decision_table(decisions: list[Decision]) -> Table:
    """Return decisions as a table: when, what, outcome, why, and the id to explain it by."""
    models = {d.model for d in decisions}
    table = Table(expand=True, title="Decisions" + (f" on {models.pop()}" if len(models) == 1 else ""))
    several = len(models) > 1
    for name, fixed in (("when", True), ("decision", True), ("about", False), ("outcome", True), ("why", False)):
        table.add_column(name, no_wrap=fixed, overflow="fold", ratio={"about": 2, "why": 6}.get(name))
    table.add_column("id", no_wrap=True)
    for d in decisions:
        outcome = f"[{_COLOUR.get(d.verdict.outcome, 'white')}]{d.verdict.outcome}[/]"
        about = f"{d.model}: {d.subject}" if several else d.subject
        table.add_row(d.at[:10], d.kind, about, outcome, d.verdict.reason, d.id)
    return table


def explain(
    decision_id: Annotated[str, typer.Argument(help="An id, its start, or a kind for its latest")],
    as_json: AsJson = False,
) -> None:
    """Replay a decision from its evidence and show the arithmetic; exit code 1 if it disagrees or was changed."""
    from trellis.explain import intact, replay, same

    latest = _store().list(kind=decision_id)[-1:]
    decision = latest[0] if latest else _store().get(decision_id)
    verdict = replay(decision)
    agrees, whole = same(verdict, decision.verdict), intact(decision)
    if as_json:
        typer.echo(json.dumps({**json.loads(dumps(decision)), "replay_agrees": agrees, "intact": whole}, indent=2))
    else:
        _print(decision, agrees, whole)
    raise typer.Exit(0 if agrees and whole else 1)


def _print(decision: Decision, agrees: bool, whole: bool) -> None:
    console = Console()
    verdict = decision.verdict
    colour = _COLOUR.get(verdict.outcome, "white")
    console.print(
        f"[bold]{decision.model}[/] · {decision.kind} · {decision.subject} · {decision.at} · by {decision.who}"
    )
    console.print(f"[bold {colour}]{verdict.outcome}[/]  {verdict.reason}")
    console.print(_checks(verdict.checks))
    if verdict.needs:
        console.print("Still needed: " + ", ".join(f"{name} {value:,.0f}" for name, value in verdict.needs.items()))
    policy = ", ".join(f"{k}={v}" for k, v in decision.inputs["policy"].items())
    console.print(f"[dim]Policy: {policy}[/]")
    said = "gives the same verdict, to the last digit" if agrees else "[red]DISAGREES with what was recorded[/]"
    console.print(f"Replayed from its evidence: {said}.")
    if not whole:
        console.print("[red]Its id is not the digest of its content: it was changed after it was recorded.[/]")


def _checks(checks: tuple[Check, ...]) -> Table:
    table = Table(show_header=True, expand=True)
    for name in ("", "check", "arithmetic"):
        table.add_column(name, overflow="fold", ratio=None if not name else {"check": 1, "arithmetic": 4}[name])
    for check in checks:
        table.add_row(_MARK[check.passed], check.name, check.text)
    return table


def _store() -> Any:
    from trellis.adapters.database import engine
    from trellis.adapters.decision_store import DecisionStore

    return DecisionStore(engine(settings().database_url))
