"""What orchestration costs: a flow's wall time against the work of its steps, embedded and under a Prefect server.

Run ``python tests/benchmarks/bench_flows.py``; ``--flights`` adds the flight model, a month of it, which takes minutes.
Every flow runs in a process of its own: first on an empty home, then again, when every kept step is found done.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOYS = ROOT / "tests" / "pipelines" / "toys"
LIMIT_SECONDS = 15.0  # what embedded orchestration may cost


@contextmanager
def prefect_server(directory: Path) -> Iterator[dict[str, str]]:
    """Run a server on a free port of loopback and give the environment that finds it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = {
        "PREFECT_HOME": str(directory),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "TRELLIS_ORCHESTRATOR": "prefect",
    }
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env={**os.environ, **found}, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{found['PREFECT_API_URL']}/health", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def measure(arguments: list[str], environment: dict[str, str], home: Path) -> dict[str, float]:
    """Run a flow once and return what it says of itself, and what the whole process took."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments, "--json"],
        cwd=ROOT,
        env={**os.environ, "TRELLIS_HOME": str(home), **environment},
        capture_output=True,
        text=True,
    )
    process = time.perf_counter() - begun
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr[-2_000:])
    run = json.loads((home / "flows" / "runs.jsonl").read_text().splitlines()[-1])
    work = sum(run["steps"].values())
    return {"wall": run["wall_seconds"], "work": work, "overhead": run["overhead_seconds"], "process": process}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flights", action="store_true", help="also train the flight model on a month")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server goes too
    cases = {"toy": (["train", "toy_binary", "--until", "2013-05-01T00:00:00Z"], {"TRELLIS_MODELS": str(TOYS)})}
    if chosen.flights:
        period = ["--since", "2013-01-01T05:00:00Z", "--until", "2013-02-01T05:00:00Z"]
        cases["flights"] = (["train", "flight_delay", "--recipe", "xgboost", *period], {})
    print(f"{'flow':<10}{'orchestrator':<14}{'run':<8}{'wall s':>9}{'work s':>9}{'overhead s':>12}{'process s':>11}")
    worst = {"embedded": 0.0, "prefect": 0.0}
    with (
        tempfile.TemporaryDirectory(prefix="bench-flows-") as scratch,
        prefect_server(Path(scratch, "prefect")) as server,
    ):
        for name, (arguments, environment) in cases.items():
            for way, more in (("embedded", {"TRELLIS_ORCHESTRATOR": "embedded"}), ("prefect", server)):
                for turn in ("first", "again"):
                    found = measure(arguments, {**environment, **more}, Path(scratch, f"{name}-{way}"))
                    worst[way] = max(worst[way], found["overhead"])
                    print(
                        f"{name:<10}{way:<14}{turn:<8}{found['wall']:>9.2f}{found['work']:>9.2f}"
                        f"{found['overhead']:>12.2f}{found['process']:>11.2f}",
                        flush=True,
                    )
    print(
        f"\nMost overhead embedded {worst['embedded']:.2f} s (limit {LIMIT_SECONDS:g} s), under Prefect "
        f"{worst['prefect']:.2f} s: {worst['prefect'] / max(worst['embedded'], 0.001):,.0f} times."
    )
    if worst["embedded"] > LIMIT_SECONDS:
        raise SystemExit("Embedded orchestration costs more than it may.")


if __name__ == "__main__":
    main()
