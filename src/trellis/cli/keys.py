"""Verbs about API keys: make, list, rotate and revoke them, and read who did what."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from trellis.settings import settings

if TYPE_CHECKING:
    from trellis.adapters.api_keys import ApiKey, KeyStore

app = typer.Typer(help="API keys: who may ask the prediction service for what.", no_args_is_help=True)
Why = Annotated[str, typer.Option(help="The reason, which is kept.")]
Who = Annotated[str, typer.Option(help="Who does it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose it is or what for.")],
    why: Why,
    scope: Annotated[list[str], typer.Option(help="predict, label, read or operate; several with several --scope.")],
    who: Who = "operator",
    days: Annotated[float, typer.Option(help="Days after which it expires; 0 for never.")] = 90.0,
    per_minute: Annotated[int, typer.Option(help="Most requests a minute of one replica; 0 for no limit.")] = 6_000,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    lifetime = timedelta(days=days) if days else None
    _give(*_store().create(name, scope, who=who, why=why, lifetime=lifetime, per_minute=per_minute), as_json)


@app.command("list")
def show(as_json: AsJson = False) -> None:
    """List the keys; the secrets are nowhere."""
    now, keys = datetime.now(UTC), _store().known()
    if as_json:
        typer.echo(json.dumps([_told(key, now) for key in keys], indent=1))
        return
    table = Table(title="API keys", expand=True)
    for column in ("id", "name", "state", "scopes", "a minute", "created", "expires"):
        table.add_column(column, overflow="fold")
    for key in keys:
        table.add_row(
            key.id,
            key.name,
            key.ended(now) or "good",
            " ".join(sorted(key.scopes)),
            str(key.per_minute or "no limit"),
            key.created_at.isoformat()[:10],
            key.expires_at.isoformat()[:19] if key.expires_at else "never",
        )
    Console().print(table)


@app.command("rotate")
def rotate(
    key_id: Annotated[str, typer.Argument(help="The id of the key.")],
    why: Why,
    who: Who = "operator",
    grace_hours: Annotated[float, typer.Option(help="For how long the old key still works.")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Make a key's successor and print it, once; the old one works on for a while."""
    _give(*_store().rotate(key_id, grace=timedelta(hours=grace_hours), who=who, why=why), as_json)


@app.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(help="The id of the key.")], why: Why, who: Who = "operator") -> None:
    """End a key; the serving processes hear of it within a second."""
    _store().revoke(key_id, who=who, why=why)
    typer.echo(f"{key_id} is revoked.")


@app.command("history")
def history(as_json: AsJson = False) -> None:
    """Tell who made, rotated and revoked which key, when and why."""
    actions = [vars(action) for action in _store().history()]
    if as_json:
        typer.echo(json.dumps(actions, indent=1))
        return
    for action in actions:
        typer.echo(f"{action['at'][:19]}  {action['action']:7} {action['key_id']}  {action['who']}: {action['why']}")


def _store() -> KeyStore:
    from trellis.adapters.api_keys import KeyStore

    return KeyStore(settings().database_url)


def _give(key: str, kept: ApiKey, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"key": key, **_told(kept, datetime.now(UTC))}, indent=1))
        return
    typer.echo(key)
    typer.echo("It is shown this once. Send it as: Authorization: Bearer <key>", err=True)


def _told(key: ApiKey, now: datetime) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "state": key.ended(now) or "good",
        "scopes": sorted(key.scopes),
        "per_minute": key.per_minute,
        "created_at": key.created_at.isoformat(),
        "expires_at": None if key.expires_at is None else key.expires_at.isoformat(),
    }
