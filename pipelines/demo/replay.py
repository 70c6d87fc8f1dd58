"""Traffic for a running stack: the flights after the launch ask for predictions, and tell the truth when they land.

``python -m pipelines.demo.replay --url http://gateway:8080`` replays event time hour by hour.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path

import httpx

from pipelines.data import feature_store, ingest
from pipelines.demo.story import LAUNCH, MODEL, flights_from
from pipelines.demo.traffic import HOUR, Traffic
from pipelines.plugins import plugin_named
from trellis.errors import DataError, TrellisError
from trellis.settings import silence_telemetry


def main() -> int:
    """Send traffic until stopped, or until the rows are over."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo.replay", description=__doc__)
    parser.add_argument("--url", required=True, help="the prediction service")
    parser.add_argument("--key-file", type=Path, help="file of an API key")
    parser.add_argument("--per-second", type=float, default=20, help="predictions a second, on average")
    parser.add_argument("--since", type=datetime.fromisoformat, default=LAUNCH, help="first moment, RFC 3339")
    parser.add_argument("--days", type=int, default=150, help="days of event time")
    chosen = parser.parse_args()
    silence_telemetry()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        return _replay(chosen, stop)
    except TrellisError as error:
        sys.stderr.write(f"replay: {error}\n")
        return 1


def _replay(chosen: argparse.Namespace, stop: threading.Event) -> int:
    key = chosen.key_file.read_text().strip() if chosen.key_file else None
    rows = flights_from(ingest(MODEL), chosen.since)
    traffic = Traffic(plugin_named(MODEL).spec, rows, feature_store(), chosen.url, key)
    try:
        for hour in range(24 * chosen.days):
            before = traffic.tally.predictions
            while not stop.is_set():
                try:
                    traffic.hour(chosen.since + timedelta(hours=hour))
                    break
                except (httpx.TransportError, DataError) as error:  # the stack is being looked after; ask again
                    sys.stderr.write(f"replay: {error}\n")
                    stop.wait(2)
            if stop.wait((traffic.tally.predictions - before) / chosen.per_second):
                break
            if hour % 24 == 23:
                at, tally = chosen.since + (hour + 1) * HOUR, traffic.tally
                sys.stdout.write(f"{at:%d %B}: {tally.predictions:,} predictions, {tally.labels:,} labels\n")
                sys.stdout.flush()
    finally:
        traffic.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
