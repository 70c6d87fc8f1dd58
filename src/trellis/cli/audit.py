"""The verb ``audit``: every action of an operator, from whatever table keeps it, in one list."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trellis.cli.rollout import place, traffic
from trellis.errors import ConfigError
from trellis.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trellis.adapters.audit_trail import Deed

PLATFORM = "platform"


def add_to(app: typer.Typer) -> None:
    """Add the verb ``audit``."""
    app.command("audit")(audit)


def audit(
    since: Annotated[str, typer.Option(help="Only from this moment on, RFC 3339.")] = "",
    who: Annotated[str, typer.Option(help="Only what this one did.")] = "",
    platform: Annotated[bool, typer.Option("--platform", help="Also what the platform decided by itself.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List what operators did with rollouts, keys and artifacts: who, when, what and why."""
    first = _moment(since) if since else None
    found = [
        deed
        for deed in sorted(_deeds(settings().database_url), key=lambda deed: datetime.fromisoformat(deed.at))
        if (platform or deed.who != PLATFORM)
        and (not who or deed.who == who)
        and (first is None or datetime.fromisoformat(deed.at) >= first)
    ]
    if as_json:
        typer.echo(json.dumps([vars(deed) for deed in found], indent=1))
        return
    if not found:
        typer.echo("Nobody has done anything by hand.")
        return
    table = Table(title="What operators did", expand=True)
    for name in ("when (UTC)", "action", "about", "who", "why"):
        table.add_column(name, overflow="fold")
    for deed in found:
        table.add_row(deed.at[:19], deed.action, escape(deed.subject), escape(deed.who), escape(deed.why))
    Console().print(table)


def _deeds(url: str) -> Iterator[Deed]:
    from trellis.adapters.api_keys import KeyStore
    from trellis.adapters.audit_trail import AuditTrail, Deed
    from trellis.adapters.plan_store import PlanStore
    from trellis.adapters.rollout_store import RolloutStore

    yield from AuditTrail(url).history()
    for action in KeyStore(url).history():
        yield Deed(action.at, f"key {action.action}", action.key_id, action.who, action.why)
    plans, rollouts = PlanStore(url), RolloutStore(url)
    for model in plans.models():
        told = set()
        for move in rollouts.history(model):
            # A move writes the plan with it; it is one deed.
            told.add((move.revision, move.who, move.why))
            yield Deed(move.at, "rollout", f"{model}: {place(move.state)}", move.who, move.why)
        for change in plans.history(model):
            if (change.plan.revision, change.who, change.why) not in told:
                yield Deed(change.at, "plan", f"{model}: {traffic(change.plan)}", change.who, change.why)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigError(
            f"{text!r} is no moment.", where="--since", remedy="Write RFC 3339, for example 2026-11-22T09:00:00Z."
        )
    return moment
