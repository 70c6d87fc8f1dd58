"""One database after another: what holds for SQLite holds for PostgreSQL."""

import secrets

import pytest
import sqlalchemy as sa

from trellis.adapters.database import engine


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """URL of an empty database: a file, or one of a real PostgreSQL server."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/trellis.db"
    else:
        yield request.getfixturevalue("database")(f"d{secrets.token_hex(6)}")


@pytest.fixture
def refuse(url):
    """Let a table refuse every new row from now on, as a full disk does."""

    def inserts(table):
        with engine(url).begin() as connection:
            if url.startswith("sqlite"):
                body = "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            else:
                made = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                connection.execute(sa.text(made + "$$ BEGIN RAISE EXCEPTION 'disk full'; END $$"))
                body = "EXECUTE FUNCTION refuse()"
            connection.execute(sa.text(f"CREATE TRIGGER refused BEFORE INSERT ON {table} {body}"))

    return inserts
