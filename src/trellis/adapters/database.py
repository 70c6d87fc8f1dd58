"""One way to open the platform's SQL store: SQLite embedded, PostgreSQL on a stack."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Engine, create_engine, event


@cache
def engine(url: str) -> Engine:
    """Return the process's engine for ``url``; SQLite gets write-ahead logging and waits for other writers."""
    if not url.startswith("sqlite"):
        # Who was first is read off the count of rows that an insert wrote; SQLAlchemy keeps it only where told to.
        return create_engine(url, pool_pre_ping=True, execution_options={"preserve_rowcount": True})
    made = create_engine(url, connect_args={"timeout": 30})

    @event.listens_for(made, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    return made
