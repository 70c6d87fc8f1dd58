"""Dumps of a PostgreSQL database, by PostgreSQL's own programs."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from trellis.errors import ConfigError, StorageError

# psql counts what a user has made; extensions' own objects are not that.
_CONTENT = """
select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\\_%'
  and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
  and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
"""
_QUERY = {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "host": "PGHOST"}


@dataclass(frozen=True)
class PostgresDatabase:
    """A database to dump or to restore into.

    The programs ``pg_dump``, ``pg_restore`` and ``psql`` must be of the server's major version or a later one. The
    password goes to them in their environment, not in their arguments, which everybody on the machine can read.

    Attributes:
        name: What the backup calls it.
        url: SQLAlchemy or libpq URL, ``postgresql[+driver]://user:password@host:port/database``.
    """

    name: str
    url: str = field(repr=False)

    @property
    def where(self) -> str:
        """The URL without its password."""
        return self._parsed().render_as_string(hide_password=True)

    def dump(self, path: Path) -> None:
        """Write a dump of one moment, in the custom format.

        Raises:
            ConfigError: A program or the URL is wrong.
            StorageError: The server refuses.
        """
        self._run("pg_dump", "--format=custom", "--no-owner", "--no-privileges", "--file", str(path))

    def restore(self, path: Path) -> None:
        """Read a dump back in one transaction: all of it or nothing.

        Raises:
            ConfigError: A program or the URL is wrong.
            StorageError: The server refuses.
        """
        options = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
        self._run("pg_restore", *options, "--dbname", self._environment()["PGDATABASE"], str(path))

    def is_empty(self) -> bool:
        """Tell whether the database has no table, view or sequence.

        Raises:
            ConfigError: A program or the URL is wrong.
            StorageError: The server refuses.
        """
        return self._run("psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", _CONTENT).strip() == "0"

    def _run(self, program: str, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [program, "--no-password", *arguments],
                env={**os.environ, **self._environment()},
                capture_output=True,
                text=True,
            )
        except FileNotFoundError as error:
            raise ConfigError(
                f"{program} is not here.",
                where="PATH",
                remedy="Install PostgreSQL's client programs, of the server's version or a later one.",
            ) from error
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise StorageError(
                f"{program} failed: {' '.join(line.strip() for line in lines[:2])}",
                where=self.where,
                remedy="Check that the server answers, and that its version is not later than the program's.",
            )
        return done.stdout

    def _parsed(self) -> URL:
        url: URL | None
        try:
            url = make_url(self.url)
        except ArgumentError:
            url = None
        if url is None or url.get_backend_name() != "postgresql" or not url.database:
            raise ConfigError(
                f"The URL of the database {self.name!r} is none of PostgreSQL's.",
                remedy="Write postgresql://user:password@host:port/database.",
            )
        return url

    def _environment(self) -> dict[str, str]:
        url = self._parsed()
        given = {
            "PGHOST": url.host,
            "PGPORT": url.port,
            "PGUSER": url.username,
            "PGPASSWORD": url.password,
            "PGDATABASE": url.database,
            "PGCONNECT_TIMEOUT": 10,
            **{variable: url.query.get(name) for name, variable in _QUERY.items() if url.query.get(name)},
        }
        return {variable: str(value) for variable, value in given.items() if value is not None}
