"""Verbs about decisions and the rollout plan: list them, explain them, take a rollout back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trellis.decision import Check, Decision, dumps
from trellis.errors import RolloutError
from trellis.settings import settings

rollout = typer.Typer(help="The rollout plan: who answers which share of the traffic.", no_args_is_help=True)
_MARK = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]?[/]"}
_COLOUR = {
    "PROMOTE": "green",
    "STABLE": "green",
    "RETRAIN": "cyan",
    "HOLD": "yellow",
    "WAIT": "yellow",
    "INCONCLUSIVE": "yellow",
    "INSUFFICIENT": "yellow",
    "DRIFT": "magenta",
    "UPSTREAM_FAULT": "red",
    "REJECT": "red",
    "REFUSE": "red",
    "ROLL_BACK": "red",
}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs ``decisions`` and ``explain``."""
    app.command("decisions")(list_decisions)
    app.command("explain")(explain)


def list_decisions(
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    kind: Annotated[str | None, typer.Option(help="gate, canary, drift or retrain.")] = None,
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
    decision_id: Annotated[str, typer.Argument(help="The id, or its start; see: trellis decisions")],
    as_json: AsJson = False,
) -> None:
    """Replay a decision from its evidence and show the arithmetic; exit code 1 if the replay disagrees."""
    from trellis.explain import replay, same

    decision = _store().get(decision_id)
    verdict = replay(decision)
    agrees = same(verdict, decision.verdict)
    if as_json:
        typer.echo(json.dumps({**json.loads(dumps(decision)), "replay_agrees": agrees}, indent=2))
    else:
        _print(decision, agrees)
    raise typer.Exit(0 if agrees else 1)


def _print(decision: Decision, agrees: bool) -> None:
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


def _checks(checks: tuple[Check, ...]) -> Table:
    table = Table(show_header=True, expand=True)
    for name in ("", "check", "arithmetic"):
        table.add_column(name, overflow="fold", ratio=None if not name else {"check": 1, "arithmetic": 4}[name])
    for check in checks:
        table.add_row(_MARK[check.passed], check.name, check.text)
    return table


@rollout.command("show")
def show(model: Annotated[str, typer.Argument()], as_json: AsJson = False) -> None:
    """Show a model's plan and how it came about."""
    history = _plans().history(model)
    if not history:
        raise RolloutError(f"{model!r} has no rollout plan.", remedy=f"Train it with: trellis flow train {model}")
    if as_json:
        typer.echo(json.dumps(json.loads(dumps(history)), indent=2))
        return
    table = Table(title=f"Rollout of {model}", expand=True)
    for name in ("revision", "when", "traffic", "who", "why"):
        table.add_column(name, overflow="fold")
    for change in history:
        shares = ", ".join(f"v{v.version} {v.weight:.0%} ({v.role})" for v in change.plan.variants)
        table.add_row(str(change.plan.revision), str(change.at)[:19], shares, change.who, change.why)
    Console().print(table)


@rollout.command("rollback")
def rollback(
    model: Annotated[str, typer.Argument()],
    why: Annotated[str, typer.Option(help="The reason, which is kept.")],
    who: Annotated[str, typer.Option(help="Who does it.")] = "operator",
) -> None:
    """Take a canary off the traffic, or without one go back to the champion before; one transaction."""
    from trellis.rollout import previous_champion, without_canary

    plans = _plans()
    plan = plans.current(model)
    if plan is None:
        raise RolloutError(f"{model!r} has no rollout plan.", remedy=f"Train it with: trellis flow train {model}")
    back = without_canary(plan) if plan.canary else previous_champion([c.plan for c in plans.history(model)])
    saved = plans.save(back, expected_revision=plan.revision, who=who, why=why)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    typer.echo(f"{model}: version {saved.champion.version} answers everything again (revision {saved.revision}, {at}).")


def _store() -> Any:
    from trellis.adapters.database import engine
    from trellis.adapters.decision_store import DecisionStore

    return DecisionStore(engine(settings().database_url))


def _plans() -> Any:
    from trellis.adapters.plan_store import PlanStore

    return PlanStore(settings().database_url)
