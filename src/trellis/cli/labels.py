"""Verbs about labels: bring truths in from files and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trellis.settings import settings

app = typer.Typer(help="Labels: the truths about earlier predictions.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep ``import`` a verb of its own."""


@app.command("import")
def take(
    model: Annotated[str, typer.Argument(help="Whose labels.")],
    source: Annotated[str, typer.Argument(help="A .csv or .parquet file, or a database URL with --table.")],
    table: Annotated[str | None, typer.Option(help="Table or view, SCHEMA.NAME, where SOURCE is a URL.")] = None,
    id_column: Annotated[str, typer.Option(help="Column of the prediction's id.")] = "id",
    value_column: Annotated[str, typer.Option(help="Column of the truth.")] = "value",
    time_column: Annotated[
        str, typer.Option(help="Column of the moment it was observed, RFC 3339; empty takes now.")
    ] = "observed_at",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Append labels from a file or a table; importing again appends nothing. Exit code 3 where rows were refused."""
    from trellis.adapters.label_sources import LabelColumns, import_labels
    from trellis.catalog import Catalogue

    Catalogue([settings().models]).plugin(model)
    columns = LabelColumns(id_column, value_column, time_column or None)
    console = Console(stderr=True)
    with console.status(f"Reading {table or Path(source).name} …"):
        found = import_labels(settings().directory(), model, source, columns, table=table)
    kept = None if found.kept is None else str(found.kept)
    if as_json:
        counts = {"rows": found.rows, "taken": found.taken, "known": found.known, "refused": found.refused}
        typer.echo(json.dumps({**counts, "kept": kept}))
    else:
        typer.echo(f"{found.taken:,} labels taken of {found.rows:,} rows; {found.known:,} were known already.")
        if kept:
            typer.echo(f"{found.refused:,} rows were refused and are kept with the reason in {kept}")
    raise typer.Exit(3 if found.refused else 0)
