"""False alarms where nothing changed: 30 features, 90 daily looks, windows of 1,000 to 1,000,000 rows, four worlds.

Run: ``python tests/benchmarks/bench_drift_false_alarms.py`` (a minute), with ``--full`` for every size and more seeds
(an hour); ``--sizes``, ``--worlds``, ``--seeds`` and ``--first`` choose, ``--log FILE`` appends a line of JSON per run
as it ends, and ``--table FILE`` prints the table of such a file. Every look goes the way of the watch job: rows are
drawn, read once into sketches, forgotten, and judged beside the five windows before.

In each world the reference has 182 days of 300 rows. Days are *independent* (no row knows of another), *shared* (all
rows of a day have a fifth of their variance in common), *autocorrelated* (the same, and a day keeps 0.6 of the day
before), or have a *weekly* season (half of what a day shares belongs to its weekday).

Beside our verdict stands the stock rule on some of the same rows: alarm where any feature's two-sample
Kolmogorov-Smirnov p-value is below 0.05 (Evidently's and most tools' default test). Intervals are exact for a Poisson
count (Garwood 1936).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from trellis.contract import DriftPolicy, Field
from trellis.drift import DriftInputs, Window, build_reference, decide, look_alpha, summarise_window

FEATURES, LOOKS, DAYS, PER_DAY, SHARED, MEMORY, HISTORY = 30, 90, 182, 300, 0.2, 0.6, 5
POLICY = DriftPolicy(false_alarms_per_month=0.5, looks_per_month=30, min_rows=500)
BUDGET = POLICY.false_alarms_per_month * LOOKS / 30
NAMES = [f"x{i}" for i in range(FEATURES)]
FIELDS = [Field(name, "float") for name in NAMES]
WORLDS = ("independent", "shared", "autocorrelated", "weekly")
SIZES = (10**3, 10**4, 10**5, 10**6)
START = np.datetime64("2024-01-01", "s")
DAY = np.timedelta64(86_400, "s")


def effects(rng: np.random.Generator, world: str) -> np.ndarray:
    """Draw what every day adds to every feature, of variance ``SHARED``, shape ``(days, features)``."""
    drawn = rng.normal(size=(DAYS + LOOKS, FEATURES))
    if world == "independent":
        return np.zeros_like(drawn)
    if world == "autocorrelated":
        for day in range(1, len(drawn)):
            drawn[day] = MEMORY * drawn[day - 1] + np.sqrt(1 - MEMORY**2) * drawn[day]
    if world == "weekly":
        weekday = rng.normal(size=(7, FEATURES))
        weekday = (weekday - weekday.mean(axis=0)) / weekday.std(axis=0)
        drawn = np.sqrt(0.5) * (drawn + weekday[np.arange(len(drawn)) % 7])
    return np.sqrt(SHARED) * drawn


def rows_of(rng: np.random.Generator, added: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Draw the rows of one day; every feature has variance one over all days."""
    own = np.float32(np.sqrt(1 - SHARED) if added.any() else 1.0)
    return {
        name: rng.standard_normal(rows, dtype=np.float32) * own + np.float32(shift)
        for name, shift in zip(NAMES, added, strict=True)
    }


