"""The platform's SQL database: SQLite embedded, PostgreSQL on a stack; opened, guarded and given its tables here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError, DisconnectionError, SQLAlchemyError

from trellis.errors import StorageError

_CONNECT_SECONDS = 5
_BUSY_SECONDS = 30
_ROWS_AT_A_TIME = 1_000


@cache
def engine(url: str) -> Engine:
    """Return the process's engine for ``url``; SQLite gets write-ahead logging and waits for other writers.

    Raises:
        StorageError: The URL cannot be read, or the driver that it names is not installed.
    """
    try:
        parts = sa.engine.make_url(url)
        if parts.get_backend_name() == "sqlite":
            return _sqlite(url, parts.database or "")
        wait = {"connect_timeout": _CONNECT_SECONDS} if parts.get_backend_name() == "postgresql" else {}
        # Who was first is read off the count of rows that an insert wrote; SQLAlchemy keeps it only where told to.
        options = {"preserve_rowcount": True}
        return create_engine(url, pool_pre_ping=True, connect_args=wait, execution_options=options)
    except (ImportError, SQLAlchemyError) as error:
        raise StorageError(
            f"The database cannot be opened: {error}.",
            where="TRELLIS_STORE_URL",
            remedy="Write sqlite:///path or postgresql+psycopg://user@host/name; the latter needs the extra postgres.",
        ) from error


class Database:
    """One store's tables in the platform's database; safe for many processes.

    Args:
        engine: What ``engine`` returned.
        tables: Made if they are not there.
        what: The store's name in errors, for example ``plan store``.

    Raises:
        StorageError: The database cannot be opened.
    """

    def __init__(self, engine: Engine, tables: sa.MetaData, what: str) -> None:
        self.engine = engine
        self.where = engine.url.render_as_string(hide_password=True)
        self._what = what
        with guarded(self.engine, what):
            _make(self.engine, tables, what)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Give a connection to read with.

        Raises:
            StorageError: The database does not answer.
        """
        with guarded(self.engine, self._what), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Give a transaction, which is committed at the end of the block, or given up if it raises.

        Raises:
            StorageError: The database refuses.
        """
        with guarded(self.engine, self._what), self.engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


@contextmanager
def guarded(of: Engine, what: str) -> Iterator[None]:
    """Turn whatever the database refuses into a named error.

    Raises:
        StorageError: As said.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise StorageError(
            f"The {what} does not work: {getattr(error, 'orig', None) or error}.",
            where=of.url.render_as_string(hide_password=True),
            remedy="Check that the database is reachable and its disk has room.",
        ) from error


def insert_if_absent(connection: sa.Connection, table: sa.Table, **values: Any) -> bool:
    """Insert a row unless its key is taken, and tell whether it was inserted; being a write, it takes its lock."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(**values).on_conflict_do_nothing()
    return connection.execute(statement).rowcount == 1


def copy_tables(source: Engine, target: Engine) -> None:
    """Copy every table with its rows, all as of one moment, into a database that has none of them yet.

    Raises:
        StorageError: One of the two refuses.
    """
    kept = sa.MetaData()
    with guarded(source, "database"):
        kept.reflect(source)
    with guarded(source, "database"), source.connect() as connection:
        if source.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with guarded(target, "copy of the database"), target.begin() as copy:
            for table in kept.sorted_tables:
                for column in table.columns:
                    column.server_default = None  # a sequence, which is the source's own
                table.create(copy)
                rows = connection.execution_options(yield_per=_ROWS_AT_A_TIME).execute(sa.select(table)).mappings()
                for part in rows.partitions():
                    copy.execute(table.insert(), [dict(row) for row in part])


def _make(of: Engine, tables: sa.MetaData, what: str) -> None:
    if of.dialect.name == "sqlite" and of.url.database and of.url.database != ":memory:":
        # Connections never make the file: one that opens while it is away would leave an empty one in its place. One
        # that is there is not touched: closing a descriptor of it would drop the locks that our connections hold.
        try:
            if not os.path.exists(of.url.database):
                os.close(os.open(of.url.database, os.O_RDWR | os.O_CREAT, 0o644))
        except OSError as error:
            raise StorageError(
                f"The {what} cannot be opened: {error.strerror}.",
                where=of.url.database,
                remedy="Make its directory, or set TRELLIS_STORE_URL to another place.",
            ) from error
    try:
        tables.create_all(of)
    except DatabaseError:
        # Several processes starting at once: another one made them between our look and our try.
        tables.create_all(of)


def _sqlite(url: str, path: str) -> Engine:
    made = create_engine(url, connect_args={"timeout": _BUSY_SECONDS})
    in_file = path not in ("", ":memory:")

    @event.listens_for(made, "do_connect")
    def _open(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        if in_file:
            arguments[0] = f"file:{quote(path)}?mode=rw"
            options["uri"] = True

    @event.listens_for(made, "connect")
    def _configure(connection: Any, record: Any) -> None:
        record.info["file"] = _file(path)
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @event.listens_for(made, "checkout")
    def _is_the_same(_connection: Any, record: Any, _proxy: Any) -> None:
        # A connection keeps the file that it has opened, whatever stands in its place by now (after a restore, say).
        if in_file and record.info.get("file") != _file(path):
            raise DisconnectionError("The file is another one by now.")

    return made


def _file(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)
