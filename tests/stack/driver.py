"""One stack under a name and on ports of its own, driven through docker compose and the project's own verbs."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PORTS = ("API", "CONSOLE", "MLFLOW", "PREFECT", "EVIDENTLY", "PROMETHEUS", "ALERTMANAGER", "GRAFANA", "OBJECT_STORE")


# How many times longer than usual things may take: on a machine that others use, more than once.
PATIENCE = float(os.environ.get("STACK_PATIENCE", "1"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def published(project: str) -> dict[str, int]:
    """Return the ports of a stack that is up."""
    command = ["docker", "ps", "--filter", f"label=com.docker.compose.project={project}", "--format", "{{json .}}"]
    found = dict.fromkeys(PORTS, 1)
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        row = json.loads(line)
        service = row["Names"].removeprefix(project + "-").rpartition("-")[0]
        name = {"gateway": "API"}.get(service, service.upper().replace("-", "_"))
        if name in found and "->" in row["Ports"]:
            found[name] = int(row["Ports"].split("->")[0].rpartition(":")[2])
    return found


class Stack:
    """Drives one stack through docker compose and the project's own verbs."""

    def __init__(self, **settings: str):
        # A stack that STACK_KEEP=1 left standing is used again by naming it.
        self.name = os.environ.get("STACK_TEST") or "1"
        kept = self.name != "1"
        self.name = self.name if kept else f"trellis-test-{secrets.token_hex(3)}"
        self.ports = published(self.name) if kept else {name: free_port() for name in PORTS}
        # Not where pytest tidies up: a container that comes back mounts it again.
        webhook = ROOT / "var" / "test-stack" / "webhook"
        webhook.parent.mkdir(parents=True, exist_ok=True)
        webhook.write_text("http://webhook:9095/")
        webhook.chmod(0o644)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRELLIS_", "STACK_", "COMPOSE_"))}
        self.environment = kept | {f"STACK_{name}_PORT": str(port) for name, port in self.ports.items()}
        self.environment |= {
            "COMPOSE_PROJECT_NAME": self.name,
            "COMPOSE_FILE": f"docker-compose.yml{os.pathsep}tests/stack/compose.yaml",
            "STACK_TEST_WEBHOOK": str(webhook),
            "STACK_WATCH_SECONDS": "15",
            # The tests take the loop's turns themselves, so that each decision is at its known moment.
            "TRELLIS_LOOP_MINUTES": "0",
            "STACK_START_SECONDS": str(600 * PATIENCE),
            **settings,
        }

    def run(self, *command: str, check: bool = True, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout * PATIENCE
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def verb(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "infra/compose/stack.py", *arguments, check=check)

    def compose(self, *arguments: str, check: bool = True) -> str:
        return self.run("docker", "compose", *arguments, check=check).stdout

    def trellis(self, *arguments: str) -> str:
        """Run the command line inside the worker."""
        return self.compose("exec", "-T", "worker", "trellis", *arguments)

    def python(self, code: str) -> str:
        return self.compose("exec", "-T", "worker", "python", "-c", code)

    @property
    def key(self) -> str:
        return (ROOT / "infra/compose/secrets/api_key").read_text().strip()

    def containers(self) -> list[dict]:
        return [json.loads(line) for line in self.compose("ps", "--all", "--format", "json").splitlines()]

    def leftovers(self) -> list[str]:
        """Name everything of this stack that the engine still has."""
        label = ("--filter", f"label=com.docker.compose.project={self.name}", "--format", "{{.Name}}")
        names = [
            line for kind in ("volume", "network") for line in self.run("docker", kind, "ls", *label).stdout.split()
        ]
        return names + [row["Name"] for row in self.containers()]

    def ids(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()

    def inspect(self, container: str) -> dict:
        return json.loads(self.run("docker", "inspect", container).stdout)[0]


def until(what, seconds: float, why: str, pause: float = 0.5):
    """Wait for something to be true and return it."""
    end = time.monotonic() + seconds * PATIENCE
    last = None
    while time.monotonic() < end:
        try:
            if last := what():
                return last
        except (OSError, AssertionError, KeyError, ValueError) as error:
            last = error
        time.sleep(pause)
    pytest.fail(f"Not within {seconds * PATIENCE:g} s: {why} (last: {last})")
