"""What the serving process pays for being watched: its processor time per request with looks going on and without.

The flight model is trained, served and asked by an open loop at a steady rate, once left alone and once with the watch
job looking at the growing window again and again, in turns. Windows are read from the log, which is written for its own
sake, by the job's own process; so what a look can cost the serving one is what two processes cost each other on one
machine. Medians of the rounds; "log" is the part of a request's time that writes its record, for comparison.

Run it with ``python tests/benchmarks/bench_live_window.py``; a model is trained first, which takes a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import bench_http
import bench_whole_path as whole
from open_loop import offer, post

from trellis.catalog import Catalogue

UNTIL = "2013-07-01T15:00:00Z"


def looking(home: Path, environment: dict[str, str], stop: threading.Event, took: list[float], rows: list[int]) -> None:
    """Look again and again until told to stop; each look's own processor time in seconds goes to ``took``."""
    command = [sys.executable, "-m", "monitoring", "watch", whole.MODEL, "--until", UNTIL, "--no-report", "--json"]
    while not stop.is_set():
        before = os.times()
        done = subprocess.run(command, env=environment, cwd=whole.ROOT, capture_output=True, text=True)
        after = os.times()
        assert done.returncode in (0, 3, 4, 5), done.stderr
        rows.append(json.loads(done.stdout)["decision"]["inputs"]["inputs"]["windows"][-1]["rows"])
        took.append(after.children_user + after.children_system - before.children_user - before.children_system)


def main() -> int:
    """Measure and print; return 1 where looks cost the serving process more than asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=400.0, help="requests per second")
    parser.add_argument("--seconds", type=int, default=12, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        home.mkdir()
        port = bench_http.free_port()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
        environment |= whole.QUIET | whole.settings(home, "sqlite", port) | {"TRELLIS_AUTH": "off"}
        del environment["TRELLIS_STORE_URL"]
        train = [sys.executable, "-m", "pipelines", "train", whole.MODEL, "--until", "2013-07-01T00:00:00Z"]
        subprocess.run(train, env=environment, cwd=whole.ROOT, check=True, capture_output=True)
        source = Path(name) / "source"
        Catalogue([whole.ROOT / "models"], entry_points=False).plugin(whole.MODEL).ingest(source / "raw")
        bodies = [json.dumps({"rows": [row]}).encode() for row in whole.flights(source)]
        url = f"http://127.0.0.1:{port}/v1/models/{whole.MODEL}/predict"
        asked = [post(f"/v1/models/{whole.MODEL}/predict", body, {}) for body in bodies]
        command = [sys.executable, "-m", "services.prediction"]
        typed = {"Content-Type": "application/json"}
        with bench_http.process(command, environment, url, bodies[0], typed, Path(name) / "service.txt"):
            offer("127.0.0.1", port, asked, chosen.rate, 8)  # enough rows for a verdict

            def spent() -> float:
                began, before = time.perf_counter(), whole.worker_seconds(home)
                load = offer("127.0.0.1", port, asked, chosen.rate, chosen.seconds)
                assert not load.bad, load.bad
                busy = whole.worker_seconds(home) - before
                shares.append(busy / (time.perf_counter() - began))
                return busy / len(load.milliseconds) * 1e6

            shares: list[float] = []
            took: list[float] = []
            rows: list[int] = []
            rounds = []
            for _ in range(chosen.rounds):
                alone = spent()
                stop = threading.Event()
                job = threading.Thread(target=looking, args=(home, environment, stop, took, rows))
                job.start()
                watched = spent()
                stop.set()
                job.join()
                rounds.append((alone, watched))
        alone, watched = (statistics.median(r[i] for r in rounds) for i in (0, 1))
        more = statistics.median(w / a - 1 for a, w in rounds)
        share = statistics.median(shares)
        print(
            f"{chosen.rate:.0f} requests/s, which keep the serving process busy for {share:.0%} of a core; medians of"
        )
        print(f"{chosen.rounds} rounds of {chosen.seconds} s in turns; {len(took)} looks, one after the other, at")
        print(f"{min(rows)} to {max(rows)} rows, each {statistics.median(took):.1f} s of the job's own processor time")
        print(f"{'left alone':24}{alone:8.0f} us of the serving process per request")
        print(f"{'with looks going on':24}{watched:8.0f} us ({more:+.1%}; {more * share:+.2%} of a core, asked < 2 %)")
    return int(more * share >= 0.02)


if __name__ == "__main__":
    sys.exit(main())
