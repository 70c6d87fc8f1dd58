"""Bring the stack up, tell what is where, take it down: ``python infra/compose/stack.py up|status|down``.

Needs nothing but Python and docker with Compose; every address comes from the resolved compose file.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import make_secrets

ROOT = Path(__file__).parents[2]
COMPOSE_AT_LEAST = (2, 20)
START_SECONDS = float(os.environ.get("STACK_START_SECONDS", "600"))
GATEWAY_SECONDS = 4  # in which the gateway has found new replicas: it looks every second
FULL = "No space left on device"
# Service -> what a person finds there, and the path of the page.
PAGES = {
    "gateway": ("prediction API", "/docs"),
    "console": ("models: plans, verdicts, drift, alerts; a browser asks for the key as password", "/ui"),
    "mlflow": ("models, runs, evidence", "/"),
    "prefect": ("flows and their runs", "/dashboard"),
    "evidently": ("drift reports", "/"),
    "prometheus": ("metrics and alert rules", "/alerts"),
    "alertmanager": ("alerts under way", "/"),
    "grafana": ("dashboards", "/"),
    "object-store": ("artifacts, for S3 clients", ""),
}


class StackError(Exception):
    """What keeps the stack from running, with the setting and the remedy."""


def compose(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run docker compose on the stack."""
    done = subprocess.run(["docker", "compose", *arguments], cwd=ROOT, text=True, **options)
    if check and done.returncode:
        raise StackError((done.stderr or "").strip() or f"docker compose {arguments[0]} failed; see above.")
    return done


def resolved() -> dict[str, Any]:
    """Return the compose file with every variable filled in."""
    parsed: dict[str, Any] = json.loads(compose("config", "--format", "json", capture_output=True).stdout)
    return parsed


def require_engine() -> None:
    """Raise where docker or its Compose is not there, not running or too old."""
    try:
        found = subprocess.run(
            ["docker", "compose", "version", "--short"],
            capture_output=True,
            text=True,
        )
        running = subprocess.run(["docker", "info"], capture_output=True, text=True)
    except FileNotFoundError:
        raise StackError("docker is not installed. Install Docker Engine with Compose v2.") from None
    version = tuple(int(part) for part in found.stdout.strip().lstrip("v").split("+")[0].split("-")[0].split(".")[:2])
    if found.returncode or version < COMPOSE_AT_LEAST:
        raise StackError(f"Compose {found.stdout.strip() or 'v2'} is too old or missing; 2.20 or newer is needed.")
    if running.returncode:
        raise StackError("The docker engine does not answer. Start it, or let this user reach its socket.")


def require_ports(config: dict[str, Any]) -> None:
    """Raise where somebody else listens on a port of the stack."""
    mine = _published()
    for name, service in config["services"].items():
        for port in service.get("ports", []):
            number = int(port["published"])
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", number))
                except OSError as error:
                    if number in mine:
                        continue
                    setting = f"STACK_{ {'gateway': 'API'}.get(name, name.upper().replace('-', '_')) }_PORT"
                    raise StackError(
                        f"Port {number} of {name} is taken ({error.strerror}). Set {setting} to another in .env; "
                        "a second stack on this machine also needs a COMPOSE_PROJECT_NAME of its own."
                    ) from None


def require_architecture(config: dict[str, Any]) -> None:
    """Raise where an image that is there was built for another machine."""
    server = docker("version", "-f", "{{.Server.Arch}}").stdout.strip()
    for image in sorted({service["image"] for service in config["services"].values()}):
        done = docker("image", "inspect", "-f", "{{.Architecture}}", image)
        if done.returncode == 0 and done.stdout.strip() != server:
            raise StackError(
                f"The image {image} is for {done.stdout.strip()}, this machine is {server}. Remove it and build or "
                f"pull it again, with DOCKER_DEFAULT_PLATFORM unset or linux/{server}."
            )


def up(build: bool) -> None:
    """Make secrets, build what is not built, start everything and wait until it is healthy."""
    require_engine()
    if make_secrets.main():
        raise StackError("The stack is not started: its secrets are not whole.")
    config = resolved()
    require_ports(config)
    require_architecture(config)
    if build:
        compose("build", env={**os.environ, "GIT_COMMIT": os.environ.get("GIT_COMMIT") or commit()})
    started = time.monotonic()
    done = compose("up", "--detach", "--no-build", "--remove-orphans", check=False)
    failed = [row for row in containers() if row["State"] == "exited" and row["ExitCode"]]
    for row in failed:
        compose("logs", "--no-log-prefix", "--tail", "30", row["Service"], check=False)
    if failed or done.returncode:
        require_room()
        names = ", ".join(row["Service"] for row in failed) or "a part of it"
        raise StackError(
            f"The stack did not come up: {names} failed, see above. `make logs` shows all, `make down` cleans up."
        )
    while waiting := [row["Service"] for row in containers() if not _well(row)]:
        if time.monotonic() - started > START_SECONDS:
            raise StackError(f"Not healthy after {START_SECONDS:g} s: {', '.join(waiting)}. Look with: make logs")
        time.sleep(1)


def require_room() -> None:
    """Raise where a container says that its disk is full."""
    for row in containers():
        if state(row) in ("healthy", "done"):  # one that restarts again and again may just be running
            continue
        told = compose("logs", "--no-log-prefix", "--tail", "1000", row["Service"], check=False, capture_output=True)
        if FULL in told.stdout + told.stderr:
            raise StackError(
                f"The volume of {row['Service']} is full. Make room on the engine's disk (docker system df), or give "
                "the volume more, then: make up. `make down` stops what did come up; its data stay."
            )


