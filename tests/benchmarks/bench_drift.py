"""A drift verdict over a million rows: our sketches and statistics against Evidently's preset on the same rows.

Run: ``python tests/benchmarks/bench_drift.py`` (8 columns, a minute) or with ``--full`` (30 columns, several minutes).
Ratios count; absolute times are this machine's. Ours computes PSI, Kullback-Leibler, Jensen-Shannon, KS, Wasserstein,
chi-square, unit and fault search; Evidently computes one statistic per run, so its time is the sum over those that both
have. The look is ours alone from raw rows to verdict; the reference is read from its JSON, as in the watch job.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings

import numpy as np
import pandas as pd

from trellis.contract import DriftPolicy, Field
from trellis.decision import dumps
from trellis.drift import DriftInputs, Reference, build_reference, decide, merge, sketch_window
from trellis.settings import silence_telemetry

ROWS, TARGET = 1_000_000, 20.0
SHARED = ("psi", "ks", "jensenshannon", "kl_div", "wasserstein")
QUICK = ("psi", "ks")


def main() -> None:
    """Print times, memory and ratios."""
    silence_telemetry()
    full = "--full" in sys.argv
    columns = 30 if full else 8
    rng = np.random.default_rng(0)
    before = {f"x{i}": rng.normal(size=ROWS).astype(np.float32) for i in range(columns)}
    fields = [Field(name, "float") for name in before]
    times = np.datetime64("2013-01-01", "us") + np.arange(ROWS) * np.timedelta64(15_500, "ms")
    started = time.perf_counter()
    stored = build_reference(before, fields, times=times).dumps()
    built = time.perf_counter() - started
    now = {name: values[::-1] + np.float32(0.1) for name, values in before.items()}

    looked, decided, verdict = [], [], ""
    for _ in range(3):
        started = time.perf_counter()
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
        looked.append(time.perf_counter() - started)
        started = time.perf_counter()
        inputs = DriftInputs("m", "1", reference, (window,), dict.fromkeys(before, "view"))
        verdict = decide(inputs, DriftPolicy()).outcome
        decided.append(time.perf_counter() - started)
    ours = float(np.median(looked) + np.median(decided))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    warnings.simplefilter("ignore")
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=list(before))
    sides = [Dataset.from_pandas(pd.DataFrame(part), definition) for part in (now, before)]
    stock: dict[str, float] = {}
    for method in SHARED if full else QUICK:
        started = time.perf_counter()
        Report([DataDriftPreset(num_method=method)]).run(*sides).dict()
        stock[method] = time.perf_counter() - started

    print(f"{ROWS:,} rows x {columns} columns, verdict {verdict}")
    print(f"  baseline, once per training     {built:8.3f} s   {len(stored) / 1000:.0f} kB of JSON")
    print(f"  read a window in two parts      {np.median(looked):8.3f} s   merged exactly")
    evidence = len(dumps(inputs)) / 1000
    print(f"  decide, all statistics          {np.median(decided):8.3f} s   {evidence:.0f} kB of evidence")
    met = "met" if memory < 1000 else "MISSED"
    print(f"  peak memory, both sides' rows   {memory:8.0f} MB  target < 1000: {met}")
    for method, seconds in stock.items():
        print(f"  Evidently, {method:14} alone {seconds:9.3f} s   {seconds / ours:.1f}x our whole look")
    for name, ratio in (("psi alone", stock["psi"] / ours), ("the same statistics", sum(stock.values()) / ours)):
        print(f"  Evidently, {name:19}: {ratio:6.1f}x our look, target >= 20: {'met' if ratio >= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
