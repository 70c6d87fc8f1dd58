"""Verbs about the loop: see where it stands and why, ask it for a retraining, pause it, mend its breaker."""

from __future__ import annotations

import contextlib
import json
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trellis.contract import RetrainPolicy
from trellis.decision import dumps
from trellis.errors import StorageError
from trellis.settings import settings

app = typer.Typer(
    help="The loop: when a model is trained again, where a retraining stands, and why.", no_args_is_help=True
)
Model = Annotated[str, typer.Argument(help="The model's name.")]
Why = Annotated[str, typer.Option(help="The reason, which is kept.")]
Who = Annotated[str, typer.Option(help="Who does it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command("show")
def show(
    model: Annotated[str, typer.Argument(help="A model's name; every model if not given.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show where loops stand: the stage, the last retraining, the breaker, and what is waiting."""
    store = _store()
    states = [store.current(name) for name in ([model] if model else store.models())]
    if as_json:
        typer.echo(json.dumps([json.loads(dumps(s)) for s in states], indent=2))
        return
    if not states:
        typer.echo("No loop has moved yet. Take a turn with: trellis flow loop MODEL")
        return
    table = Table(title="Loops", expand=True)
    for name in ("model", "stage", "retraining", "why", "breaker", "waiting"):
        table.add_column(name, overflow="fold")
    for s in states:
        cycle, asked = s.cycle, s.request
        version = f", v{cycle.version}" if cycle and cycle.version else ""
        last = f"{cycle.id}, by {cycle.trigger}{version}: {cycle.outcome or 'open'}" if cycle else "–"
        breaker = f"open since {s.broken_since[:10]}" if s.broken_since else f"closed ({s.failures} fruitless)"
        waiting = f"{asked.who}: {asked.why}{' (forced)' if asked.force else ''}" if asked else "–"
        stage = s.stage + (", paused" if s.paused else "")
        table.add_row(s.model, stage, last, cycle.why if cycle else "–", breaker, waiting)
    Console().print(table)


@app.command("explain")
def explain(model: Model, as_json: AsJson = False) -> None:
    """Tell every transition of a model's loop: when, by whom, why, and on which decision."""
    found = _store().history(model)
    if as_json:
        typer.echo(json.dumps(json.loads(dumps(found)), indent=2))
        return
    if not found:
        typer.echo(f"The loop of {model} has not moved yet. Take a turn with: trellis flow loop {model}")
        return
    table = Table(title=f"Transitions of the loop of {model}", expand=True)
    for name in ("when", "retraining", "to", "who", "why", "decision"):
        table.add_column(name, overflow="fold")
    for t in found:
        cycle = t.state.cycle
        ended = f" ({cycle.outcome})" if cycle and t.state.stage == "watching" and cycle.outcome else ""
        when = (t.state.moved_at or t.at)[:16]
        table.add_row(when, cycle.id if cycle else "–", t.state.stage + ended, t.who, t.why, t.decision or "–")
    Console().print(table)
    last = next((t.decision for t in reversed(found) if t.decision), "")
    if last:
        typer.echo(f"The arithmetic of the last decision: trellis explain {last}")


@app.command("trigger")
def trigger(
    model: Model,
    why: Why,
    who: Who = "operator",
    force: Annotated[bool, typer.Option(help="Override cooldown, budget, labels, breaker and faults.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask for a retraining; the next turn takes it as soon as the policy allows."""
    from trellis.loop import Request, asked

    request = Request(uuid.uuid4().hex[:12], who, why, datetime.now(UTC).isoformat(timespec="seconds"), force)
    _move(
        model, who, as_json, lambda state: asked(state, request), f"Take the turn now with: trellis flow loop {model}"
    )


@app.command("pause")
def pause(model: Model, why: Why, who: Who = "operator", as_json: AsJson = False) -> None:
    """Begin no retraining until somebody resumes; one that is going on goes on."""
    from trellis.loop import paused

    _move(model, who, as_json, lambda state: paused(state, why))


@app.command("resume")
def resume(model: Model, why: Why, who: Who = "operator", as_json: AsJson = False) -> None:
    """Let retrainings begin again."""
    from trellis.loop import paused

    _move(model, who, as_json, lambda state: paused(state, why, on=False))


@app.command("reset")
def reset(model: Model, why: Why, who: Who = "operator", as_json: AsJson = False) -> None:
    """Close the circuit breaker after its cause is mended."""
    from trellis import loop

    told = "Its alert is closed; the channels hear of it with the next look, or now: trellis alerts deliver"
    _move(model, who, as_json, lambda state: loop.reset(state, why), told)


@app.command("cancel")
def cancel(model: Model, why: Why, who: Who = "operator", as_json: AsJson = False) -> None:
    """Take a waiting request back, and end the retraining that is going on; its rollout, if any, stays."""
    from trellis.loop import cancelled

    _move(model, who, as_json, lambda state: cancelled(state, why, _policy(model)))


def _move(model: str, who: str, as_json: bool, change: Any, hint: str = "") -> None:
    from trellis.adapters.loop_alerts import keep_loop_alerts

    store = _store()
    before = store.current(model)
    move = change(before)
    store.commit(before, move.state, who=who, why=move.why)
    # What is not closed here, by a kill or because the loop's home is another, the next turn closes.
    with contextlib.suppress(StorageError):
        keep_loop_alerts(settings().directory("alerts"), move.state, datetime.now(UTC).isoformat(timespec="seconds"))
    if as_json:
        typer.echo(json.dumps(json.loads(dumps(move.state)), indent=2))
        return
    typer.echo(f"{model}: {move.state.stage}{', paused' if move.state.paused else ''}. {move.why}")
    if hint:
        typer.echo(hint)


def _store() -> Any:
    from trellis.adapters.loop_store import LoopStore

    return LoopStore(settings().database_url)


def _policy(model: str) -> RetrainPolicy:
    from trellis.catalog import Catalogue

    return Catalogue([settings().models]).plugin(model).spec.retrain
