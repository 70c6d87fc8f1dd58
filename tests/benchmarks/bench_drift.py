"""Drift of 17 columns: our summaries and statistics against Evidently's preset on the same rows.

Run: ``python tests/benchmarks/bench_drift.py``. Ratios count; absolute times are this machine's.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import pandas as pd

from trellis.contract import DriftPolicy, Field
from trellis.decision import dumps
from trellis.drift import DriftInputs, build_reference, decide, summarise_window
from trellis.settings import silence_telemetry

ROWS, COLUMNS = 100_000, 17


def main() -> None:
    """Print times and ratios."""
    silence_telemetry()
    rng = np.random.default_rng(0)
    before = {f"x{i}": rng.normal(size=ROWS).astype(np.float32) for i in range(COLUMNS)}
    now = {name: values[::-1] + np.float32(0.1) for name, values in before.items()}
    fields = [Field(name, "float") for name in before]
    times = np.datetime64("2013-01-01", "us") + np.arange(ROWS) * np.timedelta64(155, "s")

    started = time.perf_counter()
    reference = build_reference(before, fields, times=times)
    built = time.perf_counter() - started
    started = time.perf_counter()
    window = summarise_window(now, fields, reference, start="2013-07-02T00:00:00Z", end="2013-07-09T00:00:00Z")
    summarised = time.perf_counter() - started
    started = time.perf_counter()
    inputs = DriftInputs("m", "1", reference, (window,) * 6, dict.fromkeys(before, "view"))
    verdict = decide(inputs, DriftPolicy())
    decided = time.perf_counter() - started

    warnings.simplefilter("ignore")
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=list(before))
    sides = [Dataset.from_pandas(pd.DataFrame(part), definition) for part in (now, before)]
    started = time.perf_counter()
    Report([DataDriftPreset(num_method="psi")]).run(*sides).dict()
    stock = time.perf_counter() - started

    print(f"{ROWS:,} rows x {COLUMNS} columns, verdict {verdict.outcome}")
    print(f"  baseline, once per training   {built:8.3f} s   {len(reference.dumps()) / 1000:.0f} kB of JSON")
    print(f"  summarise a window            {summarised:8.3f} s")
    print(f"  decide on six windows         {decided:8.3f} s   {len(dumps(inputs)) / 1000:.0f} kB of evidence")
    print(f"  Evidently DataDrift (psi)     {stock:8.3f} s   {stock / (summarised + decided):.1f}x our look")


if __name__ == "__main__":
    main()
