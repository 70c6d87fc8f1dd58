"""Artifacts, plan store and online store taken away from a service under load, and brought back."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from chaos.load import Load
from chaos.service import ROOT, Service, free_port, wait_for

from trellis.adapters.database import engine

DEFINITIONS = """
import os
from datetime import timedelta
from pathlib import Path
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

shop = Entity(name="shop", value_type=ValueType.STRING)
path = str(Path(os.environ["TRELLIS_HOME"]) / "features/shops.parquet")
source = FileSource(name="shops", path=path, timestamp_field="event_timestamp")
shops = FeatureView(
    name="shops", entities=[shop], ttl=timedelta(days=9), schema=[Field(name="rate", dtype=Float64)], source=source
)
fed_v1 = FeatureService(name="fed_v1", features=[shops])
"""
SHOPS = 20


def artifacts(home: Path, *, seconds: float = 3.0) -> dict[str, Any]:
    """Move every artifact away, ask for a version that nobody has loaded, and move them back."""
    service = Service(home)
    first = service.first(service.version("1"))
    other = service.version("2", slope=0.5)
    store, away = home / "artifacts", home / "away"
    with service, Load(service.port) as load:
        time.sleep(1.0)
        store.rename(away)
        gone = time.monotonic()
        service.plans.save(replace(first, variants=(other,)), expected_revision=1, who="bench", why="unreachable")
        time.sleep(seconds)
        away.rename(store)
        back = time.monotonic()
        wait_for(lambda: load.answers[-1].version == "2", "the version that was out of reach", 30)
        time.sleep(1.0)
    return _told(load, gone, back) | {"followed_s_after_return": round(_first(load, "2", gone) - back, 1)}


def plan_file(home: Path, *, seconds: float = 3.0) -> dict[str, Any]:
    """Move the plan store's SQLite file away and back."""
    service = Service(home)
    service.first(service.version("1"))

    def move(source: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        for file in source.glob("trellis.db*"):
            with suppress(FileNotFoundError):
                file.rename(target / file.name)

    return _without_plans(
        service, lambda: move(home / "store", home / "away"), lambda: move(home / "away", home / "store"), seconds
    )


def plan_server(home: Path, *, seconds: float = 3.0, how: str = "stopped") -> dict[str, Any]:
    """Stop a PostgreSQL plan store as if it hung (SIGSTOP), or kill it and start it anew."""
    with postgres() as server:
        service = Service(home, STORE_URL=server.url)
        service.first(service.version("1"))
        if how == "stopped":
            return _without_plans(
                service, lambda: server.signal(signal.SIGSTOP), lambda: server.signal(signal.SIGCONT), seconds
            )
        return _without_plans(service, server.kill, server.start, seconds)


def online_store(home: Path, *, seconds: float = 3.0) -> dict[str, Any]:
    """Stop Redis as if it hung, let it go on, kill it, start it anew with nothing in it, and fill it."""
    port = free_port()
    server = _redis(port, home)
    service = Service(home, ONLINE_STORE=f"redis://127.0.0.1:{port}", FEATURE_REPO=str(home / "repo"))
    fill = _features(home, f"redis://127.0.0.1:{port}")
    service.first(service.version("1", "fed"), "fed")
    found: dict[str, Any] = {}
    row = lambda draw: {"x": round(draw.random(), 4), "shop": f"s{draw.randrange(SHOPS)}"}  # noqa: E731
    try:
        with service, Load(service.port, model="fed", row=row) as load:
            time.sleep(1.0)
            before = time.monotonic()
            server.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            server.send_signal(signal.SIGCONT)
            hung = time.monotonic()
            wait_for(lambda: not load.answers[-1].degraded, "answers with features after the hang", 30)
            found["whole_again_s_after_hang"] = round(time.monotonic() - hung, 1)
            server.kill()
            server.wait(10)
            killed = time.monotonic()
            time.sleep(seconds)
            back = time.monotonic()  # while it is filled some features are there already
            server = _redis(port, home)
            fill()
            started = time.monotonic()
            wait_for(lambda: not load.answers[-1].degraded, "answers with features after the restart", 30)
            found["whole_again_s_after_restart"] = round(time.monotonic() - started, 1)
            time.sleep(0.5)
    finally:
        server.kill()
        server.wait(10)
    steady = [a for a in load.answers if a.received < before]
    while_hung = [a for a in load.answers if before + 0.2 <= a.sent and a.received <= hung]
    while_gone = [a for a in load.answers if killed + 0.2 <= a.sent and a.received <= back]
    return {
        "answers": len(load.answers),
        "degraded_before": sum(a.degraded for a in steady),
        "answers_while_hung": len(while_hung),
        "of_these_marked_degraded": sum(a.degraded for a in while_hung),
        "slowest_while_hung_ms": round(max((a.received - a.sent for a in while_hung), default=0) * 1000),
        "answers_while_gone": len(while_gone),
        "of_them_marked_degraded": sum(a.degraded for a in while_gone),
        "answers_5xx": sum(a.status >= 500 for a in load.answers),
        "other_errors": dict(Counter(a.status for a in load.failed if a.status < 500)),
        "first_error": next((a.text for a in load.failed), ""),
        "broken_connections": sum(load.broken.values()),
        **found,
    }


def _without_plans(
    service: Service, take: Callable[[], None], bring: Callable[[], None], seconds: float
) -> dict[str, Any]:
    other = service.version("2", slope=0.5)
    with service, Load(service.port) as load:
        time.sleep(1.0)
        take()
        gone = time.monotonic()
        time.sleep(seconds)
        told = service.status("/v2/health/ready")
        bring()
        back = time.monotonic()
        plan = replace(service.plans.current("plain"), variants=(other,))
        service.plans.save(plan, expected_revision=1, who="bench", why="after the return")
        wait_for(lambda: load.answers[-1].version == "2", "the plan that was written after the return", 30)
        time.sleep(1.0)
    return _told(load, gone, back) | {
        "ready_while_away": told,
        "followed_s_after_return": round(_first(load, "2", gone) - back, 1),
    }


def _told(load: Load, gone: float, back: float) -> dict[str, Any]:
    away = [a for a in load.answers if a.sent >= gone and a.received <= back]
    return {
        "answers": len(load.answers),
        "answers_while_away": len(away),
        "answers_5xx": sum(a.status >= 500 for a in load.answers),
        "other_errors": dict(Counter(a.status for a in load.failed if a.status < 500)),
        "broken_connections": sum(load.broken.values()),
        "slowest_while_away_ms": round(max(a.received - a.sent for a in away) * 1000),
    }


def _first(load: Load, version: str, since: float) -> float:
    return min(a.received for a in load.answers if a.version == version and a.received > since)


def _redis(port: int, home: Path) -> subprocess.Popen[bytes]:
    found = shutil.which("redis-server")
    if found is None:
        raise SystemExit("NO REDIS: install it with: apt-get install -y redis-server")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(home)]
    process = subprocess.Popen([found, *options], stdout=subprocess.DEVNULL)

    def answers() -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return True
        return False

    wait_for(answers, "Redis", 10)
    return process


