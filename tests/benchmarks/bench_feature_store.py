"""The training set of all 2013 flights: our offline store, a bare ASOF query and Feast's own DuckDB store, in one run.

Each runs in its own process, which reports the time of its first join and the median of the next ones, and the peak
memory of the whole process; the quick ways take turns and give medians. Ratios are of the next joins. Feast's store
compares every flight with many older rows of its key, which takes much memory with some versions of DuckDB, so it gets
4 GB (``--stock-memory none`` lifts the limit). It is given all flights and the six batch views, or with
``--stock-rows`` that many drawn at random; the ratio for all flights is then worked out in line with the rows, and
marked as such.

Run: ``python tests/benchmarks/bench_feature_store.py [--stock-rows N] [--home DIRECTORY]``. Feast's store needs
``ibis-framework``; without it that line is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
KEYS = {
    "carrier_delays": ("carrier",),
    "route_delays": ("origin", "dest"),
    "origin_delays": ("origin",),
    "aircraft_delays": ("tailnum",),
    "aircraft_facts": ("tailnum",),
    "origin_weather": ("origin",),
}


def prepare(home: Path) -> None:
    """Write the feature tables, the registry and the frame of all flights below ``home``."""
    from trellis.adapters.feature_store import FeatureStore
    from trellis.catalog import Catalogue

    plugin = Catalogue([ROOT / "models"], entry_points=False).plugin("flight_delay")
    source = import_module(type(plugin).__module__.rsplit(".", 1)[0] + ".source")
    plugin.ingest(home / "raw")
    plugin.build_features(home / "raw", home / "features")
    FeatureStore(ROOT / "feature_repo", home).apply()
    flights = source.timetable(home / "raw")
    frame = flights[["carrier", "origin", "dest", "tailnum", "sched_dep"]].fillna({"tailnum": ""})
    frame["event_timestamp"] = frame["sched_dep"].dt.tz_localize("UTC")
    frame.sample(frac=1, random_state=0).to_parquet(home / "entities.parquet", index=False)


def child(kind: str, home: Path, rows: int, stock_memory: str) -> None:
    """Run one way of joining and print its figures as JSON."""
    import pandas as pd
    import pyarrow as pa

    frame = pd.read_parquet(home / "entities.parquet")
    frame = frame.head(rows) if rows else frame
    if kind == "bare":
        import duckdb

        db = duckdb.connect(config={"temp_directory": tempfile.gettempdir()})
        db.execute("SET memory_limit = '1GB'")
        db.execute("SET TimeZone = 'UTC'")
        db.execute("SET asof_loop_join_threshold = 0")
        joins = "".join(
            f" ASOF LEFT JOIN read_parquet('{home}/features/{view}.parquet') {view} ON "
            + " AND ".join(f"e.{key} = {view}.{key}" for key in keys)
            + f" AND e.event_timestamp >= {view}.event_timestamp"
            for view, keys in KEYS.items()
        )
        columns = ", ".join(f"{v}.* EXCLUDE ({', '.join(k)}, event_timestamp)" for v, k in KEYS.items())

        def join():
            entities = pa.Table.from_pandas(frame, preserve_index=False).append_column(
                "row", pa.array(range(len(frame)))
            )
            db.register("e", entities)
            return db.execute(f"SELECT e.*, {columns} FROM e{joins} ORDER BY e.row").to_arrow_table()

        print(json.dumps(timed(join, 6)))
    else:
        from trellis.adapters.feast_setting import import_feast, online_store_config, surroundings

        feast = import_feast()
        from feast.repo_config import load_repo_config

        with surroundings(home, online_store_config(home, "sqlite")):
            text = (ROOT / "feature_repo" / "feature_store.yaml").read_text()
            if kind == "stock":
                import ibis

                text = text.replace("trellis.adapters.feast_asof.AsofOfflineStore", "duckdb")
                if stock_memory != "none":
                    ibis.get_backend().raw_sql(f"SET memory_limit = '{stock_memory}'")
            (home / f"{kind}.yaml").write_text(text)
            store = feast.FeatureStore(config=load_repo_config(home, home / f"{kind}.yaml"))
            wanted = ["flight_delay_v1"] if kind == "service" else []
            features = [
                f"{p.name}:{f.name}"
                for p in store.get_feature_service("flight_delay_v1").feature_view_projections
                for f in p.features
                if wanted or p.name in KEYS
            ]
            calls = 2 if kind == "stock" else 6  # a call of Feast's own store takes half a minute
            print(json.dumps(timed(lambda: store.get_historical_features(frame, features).to_arrow(), calls)))


def timed(join: Callable[[], Any], calls: int) -> dict:
    """Join several times: the first also opens databases and touches memory for the first time."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        table = join()
        seconds.append(time.perf_counter() - start)
        rows = table.num_rows
        del table
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "first": seconds[0], "seconds": median(seconds[1:]), "peak_mb": peak}


