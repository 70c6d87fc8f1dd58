"""False alarms where nothing changed: 30 features, 90 daily looks, windows of 1,000 to 1,000,000 rows.

Run: ``python tests/benchmarks/bench_drift_false_alarms.py`` (about a minute), with ``--full`` for more seeds and every
row of every size. Beside our verdict stands the stock rule on the same rows: alarm where any feature's two-sample
Kolmogorov-Smirnov p-value is below 0.05 (Evidently's and most tools' default test). Rows of real data resemble each
other; the second table draws days that share a part of their variance, for which no independent test holds its level.

Windows of a million rows are drawn as rows on a few looks; on the others the same summaries are drawn directly: the
cells of independent rows are multinomial, so their counts have exactly the distribution that rows would give them.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
from scipy import stats

from trellis.contract import DriftPolicy, Field
from trellis.drift import DriftInputs, NumericSummary, Reference, Window, build_reference, decide, summarise_window

FEATURES, LOOKS = 30, 90
POLICY = DriftPolicy(false_alarms_per_month=0.5, looks_per_month=30, min_rows=500)
NAMES = [f"x{i}" for i in range(FEATURES)]
FIELDS = [Field(name, "float") for name in NAMES]
WEEK = {"start": "2024-07-01T00:00:00Z", "end": "2024-07-02T00:00:00Z"}


def days(rng: np.random.Generator, count: int, per_day: int, shared: float) -> dict[str, np.ndarray]:
    """Rows of which a share ``shared`` of the variance is common to all rows of a day."""
    day = np.repeat(np.arange(count), per_day)
    return {
        name: np.sqrt(shared) * rng.normal(size=count)[day] + np.sqrt(1 - shared) * rng.normal(size=len(day))
        for name in NAMES
    }


def drawn(rng: np.random.Generator, reference: Reference, rows: int, template: Window) -> Window:
    """Draw a window's summaries as independent rows of the reference's distribution would make them."""
    columns = {}
    for name, column in reference.columns.items():
        before = column.summary
        assert isinstance(before, NumericSummary)
        shown = template.columns[name]
        assert isinstance(shown, NumericSummary)
        counts = rng.multinomial(rows, truth(before))
        columns[name] = replace(shown, counts=tuple(int(c) for c in counts), fine=())
    return Window(WEEK["start"], WEEK["end"], rows, columns)


def truth(before: NumericSummary) -> np.ndarray:
    """Probability of every bin under the standard normal distribution that rows are drawn from."""
    return np.diff(np.concatenate([[0.0], stats.norm.cdf(before.edges), [1.0]]))


def run(size: int, seed: int, shared: float, whole: bool) -> tuple[int, int, int]:
    """Return alarms of our verdict, alarms of the stock rule, and the looks of each."""
    rng = np.random.default_rng([size, seed])
    train = days(rng, 182, 300 if shared else 1_000, shared)
    per = 300 if shared else 1_000
    times = np.datetime64("2024-01-01", "us") + np.repeat(np.arange(182), per) * np.timedelta64(86_400_000_000, "us")
    reference = build_reference(train, FIELDS, times=times, period_days=1.0)
    sample = {n: v[:: max(1, len(v) // 100_000)] for n, v in train.items()}
    alarms = stock = asked = 0
    template: Window | None = None
    for look in range(LOOKS):
        if template is None or whole or shared or size <= 10_000:
            rows = days(rng, 1, size, shared)
            window = summarise_window(rows, FIELDS, reference, **WEEK)
            template = template or window
            if whole or size <= 10_000 or look < 1:
                asked += 1
                stock += any(stats.ks_2samp(sample[n], rows[n], method="asymp").pvalue < 0.05 for n in NAMES)
        else:
            window = drawn(rng, reference, size, template)
        inputs = DriftInputs("m", "1", reference, (window,), dict.fromkeys(NAMES, "view"), looks=look % 30)
        alarms += decide(inputs, POLICY).outcome != "STABLE"
    return alarms, stock, asked


def main() -> None:
    """Print alarms against the budget."""
    full = "--full" in sys.argv
    seeds = 5 if full else 1
    budget = POLICY.false_alarms_per_month * LOOKS / 30
    print(f"{FEATURES} features x {LOOKS} daily looks, nothing changed; budget {budget:g} alarms in the {LOOKS} days")
    print("  rows per look   day's share   our alarms   stock rule            seconds")
    missed = 0
    for size, shared in [(10**3, 0.0), (10**4, 0.0), (10**5, 0.0), (10**6, 0.0), (10**3, 0.2)]:
        started = time.perf_counter()
        found = [run(size, seed, shared, full and size < 10**6) for seed in range(seeds)]
        alarms, stock, asked = (sum(part) for part in zip(*found, strict=True))
        per_run = alarms / seeds
        missed += per_run > budget
        print(
            f"  {size:13,}   {shared:11.1f}   {per_run:10.2f}   {stock:5} of {asked:4} looks   "
            f"{time.perf_counter() - started:10.1f}   {'within' if per_run <= budget else 'OVER'}"
        )
    print(f"alarms within the budget at every size: {'yes' if not missed else f'NO, {missed} sizes over'}")


if __name__ == "__main__":
    main()