def roll(build: bool) -> None:
    """Replace the prediction service's replicas by new ones; the old ones stop when those are ready."""
    if build:
        compose("build", "prediction", env={**os.environ, "GIT_COMMIT": os.environ.get("GIT_COMMIT") or commit()})
    old = compose("ps", "--quiet", "prediction", capture_output=True).stdout.split()
    if not old:
        raise StackError("No replica of the prediction service is up. Start the stack with: make up")
    scaled = ("--scale", f"prediction={2 * len(old)}", "prediction")
    compose("up", "--detach", "--no-build", "--no-deps", "--no-recreate", *scaled)
    new = set(compose("ps", "--quiet", "prediction", capture_output=True).stdout.split()) - set(old)
    asking = "import urllib.request as r; r.urlopen('http://127.0.0.1:3000/v2/health/ready', timeout=4)"
    deadline = time.monotonic() + START_SECONDS
    for container in sorted(new):
        while docker("exec", container, "python", "-c", asking).returncode:
            if time.monotonic() > deadline:
                docker("rm", "--force", *new)
                raise StackError(
                    "The new replicas do not get ready and were removed; the old ones go on. See: make logs"
                )
            time.sleep(0.5)
    time.sleep(GATEWAY_SECONDS)
    for container in old:
        docker("stop", "--time", "30", container)
        docker("rm", container)


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run docker and return what came of it."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True)


def commit() -> str:
    """Return the commit that images are built from, marked where the tree differs from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"


def containers() -> list[dict[str, Any]]:
    """Return the stack's containers, one-shot jobs included."""
    text = compose("ps", "--all", "--format", "json", capture_output=True).stdout
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return rows[0] if rows and isinstance(rows[0], list) else rows


def status() -> int:
    """Print what is where and whether it is healthy; 0 if all is."""
    config, rows = resolved(), containers()
    if not rows:
        print("Nothing of the stack is here. Start it with: make up")
        return 1
    lines = [("SERVICE", "STATE", "WHERE", "WHAT")]
    well = True
    training = any(row["Service"] == "first-model" and row["State"] == "running" for row in rows)
    for service in config["services"]:
        mine = [row for row in rows if row["Service"] == service]
        if not mine:
            continue
        states = [state(row) for row in mine]
        page, where = PAGES.get(service, ("", "")), ""
        if ports := config["services"][service].get("ports"):
            where = f"http://127.0.0.1:{ports[0]['published']}{page[1]}"
            if not answers(where):
                # No replica is ready while there is no model to serve, which is as it should be at first.
                states.append("waits for the first model" if training and service == "gateway" else "does not answer")
        well &= all(_well(row) for row in mine) and "does not answer" not in states
        told = ", ".join(dict.fromkeys(states)) + (f" x{len(mine)}" if len(mine) > 1 else "")
        lines.append((service, told, where, page[0]))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    key = (make_secrets.PLACE / "api_key").relative_to(ROOT)
    if training:
        print("\nThe first model is being trained; follow it with: make logs SERVICE=first-model")
    print(f"\nRequests need the key in {key}:  authorization: Bearer $(cat {key})")
    return 0 if well else 1


def state(row: dict[str, Any]) -> str:
    """Put a container's state into a word."""
    if row["State"] == "exited":
        return "done" if row["ExitCode"] == 0 else f"failed ({row['ExitCode']})"
    return row.get("Health") or str(row["State"])


def answers(url: str) -> bool:
    """Tell whether something answers there, whatever it says short of an error of its own."""
    try:
        with urlopen(url, timeout=5):  # noqa: S310 (our own loopback pages)
            return True
    except HTTPError as error:
        return error.code < 500
    except (URLError, OSError):
        return False


def down(volumes: bool) -> None:
    """Stop and remove the containers, also of a half-started stack; the data stay unless told otherwise."""
    compose("--profile", "*", "down", "--remove-orphans", *(["--volumes"] if volumes else []))


def _well(row: dict[str, Any]) -> bool:
    return state(row) in ("healthy", "running", "done") or (
        row["Service"] == "first-model" and row["State"] == "running"
    )


def _published() -> set[int]:
    return {int(port["PublishedPort"]) for row in containers() for port in row.get("Publishers") or []}


def main() -> int:
    """Run a verb."""
    parser = argparse.ArgumentParser(prog="make", description="The stack on this machine.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    starting = verbs.add_parser("up", help="start everything and say what is where")
    starting.add_argument("--no-build", action="store_true", help="use the images as they are")
    rolling = verbs.add_parser("roll", help="replace the prediction service's replicas one by one")
    rolling.add_argument("--no-build", action="store_true", help="use the image as it is")
    verbs.add_parser("status", help="say what is where and whether it is healthy")
    stopping = verbs.add_parser("down", help="stop and remove everything but the data")
    stopping.add_argument("--volumes", action="store_true", help="remove the data too")
    chosen = parser.parse_args()
    try:
        if chosen.verb == "down":
            down(chosen.volumes)
            return 0
        if chosen.verb == "up":
            up(not chosen.no_build)
        if chosen.verb == "roll":
            roll(not chosen.no_build)
        return status()
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