def run(size: int, world: str, seed: int) -> dict[str, Any]:
    """Return the alarms of 90 looks, and those of the stock rule on the looks it was asked."""
    started = time.process_time()
    rng = np.random.default_rng([size, WORLDS.index(world), seed])
    added = effects(rng, world)
    parts = [rows_of(rng, added[day], PER_DAY) for day in range(DAYS)]
    train = {name: np.concatenate([p[name] for p in parts]) for name in NAMES}
    times = (START + np.repeat(np.arange(DAYS), PER_DAY) * DAY).astype("datetime64[us]")
    reference = build_reference(train, FIELDS, times=times, period_days=1.0)
    alarms: list[int] = []
    stock = asked = 0
    windows: list[Window] = []
    for look in range(LOOKS):
        rows = rows_of(rng, added[DAYS + look], size)
        begin = START + (DAYS + look) * DAY
        window = summarise_window(rows, FIELDS, reference, start=f"{begin}Z", end=f"{begin + DAY}Z")
        if look % (9 if size <= 10**4 else 45) == 0:
            asked += 1
            stock += any(stats.ks_2samp(train[n], rows[n], method="asymp").pvalue < 0.05 for n in NAMES)
        # The declared pace: a look a day has up to 29 before it in its last 30 days.
        level = look_alpha(POLICY, min(look, 29))
        inputs = DriftInputs("m", "1", reference, (*windows, window), dict.fromkeys(NAMES, "view"), level=level)
        if decide(inputs, POLICY).outcome != "STABLE":
            alarms.append(look)
        windows = [*windows, window.coarse()][-HISTORY:]
    return {
        "rows": size, "world": world, "seed": seed, "alarms": len(alarms), "at": alarms,
        "stock": stock, "asked": asked, "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def table(runs: Sequence[dict[str, Any]]) -> int:
    """Print alarms per 90 looks against the budget; return how many lines are surely above it."""
    print(f"{FEATURES} features x {LOOKS} daily looks, nothing changed; budget {BUDGET:g} alarms in the {LOOKS} days")
    print("  rows per look   days             seeds   our alarms per run (95 %)     stock rule           CPU s")
    above = over = 0
    for size in SIZES:
        for world in WORLDS:
            found = [r for r in runs if r["rows"] == size and r["world"] == world]
            if not found:
                continue
            count, seeds = sum(r["alarms"] for r in found), len(found)
            low, high = (
                (stats.chi2.ppf(0.025, 2 * count) / 2 if count else 0.0),
                stats.chi2.ppf(0.975, 2 * count + 2) / 2,
            )
            per_run = count / seeds
            above += per_run > BUDGET
            over += low / seeds > BUDGET
            said = "OVER" if low / seeds > BUDGET else "above" if per_run > BUDGET else "within"
            print(
                f"  {size:13,}   {world:14}   {seeds:5}   {per_run:5.2f} ({low / seeds:4.2f} to {high / seeds:5.2f}) "
                f"{said:>9}   {sum(r['stock'] for r in found):4} of "
                f"{sum(r['asked'] for r in found):4} looks {sum(r['cpu_seconds'] for r in found):9.1f}"
            )
    print(f"lines above the budget: {above}, surely above it (OVER, the whole interval): {over}")
    return over


def main() -> int:
    """Run what was asked for, and print it; return 1 where alarms are surely above the budget."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--full", action="store_true", help="10, 5, 3 and 1 seeds of the four sizes, in all worlds")
    ask.add_argument("--sizes", type=int, nargs="+", default=[10**3], help="rows per look")
    ask.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    ask.add_argument("--seeds", type=int, default=1)
    ask.add_argument("--first", type=int, default=0, help="first seed")
    ask.add_argument("--log", type=Path, help="append every run to this file")
    ask.add_argument("--table", type=Path, help="print the table of such a file and stop")
    chosen = ask.parse_args()
    if chosen.table:
        return int(table([json.loads(line) for line in chosen.table.read_text().splitlines()]) > 0)
    plan = dict(zip(SIZES, (10, 5, 3, 1), strict=True)) if chosen.full else dict.fromkeys(chosen.sizes, chosen.seeds)
    runs = []
    for size, seeds in plan.items():
        for seed in range(chosen.first, chosen.first + seeds):
            for world in chosen.worlds:
                runs.append(run(size, world, seed))
                if chosen.log:
                    with chosen.log.open("a") as file:
                        file.write(json.dumps(runs[-1]) + "\n")
    over = table(runs)
    if not chosen.full:
        sizes = ", ".join(f"{size:,}" for size in plan)
        print(f"This was a short run: {sizes} rows, {chosen.seeds} seed(s). It bounds little; --full has the figures.")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
