"""The pages of what was run: console, MLflow, Evidently, the service's API, until interrupted (``trellis ui``)."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table

from trellis.errors import ConfigError, TrellisError
from trellis.settings import settings, silence_telemetry

_START_SECONDS = 90


@dataclass(frozen=True)
class Page:
    """A page and the process that serves it."""

    name: str
    shows: str
    url: str
    command: tuple[str, ...]
    environment: dict[str, str]


def pages() -> list[Page]:
    """Return the pages there is something to see on.

    Raises:
        ConfigError: Nothing was run in this home yet.
    """
    config, host = settings(), settings().host
    home = config.directory()
    found = []
    if (home / "store" / "trellis.db").exists() or (home / "looks").exists():
        port = free_port(host, config.console_port)
        command = (sys.executable, "-m", "services.console", "--port", str(port))
        found.append(
            Page("Console", "how every model stands, why, what is next", f"http://{host}:{port}/ui", command, {})
        )
    if (home / "mlflow" / "mlflow.db").exists():
        port = free_port(host, 5000)
        command = ("mlflow", "server", "--host", host, "--port", str(port), "--workers", "1")
        command += ("--backend-store-uri", config.tracking_uri)
        # Without this the server starts eight more processes of 240 MB each for jobs that nobody submits.
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        found.append(Page("MLflow", "versions, metrics, cards, evidence", f"http://{host}:{port}", command, quiet))
    if (home / "evidently").exists():
        port = free_port(host, 8000)
        command = ("evidently", "ui", "--workspace", str(home / "evidently"), "--host", host, "--port", str(port))
        found.append(Page("Evidently", "drift reports by window", f"http://{host}:{port}", command, {}))
    if (home / "store" / "trellis.db").exists():
        port = free_port(host, config.port)
        command = (sys.executable, "-m", "services.prediction")
        environment = {"TRELLIS_PORT": str(port), "TRELLIS_LOG_LEVEL": "warning"}
        found.append(
            Page("API", "the service's routes, to try out", f"http://{host}:{port}/docs", command, environment)
        )
    if not found:
        raise ConfigError("There is nothing to look at yet.", where=home, remedy="Run the demo first: make demo")
    return found


def main() -> int:
    """Start every page, say where they are, and stop them at Ctrl-C."""
    parser = argparse.ArgumentParser(prog="trellis ui", description="Open the pages of what was run in this home.")
    parser.add_argument("--no-browser", action="store_true", help="only say where the pages are")
    chosen = parser.parse_args()
    silence_telemetry()
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started: list[subprocess.Popen[bytes]] = []
    try:
        found = pages()
        for page in found:
            log = (settings().directory("logs") / f"{page.name.lower()}.log").open("wb")
            environment = {**os.environ, **page.environment, "PATH": _path()}
            started.append(subprocess.Popen(page.command, env=environment, stdout=log, stderr=log))
        with console.status("Starting the pages …"):
            up = [_wait(page.url, process) for page, process in zip(found, started, strict=True)]
        table = Table(title="Pages")
        for name in ("page", "shows", "where"):
            table.add_column(name)
        for page, ready in zip(found, up, strict=True):
            where = page.url if ready else f"did not start, see {settings().directory('logs')}/{page.name.lower()}.log"
            table.add_row(page.name, page.shows, where)
        console.print(table)
        console.print("Ctrl-C stops them.")
        if not chosen.no_browser and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
            for page, ready in zip(found, up, strict=True):
                if ready:
                    webbrowser.open(page.url)
        signal.pause()
    except KeyboardInterrupt:
        return 0
    except TrellisError as error:
        sys.stderr.write(f"trellis ui: {error}\n")
        return 1
    finally:
        _stop(started)
    return 0


def _wait(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(URLError, OSError), urlopen(url, timeout=5):  # noqa: S310 (our own loopback pages)
            return True
        time.sleep(0.3)
    return False


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _path() -> str:
    """Return PATH with this environment's programs first: MLflow starts uvicorn by its name."""
    here = str(Path(sys.executable).parent)
    return (
        os.pathsep.join([here, os.environ.get("PATH", "")]) if shutil.which("mlflow", path=here) else os.environ["PATH"]
    )


def free_port(host: str, wanted: int) -> int:
    """Return the wanted port, or a free one if somebody listens there."""
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    raise ConfigError(f"No port is free on {host}.")


if __name__ == "__main__":
    sys.exit(main())
