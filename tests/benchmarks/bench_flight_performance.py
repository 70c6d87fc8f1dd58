"""Whether the flight model's estimated loss holds, week by week, on flights it has not seen, before and after learning.

Raw tables, features and the point-in-time join are the platform's own. Train on January to March, validate on April,
fit the loss model on May and June (or one of them), and estimate the weeks from July to December of 2013 from scores
alone. Beside the interval as it was, before past weeks taught anything: the same, widened by how far earlier weeks
turned out from their estimates, all of them known when it is judged, as labels come within hours. A minute or two.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from bench_flight_quality import ROOT, _between, _joined

from trellis.catalog import Catalogue
from trellis.contract import TrainingData, TrainingRun
from trellis.ledger import Past, between_windows, fit_loss_model
from trellis.ledger.estimate import estimated, widened
from trellis.metrics import row_loss
from trellis.settings import silence_telemetry

WARM = 4
REFERENCES = {"May and June": ("2013-05", "2013-07"), "June": ("2013-06", "2013-07"), "May": ("2013-05", "2013-06")}


def main() -> None:
    """Train, estimate week by week and print."""
    silence_telemetry()
    plugin = Catalogue([ROOT / "models"], entry_points=False).plugin("flight_delay")
    with tempfile.TemporaryDirectory() as home:
        data = _joined(plugin, Path(home))
    train, validation = _between(data, "2013-01", "2013-04"), _between(data, "2013-04", "2013-05")
    with tempfile.TemporaryDirectory() as scratch:
        predictor = plugin.train(TrainingData(train, validation), TrainingRun(7, "xgboost", Path(scratch)))
    live = _between(data, "2013-07", "2014-01")
    score = predictor.predict(live.columns)["probability"]
    loss, day = row_loss("binary", live.target, score), live.time.astype("datetime64[D]").astype(np.int64)
    week = (day - day.min()) // 7
    for name, (start, end) in REFERENCES.items():
        seen = _between(data, start, end)
        days = seen.time.astype("datetime64[D]").astype(np.int64)
        known = predictor.predict(seen.columns)["probability"]
        model = fit_loss_model(plugin.spec, seen.target, known, seen.columns, days)
        expected = model.expect(score, live.columns)
        print(f"\nreference {name}: {len(seen):,} flights, mean loss {model.mean:.4f}")
        print("week  realised  estimated  off      as it was          widened")
        past: list[Past] = []
        held = []
        for number in range(int(week.max()) + 1):
            rows = week == number
            if len(np.unique(day[rows])) < 7:
                continue
            truth, first = float(loss[rows].mean()), estimated(model, expected, rows, day)
            assert first is not None
            between = between_windows(past, float(number))
            wide = widened(first, between) if between else first
            held.append([e.low <= truth <= e.high for e in (first, wide)] + [e.high - e.low for e in (first, wide)])
            told = "  ".join(
                f"{e.low:.4f} to {e.high:.4f} {' x'[not (e.low <= truth <= e.high)]}" for e in (first, wide)
            )
            print(f"{number + 1:>4}  {truth:.4f}    {first.value:.4f}     {truth - first.value:+.4f}  {told}")
            past.append(Past(float(number), truth - first.value, first.deviation))
        table = np.array(held, dtype=float)
        for text, part in (("all weeks", table), (f"from week {WARM + 1} on", table[WARM:])):
            plain, wide_, before, after = part.mean(axis=0)
            print(f"{text}: as it was {plain:.0%} of {len(part)} held, width {before:.4f}; ", end="")
            print(f"widened {wide_:.0%}, width {after:.4f}")


if __name__ == "__main__":
    main()
