"""Starting and stopping the service, and telling the story."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import TracebackType

import httpx
from rich.console import Console
from rich.panel import Panel

from pipelines.pages import free_port
from pipelines.stores import decisions
from trellis.decision import Decision
from trellis.errors import ConfigError
from trellis.settings import settings

_START_SECONDS = 120


class Service:
    """The prediction service in its own process, on a free loopback port if the settings' is taken."""

    def __init__(self) -> None:
        self.port = free_port(settings().host, settings().port)
        self.url = f"http://{settings().host}:{self.port}"
        self.log = settings().directory("logs") / "service.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Service:
        environment = {**os.environ, "TRELLIS_PORT": str(self.port), "TRELLIS_LOG_LEVEL": "warning"}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.prediction"], env=environment, stdout=log, stderr=log
            )
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """Wait for readiness, which is false until every model is loaded.

        Raises:
            ConfigError: The service ended, or did not get ready in time.
        """
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/v2/health/ready", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        self.__exit__(None, None, None)
        raise ConfigError("The prediction service did not get ready.", where=self.log, remedy="Its log says why.")

    def wait_for_revision(self, model: str, revision: int) -> None:
        """Wait until the service answers by a revision of the plan; it looks every half second."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if httpx.get(f"{self.url}/v1/models/{model}", timeout=5).json()["revision"] >= revision:
                return
            time.sleep(0.1)
        raise ConfigError(f"The service does not take up revision {revision} of {model!r}.", where=self.log)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Narrator:
    """Prints the story.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._chapter = 0

    def chapter(self, title: str, text: str) -> None:
        """Begin a chapter."""
        self._chapter += 1
        self.console.print()
        self.console.print(Panel(text, title=f"[bold]{self._chapter} · {title}[/]", title_align="left", width=100))

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print("  " + text, highlight=False)

    def decision(self, decision: Decision | str) -> None:
        """Print a decision with its reason and how to look into it."""
        found = decisions().get(decision) if isinstance(decision, str) else decision
        outcome = found.verdict.outcome
        colour = {"PROMOTE": "green", "RETRAIN": "cyan", "HOLD": "yellow", "DRIFT": "magenta"}.get(outcome, "red")
        self.say(f"[bold {colour}]{outcome}[/] [dim]{found.kind} · {found.subject} · {found.at[:10]}[/]")
        self.say(f"  {found.verdict.reason} [dim](trellis explain {found.id})[/]")
