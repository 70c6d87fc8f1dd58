"""Verbs that save everything and bring it back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from trellis.errors import ConfigError
from trellis.settings import settings

if TYPE_CHECKING:
    from trellis.adapters.object_files import ObjectFiles
    from trellis.adapters.postgres_dump import PostgresDatabase
    from trellis.backup import BackupManifest

Databases = Annotated[
    list[str] | None,
    typer.Option(
        "--database",
        metavar="NAME=URL",
        help="A further PostgreSQL database; NAME=@FILE reads the URL from a file. The settings name their own.",
    ),
]
Objects = Annotated[
    list[str] | None,
    typer.Option("--objects", metavar="NAME=URL", help="A place in an object store: s3://bucket/prefix."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs ``backup`` and ``restore``."""
    app.command("backup")(backup)
    app.command("restore")(restore)


def backup(
    destination: Annotated[Path, typer.Argument(help="Directory to make; must not exist.")],
    database: Databases = None,
    dump: Annotated[
        list[str] | None,
        typer.Option("--dump", metavar="NAME=FILE", help="A database already dumped by: pg_dump --format=custom."),
    ] = None,
    objects: Objects = None,
    send_to: Annotated[
        str | None,
        typer.Option("--send", metavar="URL", help="Copy it, when it is whole, to s3://bucket/prefix, below its name."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Save the home, databases and object stores while they are in use; a killed backup leaves none."""
    from trellis.backup import backup as run
    from trellis.backup import send
    from trellis.backup.save import Dump

    dumps = [Dump(name, Path(file)) for name, file in _pairs(dump, "--dump")]
    mine = [one for one in _databases(database) if one.name not in {made.name for made in dumps}]
    with _progress("saving", as_json) as tell:
        manifest = run(settings().home, destination, databases=[*dumps, *mine], stores=_stores(objects), tell=tell)
    if send_to:
        with _progress("sending", as_json) as tell:
            send(destination, send_to, tell)
    _report(manifest, destination, "Saved to", as_json)


def restore(
    source: Annotated[Path, typer.Argument(help="A finished backup; with --fetch, the directory to make of it.")],
    database: Databases = None,
    objects: Objects = None,
    databases_restored: Annotated[
        bool, typer.Option("--databases-restored", help="Leave the dumps alone: pg_restore has read them.")
    ] = False,
    fetch_from: Annotated[
        str | None, typer.Option("--fetch", metavar="URL", help="Bring it back first from where --send copied it to.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only read the backup and check every byte of it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a backup back into an empty home, empty databases and empty stores; anything else is refused."""
    from trellis.backup import fetch, verify
    from trellis.backup import restore as run
    from trellis.backup.online import refill

    config = settings()
    if fetch_from:
        with _progress("fetching", as_json) as tell:
            fetch(source, fetch_from, tell)
    if check:
        with _progress("checking", as_json) as tell:
            manifest = verify(source, tell)
        _report(manifest, source, "Whole:", as_json)
        return
    databases = [] if databases_restored else _databases(database)
    with _progress("restoring", as_json) as tell:
        manifest = run(
            source,
            config.home,
            databases=databases,
            stores=_stores(objects),
            databases_are_done=databases_restored,
            tell=tell,
        )
    if config.online_store != "sqlite":
        refill(config.feature_repo.resolve(), config.home.resolve(), config.online_store)
    _report(manifest, config.home, "Restored to", as_json)


def _databases(given: list[str] | None) -> list[PostgresDatabase]:
    from trellis.adapters.postgres_dump import PostgresDatabase

    config = settings()
    found = {}
    for name, url in (("trellis", config.store_url), ("mlflow", config.mlflow_uri)):
        if url and url.startswith("postgresql"):
            found[name] = PostgresDatabase(name, url)
    for name, url in _pairs(given, "--database"):
        if url.startswith("@"):
            try:
                url = Path(url[1:]).read_text().strip()
            except OSError as error:
                raise ConfigError(
                    f"The URL of {name!r} cannot be read: {error.strerror}.", where=url[1:], remedy="Name a file."
                ) from error
        found[name] = PostgresDatabase(name, url)
    return list(found.values())


def _stores(given: list[str] | None) -> list[ObjectFiles]:
    from trellis.adapters.object_files import ObjectFiles

    return [ObjectFiles(name, url) for name, url in _pairs(given, "--objects")]


def _pairs(given: list[str] | None, option: str) -> Iterator[tuple[str, str]]:
    for text in given or []:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ConfigError(f"{option} {name!r} has no value.", remedy=f"Write {option} NAME=….")
        yield name, value


@contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda _path, count: bar.advance(task, count)


def _report(manifest: BackupManifest, place: Path, verb: str, as_json: bool) -> None:
    facts = {
        "path": str(place.resolve()),
        "made_at": manifest.made_at,
        "platform": manifest.platform,
        "parts": len(manifest.parts),
        "bytes": manifest.bytes,
        "databases": list(manifest.databases),
        "objects": list(manifest.stores),
    }
    if as_json:
        print(json.dumps(facts, indent=1))  # noqa: T201
        return
    kinds = {"databases": manifest.databases, "objects": manifest.stores}
    of = "".join(f", {kind} {' '.join(names)}" for kind, names in kinds.items() if names)
    print(f"{verb} {facts['path']}: {facts['parts']} files, {manifest.bytes / 1e6:.1f} MB{of}.")  # noqa: T201
