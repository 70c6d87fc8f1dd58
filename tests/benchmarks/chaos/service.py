"""The real prediction service as its users start it, over a home of its own, with plans written by the real store."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from trellis.adapters.plan_store import PlanStore
from trellis.artifact import seal
from trellis.catalog import Catalogue
from trellis.rollout.plan import RolloutPlan, Variant, first_plan

ROOT = Path(__file__).resolve().parents[3]
TOYS = Path(__file__).resolve().parent / "toys"


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Any, what: str, seconds: float = 60.0) -> Any:
    """Return what ``condition`` returns once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:g} s for {what}")


class Service:
    """Processes, a port and a home; ``settings`` are ``TRELLIS_*`` variables without their prefix."""

    def __init__(self, home: Path, workers: int = 2, **settings: str) -> None:
        self.home = home
        self.workers = workers
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        home.mkdir(parents=True, exist_ok=True)
        (home / "store").mkdir(exist_ok=True)
        self.store_url = settings.pop("STORE_URL", f"sqlite:///{home}/store/trellis.db")
        self.plans = PlanStore(self.store_url)
        self._catalogue = Catalogue([TOYS], entry_points=False)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRELLIS_", "BENTOML", "PROMETHEUS"))}
        own = {"HOME": str(home), "MODELS": str(TOYS), "PORT": str(self.port), "STORE_URL": self.store_url}
        self.environment = {**kept, **{f"TRELLIS_{name}": value for name, value in {**own, **settings}.items()}}
        self.environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Service:
        """Start, and wait until every worker answers."""
        with (self.home / "service.log").open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.prediction", "--workers", str(self.workers)],
                cwd=ROOT,
                env=self.environment,
                stdout=out,
                stderr=out,
            )
        try:
            wait_for(lambda: self.status() == 200 and len(self.answering()) == self.workers, "the service", 120)
        except BaseException:
            print((self.home / "service.log").read_text()[-4000:], file=sys.stderr)
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End in good order, and at once where that takes too long."""
        if self._process is None:
            return
        family = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(40)
        finally:
            for left in [*family, self._process]:
                if left.poll() is None if isinstance(left, subprocess.Popen) else left.is_running():
                    left.kill()
            self._process.wait(10)
            self._process = None
        self.plans.close()

    def status(self, path: str = "/v2/health/ready") -> int | None:
        """Return the status of a GET; None where nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def worker_processes(self) -> list[psutil.Process]:
        """Return the processes that answer, or are about to."""
        assert self._process is not None
        found = []
        for child in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if "bentoml" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def answering(self) -> set[int]:
        """Return the workers that answer, found by opening a few connections and looking at who holds them."""
        held: set[int] = set()
        for _ in range(4 * self.workers):
            with socket.create_connection(("127.0.0.1", self.port), 5) as link:
                link.sendall(b"GET /v2/health/ready HTTP/1.1\r\nhost: a\r\n\r\n")
                if b" 200 " not in link.recv(100):
                    return set()
                held.add(self.holder(link.getsockname()[1]))
        return held - {0}

    def holder(self, port: int) -> int:
        """Return the worker that holds the connection from a caller's port; 0 if it is gone."""
        for child in self.worker_processes():
            try:
                for held in child.net_connections("tcp"):
                    if held.raddr and held.raddr.port == port:
                        return int(child.pid)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return 0

    def spread(self) -> list[int]:
        """Return how many connections each worker holds now."""
        held = []
        for child in self.worker_processes():
            links = [c for c in child.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
            held.append(len([c for c in links if c.laddr.port == self.port]))
        return held

    # --- versions and plans

    def version(self, name: str, model: str = "plain", **weights: float) -> Variant:
        """Write and seal an artifact; return its variant."""
        directory = self.home / "artifacts" / model / name
        directory.mkdir(parents=True)
        (directory / "weights.json").write_text(json.dumps({"slope": 1.0} | weights))
        spec = self._catalogue.plugin(model).spec
        outputs = tuple(f.name for f in spec.outputs)
        manifest = seal(
            directory, model=model, plugin_version="1", recipe="default", seed=0, inputs=spec.inputs, outputs=outputs
        )
        return Variant(name, "champion", 1.0, str(directory), manifest.digest)

    def first(self, variant: Variant, model: str = "plain") -> RolloutPlan:
        """Make a version the model's first champion."""
        plan = first_plan(model, variant, salt="chaos")
        return self.plans.save(plan, expected_revision=0, who="bench", why="first")
