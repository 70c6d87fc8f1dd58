"""The verb that makes ready what a stack needs before anything runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trellis.errors import ConfigError
from trellis.settings import settings


def setup(
    objects: Annotated[str | None, typer.Option(help="Place in an object store to make: s3://bucket.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="File of an API key that may do everything.")] = None,
) -> None:
    """Make tables, bucket and first API key; doing it twice changes nothing."""
    from trellis.adapters.api_keys import SCOPES, KeyStore
    from trellis.adapters.database import engine
    from trellis.adapters.decision_store import DecisionStore
    from trellis.adapters.object_files import ObjectFiles
    from trellis.adapters.rollout_controller import RolloutController

    url = settings().database_url
    RolloutController(url)
    DecisionStore(engine(url))
    keys = KeyStore(url)
    typer.echo("Tables: ready.")
    if objects is not None:
        ObjectFiles("artifacts", objects).make()
        typer.echo(f"{objects}: ready.")
    if key_file is not None:
        try:
            text = key_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("The API key cannot be read.", where=key_file, remedy="Make the file.") from error
        key = keys.adopt(text, "first key", SCOPES, who="setup", why="the stack's first key")
        typer.echo(f"API key {key.id}: ready.")
