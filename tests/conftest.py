"""Real servers of the tests' own: PostgreSQL and Redis, on free ports, gone afterwards."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from trellis.adapters.database import engine


def program(name: str) -> Path:
    """Return one of PostgreSQL's server programs, which Debian keeps off the PATH."""
    found = shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip("NO POSTGRESQL: install it with: apt-get install -y postgresql")
    return Path(found)


@pytest.fixture(scope="session")
def postgres():
    """URL of a real server of our own, without a database's name; gone afterwards."""
    # Not below pytest's directory, which only its own user may enter; the server refuses to run as root.
    place = Path(tempfile.mkdtemp(prefix="pg-"))
    data = place / "data"
    owner = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    if owner:
        shutil.chown(place, "nobody")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": "/", **owner}
    initdb = [program("initdb"), "-D", data, "-U", "trellis", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(initdb, check=True, **quiet)
    options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"]
    command = [program("postgres"), "-D", data, "-p", str(port), "-k", place, *options]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, **quiet)
    url = f"postgresql+psycopg://trellis:secret@127.0.0.1:{port}"
    ready = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "trellis"]
    for _ in range(300):
        if subprocess.run(ready).returncode == 0:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("PostgreSQL did not come up within 30 s")
    yield url
    server.terminate()
    server.wait(30)
    shutil.rmtree(place)


@pytest.fixture
def database(postgres):
    """Make databases, empty ones, by name; they are dropped afterwards."""
    made = []
    admin = create_engine(f"{postgres}/postgres", isolation_level="AUTOCOMMIT")

    def make(name: str) -> str:
        with admin.connect() as connection:
            if name in made:
                engine(f"{postgres}/{name}").dispose()
                connection.execute(text(f'drop database "{name}" with (force)'))
            else:
                made.append(name)
            connection.execute(text(f'create database "{name}"'))
        return f"{postgres}/{name}"

    yield make
    with admin.connect() as connection:
        for name in made:
            engine(f"{postgres}/{name}").dispose()
            connection.execute(text(f'drop database "{name}" with (force)'))
    admin.dispose()


@pytest.fixture
def redis_url(tmp_path):
    """A Redis of our own, on a free port, gone afterwards."""
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("NO REDIS: install it with: apt-get install -y redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen([found, *options], stdout=subprocess.DEVNULL)
    for _ in range(200):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            break
        time.sleep(0.02)
    yield f"redis://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)
