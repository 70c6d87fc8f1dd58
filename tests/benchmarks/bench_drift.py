"""A drift verdict over a million rows: our sketches and statistics against Evidently's preset on the same rows.

Run: ``python tests/benchmarks/bench_drift.py`` (8 columns, a minute) or with ``--full`` (30 columns, several minutes).
Times are processor seconds, so that a neighbour's load moves them little; ratios count. Ours computes PSI,
Kullback-Leibler, Jensen-Shannon, KS, Wasserstein, chi-square, unit and fault search; Evidently computes one statistic
per run, so its time is the sum over those that both have. Our look goes from raw rows to verdict, in a process of its
own, so that its peak memory is that of a look: the reference is read from its JSON, as in the watch job.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.contract import DriftPolicy, Field
from trellis.decision import dumps
from trellis.drift import DriftInputs, Reference, build_reference, decide, merge, sketch_window
from trellis.settings import silence_telemetry

ROWS, TARGET = 1_000_000, 20.0
SHARED = ("psi", "ks", "jensenshannon", "kl_div", "wasserstein")
QUICK = ("psi", "ks")


def rows_of(columns: int, *, shifted: bool) -> dict[str, NDArray[np.float32]]:
    """Return ``columns`` normal columns of ``ROWS`` float32 values, the same ones in every process."""
    rng = np.random.default_rng(0)
    before = {f"x{i}": rng.normal(size=ROWS).astype(np.float32) for i in range(columns)}
    return {name: v[::-1] + np.float32(0.1) for name, v in before.items()} if shifted else before


def look(columns: int, stored: str) -> tuple[list[float], list[float], str, float, float]:
    """Take the look three times; return seconds to read and to decide, outcome, kB of evidence and peak MB."""
    now = rows_of(columns, shifted=True)
    fields = [Field(name, "float") for name in now]
    read, decided = [], []
    for _ in range(3):
        started = time.process_time()
        reference = Reference.loads(stored)
        half = ROWS // 2
        parts = [
            sketch_window(
                {n: v[rows] for n, v in now.items()},
                fields,
                reference,
                start="2013-07-02T00:00:00Z",
                end="2013-07-09T00:00:00Z",
            )
            for rows in (slice(0, half), slice(half, ROWS))
        ]
        window = merge(*parts).window()
        read.append(time.process_time() - started)
        started = time.process_time()
        inputs = DriftInputs("m", "1", reference, (window,), dict.fromkeys(now, "view"))
        verdict = decide(inputs, DriftPolicy()).outcome
        decided.append(time.process_time() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return read, decided, verdict, len(dumps(inputs)) / 1000, memory


def main() -> int:
    """Print times, memory and ratios; return 1 where a target is missed."""
    silence_telemetry()
    full = "--full" in sys.argv
    columns = 30 if full else 8
    before = rows_of(columns, shifted=False)
    times = np.datetime64("2013-01-01", "us") + np.arange(ROWS) * np.timedelta64(15_500, "ms")
    started = time.process_time()
    stored = build_reference(before, [Field(name, "float") for name in before], times=times).dumps()
    built = time.process_time() - started
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        read, decided, verdict, evidence, memory = alone.submit(look, columns, stored).result()
    ours = float(np.median(read) + np.median(decided))
    print(f"{ROWS:,} rows x {columns} columns, verdict {verdict}")
    print(f"  baseline, once per training     {built:8.3f} s   {len(stored) / 1000:.0f} kB of JSON")
    print(f"  read a window in two parts      {np.median(read):8.3f} s   merged exactly")
    print(f"  decide, all statistics          {np.median(decided):8.3f} s   {evidence:.0f} kB of evidence")
    met = "met" if memory < 1000 else "MISSED"
    print(f"  peak memory of a look           {memory:8.0f} MB  target < 1000: {met}", flush=True)

    warnings.simplefilter("ignore")
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=list(before))
    now = rows_of(columns, shifted=True)
    sides = [Dataset.from_pandas(pd.DataFrame(part), definition) for part in (now, before)]
    stock: dict[str, float] = {}
    for method in SHARED if full else QUICK:
        started = time.process_time()
        Report([DataDriftPreset(num_method=method)]).run(*sides).dict()
        seconds = stock[method] = time.process_time() - started
        print(f"  Evidently, {method:14} alone {seconds:9.3f} s   {seconds / ours:.1f}x our whole look", flush=True)
    for name, ratio in (("psi alone", stock["psi"] / ours), ("the same statistics", sum(stock.values()) / ours)):
        print(f"  Evidently, {name:19}: {ratio:6.1f}x our look, target >= 20: {'met' if ratio >= TARGET else 'MISSED'}")
    return int(met == "MISSED" or stock["psi"] / ours < TARGET)


if __name__ == "__main__":
    sys.exit(main())