def measure(kind: str, home: Path, rows: int, timeout: float, stock_memory: str) -> dict | None:
    """Run a child and return its figures; None where it failed or took too long."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", kind, "--home", str(home), "--rows", str(rows)]
    command += ["--stock-memory", stock_memory]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=os.environ)
    except subprocess.TimeoutExpired:
        print(f"  {kind} on {rows or 'all'} rows: stopped after {timeout:.0f} s")
        return None
    if done.returncode:
        print(f"  {kind} failed: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Prepare, measure, print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stock-rows", type=int, default=0, help="flights given to Feast's own store; 0 gives all")
    parser.add_argument("--stock-memory", default="4GB", help="DuckDB's memory limit in Feast's own store, or none")
    parser.add_argument("--repeats", type=int, default=5, help="runs of the quick ways")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for any one way")
    parser.add_argument("--home", type=Path, help="directory to keep; a temporary one otherwise")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.home, options.rows, options.stock_memory)
        return
    with tempfile.TemporaryDirectory() as scratch:
        home = (options.home or Path(scratch)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        prepare(home)
        ways = [("bare", "bare ASOF query", 0), ("ours", "our store", 0), ("service", "our store + on-demand view", 0)]
        if find_spec("ibis"):
            ways.append(("stock", "Feast's DuckDB store", options.stock_rows))
        else:
            print("Feast's own store is left out: ibis-framework is not installed.")
        print(f"{'way':<28}{'rows':>9}{'first, s':>10}{'next, s':>10}{'peak MB':>9}{'x bare':>9}{'x ours':>9}")
        found: dict[str, dict] = {}
        runs: dict[str, list[dict]] = {kind: [] for kind, _, _ in ways}
        for turn in range(options.repeats + 1):  # the first turn reads the files from disk and is not counted
            for kind, _, rows in ways:
                if kind == "stock" and turn < options.repeats:
                    continue
                got = measure(kind, home, rows, options.timeout, options.stock_memory)
                if got is not None and turn:
                    runs[kind].append(got)
        found: dict[str, dict] = {}
        for kind, label, _ in ways:
            if not runs[kind]:
                continue
            got = sorted(runs[kind], key=lambda run: run["seconds"])[len(runs[kind]) // 2]
            per_row = got["seconds"] / got["rows"]
            found[kind] = got | {"per_row": per_row}
            ratios = [f"{per_row / found[k]['per_row']:9.2f}" if k in found else f"{'-':>9}" for k in ("bare", "ours")]
            figures = f"{got['rows']:>9}{got['first']:>10.2f}{got['seconds']:>10.2f}{got['peak_mb']:>9.0f}"
            print(f"{label:<28}{figures}{''.join(ratios)}")
        if {"stock", "ours", "service"} <= set(found):
            whole = found["stock"]["per_row"] * found["ours"]["rows"]
            how = (
                "measured" if found["stock"]["rows"] == found["ours"]["rows"] else "extrapolated in line with the rows"
            )
            times = {kind: whole / found[kind]["seconds"] for kind in ("ours", "service")}
            first = found["stock"]["first"] / found["ours"]["first"]
            print(f"All flights, six batch views, by Feast's store: {whole:.1f} s ({how}),")
            print(f"{times['ours']:.0f} times ours, {times['service']:.0f} times ours with the on-demand view as well;")
            print(f"{first:.0f} times ours in a process's first call.")


if __name__ == "__main__":
    main()
