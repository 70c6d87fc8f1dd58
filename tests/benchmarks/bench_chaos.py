"""Harm done on purpose to the real service, under load: what is lost, what fails, and how long it takes to recover.

Nothing is simulated: processes are killed with SIGKILL, files are renamed away, servers are stopped with SIGSTOP. Each
part prints what it counted; ``--json`` prints one object. The tests run the same parts, smaller.

    python tests/benchmarks/bench_chaos.py [--only failures] [--full] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from chaos.failures import failures  # noqa: E402
from chaos.kills import kills  # noqa: E402
from chaos.stores import artifacts, online_store, plan_file, plan_server  # noqa: E402
from chaos.swaps import swaps  # noqa: E402

# Name, small, full.
PARTS: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "failures": (failures, {}, {}),
    "swaps": (swaps, {"swaps": 12}, {"swaps": 100}),
    "kills": (kills, {}, {"worker_kills": 100, "controller_kills": 120}),
    "kills_sync": (
        kills,
        {"flush_seconds": 0.0, "controller_kills": 0},
        {"flush_seconds": 0.0, "worker_kills": 100, "controller_kills": 0},
    ),
    "artifacts": (artifacts, {}, {"seconds": 15}),
    "plan_file": (plan_file, {}, {"seconds": 15}),
    "plan_server_hung": (plan_server, {}, {"seconds": 15}),
    "plan_server_killed": (plan_server, {"how": "killed"}, {"how": "killed", "seconds": 15}),
    "online_store": (online_store, {}, {"seconds": 15}),
}


def main() -> None:
    """Do harm and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by comma: " + ", ".join(PARTS))
    parser.add_argument("--full", action="store_true", help="the counts of the project's goals; up to half an hour")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="change a part's number")
    chosen = parser.parse_args()
    logging.disable(logging.INFO)
    more = {name: json.loads(value) for name, _, value in (text.partition("=") for text in chosen.set)}
    found = {}
    for name in chosen.only.split(","):
        part, small, full = PARTS[name]
        with tempfile.TemporaryDirectory(prefix=f"chaos-{name}-") as home:
            found[name] = part(Path(home), **{**(full if chosen.full else small), **more})
        if not chosen.json:
            print(f"\n{name}")
            for key, value in found[name].items():
                print(f"  {key.replace('_', ' '):38} {value}", flush=True)
    if chosen.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
