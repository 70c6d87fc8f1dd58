"""One database after another: what holds for SQLite holds for PostgreSQL. And a Redis of the tests' own."""

import secrets
import shutil
import socket
import subprocess
import time

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


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    """A server of our own on a free port, gone afterwards: its port and process."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("NO REDIS: install it with: apt-get install -y redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(place)],
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            break
        except OSError:
            time.sleep(0.02)
    yield port, process
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def redis_url(redis_server):
    """The URL of that server."""
    return f"redis://127.0.0.1:{redis_server[0]}"