def _features(home: Path, url: str) -> Callable[[], None]:
    """Write definitions and a table, fill the store, and return what fills it again."""
    from trellis.adapters.feature_store import FeatureStore

    (home / "repo").mkdir()
    (home / "features").mkdir()
    (home / "repo/definitions.py").write_text(DEFINITIONS)
    shutil.copy(ROOT / "feature_repo" / "feature_store.yaml", home / "repo")
    now = datetime.now(UTC)
    shops = {"shop": [f"s{i}" for i in range(SHOPS)], "rate": 0.3, "event_timestamp": now}
    pd.DataFrame(shops).to_parquet(home / "features/shops.parquet", index=False)
    store = FeatureStore(home / "repo", home, url)
    store.apply()

    def fill() -> None:
        store.materialize(datetime.now(UTC), since=datetime(1970, 1, 1, tzinfo=UTC))

    fill()
    return fill


class _Postgres:
    """A server of our own; it refuses to run as root."""

    def __init__(self, place: Path, programs: Path) -> None:
        self._programs, self._data, self._place = programs, place / "data", place
        self._owner: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
        self._port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql+psycopg://trellis@127.0.0.1:{self._port}/postgres"
        if self._owner:
            shutil.chown(place, "nobody")
        initdb = [programs / "initdb", "-D", self._data, "-U", "trellis", "-A", "trust", "-E", "UTF8"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/", **self._owner)

    def start(self) -> None:
        options = ["-p", str(self._port), "-k", self._place, "-c", "listen_addresses=127.0.0.1"]
        self._server = subprocess.Popen(
            [self._programs / "postgres", "-D", self._data, *options],
            cwd="/",
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **self._owner,
        )
        ready = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self._port), "-U", "trellis"]
        wait_for(lambda: subprocess.run(ready).returncode == 0, "PostgreSQL", 30)

    def signal(self, number: int) -> None:
        """Send a signal to the server and each of its processes."""
        assert self._server is not None
        os.killpg(self._server.pid, number)
        for child in self._children():
            with suppress(ProcessLookupError):
                os.kill(child, number)

    def kill(self) -> None:
        assert self._server is not None
        self.signal(signal.SIGKILL)
        self._server.wait(10)

    def _children(self) -> list[int]:
        import psutil

        assert self._server is not None
        return [child.pid for child in psutil.Process(self._server.pid).children(recursive=True)]


@contextmanager
def postgres() -> Iterator[_Postgres]:
    """Start a real PostgreSQL server for the block."""
    programs = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)
    if programs is None:
        raise SystemExit("NO POSTGRESQL: install it with: apt-get install -y postgresql")
    place = Path(tempfile.mkdtemp(prefix="pg-"))
    server = _Postgres(place, programs)
    try:
        server.start()
        yield server
    finally:
        engine(server.url).dispose()
        with suppress(ProcessLookupError):
            server.kill()
        shutil.rmtree(place, ignore_errors=True)
